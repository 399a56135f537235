"""The host's end of the cable: sockets that survive their dead, and a tap interface."""

import errno
import os
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices import DeviceError, InUse, NotPermitted
from devices.net import Net
from devices.net_backends import SocketBackend, TapBackend
from tests.devices.net_frames import BROADCAST, MAC, OTHER, NetDriver, frame


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[SocketBackend, SocketBackend]]:
    ends = SocketBackend(tmp_path / "a", tmp_path / "b"), SocketBackend(tmp_path / "b", tmp_path / "a")
    for end in ends:
        end.check()
        end.open()
    yield ends
    for end in ends:
        end.close()


def received(end: SocketBackend) -> bytes | None:
    packet = end.receive()
    assert packet is None or packet[:12] == bytes(12), "every frame of a socket is whole"
    return None if packet is None else bytes(packet[12:])


def test_frames_pass_whole_and_in_order(pair: tuple[SocketBackend, SocketBackend]) -> None:
    one, two = pair
    for number in range(5):
        assert one.send(memoryview(b"%d" % number * 1000))
    assert [received(two) for _ in range(5)] == [b"%d" % number * 1000 for number in range(5)]
    assert received(two) is None


def test_a_live_socket_is_not_taken_over(pair: tuple[SocketBackend, SocketBackend], tmp_path: Path) -> None:
    second = SocketBackend(tmp_path / "a", tmp_path / "c")
    for look in (second.check, second.open):
        with pytest.raises(InUse, match=r"socket .*/a is in use already; stop what uses it, or name another"):
            look()
    assert pair[1].send(memoryview(b"still there"))
    assert received(pair[0]) == b"still there"


def test_a_socket_of_the_dead_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(str(tmp_path / "a"))
    dead.close()
    backend = SocketBackend(tmp_path / "a", tmp_path / "b")
    backend.check()
    assert (tmp_path / "a").exists(), "to look is not to remove"
    backend.open()
    backend.close()
    assert not (tmp_path / "a").exists()


def test_what_is_no_datagram_socket_is_never_removed(tmp_path: Path) -> None:
    file, stream = tmp_path / "file", tmp_path / "stream"
    file.write_text("precious")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(stream))
        listener.listen()
        for path in (file, stream):
            backend = SocketBackend(path, tmp_path / "b")
            for look in (backend.check, backend.open):
                with pytest.raises(DeviceError, match=f"socket {path}: "):
                    look()
    assert file.read_text() == "precious"
    assert stream.exists()


def test_a_device_that_could_not_open_leaves_others_sockets_alone(
    pair: tuple[SocketBackend, SocketBackend], tmp_path: Path
) -> None:
    second = SocketBackend(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DeviceError):
        second.open()
    second.close()
    assert (tmp_path / "a").exists()
    assert received(second) is None
    assert second.fileno() == -1


def test_a_missing_directory_is_found_by_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=f"no directory {tmp_path}/none"):
        SocketBackend(tmp_path / "none" / "a", tmp_path / "b").check()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DeviceError, match="not allowed to make files in"):
        SocketBackend(tmp_path / "a", tmp_path / "b").check()


