"""What the agent does for the bench: round trips of a device, timed in the engine by the CPU's own clock.

A recorder comes back as base64 of LatencyRecorder.to_bytes().
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from typing import Any, TypeVar

from cpp_ring import LatencyRecorder, clock_ns, pin_thread
from guest import messages
from guest.blk import BlockDevice, Operation
from guest.device import VirtioDevice
from guest.errors import RequestFailed
from guest.queue import Chain, RequestQueue

Answer = dict[str, Any]
Driver = TypeVar("Driver", bound=VirtioDevice)


class Measuring(ABC):
    """Operations of the agent on its devices."""

    @abstractmethod
    def device(self, number: int) -> VirtioDevice:
        """A connected device. Raises NoSuchDevice, DeviceGone."""

    @abstractmethod
    def device_as(self, driver: type[Driver], number: int) -> Driver:
        """The same, if it is of that kind. Raises Unsupported."""

    def op_pin(self, cpu: int) -> Answer:
        pin_thread(cpu)
        return {}

    def op_measure_config_get(self, dev: int, offset: int, size: int, count: int, idle: bool = False) -> Answer:
        return self._measure(dev, messages.GET_CONFIG, messages.get_config(offset, size), count, idle)

    def op_measure_config_set(self, dev: int, offset: int, data: str, count: int, idle: bool = False) -> Answer:
        generation = self.device(dev).transport.frontend.config_generation
        payload = messages.set_config(generation, offset, bytes.fromhex(data))
        return self._measure(dev, messages.SET_CONFIG, payload, count, idle)

    def op_measure_probe(self, dev: int, count: int) -> Answer:
        """The whole initialisation, from reset to DRIVER_OK. `accesses`: exchanges of each."""
        device = self.device(dev)
        recorder, accesses = LatencyRecorder(), 0
        for _ in range(count):
            for queue in device.queues:
                queue.harvest()
            before = device.transport.exchanges
            start = clock_ns()
            device.probe()
            recorder.record(clock_ns() - start)
            accesses = device.transport.exchanges - before
        return recorded(recorder) | {"accesses": accesses}

    def op_measure_burst(self, dev: int, count: int, reads: bool = False) -> Answer:
        """The exchanges of an initialisation one right after the other, as a driver in the kernel has them: repeated by
        the engine, with the rings and addresses of one that was made before. Nothing may be in flight. `reads`: only
        those that change nothing.
        """
        device = self.device(dev)
        requests = device.transport.recorded(device.probe)
        if reads:
            requests = [request for request in requests if request[0] in messages.READS]
        recorder = LatencyRecorder()
        device.transport.frontend.measure_burst(requests, count, recorder)
        return recorded(recorder) | {"accesses": len(requests)}

    def op_measure_blk_read(self, dev: int, count: int, size: int = 4096, sector: int = 0) -> Answer:
        """One request at a time, straight at the ring. Nothing else may be in flight."""
        device = self.device_as(BlockDevice, dev)
        request = device.submit(Operation.IN, sector, size=size)
        if request is None:
            raise RequestFailed("no room in the arena: other requests hold it")
        queue, chain = device.queues[request.queue], request.chain
        device.complete(queue, chain)
        return _measure_ring(queue, chain, count)

    def op_measure_rng(self, dev: int, count: int, size: int = 16) -> Answer:
        """As measure_blk_read, for a device of one queue that answers any writable buffer."""
        device = self.device(dev)
        arena = device.transport.arena
        buffer = arena.allocate(size) if arena else None
        if buffer is None:
            raise RequestFailed("no room in the arena: other requests hold it")
        queue = device.queues[0]
        chain = Chain([], [buffer.piece()], (buffer,))
        device.perform(queue, chain)
        return _measure_ring(queue, chain, count)

    def _measure(self, dev: int, msg_id: int, payload: bytes, count: int, idle: bool) -> Answer:
        recorder = LatencyRecorder()
        self.device(dev).transport.frontend.measure(msg_id, payload, count, recorder, idle)
        return recorded(recorder)


def _measure_ring(queue: RequestQueue, chain: Chain, count: int) -> Answer:
    """`count` times a chain that was completed once, which is freed."""
    recorder = LatencyRecorder()
    try:
        queue.ring.measure(chain.readable, chain.writable, count, recorder)
    finally:
        queue.free(chain)
    return recorded(recorder)


def recorded(recorder: LatencyRecorder) -> Answer:
    return {
        "recorder": base64.b64encode(recorder.to_bytes()).decode(),
        "count": recorder.count,
        "min": recorder.min,
        "p50": recorder.percentile(50),
    }
