"""Whatever an app does with a `Llama`: it gets what it would get, and each call ends once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import re
import signal
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sottovoce
from sottovoce import guard
from sottovoce.call import current_call

llama_cpp = pytest.importorskip("llama_cpp")
from llama_cpp import Llama

pytestmark = pytest.mark.llama_cpp

PROMPT = "Grüße aus der Küche"
MESSAGES = [{"role": "user", "content": PROMPT}]
STREAMED = {"max_tokens": 9, "temperature": 0, "stream": True}
DEADLINE_S = 60


def load(path, **kwargs):
    return Llama(
        str(path), **{"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False} | kwargs
    )


def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def text(_llama):
    """What the tiny model answers without our hooks."""
    answer = _llama.create_completion(PROMPT, max_tokens=9, temperature=0)
    return answer["choices"][0]["text"]


def said(chunks):
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


@pytest.mark.parametrize("start", [False, True])
def test_a_stream_that_the_garbage_collector_finds(llama_hooks, llama, start):
    class Holder:
        pass

    holder = Holder()
    holder.itself = holder
    holder.stream = llama.create_chat_completion(MESSAGES, **STREAMED)
    if start:
        for _ in range(3):
            next(holder.stream)
    del holder
    gc.collect()
    until(lambda: llama_hooks.recorder.calls)
    call = llama_hooks.recorder.call
    assert call.outcome == "abandoned"
    # The chunks that say the role and that the answer begins are no tokens.
    assert call.facts.get("output_tokens") == (2 if start else None)
    assert call.chunks == (3 if start else 0)


class Mine(Exception):
    pass


@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_that_began_suppressed_stays_so(instrumented_llama, llama, text, chat):
    wanted = []
    hooks = instrumented_llama(enabled=lambda: bool(wanted))
    if chat:
        stream = llama.create_chat_completion(MESSAGES, **STREAMED)
        left = llama.create_chat_completion(MESSAGES, **STREAMED)
    else:
        stream, left = (llama.create_completion(PROMPT, **STREAMED) for _ in range(2))
    assert inspect.isgenerator(stream)
    wanted.append("now")
    chunks = list(stream)
    assert chat or said(chunks) == text
    next(left)
    with pytest.raises(Mine):
        left.throw(Mine)
    assert not hooks.recorder.calls and not hooks.recorder.open
    llama.create_completion(PROMPT, max_tokens=1)
    assert hooks.recorder.call.facts["output_tokens"] == 1


def test_a_stream_that_began_wanted_stays_so(instrumented_llama, llama):
    wanted = ["now"]
    hooks = instrumented_llama(enabled=lambda: bool(wanted))
    stream = llama.create_completion(PROMPT, **STREAMED)
    wanted.clear()
    list(stream)
    assert hooks.recorder.call.facts["output_tokens"] == 9


@pytest.mark.parametrize("error", [Mine, KeyboardInterrupt, GeneratorExit])
def test_an_exception_in_the_apps_loop(llama_hooks, llama, error):
    def loop():
        for number, _ in enumerate(llama.create_completion(PROMPT, **STREAMED)):
            if number == 3:
                raise error

    with pytest.raises(error):
        loop()
    call = llama_hooks.recorder.call
    assert (call.outcome, call.error) == ("abandoned", None)
    assert call.facts["output_tokens"] == 4


def test_what_is_sent_into_a_stream_of_text(llama_hooks, llama, text):
    stream = llama.create_completion(PROMPT, **STREAMED)
    chunks = [next(stream)]
    with contextlib.suppress(StopIteration):
        while True:
            chunks.append(stream.send("planted"))
    assert said(chunks) == text
    assert llama_hooks.recorder.call.outcome == "completed"


def test_what_is_sent_into_a_stream_that_was_not_begun(llama_hooks, llama):
    stream = llama.create_completion(PROMPT, **STREAMED)
    with pytest.raises(TypeError, match="non-None value"):
        stream.send("early")
    call = llama_hooks.recorder.call
    assert (call.error, call.outcome, call.chunks) == (TypeError, "failed", 0)


def test_what_is_thrown_into_the_engine(llama_hooks, llama):
    engine = llama.generate(llama.tokenize(PROMPT.encode()), temp=0)
    next(engine)
    with pytest.raises(Mine):
        engine.throw(Mine)
    assert next(engine, None) is None
    assert (llama_hooks.recorder.call.error, llama_hooks.recorder.call.outcome) == (Mine, "failed")


def test_a_stream_that_was_read_stays_empty(llama_hooks, llama):
    stream = llama.create_completion(PROMPT, **STREAMED)
    assert len(list(stream)) == 10
    assert list(stream) == []
    stream.close()
    assert llama_hooks.recorder.call.chunks == 10


def test_one_model_from_many_threads_in_turn(llama_hooks, llama):
    turn = threading.Lock()

    def work(tokens):
        with turn:
            stream = llama.create_completion(
                "x" * tokens, max_tokens=tokens, temperature=0, stream=True
            )
            assert said(stream)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(3, 15)))
    calls = llama_hooks.recorder.calls
    assert sorted(call.facts["output_tokens"] for call in calls) == list(range(3, 15))
    assert all(
        call.facts["input_tokens"] == call.facts["output_tokens"] + 1 and call.chunks
        for call in calls
    )
    assert not llama_hooks.recorder.open and not llama_hooks.recorder.entered


def test_streams_of_one_model_by_turns(llama_hooks, llama):
    # Nonsense for the app, since there is one cache: but each call counts its own.
    streams = [llama.generate([1, 72, 73 + number], temp=0) for number in range(3)]
    for rounds, stream in enumerate(streams, 2):
        for _ in range(rounds):
            next(stream)
    llama.create_completion("x", max_tokens=1)
    for stream in streams:
        stream.close()
    whole, *calls = llama_hooks.recorder.calls
    assert whole.facts["output_tokens"] == 1
    assert [call.facts["output_tokens"] for call in calls] == [2, 3, 4]
    assert [call.facts["context_fill"] * 256 for call in calls] == [4, 5, 6]


def test_an_executor_of_asyncio(llama_hooks, llama, text):
    async def chat():
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(2) as pool:
            stream = await loop.run_in_executor(
                pool, lambda: llama.create_completion(PROMPT, **STREAMED)
            )
            chunks, done = [], object()
            while (chunk := await loop.run_in_executor(pool, next, stream, done)) is not done:
                chunks.append(chunk)
        return said(chunks)

    async def both():
        return await asyncio.gather(chat(), return_exceptions=True)

    assert asyncio.run(both()) == [text]
    assert llama_hooks.recorder.call.facts["output_tokens"] == 9


def test_a_task_that_is_cancelled_while_a_thread_reads(llama_hooks, llama):
    reading = threading.Event()

    def read():
        stream = llama.create_completion(PROMPT, **STREAMED | {"max_tokens": 100})
        for number, _ in enumerate(stream):
            reading.set()
            if number > 20:
                break

    async def main():
        task = asyncio.ensure_future(asyncio.to_thread(read))
        await asyncio.to_thread(reading.wait, DEADLINE_S)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: llama_hooks.recorder.calls)
    assert llama_hooks.recorder.call.outcome == "abandoned"


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_shaped_door_in_another_thread(llama_hooks, llama, stream):
    pytest.importorskip("openai")
    answer = llama.create_chat_completion_openai_v1(MESSAGES, max_tokens=4, stream=stream)
    if stream:
        assert inspect.isgenerator(answer)
        with ThreadPoolExecutor(1) as pool:
            assert len(pool.submit(list, answer).result()) == 6
    call = llama_hooks.recorder.call
    assert call.facts["output_tokens"] == 4
    assert (call.operation, call.facts["finish_reasons"]) == ("chat", ["length"])


@pytest.fixture
def other(gguf_q8_path):
    with contextlib.closing(load(gguf_q8_path)) as llama:
        yield llama


@pytest.mark.parametrize("stream", [False, True])
def test_a_handler_that_asks_another_model(llama_hooks, llama, other, monkeypatch, stream):
    def handler(*, llama, stream, max_tokens, **kwargs):
        draft = other.create_completion("und", max_tokens=2)["choices"][0]["text"]
        answer = llama.create_completion(draft, max_tokens=max_tokens, stream=stream)
        return llama_cpp.llama_chat_format._convert_completion_to_chat(answer, stream=stream)

    monkeypatch.setattr(llama, "chat_handler", handler)
    answer = llama.create_chat_completion(MESSAGES, max_tokens=3, stream=stream)
    if stream:
        list(answer)
    inner, outer = llama_hooks.recorder.calls
    assert (inner.operation, outer.operation) == ("text_completion", "chat")
    assert (inner.model, outer.model) == ("llama-lt_1M-q8_0", "llama-lt_1M-f32")
    assert (inner.facts["output_tokens"], outer.facts["output_tokens"]) == (2, 3)


def test_a_handler_that_is_a_generator(llama_hooks, llama, monkeypatch):
    def handler(*, llama, max_tokens, **kwargs):
        for number in range(2):
            yield from llama.create_completion(str(number), max_tokens=max_tokens, stream=True)
        raise Mine

    monkeypatch.setattr(llama, "chat_handler", handler)
    chunks = []
    with pytest.raises(Mine):
        chunks.extend(llama.create_chat_completion(MESSAGES, max_tokens=3, stream=True))
    call = llama_hooks.recorder.call
    assert (call.error, call.facts["output_tokens"], call.facts["passes"]) == (Mine, 6, 2)


def test_passes_that_make_nothing(llama_hooks, llama, monkeypatch):
    def handler(*, llama, **kwargs):
        nothing = llama_cpp.StoppingCriteriaList([lambda ids, logits: True])
        for text in ("und", "oder"):
            answer = llama.create_completion(text, stopping_criteria=nothing)
        return answer

    monkeypatch.setattr(llama, "chat_handler", handler)
    llama.create_chat_completion(MESSAGES)
    facts = llama_hooks.recorder.call.facts
    assert (facts["passes"], facts["output_tokens"], facts["input_tokens"]) == (2, 0, 4 + 5)
    assert not {"time_to_first_token_s", "time_per_output_token_s", "prefill_rate"} & set(facts)


@pytest.mark.parametrize(
    "answer",
    [None, "text", 7, object(), [], {}, {"choices": None}, {"choices": [None, 1]}, iter(())],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_handler_that_answers_anything(llama_hooks, llama, monkeypatch, answer, stream):
    monkeypatch.setattr(llama, "chat_handler", lambda **_: answer)
    assert llama.create_chat_completion(MESSAGES, stream=stream) is answer
    assert llama_hooks.recorder.call.outcome == "completed"


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "choices index finish_reason delta tool_calls function name id text".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
function = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": json_like})})
choice = st.fixed_dictionaries(
    {},
    optional={
        "index": json_like,
        "finish_reason": json_like,
        "delta": json_like | st.fixed_dictionaries({"tool_calls": st.lists(function | json_like)}),
    },
)
chunks = st.fixed_dictionaries({"choices": st.lists(choice | json_like, max_size=3)})


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(streamed=st.lists(chunks | json_like, max_size=4))
def test_a_handler_that_streams_anything(llama_hooks, llama, streamed):
    llama.chat_handler = lambda **_: (piece for piece in streamed)
    try:
        tools = [{"type": "function", "function": {"name": "x"}}]
        got = list(llama.create_chat_completion(MESSAGES, stream=True, tools=tools))
    finally:
        llama.chat_handler = None
    assert all(one is other for one, other in zip(got, streamed, strict=True))
    call = llama_hooks.recorder.call
    llama_hooks.recorder.calls.clear()
    assert call.outcome == "completed" and "runtime.read" not in guard.failures
    # Words are all that can be learnt of a chunk.
    for word in (*call.facts.get("finish_reasons", ()), *call.facts.get("tool_names", ())):
        assert re.fullmatch(r"[\w.:-]{1,64}", word, re.ASCII)


def test_a_handler_that_hands_on_an_iterator_of_its_own(llama_hooks, llama, monkeypatch):
    # It cannot be wrapped without becoming another type; what it makes is counted once.
    def handler(*, llama, max_tokens, **kwargs):
        return map(dict, llama.create_completion("x", max_tokens=max_tokens, stream=True))

    monkeypatch.setattr(llama, "chat_handler", handler)
    answer = llama.create_chat_completion(MESSAGES, max_tokens=3, stream=True)
    assert type(answer) is map and len(list(answer)) == 4
    chat, engine = llama_hooks.recorder.calls
    assert "output_tokens" not in chat.facts and engine.facts["output_tokens"] == 3


def exit_code(child):
    deadline = time.monotonic() + DEADLINE_S
    while not (status := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(status[1])


# Since Python 3.12 a fork beside threads is warned of; the engine has none here.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_stream(llama_hooks, llama, text):
    stream = llama.create_completion(PROMPT, **STREAMED)
    chunks = [next(stream), next(stream)]
    child = os.fork()
    if child == 0:
        rest = said(chunks + list(stream)) == text
        ended = len(llama_hooks.recorder.calls)
        llama.create_completion(PROMPT, max_tokens=2)
        own = llama_hooks.recorder.calls
        good = rest and ended == 0 and [call.facts["output_tokens"] for call in own] == [2]
        os._exit(0 if good else 1)
    assert exit_code(child) == 0
    assert said(chunks + list(stream)) == text
    assert llama_hooks.recorder.call.facts["output_tokens"] == 9


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_stream_that_the_garbage_collector_finds_in_a_forked_child(llama_hooks, llama):
    # The parent has the thread that ends such streams; a child needs its own.
    list(llama.create_completion(PROMPT, **STREAMED))
    child = os.fork()
    if child == 0:
        try:
            cycle = [llama.create_completion(PROMPT, **STREAMED)]
            cycle.append(cycle)
            next(cycle[0])
            del cycle
            llama_hooks.recorder.calls.clear()
            gc.collect()
            until(lambda: llama_hooks.recorder.calls)
            os._exit(0 if llama_hooks.recorder.call.outcome == "abandoned" else 1)
        finally:
            os._exit(2)
    assert exit_code(child) == 0


@pytest.mark.parametrize("read", [0, 3])
def test_hooks_that_are_removed_in_the_middle_of_a_stream(instrumented_llama, llama, text, read):
    hooks = instrumented_llama()
    stream = llama.create_completion(PROMPT, **STREAMED)
    chunks = [next(stream) for _ in range(read)]
    hooks.remove()
    chunks.extend(stream)
    assert said(chunks) == text
    call = hooks.recorder.call
    assert call.outcome == "completed"
    # Nobody counts what begins without the hooks.
    assert call.facts.get("output_tokens") == (9 if read else None)
    llama.create_completion(PROMPT, max_tokens=1)
    assert len(hooks.recorder.calls) == 1


def test_hooks_that_come_in_the_middle_of_a_stream(instrumented_llama, llama, text):
    stream = llama.create_completion(PROMPT, **STREAMED)
    chunks = [next(stream)]
    hooks = instrumented_llama()
    chunks.extend(stream)
    assert said(chunks) == text
    assert not hooks.recorder.calls and not hooks.recorder.open


def test_hooks_that_are_renewed_in_the_middle_of_a_stream(instrumented_llama, llama, text):
    first = instrumented_llama()
    stream = llama.create_completion(PROMPT, **STREAMED)
    chunks = [next(stream)]
    first.remove()
    second = instrumented_llama()
    chunks.extend(stream)
    assert said(chunks) == text
    assert first.recorder.call.facts["output_tokens"] == 9
    assert not second.recorder.calls


def test_a_model_that_is_replaced_while_the_old_one_answers(llama_hooks, gguf_path):
    llama = load(gguf_path)
    stream = llama.create_completion(PROMPT, **STREAMED)
    next(stream)
    llama = load(gguf_path)
    llama.create_completion(PROMPT, max_tokens=2)
    list(stream)
    del stream
    new, old = llama_hooks.recorder.calls
    assert (new.facts["output_tokens"], old.facts["output_tokens"]) == (2, 9)
    llama.close()


OURS = Path(sottovoce.__file__).parent


@pytest.mark.parametrize("door", ["create_completion", "generate"])
def test_memory_is_constant_however_long_a_stream_is(instrumented_llama, llama, monkeypatch, door):
    # An engine without work: the real one takes half a minute for so many tokens.
    chunk = {"choices": [{"text": "x", "index": 0, "logprobs": None, "finish_reason": None}]}

    def generate(self, tokens, **kwargs):
        for number in range(10_000):
            self.eval([number])
            yield 72

    def create_completion(self, prompt, **kwargs):
        return (chunk for _ in self.generate([1, 72]))

    monkeypatch.setattr(Llama, "generate", generate)
    monkeypatch.setattr(Llama, "create_completion", create_completion)
    monkeypatch.setattr(Llama, "eval", lambda *_: None)
    hooks = instrumented_llama()
    held = []
    tracemalloc.start()
    try:
        asked = {"stream": True} if door == "create_completion" else {}
        for number, _ in enumerate(getattr(llama, door)([1, 72], **asked)):
            if number in {100, 9_990}:
                ours = tracemalloc.take_snapshot().filter_traces(
                    [tracemalloc.Filter(True, f"{OURS}/*")]
                )
                held.append(sum(entry.size for entry in ours.statistics("filename")))
    finally:
        tracemalloc.stop()
    assert hooks.recorder.call.facts["output_tokens"] == 10_000
    early, late = held
    assert late - early < 2_000
    assert current_call.get() is None
