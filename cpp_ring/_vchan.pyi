"""libxenvchan under the bench's clock. Only in builds that found the library, where it has the same version."""

from cpp_ring import LatencyRecorder

class Vchan:
    """One end of a byte stream between two domains, which carries messages of 24 bytes."""

    @staticmethod
    def offer(peer: int, path: str) -> Vchan:
        """Grants the rings to domain `peer`; the store says where, below `path`. Raises OSError."""
    @staticmethod
    def join(peer: int, path: str) -> Vchan:
        """The other end of what domain `peer` offers at `path`. Raises OSError."""
    def echo(self, count: int, asleep: bool, patience: float) -> bool:
        """Answers `count` messages by one each; `asleep`: in libxenvchan_wait until one comes, else spinning.

        False: none came for `patience` seconds (spinning only), or the other side left.
        """
    def measure(self, count: int, asleep: bool, recorder: LatencyRecorder, patience: float) -> bool:
        """The other side; each round trip in ns. False as in `echo`."""
