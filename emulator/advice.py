"""What a person is told of a device that is closed or needs a reset: what the reason says, and what to do about it.

The reason itself is what the store has in `error`, `NAME DETAIL` (docs/protocol.md section 4). Only the log has more:
the frontend reads that node, and no driver has a use for our advice.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from emulator.frontend_nodes import PROTOCOL_VERSION

RELOAD: Final = "reload the driver in the domain, or update it if that does not help"
RIGHT_VERSION: Final = f"use a driver of protocol version {PROTOCOL_VERSION} in the domain"
SEE_ABOVE: Final = "see the lines above; mend the model, or report it"

PAGE: Final = "in the page of fe-to-be-ref"

CODES: Final = {
    "bad_magic": (f"the first word {PAGE}", RELOAD),
    "bad_version": (f"the version {PAGE}", RIGHT_VERSION),
    "bad_seq": (f"the number of a message {PAGE}", RELOAD),
    "bad_size": (f"the length of a message {PAGE}", RELOAD),
    "bad_type": (f"type and 256 times device number of a message {PAGE}", RELOAD),
    "bad_token": (f"the token of a message {PAGE}", RELOAD),
    "bad_msg_id": (f"the id of a message {PAGE}", RELOAD),
    "bad_payload": (f"bytes or blocks of features of a message {PAGE}", RELOAD),
    "config_range": ("the end of an access beyond the configuration space", RELOAD),
    "config_read_only": ("an offset in the configuration space that is read-only", RELOAD),
    "status_order": ("the device status, which does not come next or forbids the request", RELOAD),
    "features": ("features, or a block of them, that were not offered or lack others", RELOAD),
    "queue_index": ("the device has no such virtqueue", RELOAD),
    "queue_size": ("no size that the virtqueue may have", RELOAD),
    "queue_address": ("the address of a ring: misaligned, or no grant-DMA address", RELOAD),
    "queue_state": ("the device status, or a virtqueue without queue-N/event-channel", RELOAD),
    "config_value": ("the offset of a value that the model refused", RELOAD),
    "grant_map": (
        "this grant reference or one after it cannot be mapped or copied",
        "the driver in the domain has to grant it, for as long as it uses it; if it does, see `xl dmesg`",
    ),
    "map_budget": (
        "pages asked for at once, more than are left",
        "`--map-budget MIB` of run or supervise gives more, of what is outside the arena 32 MiB at most",
    ),
    "avail_index": ("the avail index, further ahead than the ring is long", RELOAD),
    "desc_head": ("the avail ring names a descriptor that is not there", RELOAD),
    "desc_next": ("the next of a descriptor, which is not there", RELOAD),
    "desc_cycle": ("the head of a chain without an end", RELOAD),
    "desc_indirect": ("flags or length of a wrong indirect descriptor", RELOAD),
    "desc_address": (
        "no grant-DMA address",
        "the driver in the domain has to use those: load virtio_msg_xen, or use its DMA operations",
    ),
    "desc_length": ("bytes of a descriptor or chain: none, or too many", RELOAD),
    "desc_order": ("a descriptor to be read comes after one to be written", RELOAD),
    "desc_in_flight": ("the head of a chain that was offered twice", RELOAD),
    "request": ("the model refused a request", f"see the line above; {RELOAD}"),
    "model": ("the model failed", SEE_ABOVE),
}
"""For each error code but `host`: what its detail is, and what to do."""

GUESTS: Final = (errno.EINVAL, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ESRCH, errno.E2BIG)
"""How a hypervisor refuses a reference or a port that the domain made up, withdrew, or offered to another domain."""


def explain(reason: str, directory: str) -> str:
    """`reason` with what it says and what to do, in one line. `directory`: the frontend's, in the store."""
    name, _, detail = reason.partition(" ")
    if name in CODES:
        says, advice = CODES[name]
        return f"{reason} ({says}); {advice}"
    if name == "store":
        return f"{reason}, in {directory}; {_of_node(detail)}"
    if name == "host":
        return _of_host(reason, detail)
    return f"{reason}; {SEE_ABOVE if name == 'host:' else RELOAD}"


def _of_node(detail: str) -> str:
    if detail.endswith(": missing"):
        return "the driver in the domain has to write it before it goes to state 3"
    return RIGHT_VERSION if detail.startswith("version:") else f"the driver in the domain wrote it: {RELOAD}"


def _of_host(reason: str, detail: str) -> str:
    """`ERRNO TEXT` of what could not be mapped or bound, or `ERRNO` alone."""
    number, _, text = detail.partition(" ")
    code = int(number) if number.isdecimal() and len(number) < 6 else 0
    if not text:
        reason += f" ({os.strerror(code)})"
    elif code in GUESTS and text.startswith(("cannot map", "cannot bind")):
        return f"{reason}; the driver in the domain has to grant or offer it to this domain; if it does, see `xl dmesg`"
    return f"{reason}; this host lacks something: see `virtio-dm doctor`, `free`, `dmesg`"
