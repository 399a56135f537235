"""The engine's side of the local hypervisor, against a broker in a process of its own."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
from pathlib import Path

import pytest

from cpp_ring import EventChannels, HostError, Hypervisor, LocalHypervisor
from emulator import local
from emulator.local import Control, wire
from tests.local.client import Client


@pytest.fixture
def guest(process_machine: Path) -> Hypervisor:
    return LocalHypervisor(str(process_machine), 1)


@pytest.fixture
def backend(process_machine: Path) -> Hypervisor:
    return LocalHypervisor(str(process_machine), 0)


def readable(channels: EventChannels, seconds: float = 10.0) -> bool:
    return bool(select.select([channels.fileno()], [], [], seconds)[0])


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def granted_mappings() -> int:
    """How many mappings of granted pages this process has."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("/memfd:grant ")


def test_pages_are_zero_shared_and_contiguous(guest: Hypervisor, backend: Hypervisor) -> None:
    one, two = guest.share(0, 2), guest.share(0, 3)
    assert two.first_ref == one.first_ref + 2
    mapped = backend.map(1, one.first_ref, 5)
    assert mapped.memory.nbytes == 5 * 4096
    assert bytes(mapped.memory) == bytes(5 * 4096)
    one.memory[4096] = 1
    two.memory[0] = 2
    two.memory[3 * 4096 - 1] = 3
    assert [mapped.memory[at] for at in (4096, 2 * 4096, 5 * 4096 - 1)] == [1, 2, 3]
    mapped.memory[2 * 4096 + 1] = 9
    assert two.memory[1] == 9


def test_a_read_only_mapping_cannot_be_written(guest: Hypervisor, backend: Hypervisor) -> None:
    shared = guest.share(0, 1, writable=False)
    with pytest.raises(HostError) as error:
        backend.map(1, shared.first_ref, 1, writable=True)
    assert error.value.errno == errno.EACCES
    mapped = backend.map(1, shared.first_ref, 1, writable=False)
    assert mapped.memory.readonly
    with pytest.raises(TypeError):
        mapped.memory[0] = 1


@pytest.mark.parametrize(
    ("domain", "offset", "count", "number"),
    [(9, 0, 1, errno.ENOENT), (1, 1, 1, errno.ENOENT), (2, 0, 1, errno.ENOENT), (1, 0, 2, errno.ENOENT),
     (1, 0, 0, errno.EINVAL), (1, 0, 2**40, errno.EINVAL)],
)  # fmt: skip
def test_a_refused_map_leaves_nothing_mapped(
    guest: Hypervisor, backend: Hypervisor, domain: int, offset: int, count: int, number: int
) -> None:
    shared = guest.share(0, 1)
    before = granted_mappings()
    with pytest.raises(HostError) as error:
        backend.map(domain, shared.first_ref + offset, count)
    assert error.value.errno == number
    assert granted_mappings() == before


def test_dropping_pages_unmaps_and_withdraws_them(guest: Hypervisor, backend: Hypervisor) -> None:
    before = granted_mappings()
    shared = guest.share(0, 1)
    first = shared.first_ref
    mapped = backend.map(1, first, 1)
    assert granted_mappings() == before + 2
    shared.memory[0] = 5
    del shared
    gc.collect()
    with pytest.raises(HostError):
        backend.map(1, first, 1)
    assert mapped.memory[0] == 5
    del mapped
    assert granted_mappings() == before
    assert guest.share(0, 1).first_ref == first


def test_no_descriptor_of_a_page_stays_open(guest: Hypervisor, backend: Hypervisor) -> None:
    before = open_descriptors()
    shared = guest.share(0, 4)
    mapped = backend.map(1, shared.first_ref, 4)
    assert open_descriptors() == before
    assert mapped.memory.nbytes == shared.memory.nbytes


def test_children_do_not_inherit_granted_pages(guest: Hypervisor) -> None:
    shared = guest.share(0, 1)
    child = os.fork()
    if child == 0:
        os._exit(granted_mappings())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shared.memory[0] == 0


def test_pending_clears_and_masks_and_unmask_lets_the_next_event_through(
    guest: Hypervisor, backend: Hypervisor
) -> None:
    theirs, ours = EventChannels(guest), EventChannels(backend)
    offered = theirs.alloc_unbound(0)
    port = ours.bind_interdomain(1, offered)
    assert readable(ours)
    assert ours.pending() == port, "binding leaves the port pending"
    assert ours.pending() is None
    theirs.notify(offered)
    assert not readable(ours, 0), "a masked port raises nothing"
    assert ours.pending() is None
    ours.unmask(port)
    assert readable(ours)
    assert ours.pending() == port
    ours.unmask(port)
    assert not readable(ours, 0), "the event was cleared"
    for _ in range(1000):
        theirs.notify(offered)
    assert ours.pending() == port
    ours.unmask(port)
    assert ours.pending() is None, "many events are one"
    ours.notify(port)
    assert readable(theirs)
    assert theirs.pending() == offered


