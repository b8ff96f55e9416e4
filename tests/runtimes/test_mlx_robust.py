"""What an app may do to a stream of mlx-lm, and that counts are the tokenizer's own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

mlx_lm = pytest.importorskip("mlx_lm")
import mlx.core as mx

from sottovoce.call import current_call

pytestmark = pytest.mark.mlx

PROMPT = "Grüße aus der Küche"

PROMPTS = [
    "x",
    PROMPT,
    "日本語のテキスト 👩🏽\u200d🍳",
    "<|begin|>begins with its own special token",
    "tabs\tand\nlines\r\n\0 and \u2028",
    "long " * 120,
]


@pytest.fixture
def stream(mlx_hooks, mlx_model):
    """A stream of nine tokens, not yet begun."""
    return mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=9)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_counts_are_the_tokenizers(mlx_hooks, mlx_model, prompt):
    model, tokenizer = mlx_model
    given = tokenizer.encode(prompt, add_special_tokens=not prompt.startswith("<|begin|>"))
    tokens = []
    for response in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=13):
        tokens.append(response.token)
    facts = mlx_hooks.recorder.call.facts
    assert facts["input_tokens"] == len(given)
    assert facts["output_tokens"] == len(tokens) == 13
    # A greedy generation of printable characters: text and tokens are one to one.
    text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=13)
    assert mlx_hooks.recorder.calls[1].facts["output_tokens"] == len(tokenizer.encode(text))
    for form in (given, mx.array(given)):
        mlx_lm.generate(model, tokenizer, form, max_tokens=1)
        assert mlx_hooks.recorder.calls[-1].facts["input_tokens"] == len(given)


def test_a_chat_template_is_part_of_the_prompt(mlx_hooks, mlx_model):
    model, tokenizer = mlx_model
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "ja"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    mlx_lm.generate(model, tokenizer, prompt, max_tokens=2)
    assert mlx_hooks.recorder.call.facts["input_tokens"] == len(prompt) > len(PROMPT)


def test_closed_before_it_began(mlx_hooks, stream):
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert not mlx_hooks.recorder.calls and not mlx_hooks.recorder.open


def test_closed_twice_and_read_on(mlx_hooks, stream):
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert mlx_hooks.recorder.call.outcome == "abandoned"
    assert mlx_hooks.recorder.call.facts["output_tokens"] == 1


def test_closing_by_name(mlx_hooks, stream):
    with contextlib.closing(stream) as opened:
        next(opened)
        next(opened)
    facts = mlx_hooks.recorder.call.facts
    assert (facts["output_tokens"], facts["peak_memory"]) == (2, "lt_1GiB")


def test_what_is_sent_is_ignored_as_it_is_without_us(mlx_hooks, stream):
    assert inspect.getgeneratorstate(stream) == inspect.GEN_CREATED
    with pytest.raises(TypeError, match="non-None value"):
        stream.send("early")
    assert not mlx_hooks.recorder.calls
    first = next(stream)
    second = stream.send("words that mlx-lm does not look at")
    assert (first.generation_tokens, second.generation_tokens) == (1, 2)
    assert len(list(stream)) == 7
    assert mlx_hooks.recorder.call.facts["output_tokens"] == 9


def test_thrown_in_before_it_began(mlx_hooks, stream):
    with pytest.raises(KeyError):
        stream.throw(KeyError("mine"))
    assert not mlx_hooks.recorder.open


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_interruptions_end_the_call(mlx_hooks, stream, error):
    next(stream)
    with pytest.raises(error):
        stream.throw(error())
    call = mlx_hooks.recorder.call
    assert call.outcome == ("cancelled" if error is asyncio.CancelledError else "failed")
    assert call.error is error


def test_an_error_in_the_apps_own_loop_abandons_the_stream(mlx_hooks, mlx_model):
    def work():
        for response in mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=9):
            if response.generation_tokens == 3:
                raise ZeroDivisionError("planted words")

    with pytest.raises(ZeroDivisionError) as caught:
        work()
    # Until the traceback is gone, so is the stream.
    del caught
    gc.collect()
    call = mlx_hooks.recorder.call
    assert (call.outcome, call.error) == ("abandoned", None)
    assert call.facts["output_tokens"] == 3


def test_a_traceback_holds_no_cycle_of_ours(mlx_hooks, mlx_model):
    class Marker:
        pass

    def explode(tokens, logits, marker):
        raise ZeroDivisionError

    marker = Marker()
    gone = weakref.ref(marker)
    gc.disable()
    try:
        with contextlib.suppress(ZeroDivisionError):
            mlx_lm.generate(
                *mlx_model, PROMPT, max_tokens=2,
                logits_processors=[lambda tokens, logits, held=marker: explode(tokens, logits, held)],
            )  # fmt: skip
        del marker
        assert gone() is None
    finally:
        gc.enable()
    assert mlx_hooks.recorder.call.error is ZeroDivisionError


def test_hooks_that_go_in_mid_stream(mlx_model, instrumented_mlx):
    hooks = instrumented_mlx()
    stream = mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=9)
    waiting = mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=9)
    next(stream)
    hooks.remove()
    assert len(list(stream)) == 8
    assert hooks.recorder.call.facts["output_tokens"] == 9, "what was begun is recorded"
    assert len(list(waiting)) == 9
    assert len(mlx_lm.generate(*mlx_model, PROMPT, max_tokens=3)) == 3
    assert len(hooks.recorder.calls) == 1, "what was not begun is not"


def test_hooks_that_come_twice(mlx_model, instrumented_mlx):
    first, second = instrumented_mlx(), instrumented_mlx()
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=2)
    assert len(first.recorder.calls) + len(second.recorder.calls) == 1


def test_streams_that_take_turns(mlx_hooks, mlx_model):
    streams = [
        mlx_lm.stream_generate(*mlx_model, "x" * size, max_tokens=size) for size in (3, 5, 7)
    ]
    living = list(streams)
    while living:
        for stream in list(living):
            if next(stream, None) is None:
                living.remove(stream)
            assert current_call.get() is None
    counts = [
        (call.facts["input_tokens"], call.facts["output_tokens"])
        for call in mlx_hooks.recorder.calls
    ]
    assert sorted(counts) == [(3, 3), (5, 5), (7, 7)]


def test_a_stream_inside_a_stream(mlx_hooks, mlx_model):
    outer = mlx_lm.stream_generate(*mlx_model, "outer", max_tokens=3)
    for _ in outer:
        mlx_lm.generate(*mlx_model, "in", max_tokens=1)
    counts = [call.facts["input_tokens"] for call in mlx_hooks.recorder.calls]
    assert counts == [2, 2, 2, 5]


def test_a_stream_dropped_in_another_thread(mlx_hooks, mlx_model):
    box = [mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=9)]
    thread = threading.Thread(target=lambda: (next(box[0]), box.clear()))
    thread.start()
    thread.join()
    assert mlx_hooks.recorder.call.outcome == "abandoned"


async def test_a_task_that_is_cancelled_while_the_engine_works(mlx_hooks, mlx_model):
    begun, go_on = threading.Event(), threading.Event()

    def wait(tokens, logits):
        begun.set()
        assert go_on.wait(60)
        return logits

    def work():
        return mlx_lm.generate(*mlx_model, PROMPT, max_tokens=3, logits_processors=[wait])

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as worker:
        task = loop.run_in_executor(worker, work)
        assert await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The thread goes on, as threads do: the call is what the engine did.
        go_on.set()
        await asyncio.to_thread(worker.shutdown)
    assert mlx_hooks.recorder.call.facts["output_tokens"] == 3


async def test_an_async_generator_around_a_stream(mlx_hooks, mlx_model):
    async def tokens():
        for response in mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=9):
            yield response
            await asyncio.sleep(0)

    async with contextlib.aclosing(tokens()) as stream:
        async for response in stream:
            assert current_call.get() is None
            if response.generation_tokens == 4:
                break
    gc.collect()
    assert mlx_hooks.recorder.call.facts["output_tokens"] == 4


def test_many_threads_with_one_model(mlx_hooks, mlx_model):
    barrier = threading.Barrier(4)
    failures = []

    def work(size):
        try:
            barrier.wait()
            for _ in range(3):
                list(mlx_lm.stream_generate(*mlx_model, "x" * size, max_tokens=size))
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(size,)) for size in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and not mlx_hooks.recorder.open
    counts = sorted(call.facts["input_tokens"] for call in mlx_hooks.recorder.calls)
    assert counts == sorted([2, 3, 4, 5] * 3)
    assert all(
        call.facts["output_tokens"] == call.facts["input_tokens"]
        for call in mlx_hooks.recorder.calls
    )


def test_nothing_grows_with_the_length_of_a_stream(mlx_hooks, mlx_model):
    def size(call):
        names = {name for kind in type(call).__mro__ for name in getattr(kind, "__slots__", ())}
        kept = [getattr(call, name) for name in names - {"recorder", "__weakref__"}]
        return sum(sys.getsizeof(value) for value in kept) + sys.getsizeof(call.facts)

    sizes = []
    for length in (4, 200):
        list(mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=length))
        sizes.append(size(mlx_hooks.recorder.calls[-1]))
    # Numbers alone may take a word more.
    assert sizes[1] - sizes[0] < 64
