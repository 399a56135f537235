"""Threat 30: a backend that lies in its answers, is silent or dies. The driver gets an exception that says so, within
its deadline; it never hangs, never crashes, never takes a lie for an answer.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable

import pytest

from cpp_ring import ChannelError, ChannelTimeout, PeerDead
from guest import messages
from guest.errors import (
    BadAnswer,
)
from guest.hypervisor import Domain
from guest.transport import Transport
from tests.raw_backend import RawBackend
from tests.threats.lying_backend.conftest import LATE


def get_status(transport: Transport) -> int:
    return messages.status(transport.exchange(messages.GET_DEVICE_STATUS), "GET_DEVICE_STATUS")


def patched(offset: int, value: bytes) -> Callable[[bytearray], bytearray]:
    def corrupt(message: bytearray) -> bytearray:
        message[offset : offset + len(value)] = value
        return message

    return corrupt


@pytest.mark.parametrize(
    ("lie", "name"),
    [
        (patched(0, b"\x00"), "bad_type"),
        (patched(0, b"\x03"), "bad_type"),
        (patched(1, b"\x02"), "bad_msg_id"),
        (patched(4, b"\x00\x00"), "bad_token"),
        (patched(4, b"\xff\xff"), "bad_token"),
        (patched(6, b"\xff\xff"), "bad_size"),
        (patched(6, b"\x00\x00"), "bad_size"),
        (lambda message: message[:7], "bad_size"),
        (lambda message: b"", "bad_size"),
    ],
)
def test_an_answer_that_does_not_match_its_request_breaks_the_channel(
    transport: Transport, backend: RawBackend, lie: Callable[[bytearray], bytes | bytearray], name: str
) -> None:
    backend.corrupt = lie
    with pytest.raises(ChannelError) as error:
        get_status(transport)
    assert error.value.name == name
    backend.corrupt = lambda message: message
    assert transport.frontend.broken
    with pytest.raises(ChannelError):
        get_status(transport)


@pytest.mark.parametrize("size", [277, 4096, 1 << 31, 0xFFFFFFFF])
def test_an_answer_longer_than_a_message_is_not_copied(transport: Transport, backend: RawBackend, size: int) -> None:
    def lie(message: bytearray) -> None:
        backend.respond(backend.answered, message, size)

    backend.corrupt = lie
    with pytest.raises(ChannelError) as error:
        get_status(transport)
    assert error.value.name == "bad_size"


@pytest.mark.parametrize("seq", [0, 5, 0x80000000, 0xFFFFFFFF])
def test_an_answer_to_a_request_never_made_breaks_the_channel(
    transport: Transport, backend: RawBackend, seq: int
) -> None:
    assert get_status(transport) == 0

    def lie(message: bytearray) -> None:
        backend.respond(seq, message)

    backend.corrupt = lie
    with pytest.raises(ChannelError) as error:
        get_status(transport)
    assert error.value.name == "bad_seq"


def test_a_silent_backend_costs_the_deadline_and_no_more(transport: Transport, backend: RawBackend) -> None:
    backend.held = True
    transport.timeout = 0.2
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(ChannelTimeout):
            get_status(transport)
        assert time.monotonic() - start < LATE / 4
    assert transport.frontend.broken


def test_the_late_answer_to_a_request_that_timed_out_is_dropped(transport: Transport, backend: RawBackend) -> None:
    backend.held = True
    transport.timeout = 0.2
    backend.device.lies[messages.GET_DEVICE_STATUS] = struct.pack("<I", 0xDEAD)
    with pytest.raises(ChannelTimeout):
        get_status(transport)
    backend.held = False
    transport.timeout = 5.0
    info = messages.device_info(transport.exchange(messages.GET_DEVICE_INFO))
    assert info.device_id == 4
    assert not transport.frontend.broken


def test_an_answer_with_the_token_of_an_earlier_epoch_is_refused(transport: Transport, backend: RawBackend) -> None:
    old: list[bytes] = []
    backend.corrupt = lambda message: old.append(bytes(message)) or message  # type: ignore[func-returns-value]
    get_status(transport)
    transport.frontend.new_epoch()
    token = struct.unpack_from("<H", old[0], 4)[0]
    backend.corrupt = patched(4, struct.pack("<H", (token & 0xFF00) | (token + 1) & 0xFF))
    with pytest.raises(ChannelError) as error:
        get_status(transport)
    assert error.value.name == "bad_token"


def test_a_backend_that_dies_while_it_owes_an_answer_is_noticed(transport: Transport, backend: RawBackend) -> None:
    def die(message: bytearray) -> None:
        backend.die()

    backend.corrupt = die
    transport.timeout = LATE
    with pytest.raises(PeerDead):
        get_status(transport)
    with pytest.raises(PeerDead):
        get_status(transport)


def test_an_event_storm_on_cfg_neither_ends_a_wait_early_nor_prolongs_it(
    transport: Transport, backend: RawBackend
) -> None:
    backend.held = True

    def storm() -> None:
        for _ in range(100):
            backend.notify()

    backend.idle = storm  # type: ignore[method-assign]
    transport.timeout = 0.3
    start = time.monotonic()
    with pytest.raises(ChannelTimeout):
        get_status(transport)
    assert 0.2 < time.monotonic() - start < LATE / 2


def test_random_answers_end_in_a_named_error_or_pass_as_data(domain: Domain, backend: RawBackend) -> None:
    dice = random.Random(30)

    def lie(message: bytearray) -> bytes | bytearray:
        match dice.randrange(3):
            case 0:
                return dice.randbytes(dice.randrange(277))
            case 1:
                message[dice.randrange(len(message))] ^= 1 << dice.randrange(8)
                return message
            case _:
                return message + dice.randbytes(dice.randrange(8))

    outcomes = set()
    transport = Transport(domain, 0, timeout=1.0)
    for _ in range(80):
        if transport.lost() or transport.frontend.broken:
            backend.corrupt = lambda message: message
            transport.connect(5.0)
            backend.corrupt = lie
        try:
            get_status(transport)
            outcomes.add("data")
        except ChannelError as error:
            outcomes.add(error.name)
        except BadAnswer:
            outcomes.add("payload")
    transport.close()
    assert outcomes > {"data", "bad_type", "bad_token", "bad_size"}


def test_random_bytes_all_over_the_page_end_in_a_named_error(domain: Domain, backend: RawBackend) -> None:
    dice = random.Random(31)

    def scribble(message: bytearray) -> None:
        backend.page[:512] = dice.randbytes(512)
        backend.notify()

    transport = Transport(domain, 0, timeout=0.05)
    for _ in range(30):
        backend.corrupt = lambda message: message
        transport.connect(5.0)
        backend.corrupt = scribble
        with pytest.raises(ChannelError):
            get_status(transport)
    transport.close()