def test_a_peer_that_does_not_read_costs_one_wait_and_then_frames(
    pair: tuple[SocketBackend, SocketBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    sent = 0
    while one.send(memoryview(b"x" * 100)):
        sent += 1
        assert sent < 100_000
    assert one._congested

    def waited(*_: object) -> None:
        raise AssertionError("waited for a peer that is known not to read")

    with monkeypatch.context() as patch:
        patch.setattr("select.poll", waited)
        assert not one.send(memoryview(b"lost"))
    while received(two) is not None:
        sent -= 1
    assert sent == 0, "what was accepted arrives"
    assert one.send(memoryview(b"again"))
    assert received(two) == b"again"
    assert not one._congested


def test_a_burst_waits_for_a_peer_that_reads(
    pair: tuple[SocketBackend, SocketBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    monkeypatch.setattr(SocketBackend, "PATIENCE_MS", 10_000)
    count = 2000
    taken: list[bytes] = []

    def read() -> None:
        import select

        poll = select.poll()
        poll.register(two.fileno(), select.POLLIN)
        while len(taken) < count and poll.poll(10_000):
            while (data := received(two)) is not None:
                taken.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    assert all(one.send(memoryview(b"%d" % number)) for number in range(count))
    reader.join()
    assert taken == [b"%d" % number for number in range(count)]


def test_a_frame_too_large_for_the_socket_is_dropped(pair: tuple[SocketBackend, SocketBackend]) -> None:
    one, two = pair
    assert not one.send(memoryview(bytes(1 << 22)))
    assert one.send(memoryview(b"next"))
    assert received(two) == b"next"


def test_a_closed_end_drops(tmp_path: Path) -> None:
    backend = SocketBackend(tmp_path / "a", tmp_path / "b")
    backend.open()
    assert not backend.send(memoryview(b"nobody there"))
    backend.close()
    backend.close()


def test_a_tap_without_the_module_is_found_by_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("devices.net_backends._TUN", tmp_path / "tun")
    with pytest.raises(DeviceError, match="not there; load the module tun"):
        TapBackend("tap0").check()
    with pytest.raises(DeviceError, match="tap tap0: no such file or directory"):
        TapBackend("tap0").open()
    (tmp_path / "tun").touch()
    status(monkeypatch, tmp_path, capabilities=1 << 12)
    TapBackend("tap0").check()
    with pytest.raises(DeviceError, match="tap tap0: inappropriate ioctl"):
        TapBackend("tap0").open()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NotPermitted, match="not allowed to use it; run as root"):
        TapBackend("tap0").check()


def status(monkeypatch: pytest.MonkeyPatch, directory: Path, capabilities: int) -> None:
    """Lets this process seem to have these capabilities."""
    file = directory / "status"
    file.write_text(f"Name:\tx\nCapEff:\t{capabilities:016x}\n")
    monkeypatch.setattr("devices.net_backends._STATUS", file)


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As /sys/class/net: a tap of ours, of another user, of a group that is not ours, of nobody; and another kind."""
    monkeypatch.setattr("devices.net_backends._TUN", tmp_path / "tun")
    (tmp_path / "tun").touch()
    monkeypatch.setattr("fcntl.ioctl", lambda *_: 0)
    directory = tmp_path / "net"
    monkeypatch.setattr("devices.net_backends._INTERFACES", directory)
    for name, owner, group in (
        ("ours", os.geteuid(), -1),
        ("theirs", os.geteuid() + 1, -1),
        ("club", -1, max(os.getegid(), *os.getgroups(), 0) + 1),
        ("anybodys", -1, -1),
    ):
        (directory / name).mkdir(parents=True)
        for node, value in (("owner", owner), ("group", group), ("tun_flags", 0x1002)):
            (directory / name / node).write_text(f"{value}\n")
    (directory / "lo").mkdir()
    return tmp_path


def test_without_the_capability_only_a_tap_made_for_the_user_is_his(
    interfaces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status(monkeypatch, interfaces, capabilities=0)
    for name in ("ours", "anybodys"):
        TapBackend(name).check()
    for name in ("theirs", "club"):
        with pytest.raises(NotPermitted, match=f"tap {name}: made for another user, and no CAP_NET_ADMIN; run as"):
            TapBackend(name).check()
    user = os.geteuid()
    with pytest.raises(NotPermitted, match=f"as root: `ip tuntap add dev tap7 mode tap user {user}`"):
        TapBackend("tap7").check()


def test_with_the_capability_every_tap_is_his_and_nothing_else(
    interfaces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status(monkeypatch, interfaces, capabilities=1 << 12)
    for name in ("ours", "theirs", "club", "tap7"):
        TapBackend(name).check()
    with pytest.raises(DeviceError, match="tap lo: the interface is there and is no tap; name another"):
        TapBackend("lo").check()
    monkeypatch.setattr("devices.net_backends._STATUS", interfaces / "none")
    TapBackend("tap7").check()
    status(monkeypatch, interfaces, capabilities=0)
    (interfaces / "net" / "ours" / "owner").write_text("rubbish")
    TapBackend("ours").check()


@pytest.mark.parametrize(("code", "kind"), [(errno.EBUSY, DeviceError), (errno.EPERM, NotPermitted)])
def test_what_only_the_kernel_knows_of_a_tap_is_asked_by_check(
    interfaces: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[DeviceError]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.ioctl", refuse)
    status(monkeypatch, interfaces, capabilities=1 << 12)
    with pytest.raises(DeviceError, match="tap ours: ") as refusal:
        TapBackend("ours").check()
    assert type(refusal.value) is kind
    TapBackend("tap7").check()  # one that is not there is not made to look


@pytest.fixture
def interface() -> str:
    if shutil.which("ip") is None:
        pytest.skip("no command ip")
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("no /dev/net/tun for us")
    return f"vdm{uuid.uuid4().hex[:8]}"


@pytest.mark.root
def test_a_tap_carries_frames_both_ways(interface: str) -> None:
    """The kernel's side is a packet socket on the interface."""
    driver = NetDriver(Net(tap=interface, mac=MAC))
    try:
        subprocess.run(["ip", "link", "set", interface, "up"], check=True)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as kernel:
            kernel.settimeout(10)
            kernel.bind((interface, 0x88B5))
            driver.transmit(frame(BROADCAST, MAC, payload=b"out" * 20))
            assert kernel.recv(2048) == frame(BROADCAST, MAC, payload=b"out" * 20)
            kernel.send(frame(MAC, OTHER, payload=b"in" * 30))
            buffers = driver.give(0, [2048])
            driver.run()
            assert buffers.written[12:] == frame(MAC, OTHER, payload=b"in" * 30)
        for look in (TapBackend(interface).check, TapBackend(interface).open):
            with pytest.raises(DeviceError, match=f"tap {interface}: in use already; stop what uses it"):
                look()
        subprocess.run(["ip", "link", "set", interface, "down"], check=True)
        driver.transmit(frame())
        assert driver.net.counters["transmit dropped"] == 1
        subprocess.run(["ip", "link", "delete", interface], check=True)
        driver.run()
        assert driver.net.config.status == 0, "an interface that is gone takes the link down"
    finally:
        driver.reset()
        driver.net.close()
