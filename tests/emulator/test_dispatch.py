"""From the engine to a model: what is called, with what, and what becomes of what it returns or raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from devices import Device, Hold, Queue, Request, RequestError
from emulator.dispatch import HELD, MODEL_ERROR, REQUEST_ERROR, Dispatch, Services

LOG = logging.getLogger("test")


class Engine:
    """The engine's Backend as far as services use it."""

    def __init__(self) -> None:
        self.available: list[tuple[int, bytes, list[memoryview]]] = []
        self.calls: list[tuple[object, ...]] = []

    def pop(self, queue: int) -> tuple[int, bytes, list[memoryview]] | None:
        return self.available.pop(0) if self.available else None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, *arguments))


class Model(Device):
    name = "model"
    device_id = 0x42
    queues: Sequence[Queue] = (Queue("first", size=4), Queue("second", size=2, feature=3), Queue("pulled", size=2))
    features = 1 << 3

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []
        self.answer: Any = None

    def first(self, request: Request) -> Hold | None:
        self.seen.append(request)
        request.write(request.readable)
        outcome: Hold | None = self.answer
        return outcome

    second = first

    def pulled_ready(self, index: int) -> None:
        self.seen.append(index)

    def features_ok(self, features: int) -> None:
        self.seen.append(("features_ok", features))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def dispatch(model: Model, engine: Engine) -> Dispatch:
    result = Dispatch(model, LOG)
    result.attach(Services(engine, lambda job: engine.calls.append(("post", job))))  # type: ignore[arg-type]
    result.activate(1 << 3, [0, 1, 2])
    return result


def entry(head: int, data: bytes, room: int = 8) -> tuple[int, bytes, list[memoryview]]:
    return head, data, [memoryview(bytearray(room))]


def test_a_batch_is_served_in_order_and_tells_what_was_written(dispatch: Dispatch, model: Model) -> None:
    assert dispatch.process(0, [entry(7, b"abc"), entry(9, b"")]) == [3, 0]
    assert [(request.queue, request.head) for request in model.seen if isinstance(request, Request)] == [(0, 7), (0, 9)]


def test_a_held_request_is_completed_later(dispatch: Dispatch, model: Model, engine: Engine) -> None:
    model.answer = Hold.HELD
    assert dispatch.process(1, [entry(5, b"ab")]) == [HELD]
    request = model.seen[-1]
    assert isinstance(request, Request)
    model.backend.complete(request)
    assert engine.calls == [("complete", 1, 5, 2)]


@pytest.mark.parametrize("rubbish", [0, True, "done", b"", [], object()])
def test_a_handler_that_returns_rubbish_has_failed(dispatch: Dispatch, model: Model, rubbish: object) -> None:
    model.answer = rubbish
    with pytest.raises(TypeError, match=type(rubbish).__name__):
        dispatch.process(0, [entry(1, b"a")])


def test_features_are_settled_only_when_they_are_accepted(dispatch: Dispatch, model: Model) -> None:
    assert dispatch.accepts(1 << 3 | 1 << 32)
    assert model.seen == [("features_ok", 1 << 3 | 1 << 32)]
    assert not dispatch.accepts(1 << 4)
    assert len(model.seen) == 1


@pytest.mark.parametrize("queue", [1])
def test_a_queue_that_the_features_do_not_give_is_the_drivers_fault(dispatch: Dispatch, queue: int) -> None:
    with pytest.raises(RequestError, match=f"virtqueue {queue}"):
        dispatch.activate(0, [0, queue])
    dispatch.activate(0, [0])
    with pytest.raises(RequestError, match=f"virtqueue {queue}"):
        dispatch.process(queue, [entry(1, b"")])


def test_a_kick_reaches_the_model_that_pulls(dispatch: Dispatch, model: Model) -> None:
    dispatch.kicked(2)
    assert model.seen == [2]


def test_a_pulled_queue_that_is_handled_under_these_features_is_served(
    dispatch: Dispatch, model: Model, engine: Engine
) -> None:
    engine.available = [entry(1, b"x"), entry(2, b"yz"), entry(3, b"")]
    dispatch.kicked(1)
    assert engine.calls[:2] == [("complete", 1, 1, 1), ("complete", 1, 2, 2)]
    again = engine.calls[2]  # no more than the queue's size in one go
    assert again[0] == "post"
    again[1]()  # type: ignore[operator]
    assert engine.calls[3:] == [("complete", 1, 3, 0)]


def test_services_are_the_engines(model: Model, dispatch: Dispatch, engine: Engine) -> None:
    backend = model.backend
    assert backend.pop(0) is None
    engine.available = [entry(4, b"in")]
    request = backend.pop(2)
    assert request is not None
    assert (request.queue, request.head, request.readable) == (2, 4, b"in")
    backend.config_changed()
    backend.needs_reset()
    backend.watch(3, print)
    backend.unwatch(3)
    assert engine.calls == [("config_changed",), ("needs_reset", 64), ("watch", 3, print), ("unwatch", 3)]


def test_a_model_that_outlives_its_device_is_told_so(model: Model, dispatch: Dispatch) -> None:
    dispatch.detach()
    with pytest.raises(RuntimeError, match="config_changed: the device has ended"):
        model.backend.config_changed()


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class UnspeakableRequestError(RequestError):
    __str__ = UnspeakableError.__str__


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnspeakableRequestError(), MODEL_ERROR),
        (RequestError("bad request"), REQUEST_ERROR),
        (ValueError("oops"), MODEL_ERROR),
        (SystemExit(1), MODEL_ERROR),
        (KeyboardInterrupt(), MODEL_ERROR),
        (MemoryError(), MODEL_ERROR),
        (UnspeakableError(), MODEL_ERROR),
    ],
)
def test_what_a_model_raises_is_named_and_never_raised_again(
    dispatch: Dispatch, error: BaseException, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert dispatch.failed("process", error) == code


def test_a_failure_is_logged_with_its_place_and_a_guests_fault_without_a_traceback(
    dispatch: Dispatch, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch.failed("process", ValueError("oops"))
    dispatch.failed("process", RequestError("too short"))
    model, guest = caplog.records
    assert (model.levelname, model.getMessage()) == ("ERROR", "the model failed in process: ValueError")
    assert model.exc_info is not None
    assert (guest.levelname, guest.exc_info) == ("WARNING", None)
    assert "too short" in guest.getMessage()
