"""What a stream that is passed on learns of its pieces."""

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from runtimes.conftest import Recording
from sottovoce import call as calls
from sottovoce.call import Call
from sottovoce.runtimes import engine

GAPS = st.one_of(
    st.integers(0, 10**12),
    st.sampled_from(
        [round(bound * 1e9) + more for bound in calls.CHUNK_BOUNDS_S for more in (0, 1)]
    ),
)


@given(st.lists(GAPS))
def test_pieces_are_counted_and_timed_as_chunks_are(gaps):
    now = 10**9

    def pieces():
        nonlocal now
        for gap in gaps:
            now += gap
            yield None

    with patch.object(calls, "perf_counter_ns", lambda: now):
        chunked = Call(Recording(), operation="chat", provider="mlx")
        for _ in pieces():
            chunked.chunk()
        now = 10**9
        with patch.object(engine, "perf_counter_ns", lambda: now):
            passed = engine.EngineCall(Recording(), "chat", "mlx", None, stream=True)
            for _ in engine.pass_on(pieces(), passed):
                pass
    assert told(passed) == told(chunked)


def told(call):
    found = [call.chunks, call.first_chunk_ns, call.last_chunk_ns]
    if call.gaps is not None:
        found += [call.gaps.buckets, call.gaps.minimum, call.gaps.maximum]
    return found
