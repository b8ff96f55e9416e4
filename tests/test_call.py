import gc
import threading
import time
import weakref
from bisect import bisect_left

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sottovoce import call as call_module
from sottovoce.call import CHUNK_BOUNDS_S, Call


class Recorder:
    def __init__(self):
        self.opened_calls, self.ended_calls = [], []

    def opened(self, call):
        self.opened_calls.append(call)

    def enter(self, call):
        return None

    def leave(self, token):
        return None

    def ended(self, call):
        self.ended_calls.append(call)


def opened(recorder=None, **kwargs):
    return Call(recorder or Recorder(), operation="chat", provider="openai", **kwargs)


def test_a_call_is_opened_once_and_ended_once_and_the_first_end_wins():
    recorder = Recorder()
    call = opened(recorder)
    assert call.is_open
    assert call.end()
    assert not call.fail(ValueError("late"))
    assert not call.abandon()
    assert recorder.opened_calls == recorder.ended_calls == [call]
    assert (call.outcome, call.error, call.is_open) == ("completed", None, False)


def test_many_threads_end_a_call_once():
    recorder = Recorder()
    call = opened(recorder)
    barrier = threading.Barrier(8)
    wins = []

    def end():
        barrier.wait()
        wins.append(call.end())

    threads = [threading.Thread(target=end) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]
    assert len(recorder.ended_calls) == 1


def test_of_an_exception_only_the_class_is_kept():
    call = opened()
    error = ValueError("my secret prompt")
    alive = weakref.ref(error.__class__)
    call.fail(error)
    assert call.outcome == "failed"
    assert call.error is ValueError
    assert alive() is ValueError


def test_cancellation_is_told_apart_from_failure():
    import asyncio

    call = opened()
    call.fail(asyncio.CancelledError())
    assert call.outcome == "cancelled"


def test_an_abandoned_call_ends_when_its_last_chunk_came():
    call = opened()
    call.chunk()
    call.chunk()
    last = call.last_chunk_ns
    time.sleep(0.01)
    call.abandon()
    assert call.end_ns == last
    assert call.outcome == "abandoned"


def test_an_abandoned_call_without_chunks_ends_now():
    call = opened()
    call.abandon()
    assert call.end_ns >= call.start_ns
    assert call.duration_ns >= 0


def test_start_time_can_lie_in_the_past_and_wall_clock_follows_it():
    call = opened(start_ns=time.perf_counter_ns() - 5_000_000_000)
    assert abs(time.time_ns() - 5_000_000_000 - call.start_unix_ns) < 1_000_000_000


_EDGES = [round(bound * 1e9) + more for bound in CHUNK_BOUNDS_S for more in (-1, 0, 1)]


@given(
    st.lists(
        st.integers(min_value=0, max_value=10**12) | st.sampled_from(_EDGES),
        min_size=1,
        max_size=300,
    )
)
@example([_EDGES[2], _EDGES[1], _EDGES[2], _EDGES[1]])
@example([_EDGES[-1], _EDGES[-2], _EDGES[-1] + 5, _EDGES[-1]])
def test_gaps_hold_what_a_histogram_of_the_same_values_holds(values):
    call = opened()
    now = [1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_module, "perf_counter_ns", lambda: now[0])
        call.chunk()
        for place, value in enumerate(values):
            now[0] += value
            call.chunk()
            if place == len(values) // 2:
                assert sum(count for count, _ in call.gaps.buckets.values()) == place + 1
    gaps = call.gaps
    assert (gaps.minimum, gaps.maximum) == (min(values), max(values))
    # Upper bounds are inclusive, as in the SDK.
    bounds = [round(bound * 1e9) for bound in CHUNK_BOUNDS_S]
    places = [bisect_left(bounds, value) for value in values]
    assert gaps.buckets == {
        place: (
            places.count(place),
            sum(value for value, its in zip(values, places, strict=True) if its == place),
        )
        for place in places
    }


def test_memory_is_constant_in_the_length_of_a_stream():
    call = opened()
    call.stream = True
    for _ in range(100):
        call.chunk()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(50_000):
        call.chunk()
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert call.chunks == 50_100
