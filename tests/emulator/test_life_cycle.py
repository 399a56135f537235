"""One device from connect to close, as docs/protocol.md section 4 has it, with a real emulator, store and guest."""

from __future__ import annotations

import os
import re
import signal

import pytest

from cpp_ring import Frontend, LocalHypervisor
from cpp_ring.store import Store
from emulator import local
from emulator.exit_codes import ExitCode
from emulator.guest_process import GuestProcess
from emulator.store_paths import State, backends_dir, children
from guest.hypervisor import open_local
from tests.emulator.drivers import EchoDriver
from tests.emulator.machines import MODELS, Machine, Process

ECHO = f"{MODELS}:Echo"
FAILING = f"{MODELS}:Misbehaving,where=open"


def test_a_guest_connects_is_served_and_leaves(machine: Machine) -> None:
    process = machine.run(ECHO)
    assert (machine.node("versions"), machine.node("device-id"), machine.node("max-queues")) == ("1", "66", "1")
    with EchoDriver(machine.domain(), 0) as device:
        machine.await_state(State.CONNECTED)
        assert device.info.device_id == 0x42
        assert device.echo(b"hello") == b"hello"
        device.config_write(0, (5).to_bytes(4, "little"))
        device.config_write(4, (7).to_bytes(4, "little"))
        assert device.config_number(8, 4) == 12
    machine.until(lambda: machine.node("state") in ("2", "6"))
    with EchoDriver(machine.domain(), 0) as device:
        assert device.echo(b"again") == b"again"
    assert process.stop() == ExitCode.OK


def test_what_run_was_given_is_removed_at_a_clean_exit(machine: Machine) -> None:
    process = machine.run(ECHO, "rng")
    assert process.stop() == ExitCode.OK
    assert machine.store.read_optional(backends_dir(0, machine.domid)) is None
    assert machine.store.read_optional(machine.frontend_path()) is None


def test_a_connected_guest_follows_when_its_device_goes(machine: Machine) -> None:
    process = machine.run(ECHO)
    device = EchoDriver(machine.domain(), 0)
    machine.await_state(State.CONNECTED)
    process.signal(signal.SIGTERM)
    machine.await_state(State.CLOSING)
    device.close()
    assert process.wait() == ExitCode.OK
    assert not any("did not let go" in line for line in process.lines)


def test_attached_devices_wait_for_the_next_emulator_and_the_guest_goes_on(machine: Machine) -> None:
    machine.attach(ECHO)
    first = machine.run()
    machine.await_state(State.INIT_WAIT)
    with EchoDriver(machine.domain(), 0) as device:
        assert device.echo(b"one") == b"one"
        assert first.stop() == ExitCode.OK
        assert machine.node("state") == str(int(State.INITIALISING))
        second = machine.run()
        assert device.echo(b"two") == b"two"
        second.kill()
        assert machine.node("state") == str(int(State.CONNECTED))  # nobody was left to say otherwise
        machine.run()
        assert device.echo(b"three") == b"three"


def test_an_identical_device_of_a_killed_emulator_is_a_reconnect(machine: Machine) -> None:
    first = machine.run(ECHO)
    with EchoDriver(machine.domain(), 0) as device:
        assert device.echo(b"one") == b"one"
        first.kill()
        machine.start("run", "--domid", str(machine.domid), "--device", ECHO).await_line("serving domain")
        assert device.echo(b"two") == b"two"


def test_an_attached_device_is_not_replaced_by_another_one_of_the_command_line(machine: Machine) -> None:
    machine.attach(ECHO)
    done = machine.command("run", "--domid", str(machine.domid), "--device", "rng", code=ExitCode.REFUSED)
    assert f"virtio-dm detach {machine.domid} 0" in done.stderr


def test_what_a_killed_run_was_given_does_not_outlive_the_next_one(machine: Machine) -> None:
    machine.run(ECHO, "rng", "rng").kill()
    process = machine.run(f"{ECHO},start=3", "rng")
    assert [machine.node("spec", devid) for devid in range(3)] == [f"{ECHO},start=3", "rng", None]
    assert process.stop() == ExitCode.OK
    assert children(machine.store, backends_dir(0, machine.domid)) == []


def test_an_attached_device_that_run_was_given_as_well_stays(machine: Machine) -> None:
    machine.attach("rng")
    assert machine.run("rng").stop() == ExitCode.OK
    assert machine.node("spec") == "rng"


