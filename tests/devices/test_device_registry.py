"""Finding a model: the table, a file, an installed entry point; and what is said when there is none."""

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from devices import Device, OptionError, registry
from devices.registry import DEVICES, load, names

SOURCE = '''
from devices import Device, Queue, Request

class Echo(Device):
    """Sends back what it gets."""

    name = "echo"
    device_id = 0x42
    queues = (Queue("requestq"),)

    def requestq(self, request: Request) -> None:
        request.write(request.readable)

class NoId(Device):
    name = "no-id"

NOT_A_CLASS = 3
'''


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    path = tmp_path / "echo.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("name", list(DEVICES))
def test_every_line_of_the_table_loads(name: str) -> None:
    model = load(name)
    assert issubclass(model, Device)
    assert model.name == name
    assert model.__doc__


def test_a_device_file(echo: Path) -> None:
    model = load(f"{echo}:Echo")
    assert (model.name, model.device_id) == ("echo", 0x42)


def test_an_entry_point(monkeypatch: pytest.MonkeyPatch, echo: Path) -> None:
    monkeypatch.syspath_prepend(str(echo.parent))
    monkeypatch.delitem(sys.modules, "echo", raising=False)
    found = EntryPoints(
        [
            EntryPoint("echo", "echo:Echo", registry.ENTRY_POINT_GROUP),
            EntryPoint("gone", "no_such_module:Thing", registry.ENTRY_POINT_GROUP),
            EntryPoint("blk", "echo:Echo", registry.ENTRY_POINT_GROUP),
        ]
    )
    monkeypatch.setattr(registry, "_entry_points", lambda: found)
    assert names() == ["blk", "net", "rng", "echo", "gone"]
    assert load("echo").name == "echo"
    assert load("blk").name == "blk", "an installed package cannot take the place of a model of the table"
    with pytest.raises(OptionError, match="device 'gone': its entry point no_such_module:Thing does not load"):
        load("gone")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("disk", "no device 'disk'; known: blk, net, rng"),
        ("", "no device ''"),
        ("/nowhere/my.py:Thing", "device file /nowhere/my.py: no such file"),
        ("my.py", "device 'my.py': expected FILE.py:CLASS"),
        (":Thing", "device ':Thing': expected FILE.py:CLASS"),
        ("my.py:", "device 'my.py:': expected FILE.py:CLASS"),
        ("{echo}:Missing", "no class 'Missing' in "),
        ("{echo}:NOT_A_CLASS", "3 is no subclass of devices.Device"),
        ("{echo}:Device", "the class sets no device_id"),
        ("{echo}:NoId", "the class sets no device_id"),
    ],
)
def test_what_is_wrong_is_said(echo: Path, name: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        load(name.replace("{echo}", str(echo)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_run_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_at_all")
    with pytest.raises(OptionError, match=r"broken\.py: ModuleNotFoundError: No module named"):
        load(f"{path}:Thing")
    assert "virtio_dm_device_broken" not in sys.modules


def test_a_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "thing.txt"
    path.write_text("")
    with pytest.raises(OptionError, match=r"not a Python file; name it thing\.py"):
        load(f"{path}:Thing")
