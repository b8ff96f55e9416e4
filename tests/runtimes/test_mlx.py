"""mlx-lm in process, with a real tiny model: what each call records, and what the app sees."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import json
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from sottovoce.call import current_call
from sottovoce.registry import ATTRIBUTES

mlx_lm = pytest.importorskip("mlx_lm")
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

pytestmark = pytest.mark.mlx

ARCHITECTURES = ATTRIBUTES["sottovoce.model.architecture"].values
PROMPT = "Grüße aus der Küche"


def generate_module():
    return sys.modules["mlx_lm.generate"]


def stopping_at(step, tokenizer):
    """A logits processor that makes the end-of-sequence token certain at a step."""
    seen = []

    def processor(tokens, logits):
        seen.append(1)
        if len(seen) < step:
            return logits
        (end,) = tokenizer.eos_token_ids
        return mx.where(mx.arange(logits.shape[-1]) == end, 1e9, logits)

    return processor


def test_a_stream_is_one_call_with_exact_counts(mlx_hooks, mlx_model):
    model, tokenizer = mlx_model
    stream = mlx_lm.stream_generate(model, tokenizer, PROMPT, max_tokens=9)
    assert inspect.isgenerator(stream)
    assert not mlx_hooks.recorder.open, "nothing happens before the first token is asked for"
    responses = list(stream)

    call = mlx_hooks.recorder.call
    assert (call.operation, call.provider) == ("text_completion", "mlx")
    assert call.in_process and call.local and call.stream
    assert call.outcome == "completed"
    assert call.chunks == len(responses) == 9
    facts = call.facts
    assert facts["input_tokens"] == len(tokenizer.encode(PROMPT)) == len(PROMPT.encode())
    assert facts["output_tokens"] == 9
    assert "cache_read_tokens" not in facts
    assert facts["finish_reasons"] == ["length"]
    assert facts["request_max_tokens"] == 9
    assert facts["request_stream"] is True
    assert facts["peak_memory"] == facts["model_size"] == "lt_1GiB"
    assert facts["context_fill"] == (facts["input_tokens"] + 9) / 2048
    assert facts["prefill_rate"] > 0 and facts["decode_rate"] > 0


def test_engine_times_leave_out_what_the_app_does_between_tokens(mlx_hooks, mlx_model):
    released = threading.Event()
    for index, _ in enumerate(mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=4)):
        if index == 1:
            released.wait(0.3)
    call = mlx_hooks.recorder.call
    facts = call.facts
    busy, first = facts["engine_duration_s"], facts["time_to_first_token_s"]
    assert 0 < first < busy
    assert busy <= call.duration_ns / 1e9 - 0.3
    assert facts["time_per_output_token_s"] == pytest.approx((busy - first) / 3)


def test_the_end_token_is_not_output(mlx_hooks, mlx_model):
    model, tokenizer = mlx_model
    responses = list(
        mlx_lm.stream_generate(
            model, tokenizer, PROMPT, 20, logits_processors=[stopping_at(6, tokenizer)]
        )
    )
    facts = mlx_hooks.recorder.call.facts
    assert responses[-1].generation_tokens == 6
    assert facts["output_tokens"] == 5
    assert facts["finish_reasons"] == ["stop"]
    assert facts["request_max_tokens"] == 20


def test_an_abandoned_stream_has_exact_counts_and_no_error(mlx_hooks, mlx_model):
    model, tokenizer = mlx_model
    for index, _ in enumerate(mlx_lm.stream_generate(model, tokenizer, PROMPT, max_tokens=50)):
        if index == 3:
            break
    call = mlx_hooks.recorder.call
    assert call.outcome == "abandoned"
    assert call.error is None
    assert call.end_ns == call.last_chunk_ns
    assert call.facts["input_tokens"] == len(tokenizer.encode(PROMPT))
    assert call.facts["output_tokens"] == 4
    assert "finish_reasons" not in call.facts


def test_leaving_after_the_last_token_is_completion(mlx_hooks, mlx_model):
    for response in mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=3):
        if response.finish_reason:
            break
    call = mlx_hooks.recorder.call
    assert call.outcome == "completed"
    assert call.end_ns == call.last_chunk_ns
    assert call.facts["output_tokens"] == 3


def test_a_stream_that_is_never_read_is_no_call(mlx_hooks, mlx_model):
    mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=3)
    gc.collect()
    assert not mlx_hooks.recorder.open and not mlx_hooks.recorder.calls


def test_a_stream_found_by_the_garbage_collector_is_recorded_by_another_thread(
    mlx_hooks, mlx_model, monkeypatch
):
    ended_in = []
    recorder = mlx_hooks.recorder
    record = recorder.ended

    def ended(call):
        ended_in.append(threading.current_thread().name)
        record(call)

    monkeypatch.setattr(recorder, "ended", ended)
    cycle = [mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=9)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    gc.collect()
    for _ in range(500):
        if ended_in:
            break
        time.sleep(0.01)
    # Recording in the collecting thread could wait for a lock that this very thread holds.
    assert ended_in == ["sottovoce-dropped"]
    assert recorder.call.outcome == "abandoned"
    assert recorder.call.facts["output_tokens"] == 1


def test_errors_are_the_apps_and_fail_the_call(mlx_hooks, mlx_model):
    with pytest.raises(ValueError, match="must be provided"):
        list(mlx_lm.stream_generate(*mlx_model, []))
    call = mlx_hooks.recorder.call
    assert call.outcome == "failed"
    assert call.error is ValueError
    assert "input_tokens" not in call.facts


def test_an_error_after_some_tokens_keeps_their_count(mlx_hooks, mlx_model):
    steps = []

    def explode(tokens, logits):
        steps.append(1)
        if len(steps) > 4:
            raise ZeroDivisionError("planted words")
        return logits

    got = 0
    with pytest.raises(ZeroDivisionError, match="planted words"):
        for _ in mlx_lm.stream_generate(
            *mlx_model, PROMPT, max_tokens=9, logits_processors=[explode]
        ):
            got += 1
    call = mlx_hooks.recorder.call
    assert got and call.facts["output_tokens"] == got
    assert call.error is ZeroDivisionError


def test_a_wrong_call_is_refused_at_once_and_is_no_call(mlx_hooks, mlx_model):
    with pytest.raises(TypeError):
        mlx_lm.stream_generate()
    assert not mlx_hooks.recorder.calls


def test_what_the_app_throws_in_reaches_the_engine(mlx_hooks, mlx_model):
    stream = mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=9)
    next(stream)
    with pytest.raises(KeyError):
        stream.throw(KeyError("mine"))
    assert mlx_hooks.recorder.call.error is KeyError
    with pytest.raises(StopIteration):
        next(stream)


def test_generate_is_one_whole_call(mlx_hooks, mlx_model):
    model, tokenizer = mlx_model
    text = mlx_lm.generate(model, tokenizer, PROMPT, max_tokens=7)
    assert isinstance(text, str)
    call = mlx_hooks.recorder.call
    assert not call.stream and call.chunks == 0
    assert "request_stream" not in call.facts
    assert call.facts["input_tokens"] == len(tokenizer.encode(PROMPT))
    assert call.facts["output_tokens"] == 7
    assert call.facts["finish_reasons"] == ["length"]
    assert 0 < call.facts["time_to_first_token_s"] < call.facts["engine_duration_s"]


def test_generate_fails_once(mlx_hooks, mlx_model):
    with pytest.raises(TypeError):
        mlx_lm.generate(*mlx_model, PROMPT, no_such_option=1)
    assert mlx_hooks.recorder.call.error is TypeError


def test_generation_inside_a_callback_is_a_call_of_its_own(mlx_hooks, mlx_model):
    inner = []

    def nested(tokens, logits):
        if not inner:
            inner.append(mlx_lm.generate(*mlx_model, "x", max_tokens=2))
        return logits

    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=4, logits_processors=[nested])
    first, second = mlx_hooks.recorder.calls
    assert (first.facts["output_tokens"], second.facts["output_tokens"]) == (2, 4)


def test_cached_prompt_tokens_are_part_of_the_input(mlx_hooks, mlx_model):
    model, tokenizer = mlx_model
    cache = make_prompt_cache(model)
    mlx_lm.generate(model, tokenizer, PROMPT, max_tokens=5, prompt_cache=cache)
    held = cache[0].offset
    assert held > 0
    mlx_lm.generate(model, tokenizer, "more", max_tokens=5, prompt_cache=cache)
    first, second = (call.facts for call in mlx_hooks.recorder.calls)
    assert "cache_read_tokens" not in first
    assert second["cache_read_tokens"] == held
    assert second["input_tokens"] == held + 4


def test_the_current_call_is_set_inside_the_engine_only(mlx_hooks, mlx_model):
    seen = []

    def look(tokens, logits):
        seen.append(current_call.get())
        return logits

    for _ in mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=3, logits_processors=[look]):
        assert current_call.get() is None
    assert set(seen) == {mlx_hooks.recorder.call}


def test_a_model_has_a_name_that_nobody_typed(mlx_hooks, mlx_model_path, mlx_model_4bit_path):
    for path, quantization in ((mlx_model_path, "f32"), (mlx_model_4bit_path, "4bit")):
        loaded = mlx_lm.load(str(path))
        list(mlx_lm.stream_generate(*loaded, PROMPT, max_tokens=2))
        call = mlx_hooks.recorder.calls[-1]
        assert call.model == f"llama-lt_1M-{quantization}"
        assert call.facts["model_architecture"] == "llama"
        assert call.facts["model_quantization"] == quantization
        assert call.facts["model_parameters"] == "lt_1M"
        assert "alice" not in repr(call.facts)


def test_a_type_that_runs_with_the_code_of_another_is_known(mlx_hooks, mlx_model_path, tmp_path):
    config = json.loads((mlx_model_path / "config.json").read_text())
    for name in ("iquestcoder", "mistral"):
        folder = tmp_path / name
        folder.mkdir()
        for file in mlx_model_path.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, "model_type": name}))
        mlx_lm.utils.load_model(folder)
        ((_, facts, _, _),) = mlx_hooks.recorder.loads
        mlx_hooks.recorder.loads.clear()
        known = name if name in ARCHITECTURES else "llama"
        assert facts["model_architecture"] == known


def test_eight_bits_are_told_from_four(mlx_hooks, mlx_maker, tmp_path):
    mlx_lm.utils.load_model(mlx_maker(tmp_path, bits=8))
    ((_, facts, _, _),) = mlx_hooks.recorder.loads
    assert facts["model_quantization"] == "8bit"


def test_quantised_weights_are_counted_unpacked(mlx_model_path, mlx_model_4bit_path, mlx_hooks):
    from sottovoce.runtimes import identity

    sizes = []
    original = identity.describe
    try:
        identity.describe = lambda *known, **more: (
            sizes.append(known[3]) or original(*known, **more)
        )
        for path in (mlx_model_path, mlx_model_4bit_path):
            mlx_lm.load(str(path))
    finally:
        identity.describe = original
    assert sizes[0] == sizes[1] > 50_000


def test_a_load_is_timed_once_and_says_what_was_loaded(mlx_hooks, mlx_model_4bit_path):
    mlx_lm.load(str(mlx_model_4bit_path))
    ((provider, facts, seconds, error),) = mlx_hooks.recorder.loads
    assert (provider, error) == ("mlx", None)
    assert seconds > 0
    told = {
        "request_model": "llama-lt_1M-4bit",
        "model_architecture": "llama",
        "model_quantization": "4bit",
        "model_parameters": "lt_1M",
        "model_adapter": False,
        "model_size": "lt_1GiB",
        "context_size": 2048,
    }
    assert told.items() <= facts.items()


def test_load_model_alone_is_a_load(mlx_hooks, mlx_model_path):
    model, config = mlx_lm.utils.load_model(mlx_model_path)
    assert config["model_type"] == "llama"
    ((_, facts, _, _),) = mlx_hooks.recorder.loads
    assert facts["request_model"] == "llama-lt_1M-f32"


def test_a_failed_load_tells_no_path(mlx_hooks, tmp_path):
    with pytest.raises(ValueError, match="Repo id"):
        mlx_lm.load(str(tmp_path / "alice" / "nothing here"))
    ((provider, facts, _, error),) = mlx_hooks.recorder.loads
    assert (provider, facts) == ("mlx", {})
    assert error == "model_not_found"


def test_a_hub_cache_tells_the_public_id(mlx_hooks, mlx_model_path, tmp_path):
    snapshot = tmp_path / "models--mlx-community--Tiny-4bit" / "snapshots" / "0a1b2c"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(mlx_model_path, target_is_directory=True)
    model, tokenizer = mlx_lm.load(str(snapshot))
    mlx_lm.generate(model, tokenizer, PROMPT, max_tokens=2)
    assert mlx_hooks.recorder.call.model == "mlx-community/Tiny-4bit"


def test_a_path_that_looks_like_a_hub_id_is_still_a_path(
    mlx_hooks, mlx_model_path, tmp_path, monkeypatch
):
    (tmp_path / "alice").mkdir()
    (tmp_path / "alice" / "finetune").symlink_to(mlx_model_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    mlx_lm.load("alice/finetune")
    assert mlx_hooks.recorder.loads[0][1]["request_model"] == "llama-lt_1M-f32"


def test_identities_die_with_their_models(mlx_hooks, mlx_model_path):
    from sottovoce.runtimes import mlx_models

    gc.collect()
    before = len(mlx_models.models)
    model, tokenizer = mlx_lm.load(str(mlx_model_path))
    assert len(mlx_models.models) == before + 1
    gone = weakref.ref(model)
    del model, tokenizer
    gc.collect()
    assert gone() is None
    assert len(mlx_models.models) == before


def test_a_model_loaded_earlier_is_recognised_by_itself(mlx_hooks, mlx_model):
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=2)
    assert mlx_hooks.recorder.call.model == "llama-lt_1M-f32"


def test_late_hooks_reach_names_bound_earlier_and_removing_restores_them(
    mlx_model, instrumented_mlx
):
    from mlx_lm import generate as bound_generate
    from mlx_lm import stream_generate as bound_stream

    names = [
        (sys.modules["mlx_lm"], "stream_generate"),
        (sys.modules["mlx_lm"], "generate"),
        (sys.modules["mlx_lm"], "load"),
        (generate_module(), "stream_generate"),
        (generate_module(), "generate"),
        (generate_module(), "load"),
        (mlx_lm.utils, "load"),
        (mlx_lm.utils, "load_model"),
        (sys.modules[__name__], "BOUND_EARLIER"),
    ]
    before = [getattr(*name) for name in names]
    hooks = instrumented_mlx()
    during = [getattr(*name) for name in names]
    assert all(new is not old for new, old in zip(during, before, strict=True))
    assert [inspect.signature(f) for f in during] == [inspect.signature(f) for f in before]
    list(BOUND_EARLIER(*mlx_model, PROMPT, max_tokens=2))
    assert hooks.recorder.call.facts["output_tokens"] == 2

    kept = mlx_lm.stream_generate
    hooks.remove()
    assert [getattr(*name) for name in names] == before
    assert bound_generate is before[1] and bound_stream is before[0]
    list(kept(*mlx_model, PROMPT, max_tokens=2))
    assert len(hooks.recorder.calls) == 1, "a wrapper that someone kept passes through"


BOUND_EARLIER = mlx_lm.stream_generate


def test_two_threads_with_one_model_and_two(mlx_hooks, mlx_model, mlx_model_4bit_path):
    other = mlx_lm.load(str(mlx_model_4bit_path))
    jobs = [(mlx_model, 5), (mlx_model, 8), (other, 11)]
    barrier = threading.Barrier(len(jobs))
    texts = [None] * len(jobs)

    def work(index):
        loaded, tokens = jobs[index]
        barrier.wait()
        texts[index] = mlx_lm.generate(*loaded, "x" * tokens, max_tokens=tokens)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in texts
    assert not mlx_hooks.recorder.open
    got = {
        (call.model, call.facts["input_tokens"], call.facts["output_tokens"])
        for call in mlx_hooks.recorder.calls
    }
    assert got == {
        ("llama-lt_1M-f32", 5, 5),
        ("llama-lt_1M-f32", 8, 8),
        ("llama-lt_1M-4bit", 11, 11),
    }


async def test_each_token_in_a_context_of_its_own(mlx_hooks, mlx_model):
    # One worker: an mlx-lm stream belongs to the thread that began it.
    done = object()
    stream = mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=5)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as worker:

        def step():
            return contextvars.copy_context().run(next, stream, done)

        while await loop.run_in_executor(worker, step) is not done:
            assert current_call.get() is None
    call = mlx_hooks.recorder.call
    assert (call.outcome, call.chunks) == ("completed", 5)


async def test_a_whole_call_off_the_event_loop(mlx_hooks, mlx_model):
    await asyncio.to_thread(mlx_lm.generate, *mlx_model, PROMPT, max_tokens=3)
    assert mlx_hooks.recorder.call.facts["output_tokens"] == 3


def test_a_suppressed_call_is_not_recorded(mlx_hooks, mlx_model, instrumented_mlx):
    mlx_hooks.remove()
    hooks = instrumented_mlx(enabled=lambda: False)
    assert len(list(mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=2))) == 2
    assert mlx_lm.generate(*mlx_model, PROMPT, max_tokens=2)
    assert not hooks.recorder.calls and not hooks.recorder.open
