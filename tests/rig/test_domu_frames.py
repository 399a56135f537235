"""Frames between dom0's tests and a domU's agent survive any cutting of the stream."""

from hypothesis import given
from hypothesis import strategies as st

from scripts.xen_rig.domu_agent.frames import Decoder, Kind, encode

FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=50)))


@given(FRAMES, st.lists(st.integers(1, 20)))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    frames: list[tuple[Kind, int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(encode(*frame) for frame in frames)
    decoder = Decoder()
    found: list[tuple[Kind, int, bytes]] = []
    for size in cuts:
        found += decoder.feed(stream[:size])
        stream = stream[size:]
    found += decoder.feed(stream)
    assert found == frames