def test_run_ends_when_a_device_it_was_given_cannot_be_opened(machine: Machine) -> None:
    machine.attach(ECHO)
    process = machine.start("run", "--domid", str(machine.domid), "--device", ECHO, "--device", FAILING)
    assert process.wait() == ExitCode.REFUSED
    assert any("device 1 cannot be made" in line for line in process.lines)
    assert children(machine.store, backends_dir(0, machine.domid)) == ["0"]


def test_a_guest_that_dies_leaves_its_device_ready_for_the_next_one(machine: Machine) -> None:
    process = machine.run(ECHO)
    device = EchoDriver(machine.domain(), 0)
    machine.await_state(State.CONNECTED)
    device.transport.frontend.close()  # its live byte falls; its store nodes stay as they are
    process.await_line("frontend-gone")
    machine.await_state(State.INIT_WAIT)
    with EchoDriver(machine.domain(), 0) as successor:
        assert successor.echo(b"next") == b"next"
    device.close()


def test_a_guest_that_is_killed_leaves_its_device_ready_for_the_next_one(machine: Machine) -> None:
    process = machine.run(ECHO)
    with GuestProcess(machine.name, machine.domid) as guest:
        guest.request("connect", dev=0)
        os.kill(guest.pid, signal.SIGKILL)
        process.await_line("frontend-gone")
    with EchoDriver(machine.domain(), 0) as successor:
        assert successor.echo(b"next") == b"next"


def test_a_guest_that_starts_over_is_disconnected_first(machine: Machine) -> None:
    machine.run(ECHO)
    device = EchoDriver(machine.domain(), 0)
    machine.await_state(State.CONNECTED)
    with machine.frontend_store() as store:
        store.write(f"{machine.frontend_path()}/state", str(int(State.INITIALISING)))
        machine.await_state(State.INIT_WAIT)
    device.close()
    with EchoDriver(machine.domain(), 0) as successor:
        assert successor.echo(b"next") == b"next"


@pytest.mark.parametrize("state", [State.UNKNOWN, State.RECONFIGURING, State.RECONFIGURED])
def test_a_state_that_nobody_writes_is_a_guest_that_is_gone(machine: Machine, state: State) -> None:
    process = machine.run(ECHO)
    device = EchoDriver(machine.domain(), 0)
    machine.await_state(State.CONNECTED)
    with machine.frontend_store() as store:
        store.write(f"{machine.frontend_path()}/state", str(int(state)))
        machine.await_state(State.INIT_WAIT)
        assert machine.node("error") is None
        device.close()
        store.write(f"{machine.frontend_path()}/state", str(int(state)))  # to one that waits it says nothing
    with EchoDriver(machine.domain(), 0) as successor:
        assert successor.echo(b"next") == b"next"
    assert process.stop() == ExitCode.OK


def test_a_stale_initialised_is_not_connected_to(machine: Machine) -> None:
    first = machine.run(ECHO)
    device = EchoDriver(machine.domain(), 0)
    machine.await_state(State.CONNECTED)
    with machine.frontend_store() as store:
        # As if the guest had died just before it went to Connected.
        store.write(f"{machine.frontend_path()}/state", str(int(State.INITIALISED)))
        first.kill()
        second = machine.start("run", "--domid", str(machine.domid), "--device", ECHO)
        machine.await_state(State.INIT_WAIT)
        store.write(f"{machine.frontend_path()}/state", str(int(State.INITIALISED)))  # now it is meant for us
        second.await_line("connected")
    device.close()


def test_a_broken_channel_closes_the_device_until_the_guest_starts_over(machine: Machine) -> None:
    machine.run(ECHO, options=("--poll-us", "always"))
    device = EchoDriver(machine.domain(), 0)
    machine.await_state(State.CONNECTED)
    device.transport.frontend.fe_page[0x40:0x44] = b"\xff\xff\xff\x77"
    machine.await_state(State.CLOSED)
    assert (machine.node("error") or "").startswith("bad_seq ")
    device.close()
    with EchoDriver(machine.domain(), 0) as successor:
        assert successor.echo(b"next") == b"next"
        assert machine.node("error") is None