def test_several_ports_of_a_handle_do_not_disturb_each_other(guest: Hypervisor, backend: Hypervisor) -> None:
    theirs, ours = EventChannels(guest), EventChannels(backend)
    offered = [theirs.alloc_unbound(0) for _ in range(8)]
    ports = [ours.bind_interdomain(1, port) for port in offered]
    assert sorted(port for port in iter(ours.pending, None)) == sorted(ports)
    for port in ports:
        ours.unmask(port)
    theirs.notify(offered[5])
    assert ours.pending() == ports[5]
    ours.unbind(ports[2])
    theirs.notify(offered[2])
    theirs.notify(offered[3])
    assert ours.pending() == ports[3]
    assert ours.pending() is None
    again = ours.bind_interdomain(1, offered[2])
    assert again == ports[2]
    assert ours.pending() == again


@pytest.mark.parametrize("port", [0, 5, 2**32 - 1])
def test_a_port_that_is_not_ours_does_nothing(guest: Hypervisor, port: int) -> None:
    channels = EventChannels(guest)
    channels.notify(port)
    channels.unmask(port)
    channels.unbind(port)
    assert channels.pending() is None


def test_binding_errors_carry_xens_numbers(guest: Hypervisor, backend: Hypervisor) -> None:
    theirs, ours = EventChannels(guest), EventChannels(backend)
    offered = theirs.alloc_unbound(0)
    ours.bind_interdomain(1, offered)
    for remote, port, number in [(1, offered, errno.EBUSY), (1, 99, errno.EINVAL), (9, 1, errno.ENOENT)]:
        with pytest.raises(HostError) as error:
            ours.bind_interdomain(remote, port)
        assert error.value.errno == number


def test_a_peer_that_shuts_its_end_down_is_reported_once(process_machine: Path, backend: Hypervisor) -> None:
    with Client(process_machine, 1) as guest:
        offered = guest.alloc_unbound(0)
        ours = EventChannels(backend)
        port = ours.bind_interdomain(1, offered.port)
        assert ours.pending() == port
        ours.unmask(port)
        offered.socket.shutdown(2)
        assert ours.pending() == port
        ours.unmask(port)
        assert not readable(ours, 0), "else a guest could keep the backend's thread busy for nothing"
        ours.notify(port)


def test_closing_a_handle_frees_its_ports(guest: Hypervisor, backend: Hypervisor) -> None:
    theirs = EventChannels(guest)
    ports = [theirs.alloc_unbound(0) for _ in range(3)]
    del theirs
    gc.collect()
    again = EventChannels(guest)
    assert [again.alloc_unbound(0) for _ in range(3)] == ports


def test_no_such_domain_and_no_machine_are_said_so(process_machine: Path, runtime: Path) -> None:
    with pytest.raises(HostError, match="no such domain 9 on this local machine") as error:
        LocalHypervisor(str(process_machine), 9)
    assert error.value.errno == errno.ENOENT
    with pytest.raises(HostError, match="no local machine"):
        LocalHypervisor(str(runtime / "nowhere"), 0)
    with pytest.raises(HostError):
        LocalHypervisor("x" * 200, 0)


def test_a_broker_that_died_means_errors_and_not_hangs(process_machine: Path, guest: Hypervisor) -> None:
    shared = guest.share(0, 1)
    channels = EventChannels(guest)
    port = channels.alloc_unbound(0)
    with Control(process_machine) as control:
        pid = control.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(HostError) as error:
        guest.share(0, 1)
    assert error.value.errno == errno.ENOTCONN
    with pytest.raises(HostError):
        channels.alloc_unbound(0)
    channels.notify(port)
    shared.memory[0] = 1
    channels.unbind(port)
    with pytest.raises(HostError, match="has died"):
        LocalHypervisor(str(process_machine), 1)
    del shared, channels
    gc.collect()
    local.ensure_broker("p")
    assert LocalHypervisor(str(process_machine), 1).share(0, 1).first_ref == 8


def test_every_way_a_map_fails_leaves_the_grant_free(process_machine: Path, guest: Hypervisor) -> None:
    """Threat 21: fail the n-th map for every n of a row of maps; nothing stays mapped."""
    backend = LocalHypervisor(str(process_machine), 0)
    shared = guest.share(0, 4)
    before = granted_mappings()
    with Control(process_machine) as control:
        for failing in range(4):
            control.clear()
            control.fail(wire.GRANT_MAP, errno.ENOMEM, after=failing)
            held = [backend.map(1, shared.first_ref + page, 1) for page in range(failing)]
            with pytest.raises(HostError) as error:
                backend.map(1, shared.first_ref, 4)
            assert error.value.errno == errno.ENOMEM
            assert granted_mappings() == before + failing
            del held
            assert granted_mappings() == before
