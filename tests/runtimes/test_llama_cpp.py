"""llama-cpp-python in process, with a real tiny model: what each call records."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import pickle
import threading

import pytest

from sottovoce.call import current_call

llama_cpp = pytest.importorskip("llama_cpp")
from llama_cpp import Llama, LogitsProcessorList

pytestmark = pytest.mark.llama_cpp

PROMPT = "Grüße aus der Küche"
MESSAGES = [{"role": "user", "content": PROMPT}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "planted description",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def prompt_tokens(llama, text=PROMPT):
    return len(llama.tokenize(text.encode(), add_bos=False)) + 1


def test_a_completion_is_one_call(llama_hooks, llama):
    answer = llama.create_completion(
        PROMPT, max_tokens=7, temperature=0.0, top_p=0.5, top_k=3, stop=["never", "ever"]
    )
    assert answer["usage"]["completion_tokens"] == 7
    call = llama_hooks.recorder.call
    assert (call.operation, call.provider) == ("text_completion", "llama_cpp")
    assert call.in_process and call.local and not call.stream and call.chunks == 0
    assert call.outcome == "completed"
    facts = call.facts
    assert facts["input_tokens"] == prompt_tokens(llama) == answer["usage"]["prompt_tokens"]
    assert facts["output_tokens"] == 7
    assert facts["finish_reasons"] == ["length"]
    assert facts["request_max_tokens"] == 7
    assert (facts["request_temperature"], facts["request_top_p"]) == (0.0, 0.5)
    assert (facts["request_top_k"], facts["request_stop_count"]) == (3, 2)
    assert facts["context_size"] == 256
    assert "passes" not in facts and "cache_read_tokens" not in facts
    assert 0 < facts["time_to_first_token_s"] < facts["engine_duration_s"]
    assert facts["engine_duration_s"] <= call.duration_ns / 1e9
    assert facts["time_per_output_token_s"] > 0


def test_calling_the_model_is_a_completion_and_reports_only_what_was_asked(llama_hooks, llama):
    llama(PROMPT, max_tokens=3)
    call = llama_hooks.recorder.call
    assert call.operation == "text_completion"
    assert call.facts["request_max_tokens"] == 3
    assert "request_temperature" not in call.facts
    assert "request_stop_count" not in call.facts


def test_a_completion_stream(llama_hooks, llama):
    stream = llama.create_completion(PROMPT, max_tokens=6, temperature=0, stream=True)
    assert inspect.isgenerator(stream)
    chunks = list(stream)
    assert all("choices" in chunk for chunk in chunks)
    call = llama_hooks.recorder.call
    assert call.stream and call.chunks == len(chunks)
    assert call.facts["request_stream"] is True
    assert call.facts["input_tokens"] == prompt_tokens(llama)
    assert call.facts["output_tokens"] == 6
    assert call.facts["finish_reasons"] == ["length"]
    assert 0 < call.facts["time_to_first_token_s"] < call.facts["engine_duration_s"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_token_is_not_output(llama_hooks, llama, stream):
    answer = llama.create_completion(
        PROMPT, max_tokens=20, stream=stream, logits_processor=end_after(llama, 4)
    )
    if stream:
        list(answer)
    facts = llama_hooks.recorder.call.facts
    assert facts["output_tokens"] == 4
    assert facts["finish_reasons"] == ["stop"]


def end_after(llama, tokens):
    """A logits processor that ends the generation after so many tokens."""
    seen = []

    def processor(ids, scores):
        seen.append(1)
        if len(seen) > tokens:
            scores[:] = -1e9
            scores[llama.token_eos()] = 1e9
        return scores

    return LogitsProcessorList([processor])


def test_tokens_of_a_stop_sequence_were_made(llama_hooks, llama):
    whole = llama.create_completion(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"]
    answer = llama.create_completion(PROMPT, max_tokens=8, temperature=0, stop=whole[5])
    assert answer["choices"][0]["finish_reason"] == "stop"
    facts = llama_hooks.recorder.calls[1].facts
    assert facts["output_tokens"] == whole.index(whole[5]) + 1
    assert facts["request_stop_count"] == 1


def test_a_chat_is_one_call(llama_hooks, llama):
    answer = llama.create_chat_completion(
        MESSAGES, max_tokens=5, temperature=0, response_format={"type": "json_object"}
    )
    call = llama_hooks.recorder.call
    assert call.operation == "chat"
    assert call.facts["input_tokens"] == answer["usage"]["prompt_tokens"] > len(PROMPT)
    assert call.facts["output_tokens"] == answer["usage"]["completion_tokens"]
    assert call.facts["user_turn"] is True
    assert call.facts["output_type"] == "json"


def test_a_chat_stream(llama_hooks, llama):
    chunks = list(llama.create_chat_completion(MESSAGES, max_tokens=5, temperature=0, stream=True))
    call = llama_hooks.recorder.call
    assert call.operation == "chat" and call.stream
    assert call.chunks == len(chunks) != 5
    assert call.facts["output_tokens"] == 5
    assert call.facts["finish_reasons"] == ["length"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "assistant", "content": "x"}, False),
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, False),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, True),
    ],
)
def test_whose_turn_it_was(llama_hooks, llama, message, expected):
    llama.create_chat_completion([message], max_tokens=1)
    assert llama_hooks.recorder.call.facts["user_turn"] is expected


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_shaped_door_is_one_call(llama_hooks, llama, stream):
    pytest.importorskip("openai")
    answer = llama.create_chat_completion_openai_v1(MESSAGES, max_tokens=4, stream=stream)
    if stream:
        list(answer)
    call = llama_hooks.recorder.call
    assert call.facts["output_tokens"] == 4
    assert call.facts["finish_reasons"] == ["length"]


def test_many_passes_are_one_call_with_the_sum(llama_hooks, llama, monkeypatch):
    counted = count_engine(llama, monkeypatch)
    answer = chat_with_tools(llama, tool_choice="auto")
    facts = llama_hooks.recorder.call.facts
    assert len(counted) > 1
    assert facts["passes"] == len(counted)
    assert facts["input_tokens"] == sum(entry[0] for entry in counted)
    assert facts["output_tokens"] == sum(entry[1] for entry in counted)
    assert facts["request_tool_count"] == 1
    assert facts["input_tokens"] > answer["usage"]["prompt_tokens"], "the last pass alone"
    assert facts["tool_call_count"] == len(answer["choices"][0]["message"]["tool_calls"]) == 1


def test_a_chosen_tool_is_a_tool_call(llama_hooks, llama):
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = chat_with_tools(llama, tool_choice=choice)
    list(chat_with_tools(llama, tool_choice=choice, stream=True))
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1
    whole, stream = (call.facts for call in llama_hooks.recorder.calls)
    assert whole["tool_call_count"] == stream["tool_call_count"] == 1
    assert whole["output_tokens"] == stream["output_tokens"]


def chat_with_tools(llama, **kwargs):
    llama.chat_format, before = "chatml-function-calling", llama.chat_format
    try:
        return llama.create_chat_completion(
            MESSAGES, tools=TOOLS, max_tokens=20, temperature=0, **kwargs
        )
    finally:
        llama.chat_format = before


def count_engine(llama, monkeypatch):
    """Count beside our hooks, at the sampler: (prompt tokens, output tokens) of each pass."""
    counted = []
    original = Llama.generate
    ends = {llama.token_eos()}

    def generate(self, tokens, *args, **kwargs):
        entry = [len(tokens), 0]
        counted.append(entry)
        for token in original(self, tokens, *args, **kwargs):
            entry[1] += token not in ends
            yield token

    monkeypatch.setattr(Llama, "generate", generate)
    return counted


def test_prompt_tokens_from_the_cache(llama_hooks, llama):
    llama.create_completion(PROMPT, max_tokens=1, temperature=0)
    llama.create_completion(PROMPT, max_tokens=1, temperature=0)
    llama.create_completion(PROMPT + " und mehr", max_tokens=1, temperature=0)
    llama.create_completion("anders", max_tokens=1, temperature=0)
    cached = [call.facts.get("cache_read_tokens", 0) for call in llama_hooks.recorder.calls]
    tokens = prompt_tokens(llama)
    assert cached == [0, tokens, tokens, 1], "all, all that is the same, the first token"
    third = llama_hooks.recorder.calls[2].facts
    assert third["input_tokens"] == prompt_tokens(llama, PROMPT + " und mehr")


def test_an_abandoned_stream_has_exact_counts(llama_hooks, llama):
    for index, _ in enumerate(
        llama.create_completion(PROMPT, max_tokens=50, temperature=0, stream=True)
    ):
        if index == 2:
            break
    call = llama_hooks.recorder.call
    assert (call.outcome, call.error) == ("abandoned", None)
    assert call.end_ns == call.last_chunk_ns
    assert call.facts["input_tokens"] == prompt_tokens(llama)
    assert call.facts["output_tokens"] == 3
    assert llama.create_completion(PROMPT, max_tokens=1)["usage"]["completion_tokens"] == 1


def test_leaving_at_the_finish_reason_is_completion(llama_hooks, llama):
    for chunk in llama.create_completion(PROMPT, max_tokens=3, stream=True):
        if chunk["choices"][0]["finish_reason"]:
            break
    assert llama_hooks.recorder.call.outcome == "completed"


def test_a_stream_that_is_never_read_ends_when_it_is_dropped(llama_hooks, llama):
    stream = llama.create_completion(PROMPT, max_tokens=3, stream=True)
    (call,) = llama_hooks.recorder.open
    del stream
    gc.collect()
    assert llama_hooks.recorder.call is call
    assert call.outcome == "abandoned"
    assert "output_tokens" not in call.facts


def test_dropping_a_stream_after_the_model_is_closed_is_safe(llama_hooks, gguf_path):
    llama = Llama(str(gguf_path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
    stream = llama.create_completion(PROMPT, max_tokens=9, temperature=0, stream=True)
    next(stream)
    llama.close()
    stream.close()
    assert llama_hooks.recorder.call.facts["output_tokens"] == 1


def test_a_prompt_that_is_too_long_has_a_code_of_its_own(llama_hooks, llama):
    long = "words " * 100
    with pytest.raises(ValueError, match="exceed context window"):
        llama.create_completion(long)
    with pytest.raises(ValueError, match="exceed context window"):
        list(llama.create_completion(long, stream=True))
    with pytest.raises(ValueError, match="exceed context window"):
        list(llama.create_chat_completion([{"role": "user", "content": long}], stream=True))
    calls = llama_hooks.recorder.calls
    assert [call.error for call in calls] == ["context_length_exceeded"] * 3
    assert {call.outcome for call in calls} == {"failed"}
    assert not llama_hooks.recorder.open


def test_errors_are_the_apps_eager_or_lazy(llama_hooks, llama):
    with pytest.raises(ValueError, match="logits_all"):
        llama.create_completion(PROMPT, logprobs=1)
    with pytest.raises(ValueError, match="logits_all"):
        list(llama.create_completion(PROMPT, logprobs=1, stream=True))
    with pytest.raises(ValueError, match="streaming tool choice"):
        chat_with_tools(llama, tool_choice="auto", stream=True)
    with pytest.raises(TypeError):
        llama.create_completion(PROMPT, no_such=1)
    calls = llama_hooks.recorder.calls
    assert {call.outcome for call in calls} == {"failed"}
    assert [call.error for call in calls][:2] == [ValueError, ValueError]
    assert len(calls) == 4 and not llama_hooks.recorder.open


def test_what_the_app_throws_into_a_stream(llama_hooks, llama):
    for read_first in (False, True):
        stream = llama.create_completion(PROMPT, max_tokens=9, stream=True)
        if read_first:
            next(stream)
        with pytest.raises(KeyError):
            stream.throw(KeyError("mine"))
    assert [call.error for call in llama_hooks.recorder.calls] == [KeyError, KeyError]


def test_generate_is_a_stream_of_tokens_that_takes_what_is_sent(llama_hooks, gguf_path):
    with contextlib.closing(
        Llama(
            str(gguf_path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False, logits_all=True
        )
    ) as llama:
        tokens = llama.tokenize(PROMPT.encode())
        plain = []
        for token in llama.generate(tokens, temp=0):
            plain.append(token)
            if len(plain) == 4:
                break
        engine = llama.generate(tokens, temp=0)
        assert inspect.isgenerator(engine)
        first = next(engine)
        held = llama.n_tokens
        engine.send([77, 78])
        assert llama.n_tokens == held + 3, "what was sent was evaluated with the token"
        engine.close()
    assert first == plain[0]
    one, two = llama_hooks.recorder.calls
    assert (one.operation, one.stream, one.outcome) == ("text_completion", True, "abandoned")
    assert (one.facts["input_tokens"], one.facts["output_tokens"]) == (len(tokens), 4)
    assert two.facts["output_tokens"] == 2


def test_a_prompt_that_cannot_be_counted_has_no_count(llama_hooks, llama):
    stream = llama.generate(iter(llama.tokenize(b"hello")))
    next(stream)
    stream.close()
    assert "input_tokens" not in llama_hooks.recorder.call.facts
    assert llama_hooks.recorder.call.facts["output_tokens"] == 1


def test_embeddings(llama_hooks, embedder):
    answer = embedder.create_embedding(["ab", "cde"])
    call = llama_hooks.recorder.call
    assert call.operation == "embeddings"
    assert call.facts["input_tokens"] == answer["usage"]["prompt_tokens"] == 2 + 1 + 3 + 1
    assert "output_tokens" not in call.facts


def test_embed_counts_and_returns_what_the_app_asked_for(llama_hooks, embedder):
    plain = embedder.embed("abc")
    both, count = embedder.embed("abc", return_count=True)
    assert plain == both and count == 4
    assert isinstance(plain, list)
    alone = embedder.embed("abc", False, True, False)
    assert alone == plain
    facts = [call.facts for call in llama_hooks.recorder.calls]
    assert [entry.get("input_tokens") for entry in facts] == [4, 4, None]


def test_an_embedding_that_fails(llama_hooks, llama):
    with pytest.raises(RuntimeError, match="embedding=True"):
        llama.create_embedding("x")
    assert llama_hooks.recorder.call.error is RuntimeError


def test_loading_says_who_without_a_path(llama_hooks, gguf_path, gguf_q8_path):
    for path, kind in ((gguf_path, "f32"), (gguf_q8_path, "q8_0")):
        llama = Llama(str(path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
        llama.create_completion("x", max_tokens=1)
        provider, facts, seconds, error = llama_hooks.recorder.loads[-1]
        assert (provider, error) == ("llama_cpp", None) and seconds > 0
        assert facts == {
            "request_model": f"llama-lt_1M-{kind}",
            "model_architecture": "llama",
            "model_quantization": kind,
            "model_parameters": "lt_1M",
            "model_size": "lt_1GiB",
            "model_adapter": False,
            "model_offload": "none",
            "context_size": llama.n_ctx(),
        }
        call = llama_hooks.recorder.calls[-1]
        assert call.model == f"llama-lt_1M-{kind}"
        assert "alice" not in repr((call.facts, call.model))
        llama.close()


def test_a_failed_load_tells_no_path(llama_hooks, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        Llama(str(tmp_path / "alice.gguf"), verbose=False)
    ((provider, facts, _, error),) = llama_hooks.recorder.loads
    assert (provider, facts, error) == ("llama_cpp", {}, "model_not_found")


def test_a_hub_cache_tells_the_public_id(llama_hooks, gguf_path, tmp_path):
    file = tmp_path / "models--bartowski--Tiny-GGUF" / "snapshots" / "0a1b" / "Tiny-Q4_K_M.gguf"
    file.parent.mkdir(parents=True)
    file.symlink_to(gguf_path)
    llama = Llama(str(file), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
    llama("x", max_tokens=1, model="alice's own name")
    assert llama_hooks.recorder.call.model == "bartowski/Tiny-GGUF"
    llama.close()


def test_from_pretrained_is_one_load_under_the_public_id(
    llama_hooks, gguf_path, monkeypatch, tmp_path
):
    import huggingface_hub

    class Files:
        def ls(self, repository, recursive):
            return [{"name": f"{repository}/{gguf_path.name}"}]

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: None)

    class Mine(Llama):
        pass

    llama = Mine.from_pretrained(
        "bartowski/Tiny-GGUF",
        gguf_path.name,
        local_dir=str(gguf_path.parent),
        n_ctx=64,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )
    assert type(llama) is Mine
    ((_, facts, _, _),) = llama_hooks.recorder.loads
    assert facts["request_model"] == "bartowski/Tiny-GGUF"
    llama("x", max_tokens=1)
    assert llama_hooks.recorder.call.model == "bartowski/Tiny-GGUF"
    llama.close()


def test_a_model_loaded_earlier_and_a_subclass_are_served(instrumented_llama, gguf_path):
    class Mine(Llama):
        def create_completion(self, *args, **kwargs):
            return super().create_completion(*args, **kwargs)

    llama = Mine(str(gguf_path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
    bound = llama.create_completion
    hooks = instrumented_llama()
    bound("x", max_tokens=2)
    assert hooks.recorder.call.model == "llama-lt_1M-f32"
    assert hooks.recorder.call.facts["output_tokens"] == 2
    llama.close()


def test_removing_restores_the_class(instrumented_llama, llama):
    before = dict(vars(Llama))
    hooks = instrumented_llama()
    during = dict(vars(Llama))
    changed = {name for name in before if before[name] is not during[name]}
    assert changed == {
        "__call__",
        "__init__",
        "close",
        "create_chat_completion",
        "create_completion",
        "create_embedding",
        "embed",
        "eval",
        "from_pretrained",
        "generate",
    }
    signature = inspect.signature(before["create_chat_completion"])
    assert inspect.signature(Llama.create_chat_completion) == signature
    kept = llama.create_completion
    hooks.remove()
    assert dict(vars(Llama)) == before
    kept("x", max_tokens=1)
    assert not hooks.recorder.calls, "a wrapper that someone kept passes through"


def test_each_chunk_in_another_thread(llama_hooks, llama):
    async def read():
        done = object()
        stream = llama.create_chat_completion(MESSAGES, max_tokens=6, stream=True)
        while await asyncio.to_thread(next, stream, done) is not done:
            assert current_call.get() is None

    asyncio.run(read())
    call = llama_hooks.recorder.call
    assert call.outcome == "completed"
    assert call.facts["output_tokens"] == 6


def test_two_models_in_two_threads(llama_hooks, gguf_path, gguf_q8_path):
    paths = {"f32": gguf_path, "q8_0": gguf_q8_path}
    llamas = {
        kind: Llama(str(path), n_ctx=128, n_threads=1, n_threads_batch=1, verbose=False)
        for kind, path in paths.items()
    }
    barrier = threading.Barrier(2)

    def work(kind, tokens):
        barrier.wait()
        for _ in llamas[kind].create_completion("x" * tokens, max_tokens=tokens, stream=True):
            pass

    threads = [threading.Thread(target=work, args=job) for job in (("f32", 12), ("q8_0", 17))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not llama_hooks.recorder.open
    assert {
        (call.model, call.facts["input_tokens"], call.facts["output_tokens"])
        for call in llama_hooks.recorder.calls
    } == {("llama-lt_1M-f32", 13, 12), ("llama-lt_1M-q8_0", 18, 17)}
    for llama in llamas.values():
        llama.close()


def test_streams_of_two_models_interleaved_in_one_thread(llama_hooks, gguf_path):
    llamas = [
        Llama(str(gguf_path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
        for _ in range(2)
    ]
    streams = [
        llama.create_completion("x" * size, max_tokens=size, stream=True)
        for llama, size in zip(llamas, (4, 7), strict=True)
    ]
    live = list(streams)
    while live:
        live = [stream for stream in live if next(stream, None) is not None]
    counts = [
        (call.facts["input_tokens"], call.facts["output_tokens"])
        for call in llama_hooks.recorder.calls
    ]
    assert counts == [(5, 4), (8, 7)]
    for llama in llamas:
        llama.close()


def test_the_current_call_is_set_inside_the_engine_only(llama_hooks, llama):
    seen = []

    def look(ids, scores):
        seen.append(current_call.get())
        return scores

    stream = llama.create_completion(
        PROMPT, max_tokens=3, stream=True, logits_processor=LogitsProcessorList([look])
    )
    assert current_call.get() is None
    for _ in stream:
        assert current_call.get() is None
    assert set(seen) == {llama_hooks.recorder.call}


def test_a_suppressed_call_is_not_recorded(instrumented_llama, llama):
    hooks = instrumented_llama(enabled=lambda: False)
    llama.create_completion(PROMPT, max_tokens=1)
    list(llama.create_completion(PROMPT, max_tokens=1, stream=True))
    assert not hooks.recorder.calls and not hooks.recorder.open


def test_a_model_still_pickles(llama_hooks, gguf_path):
    llama = Llama(str(gguf_path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
    twin = pickle.loads(pickle.dumps(llama))
    twin("x", max_tokens=1)
    assert llama_hooks.recorder.call.model == "llama-lt_1M-f32"
    llama.close()
    twin.close()
