"""From a specification to a device model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_type_hints

from devices import options, registry
from devices.device import Device
from devices.errors import DeviceError, InUse, NotPermitted, OptionError
from emulator.exit_codes import ExitCode, Failure
from emulator.spec import Spec


class InUseFailure(Failure):
    """Failure MISSING_FILE: `path` is an image or a socket that somebody has open."""

    def __init__(self, error: InUse) -> None:
        super().__init__(ExitCode.MISSING_FILE, str(error))
        self.what = error.what
        self.path = error.path


def build(spec: Spec) -> Device:
    """The model, with nothing opened. Raises OptionError, one line, whatever the model's code raised."""
    try:
        return options.build(registry.load(spec.model), dict(spec.options))
    except OptionError:
        raise
    except (Exception, SystemExit) as error:
        raise OptionError(f"{spec.model}: {type(error).__name__}: {error}") from error


def validate(spec: Spec) -> Spec:
    """Builds the model and asks it whether it can be opened; returns the specification with absolute paths.

    Raises Failure BAD_DEVICE, MISSING_FILE, NOT_PERMITTED; as InUseFailure if it is in use.
    """
    spec = absolute(spec)
    try:
        build(spec).check()
    except OptionError as error:
        raise Failure(ExitCode.BAD_DEVICE, str(error)) from error
    except InUse as error:
        raise InUseFailure(error) from error
    except NotPermitted as error:
        raise Failure(ExitCode.NOT_PERMITTED, str(error)) from error
    except DeviceError as error:
        raise Failure(ExitCode.MISSING_FILE, str(error)) from error
    except (Exception, SystemExit) as error:
        raise Failure(ExitCode.BAD_DEVICE, f"{spec.model}: check failed: {type(error).__name__}: {error}") from error
    return spec


def validate_update(spec: Spec, changes: Mapping[str, str]) -> None:
    """Whether the model knows options of these names and kinds for its `update`, as far as this process can load it.

    Raises Failure BAD_DEVICE.
    """
    try:
        device_class = registry.load(spec.model)
    except (Exception, SystemExit):
        return  # its emulator, which has it, decides
    try:
        options.check_update(device_class, changes)
    except OptionError as error:
        raise Failure(ExitCode.BAD_DEVICE, f"{error}; `virtio-dm devices {spec.model}` shows all") from error


def absolute(spec: Spec) -> Spec:
    """The same, independent of the working directory: who builds the device later is another process."""
    path, colon, class_name = spec.model.rpartition(":")
    model = f"{Path(path).absolute()}:{class_name}" if colon and path else spec.model
    try:
        device_class = registry.load(model)
        initialiser = device_class.__init__
        hints = {} if initialiser is Device.__init__ else get_type_hints(initialiser)
    except (Exception, SystemExit):
        return Spec(model, spec.options)  # `build` says what is wrong with it
    paths = {name for name, hint in hints.items() if hint is Path or Path in get_args(hint)}
    return Spec(
        model,
        tuple((key, str(Path(value).absolute()) if key in paths and value else value) for key, value in spec.options),
    )
