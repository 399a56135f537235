"""Virtio device models: what a model needs is here; the models are modules of their own, listed in `registry`."""

from devices.backend import BackendServices
from devices.config_space import ConfigSpace, array, le16, le32, le64, u8
from devices.device import Device, on_read, on_write
from devices.errors import DeviceError, InUse, NotPermitted, OptionError, RequestError
from devices.features import FeatureTable, Requires
from devices.queue import Queue
from devices.request import Hold, Request

__all__ = [
    "BackendServices",
    "ConfigSpace",
    "Device",
    "DeviceError",
    "FeatureTable",
    "Hold",
    "InUse",
    "NotPermitted",
    "OptionError",
    "Queue",
    "Request",
    "RequestError",
    "Requires",
    "array",
    "le16",
    "le32",
    "le64",
    "on_read",
    "on_write",
    "u8",
]