@pytest.mark.parametrize(
    ("options", "spins"),
    [((), r"50 to (\d+)"), (("--poll-us", "7"), "7 to (7)"), (("--poll-us", "always"), "inf to (inf)")],
)
def test_how_long_a_device_stays_awake_is_said_to_those_who_ask(
    machine: Machine, options: tuple[str, ...], spins: str
) -> None:
    process = machine.run(ECHO, options=("--log-level", "debug", *options))
    line = process.await_line("stays awake for")
    found = re.search(f"stays awake for {spins} us after its last work", line)
    assert found, line
    assert options or 50 <= int(found[1]) <= 2000


def test_the_end_of_the_domain_ends_its_emulator(machine: Machine) -> None:
    process = machine.run(ECHO)
    local.destroy_domain("t", machine.domid)
    assert process.wait() == ExitCode.OK
    assert any("is gone" in line for line in process.lines)
    assert children(machine.store, backends_dir(0, machine.domid)) == []


def test_a_frontend_of_pages_that_were_never_granted_is_refused_by_name(machine: Machine) -> None:
    process = machine.run(ECHO)
    with machine.frontend_store() as store:
        publish(store, machine, {"version": 1, "fe-to-be-ref": 4711, "be-to-fe-ref": 4712, "event-channel": 3})
    machine.await_state(State.CLOSED)
    assert (machine.node("error") or "").startswith("host ")
    line = process.await_line("closed: host ")
    assert "from reference 4711" in line or "port 3" in line
    assert "; the driver in the domain has to grant or offer it" in line


def test_a_page_without_the_magic_is_refused_by_name(machine: Machine) -> None:
    process = machine.run(ECHO)
    frontend = Frontend(LocalHypervisor(str(machine.directory), machine.domid), 0)
    frontend.fe_page[0:4] = b"oops"
    with machine.frontend_store() as store:
        nodes = {
            "version": 1,
            "fe-to-be-ref": frontend.fe_to_be_ref,
            "be-to-fe-ref": frontend.be_to_fe_ref,
            "event-channel": frontend.event_channel,
        }
        publish(store, machine, nodes)
    machine.await_state(State.CLOSED)
    error = machine.node("error") or ""
    assert re.fullmatch(r"bad_magic \d+", error)  # the frontend reads it: no advice
    assert "; reload the driver in the domain" in process.await_line(f"closed: {error} (")
    frontend.close()


def publish(store: Store, machine: Machine, nodes: dict[str, int]) -> None:
    for name, value in {**nodes, "state": int(State.INITIALISED)}.items():
        store.write(f"{machine.frontend_path()}/{name}", str(value))


def test_a_second_signal_ends_the_process_at_once(machine: Machine) -> None:
    process = machine.run(f"{MODELS}:Misbehaving,where=close,what=sleep")
    process.signal(signal.SIGTERM)
    process.await_line("stopping: SIGTERM")
    process.signal(signal.SIGINT)
    assert process.wait() == ExitCode.FORCED


def test_a_second_emulator_of_a_domain_is_refused(machine: Machine) -> None:
    first = machine.run()
    done = machine.command("run", "--domid", str(machine.domid), code=ExitCode.ALREADY_RUNNING)
    assert str(first.pid) in done.stderr


def test_a_lock_left_by_a_killed_emulator_is_no_obstacle(machine: Machine) -> None:
    machine.run().kill()
    assert machine.run().stop() == ExitCode.OK


def test_losing_the_hypervisor_ends_the_emulator(machine: Machine) -> None:
    local.ensure_broker("lost")
    process = Process("run", "--domid", "1", "--device", ECHO, "--hypervisor", "local:lost")
    process.await_line("ready")
    local.stop("lost")
    assert process.wait() == ExitCode.HYPERVISOR_LOST
    said = [line for line in process.lines if "the store is gone" in line]
    assert (len(said), "the domains of local:lost have ended" in said[0]) == (1, True), process.lines


def test_losing_the_hypervisor_in_the_middle_of_stopping_ends_the_emulator(machine: Machine) -> None:
    directory = local.ensure_broker("lost")
    process = Process("run", "--domid", "1", "--device", ECHO, "--hypervisor", "local:lost")
    process.await_line("ready")
    with EchoDriver(open_local(directory, 1), 0) as device:
        assert device.echo(b"hello") == b"hello"
        process.signal(signal.SIGSTOP)
        process.signal(signal.SIGTERM)
        local.stop("lost")
        process.signal(signal.SIGCONT)
        assert process.wait() == ExitCode.HYPERVISOR_LOST
