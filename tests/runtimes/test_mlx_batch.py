"""Batches of mlx-lm with a real tiny model: one call for `batch_generate`, one a sequence."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref

import pytest

mlx_lm = pytest.importorskip("mlx_lm")
import mlx.core as mx
from mlx_lm import sample_utils
from mlx_lm.models.cache import make_prompt_cache

from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.instrumentors import MLXInstrumentor
from sottovoce.runtimes import mlx_batch, mlx_batch_calls

pytestmark = pytest.mark.mlx

PROMPTS = [list(range(10, 30)), list(range(40, 45)), list(range(60, 69))]
"""Three prompts of 20, 5 and 9 tokens."""


def module():
    return sys.modules["mlx_lm.generate"]


def generator(loaded, **options):
    model, tokenizer = loaded
    stops = tokenizer.eos_token_ids
    if hasattr(module().BatchGenerator, "insert_segments"):
        stops = [[token] for token in stops]
    return module().BatchGenerator(model, stop_tokens=stops, **options)


def step(batch):
    """The next responses; `next` gave those alone before there was another way to get them."""
    return getattr(batch, "next_generated", batch.next)()


def drain(batch):
    """Read a generator to its end; the tokens of each sequence, the last included."""
    read = {}
    while responses := step(batch):
        for response in responses:
            read.setdefault(response.uid, []).append(response.token)
    return read


def stopping(tokenizer, after):
    """A logits processor that ends a sequence at its token number `after` + 1."""
    (end,) = tokenizer.eos_token_ids
    seen = []

    def processor(tokens, logits):
        seen.append(1)
        if len(seen) <= after:
            return logits
        return mx.where(mx.arange(logits.shape[-1]) == end, 1e9, logits)

    return [processor]


def by_input(recorder):
    return {call.facts["input_tokens"]: call for call in recorder.calls}


def test_a_batch_is_one_call_with_exact_sums(mlx_hooks, mlx_model):
    result = mlx_lm.batch_generate(*mlx_model, PROMPTS, max_tokens=[12, 7, 3])
    assert len(result.texts) == 3
    call = mlx_hooks.recorder.call
    assert (call.operation, call.provider) == ("text_completion", "mlx")
    assert call.in_process and call.local and not call.stream
    assert call.outcome == "completed"
    assert call.model == "llama-lt_1M-f32"
    facts = call.facts
    assert facts["batch_size"] == 3
    # What mlx-lm reports is one less for each sequence.
    assert facts["input_tokens"] == sum(map(len, PROMPTS)) == result.stats.prompt_tokens + 3
    assert facts["output_tokens"] == 12 + 7 + 3 == result.stats.generation_tokens
    assert facts["finish_reasons"] == ["length"] * 3
    assert "request_max_tokens" not in facts
    assert 0 < facts["time_to_first_token_s"] < facts["engine_duration_s"]
    # The longest sequence has eleven steps after its first token.
    assert facts["time_per_output_token_s"] == pytest.approx(
        (facts["engine_duration_s"] - facts["time_to_first_token_s"]) / 11, rel=0.5
    )
    assert facts["context_fill"] == pytest.approx(32 / 2048)
    assert facts["prefill_rate"] == pytest.approx(result.stats.prompt_tps * 34 / 31)
    assert facts["decode_rate"] == pytest.approx(result.stats.generation_tps)
    assert facts["peak_memory"] == "lt_1GiB"


def test_the_spans_of_batches(record, mlx_model):
    recorded = record(MLXInstrumentor)
    sampler = sample_utils.make_sampler(0.5)
    mlx_lm.batch_generate(*mlx_model, PROMPTS, max_tokens=4, sampler=sampler)
    batch = generator(mlx_model, max_tokens=2)
    with recorded.tracer.start_as_current_span("request") as request:
        batch.insert(PROMPTS[:1])
    drain(batch)
    whole, _, sequence = recorded.exporter.get_finished_spans()
    assert whole.name == sequence.name == "text_completion llama-lt_1M-f32"
    attributes = whole.attributes
    assert attributes["sottovoce.request.batch.size"] == 3
    assert attributes["gen_ai.usage.input_tokens"] == 34
    assert attributes["gen_ai.usage.output_tokens"] == 12
    assert attributes["gen_ai.response.finish_reasons"] == ("length",) * 3
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["sottovoce.prefill.throughput"] > 0
    assert attributes["sottovoce.decode.throughput"] > 0
    # A request's trace is the one in which it was inserted, wherever it is worked on.
    assert sequence.parent.span_id == request.get_span_context().span_id
    assert sequence.attributes["gen_ai.usage.output_tokens"] == 2
    points = recorded.points()
    for name in ("gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"):
        assert sum(point.count for point in points[name]) == 2


def test_the_end_tokens_of_a_batch_are_not_output(mlx_hooks, mlx_model):
    model, tokenizer = mlx_model
    result = mlx_lm.batch_generate(
        model, tokenizer, PROMPTS[:1], max_tokens=9, logits_processors=stopping(tokenizer, 4)
    )
    facts = mlx_hooks.recorder.call.facts
    assert facts["output_tokens"] == 4 == len(result.texts[0])
    assert facts["finish_reasons"] == ["stop"]
    assert facts["request_max_tokens"] == 9


def test_what_prompt_caches_hold_is_part_of_a_batchs_input(mlx_hooks, mlx_model):
    first = mlx_lm.batch_generate(*mlx_model, PROMPTS, max_tokens=4, return_prompt_caches=True)
    held = [cache[0].offset for cache in first.caches]
    mlx_lm.batch_generate(*mlx_model, PROMPTS, max_tokens=4, prompt_caches=first.caches)
    facts = mlx_hooks.recorder.calls[1].facts
    assert facts["cache_read_tokens"] == sum(held) > 34
    assert facts["input_tokens"] == 34 + sum(held)


def test_no_prompt_is_a_batch_of_none(mlx_hooks, mlx_model):
    assert mlx_lm.batch_generate(*mlx_model, [], max_tokens=4).texts == []
    call = mlx_hooks.recorder.call
    assert call.facts["batch_size"] == 0
    assert "output_tokens" not in call.facts


def test_a_batch_that_fails_keeps_what_it_counted(mlx_hooks, mlx_model):
    steps = []

    def explode(tokens, logits):
        steps.append(1)
        if len(steps) > 6:
            raise ZeroDivisionError("planted words")
        return logits

    with pytest.raises(ZeroDivisionError, match="planted words"):
        mlx_lm.batch_generate(*mlx_model, PROMPTS[:2], max_tokens=9, logits_processors=[explode])
    call = mlx_hooks.recorder.call
    assert (call.outcome, call.error) == ("failed", ZeroDivisionError)
    assert call.facts["output_tokens"] > 0
    assert "finish_reasons" not in call.facts


@pytest.mark.parametrize("prompts", [None, 7, [None], [[]], ["words"]])
def test_a_wrong_batch_is_the_apps_error(mlx_hooks, mlx_model, prompts):
    with pytest.raises(Exception) as caught:
        mlx_lm.batch_generate(*mlx_model, prompts, max_tokens=2)
    call = mlx_hooks.recorder.call
    assert call.outcome == "failed"
    assert issubclass(caught.type, call.error)
    assert "input_tokens" not in call.facts


def test_a_long_batch_tells_a_bounded_list_of_reasons(mlx_hooks, mlx_model):
    many = [[7, 8]] * (mlx_batch_calls.MOST_REASONS + 3)
    mlx_lm.batch_generate(*mlx_model, many, max_tokens=1)
    facts = mlx_hooks.recorder.call.facts
    assert facts["batch_size"] == facts["output_tokens"] == len(many)
    assert facts["finish_reasons"] == ["length"] * mlx_batch_calls.MOST_REASONS


def test_each_inserted_sequence_is_a_call(mlx_hooks, mlx_model):
    batch = generator(mlx_model, max_tokens=6)
    uids = batch.insert(PROMPTS[:2])
    assert len(mlx_hooks.recorder.open) == 2
    step(batch)
    # Another request joins the running batch.
    (late,) = batch.insert([PROMPTS[2]], max_tokens=[2])
    read = drain(batch)
    assert set(read) == {*uids, late}
    assert not mlx_hooks.recorder.open
    calls = by_input(mlx_hooks.recorder)
    assert set(calls) == {20, 5, 9}
    for call in calls.values():
        facts = call.facts
        assert call.stream and call.outcome == "completed"
        assert facts["finish_reasons"] == ["length"]
        assert call.chunks == facts["output_tokens"]
        assert 0 < facts["time_to_first_token_s"] <= facts["engine_duration_s"]
        assert facts["engine_duration_s"] <= call.duration_ns / 1e9
        assert "batch_size" not in facts
        assert facts["peak_memory"] == "lt_1GiB"
        assert facts["context_fill"] == (facts["input_tokens"] + facts["output_tokens"]) / 2048
    assert calls[9].facts["output_tokens"] == calls[9].facts["request_max_tokens"] == 2
    assert calls[20].facts["output_tokens"] == 6
    batch.close()


def test_how_fast_a_prompt_is_read_is_told_without_company_only(mlx_hooks, mlx_model):
    def told():
        calls = by_input(mlx_hooks.recorder)
        mlx_hooks.recorder.calls.clear()
        assert all(call.facts["decode_rate"] > 0 for call in calls.values())
        return {prompt for prompt, call in calls.items() if "prefill_rate" in call.facts}

    batch = generator(mlx_model, max_tokens=4)
    batch.insert(PROMPTS[:1])
    drain(batch)
    assert told() == {20}
    batch.insert(PROMPTS)
    drain(batch)
    assert told() == set()
    # Company before the first token, and after it.
    batch.insert(PROMPTS[:1])
    batch.insert(PROMPTS[1:2])
    drain(batch)
    assert told() == set()
    batch.insert(PROMPTS[:1])
    step(batch)
    batch.insert(PROMPTS[1:2])
    drain(batch)
    assert told() == {20}
    batch.close()


def test_a_sequences_end_token_is_not_output(mlx_hooks, mlx_model):
    batch = generator(mlx_model)
    batch.insert(PROMPTS[:1], [9], logits_processors=[stopping(mlx_model[1], 3)])
    (tokens,) = drain(batch).values()
    assert len(tokens) == 4
    facts = mlx_hooks.recorder.call.facts
    assert facts["output_tokens"] == 3
    assert facts["finish_reasons"] == ["stop"]


def test_segments_and_caches_are_input(mlx_hooks, mlx_model):
    cache = make_prompt_cache(mlx_model[0])
    mlx_lm.generate(*mlx_model, "x" * 11, max_tokens=1, prompt_cache=cache)
    held = cache[0].offset
    batch = generator(mlx_model, max_tokens=2)
    batch.insert_segments([[PROMPTS[0], PROMPTS[1]]], caches=[cache])
    drain(batch)
    facts = mlx_hooks.recorder.calls[-1].facts
    assert facts["cache_read_tokens"] == held > 0
    assert facts["input_tokens"] == 25 + held


def test_both_ways_to_step_count(mlx_hooks, mlx_model):
    batch = generator(mlx_model)
    batch.insert(PROMPTS[:1], [5])
    steps = 0
    while mlx_hooks.recorder.open:
        batch.next()
        steps += 1
        assert steps < 100
    assert mlx_hooks.recorder.call.facts["output_tokens"] == 5


def test_a_removed_sequence_is_abandoned(mlx_hooks, mlx_model):
    batch = generator(mlx_model, max_tokens=6)
    first, second, third = batch.insert(PROMPTS)
    while all(not call.chunks for call in mlx_hooks.recorder.open):
        step(batch)
    batch.remove([first])
    (left,) = mlx_hooks.recorder.calls
    assert left.outcome == "abandoned" and left.error is None
    assert left.facts["input_tokens"] == 20
    assert left.facts["output_tokens"] == left.chunks > 0
    assert left.end_ns == left.last_chunk_ns
    assert set(drain(batch)) == {second, third}
    assert [call.outcome for call in mlx_hooks.recorder.calls] == [
        "abandoned", "completed", "completed",
    ]  # fmt: skip
    # A second time, and one that is done: nothing happens.
    batch.remove({second})
    assert len(mlx_hooks.recorder.calls) == 3


def test_a_closed_generator_leaves_its_sequences(mlx_hooks, mlx_model):
    batch = generator(mlx_model)
    batch.insert(PROMPTS[:2], [6, 1])
    while not mlx_hooks.recorder.calls:
        step(batch)
    batch.close()
    assert sorted(call.outcome for call in mlx_hooks.recorder.calls) == ["abandoned", "completed"]


def test_a_sequence_that_was_never_begun_is_abandoned(mlx_hooks, mlx_model):
    batch = generator(mlx_model)
    batch.insert(PROMPTS[:1])
    del batch
    call = mlx_hooks.recorder.call
    assert call.outcome == "abandoned"
    assert "input_tokens" not in call.facts and "output_tokens" not in call.facts


def test_a_generator_in_a_cycle_is_recorded_by_another_thread(mlx_hooks, mlx_model):
    batch = generator(mlx_model)
    batch.insert(PROMPTS[:1])
    while not mlx_hooks.recorder.open[0].chunks:
        step(batch)
    cycle = [batch]
    cycle.append(cycle)
    gone = weakref.ref(batch)
    del batch, cycle
    gc.collect()
    assert gone() is None
    for _ in range(500):
        if mlx_hooks.recorder.calls:
            break
        time.sleep(0.01)
    call = mlx_hooks.recorder.call
    assert call.outcome == "abandoned"
    assert call.facts["output_tokens"] == 1


def test_nothing_of_a_generator_is_kept(mlx_hooks, mlx_model_path):
    gc.collect()
    before = len(mlx_batch._generators)
    loaded = mlx_lm.load(str(mlx_model_path))
    batch = generator(loaded, max_tokens=2)
    batch.insert(PROMPTS)
    drain(batch)
    gone = weakref.ref(loaded[0]), weakref.ref(batch)
    assert len(mlx_batch._generators) == before + 1
    del loaded, batch
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert len(mlx_batch._generators) == before


def test_a_step_that_fails_fails_its_sequences(mlx_hooks, mlx_model):
    def explode(tokens, logits):
        raise ZeroDivisionError("planted words")

    batch = generator(mlx_model)
    batch.insert(PROMPTS[:2], logits_processors=[[explode], []])
    with pytest.raises(ZeroDivisionError, match="planted words"):
        drain(batch)
    assert [(call.outcome, call.error) for call in mlx_hooks.recorder.calls] == [
        ("failed", ZeroDivisionError)
    ] * 2
    assert not mlx_hooks.recorder.open


def test_a_wrong_insertion_is_no_call(mlx_hooks, mlx_model):
    batch = generator(mlx_model)
    with pytest.raises(TypeError):
        batch.insert()
    with pytest.raises(TypeError):
        batch.insert(PROMPTS, no_such_option=1)
    assert not mlx_hooks.recorder.open and not mlx_hooks.recorder.calls


def test_everything_may_be_given_by_name(mlx_hooks, mlx_model):
    batch = generator(mlx_model, max_tokens=4)
    kind = type(batch)
    _, given_up, left = kind.insert(self=batch, prompts=[[1, 72], [1, 73], [1, 74]])
    kind.next(self=batch)
    kind.remove(self=batch, uids=[given_up])
    kind.remove(self=batch, uids=[left])
    for _ in range(9):
        kind.next(self=batch)
    kind.close(self=batch)
    outcomes = [call.outcome for call in mlx_hooks.recorder.calls]
    assert outcomes == ["abandoned", "abandoned", "completed"]


def test_two_generators_in_two_threads(mlx_hooks, mlx_model):
    failures = []
    barrier = threading.Barrier(2)

    def work(tokens):
        try:
            batch = generator(mlx_model)
            barrier.wait()
            batch.insert(PROMPTS, [tokens] * 3)
            drain(batch)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(tokens,)) for tokens in (3, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and not mlx_hooks.recorder.open
    counts = [
        (call.facts["input_tokens"], call.facts["output_tokens"])
        for call in mlx_hooks.recorder.calls
    ]
    assert sorted(counts) == [(5, 3), (5, 8), (9, 3), (9, 8), (20, 3), (20, 8)]


def test_a_batch_inside_a_callback_is_a_call_of_its_own(mlx_hooks, mlx_model):
    inner = []

    def nested(tokens, logits):
        if not inner:
            inner.append(mlx_lm.batch_generate(*mlx_model, PROMPTS[1:2], max_tokens=2))
        return logits

    mlx_lm.batch_generate(*mlx_model, PROMPTS[:1], max_tokens=4, logits_processors=[nested])
    first, second = mlx_hooks.recorder.calls
    assert (first.facts["input_tokens"], first.facts["output_tokens"]) == (5, 2)
    assert (second.facts["input_tokens"], second.facts["output_tokens"]) == (20, 4)


def test_who_owns_the_thread_suppresses_what_it_generates(mlx_hooks, mlx_model):
    token = mlx_batch.suppressed.set(True)
    try:
        mlx_lm.batch_generate(*mlx_model, PROMPTS, max_tokens=2)
        assert mlx_lm.generate(*mlx_model, "x", max_tokens=2)
        assert len(list(mlx_lm.stream_generate(*mlx_model, "x", max_tokens=2))) == 2
        batch = generator(mlx_model, max_tokens=2)
        batch.insert(PROMPTS)
        assert len(drain(batch)) == 3
    finally:
        mlx_batch.suppressed.reset(token)
    assert not mlx_hooks.recorder.calls and not mlx_hooks.recorder.open


def test_a_suppressed_batch_is_not_recorded(instrumented_mlx, mlx_model):
    hooks = instrumented_mlx(enabled=lambda: False)
    mlx_lm.batch_generate(*mlx_model, PROMPTS, max_tokens=2)
    batch = generator(mlx_model, max_tokens=2)
    batch.insert(PROMPTS)
    drain(batch)
    assert not hooks.recorder.calls and not hooks.recorder.open


def test_hooks_that_go_in_mid_stream(mlx_model, instrumented_mlx):
    hooks = instrumented_mlx()
    before = module().BatchGenerator.next_generated
    batch = generator(mlx_model, max_tokens=6)
    batch.insert(PROMPTS)
    while all(not call.chunks for call in hooks.recorder.open):
        step(batch)
    hooks.remove()
    assert module().BatchGenerator.next_generated is not before
    assert len(drain(batch)) == 3, "the app's sequences go on"
    batch.insert(PROMPTS)
    assert len(hooks.recorder.open) + len(hooks.recorder.calls) == 3, "new ones are not seen"
    del batch
    assert [call.outcome for call in hooks.recorder.calls] == ["abandoned"] * 3
    assert not hooks.recorder.open


def test_hooks_that_come_in_mid_stream(mlx_model, instrumented_mlx):
    batch = generator(mlx_model, max_tokens=4)
    batch.insert(PROMPTS[:1])
    hooks = instrumented_mlx()
    batch.insert(PROMPTS[1:2])
    assert len(drain(batch)) == 2
    assert hooks.recorder.call.facts["input_tokens"] == 5


class Odd:
    """A generator of some other version: what it returns is unlike anything known."""

    def __init__(self, responses):
        self.model, self.sampler = {}, None
        self.responses = iter(responses)

    def insert(self, prompts):
        return list(range(len(prompts)))

    def next(self):
        return next(self.responses)


@pytest.mark.parametrize("odd", [None, 7, "text", [object()], ([], [object()]), (1,), [None], {}])
def test_responses_of_another_shape_are_the_apps_all_the_same(mlx_hooks, odd, monkeypatch):
    from types import SimpleNamespace

    from sottovoce.runtimes.engine import Runtime

    kind = type("Odd", (Odd,), {"insert": Odd.insert, "next": Odd.next})
    patches = guard.Patches()
    runtime = Runtime("mlx", mlx_hooks.recorder, mlx_hooks.hooks)
    mlx_batch.install(runtime, SimpleNamespace(BatchGenerator=kind, __name__="odd"), patches)
    batch = kind([odd])
    monkeypatch.setattr(guard, "failures", guard.Counter())
    assert batch.insert([[1, 2]]) == [0]
    assert batch.next() is odd
    del batch
    assert [call.outcome for call in mlx_hooks.recorder.calls] == ["abandoned"]


def test_the_current_call_is_not_left_behind(mlx_hooks, mlx_model):
    batch = generator(mlx_model, max_tokens=3)
    batch.insert(PROMPTS)
    while step(batch):
        assert current_call.get() is None
