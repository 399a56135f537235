"""The rig itself: domUs of both kinds start, take commands, and talk to xenstore. How they end: test_life_cycle.py."""

import subprocess

import pytest

from tests.xen.domu import Domu


def test_output_and_exit_code_of_a_command_come_back(domu: Domu) -> None:
    assert domu.run("echo out; echo err >&2; exit 3") == (3, "out\nerr\n")


def test_a_command_gets_its_input(domu: Domu) -> None:
    data = bytes(range(256)) * 2000
    process = domu.popen(["cat"])
    process.write(data)
    process.close_stdin()
    assert process.read_all() == data


def test_a_program_that_is_not_there_is_said(domu: Domu) -> None:
    with pytest.raises(Exception, match="No such file"):
        domu.popen(["/no/such/program"]).wait()


def test_lines_go_back_and_forth_with_a_running_process(domu: Domu) -> None:
    process = domu.popen(["python3", "-c", "for line in open(0): print(line.upper(), end='', flush=True)"])
    for word in (b"one", b"two"):
        process.write(word + b"\n")
        assert process.read_line() == word.upper() + b"\n"
    process.close_stdin()
    assert process.wait() == 0


def test_the_domu_writes_to_xenstore(domu: Domu) -> None:
    assert domu.run("xenstore-write data/greeting hello").code == 0
    path = f"/local/domain/{domu.domid}/data/greeting"
    assert subprocess.check_output(["xenstore-read", path], text=True) == "hello\n"


def test_the_domu_has_the_devices_of_a_driver_in_user_space(domu: Domu) -> None:
    paths = "/dev/xen/evtchn /dev/xen/gntdev /dev/xen/gntalloc /dev/xen/xenbus"
    assert domu.run(f"ls {paths}") == (0, "\n".join(sorted(paths.split())) + "\n")


def test_the_domu_has_the_guest_side_of_this_checkout(domu: Domu) -> None:
    code, output = domu.run(["python3", "-m", "guest", "--help"])
    assert code == 0, output
    assert "Drives the virtio devices of a domain" in output
