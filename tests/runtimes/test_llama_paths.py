"""What llama-cpp-python can do beside plain text: each path's counts are the engine's own."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp")
from llama_cpp import Llama, LogitsProcessorList, StoppingCriteriaList
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

pytestmark = pytest.mark.llama_cpp

PROMPT = "Grüße aus der Küche"


def loaded(path, **kwargs):
    arguments = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False} | kwargs
    return contextlib.closing(Llama(str(path), **arguments))


def counts(call):
    facts = call.facts
    return facts["input_tokens"], facts.get("cache_read_tokens", 0), facts["output_tokens"]


def tokens_of(llama, text=PROMPT, **kwargs):
    return len(llama.tokenize(text.encode(), **kwargs))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": None},
        {"echo": True},
        {"suffix": " und zurück"},
        {"seed": 7, "temperature": 1.5},
        {"stop": ["e"]},
        {"logit_bias": {"72": 100.0}},
        {"mirostat_mode": 2, "temperature": 0.5},
        {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3},
    ],
    ids=str,
)
def test_what_may_be_asked_of_a_completion(watch, llama_hooks, llama, asked, stream):
    engine = watch(llama)
    answer = llama.create_completion(
        PROMPT, stream=stream, **{"temperature": 0, "max_tokens": 9} | asked
    )
    usage = None if stream else answer["usage"]
    if stream:
        list(answer)
    call = llama_hooks.recorder.call
    assert counts(call) == engine.totals
    if usage:
        assert usage["prompt_tokens"] == call.facts["input_tokens"]
        assert usage["completion_tokens"] == call.facts["output_tokens"]
    limit = asked.get("max_tokens", 9)
    assert call.facts.get("request_max_tokens") == (limit if limit and limit > 0 else None)
    if not limit or limit < 0:
        assert engine.totals[2] == llama.n_ctx() - engine.totals[0], "up to the end of the context"
        assert call.facts["context_fill"] == (llama.n_ctx() - 1) / llama.n_ctx()
    assert call.facts["context_fill"] == llama.n_tokens / llama.n_ctx()


def test_a_prompt_of_tokens_and_an_empty_one(watch, llama_hooks, llama):
    for prompt, tokens in (([1, 72, 73], 3), ("", 1)):
        engine = watch(llama)
        llama.create_completion(prompt, max_tokens=2, temperature=0)
        call = llama_hooks.recorder.calls[-1]
        assert call.facts["input_tokens"] == tokens == engine.totals[0]
        assert call.facts["output_tokens"] == engine.totals[2]


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stopping_criterion(llama_hooks, llama, after, stream):
    prompt = tokens_of(llama)
    seen = []

    def enough(ids, logits):
        seen.append(len(ids))
        return len(ids) - prompt >= after

    answer = llama.create_completion(
        PROMPT,
        max_tokens=20,
        temperature=0,
        stream=stream,
        stopping_criteria=StoppingCriteriaList([enough]),
    )
    if stream:
        list(answer)
    call = llama_hooks.recorder.call
    assert call.facts["output_tokens"] == after
    assert call.facts["input_tokens"] == prompt
    assert call.facts["finish_reasons"] == ["stop"]
    assert call.facts["context_fill"] == (prompt + after) / 256
    assert ("time_to_first_token_s" in call.facts) is (after > 0)


def test_a_context_that_runs_full(llama_hooks, llama):
    made = []
    with pytest.raises(RuntimeError, match="llama_decode"):
        made.extend(llama.generate([1, 72], temp=0))
    call = llama_hooks.recorder.call
    assert (call.outcome, call.error) == ("failed", "context_length_exceeded")
    assert call.facts["output_tokens"] == llama.n_ctx() - 1
    assert call.facts["context_fill"] == 1


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(watch, llama_hooks, gguf_path, chat, stream):
    with loaded(gguf_path, logits_all=True) as llama:
        engine = watch(llama)
        common = {"max_tokens": 4, "temperature": 0, "stream": stream}
        if chat:
            answer = llama.create_chat_completion(
                [{"role": "user", "content": PROMPT}], logprobs=True, top_logprobs=2, **common
            )
        else:
            answer = llama.create_completion(PROMPT, logprobs=2, echo=not stream, **common)
        if stream:
            list(answer)
    assert counts(llama_hooks.recorder.call) == engine.totals


def test_a_processor_that_fails_is_the_librarys_affair(llama_hooks, llama, monkeypatch):
    # ctypes reports what its callbacks raise, and the engine goes on.
    reported = []
    monkeypatch.setattr("sys.unraisablehook", reported.append)

    def broken(ids, scores):
        raise KeyError("planted")

    llama.create_completion(
        PROMPT, max_tokens=2, temperature=0, logits_processor=LogitsProcessorList([broken])
    )
    assert len(reported) >= 2
    llama.create_completion(PROMPT, max_tokens=1)
    call, _ = llama_hooks.recorder.calls
    assert (call.outcome, call.facts["output_tokens"]) == ("completed", 2)


def test_taking_tokens_apart_is_no_call(llama_hooks, llama):
    tokens = llama.tokenize(PROMPT.encode())
    llama.detokenize(tokens)
    llama.eval(tokens)
    llama.sample(temp=0)
    llama.load_state(llama.save_state())
    llama.reset()
    assert not llama_hooks.recorder.calls and not llama_hooks.recorder.open


def test_a_saved_state_is_a_cache(watch, llama_hooks, llama):
    tokens = tokens_of(llama)
    engine = watch(llama)
    llama.create_completion(PROMPT, max_tokens=4, temperature=0)
    state = llama.save_state()
    llama.reset()
    llama.create_completion(PROMPT, max_tokens=4, temperature=0)
    llama.create_completion("etwas anderes", max_tokens=4, temperature=0)
    llama.load_state(state)
    llama.create_completion(PROMPT, max_tokens=4, temperature=0)
    cached = [call.facts.get("cache_read_tokens", 0) for call in llama_hooks.recorder.calls]
    # One token is evaluated again, for what comes after it was not saved.
    assert cached == [0, 0, 1, tokens - 1]
    assert cached == [prompt - decoded for prompt, decoded, _ in engine.passes]


@pytest.mark.parametrize("kind", ["LlamaRAMCache", "LlamaDiskCache"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_cache_of_states(watch, llama_hooks, llama, tmp_path, monkeypatch, kind, stream):
    arguments = [str(tmp_path)] if kind == "LlamaDiskCache" else []
    cache = getattr(llama_cpp, kind)(*arguments)
    monkeypatch.setattr(llama, "cache", None)
    llama.set_cache(cache)
    engine = watch(llama)
    for prompt in (PROMPT, "etwas anderes", PROMPT + "!", "noch etwas anderes"):
        answer = llama.create_completion(prompt, max_tokens=3, temperature=0, stream=stream)
        if stream:
            list(answer)
    cached = [call.facts.get("cache_read_tokens", 0) for call in llama_hooks.recorder.calls]
    assert cached == [prompt - decoded for prompt, decoded, _ in engine.passes]
    if kind == "LlamaRAMCache":
        # `if self.cache:` is false for a cache that can tell its length; these cannot.
        assert cached[2] == tokens_of(llama)
    if kind == "LlamaDiskCache":
        cache.cache.close()


def test_guesses_that_come_true(watch, llama_hooks, gguf_path):
    with loaded(gguf_path, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4)) as llama:
        engine = watch(llama)
        always = {"logit_bias": {"72": 1000.0}, "temperature": 0}
        llama.create_completion("ab", max_tokens=40, **always)
        list(llama.create_completion("abab", max_tokens=21, stream=True, **always))
        llama.create_completion(PROMPT, max_tokens=8, temperature=0, logit_bias=never_twice())
        with contextlib.closing(llama.create_completion("b", stream=True, **always)) as left:
            for _ in range(12):
                next(left)
    calls = llama_hooks.recorder.calls
    made = [call.facts["output_tokens"] for call in calls]
    assert made == [entry[2] for entry in engine.passes]
    shares = [call.facts["draft_accepted_share"] for call in calls]
    assert shares[0] > 0.6 and shares[1] > 0.5 and shares[3] > 0.3
    # One evaluation for each prompt, one for each token that nobody had guessed right.
    right = sum(share * count for share, count in zip(shares, engine.guesses, strict=True))
    assert sum(made) - right == pytest.approx(engine.steps)


def never_twice():
    return dict.fromkeys(map(str, range(6)), -100.0)


def test_guesses_of_another_model_are_part_of_the_call(watch, llama_hooks, gguf_path):
    with loaded(gguf_path) as helper:

        class Helper(LlamaDraftModel):
            def __call__(self, input_ids, /, **kwargs):
                found = []
                for token in helper.generate(input_ids.tolist(), temp=0):
                    found.append(token)
                    if len(found) == 3:
                        return np.array(found, dtype=np.intc)
                return None

        with loaded(gguf_path, draft_model=Helper()) as llama:
            engine = watch(llama)
            llama.create_completion(PROMPT, max_tokens=12, temperature=0)
            list(llama.create_completion("und", max_tokens=12, temperature=0, stream=True))
            helper.create_completion(PROMPT, max_tokens=1)
    *calls, own = llama_hooks.recorder.calls
    assert [call.facts["output_tokens"] for call in calls] == [12, 12]
    assert [entry[2] for entry in engine.passes] == [12, 12]
    # The same weights, greedily: three guesses of three are right, the last was one too many.
    assert {call.facts["draft_accepted_share"] for call in calls} == {8 / 9}
    assert own.facts["output_tokens"] == 1 and "draft_accepted_share" not in own.facts


def test_no_guess_is_right(llama_hooks, gguf_path):
    class Wrong(LlamaDraftModel):
        def __call__(self, input_ids, /, **kwargs):
            return np.array([0, 0], dtype=np.intc)

    with loaded(gguf_path, draft_model=Wrong()) as llama:
        llama.create_completion(PROMPT, max_tokens=5, temperature=0)
    assert llama_hooks.recorder.call.facts["draft_accepted_share"] == 0


def test_what_is_sent_and_guessed_is_told_apart(watch, llama_hooks, gguf_path):
    # The engine takes what it is sent for a guess.
    for draft in (None, LlamaPromptLookupDecoding(num_pred_tokens=3)):
        with loaded(gguf_path, draft_model=draft, logits_all=True) as llama:
            stream = llama.generate(llama.tokenize(PROMPT.encode()), temp=0)
            next(stream)
            held = llama.n_tokens
            stream.send([77, 78])
            next(stream)
            stream.close()
        facts = llama_hooks.recorder.calls[-1].facts
        assert facts["output_tokens"] == 3
        assert facts["context_fill"] == (held + 2) / 256


def images(llama, text, media, **kwargs):
    """Evaluate a prompt in parts, some of which are no tokens, as handlers of images do."""
    llama.reset()
    llama._ctx.kv_cache_clear()
    llama.eval(llama.tokenize(text.encode()))
    for _ in range(media):
        llama._batch.set_batch(batch=[9], n_past=llama.n_tokens, logits_all=False)
        llama._ctx.decode(llama._batch)
        llama.input_ids[llama.n_tokens] = 9
        llama.n_tokens += 1
    llama.eval(llama.tokenize(text.encode(), add_bos=False))
    return llama.create_completion(llama.input_ids[: llama.n_tokens].tolist(), **kwargs)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_with_images(watch, llama_hooks, llama, monkeypatch, stream):
    def handler(*, llama, stream, max_tokens, **kwargs):
        answer = images(llama, "schau", 7, stream=stream, max_tokens=max_tokens, temperature=0)
        return llama_cpp.llama_chat_format._convert_completion_to_chat(answer, stream=stream)

    monkeypatch.setattr(llama, "chat_handler", handler)
    engine = watch(llama)
    for _ in range(2):
        answer = llama.create_chat_completion(
            [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]}],
            max_tokens=3,
            stream=stream,
        )
        if stream:
            list(answer)
        call = llama_hooks.recorder.calls[-1]
        assert counts(call) == (6 + 7 + 5, 0, 3) == (*engine.passes[-1][:1], 0, 3)
        assert call.facts["user_turn"] is True


def test_handlers_of_images_need_their_library(llama_hooks, gguf_path):
    for name in ("Llava15ChatHandler", "MTMDChatHandler", "Qwen25VLChatHandler"):
        with pytest.raises((FileNotFoundError, OSError, RuntimeError)):
            getattr(llama_cpp.llama_chat_format, name)(clip_model_path=str(gguf_path))
    assert not llama_hooks.recorder.calls


@pytest.mark.parametrize(
    "pooling", ["LLAMA_POOLING_TYPE_NONE", "LLAMA_POOLING_TYPE_MEAN", "LLAMA_POOLING_TYPE_LAST"]
)
def test_embeddings_of_every_pooling(llama_hooks, gguf_path, pooling):
    texts = ["ab", "cde", "f" * 40]
    with loaded(
        gguf_path, n_ctx=64, embedding=True, pooling_type=getattr(llama_cpp, pooling)
    ) as embedder:
        truth = [len(embedder.tokenize(text.encode())) for text in texts]
        answer = embedder.create_embedding(texts)
        vectors, count = embedder.embed(texts, normalize=True, return_count=True)
        single = embedder.embed(texts[0])
    assert len(answer["data"]) == len(vectors) == 3
    assert np.asarray(single).size in {64, 64 * truth[0]}
    one, two, three = llama_hooks.recorder.calls
    assert one.facts["input_tokens"] == two.facts["input_tokens"] == sum(truth) == count
    assert three.facts["input_tokens"] == truth[0]
    assert [call.facts.get("batch_size") for call in (one, two, three)] == [3, 3, None]
    assert not {"output_tokens", "context_fill", "passes"} & set(one.facts)


def test_embeddings_that_are_cut_or_too_long(llama_hooks, gguf_path):
    with loaded(gguf_path, n_ctx=64, n_batch=16, embedding=True) as embedder:
        embedder.embed("x" * 40)
        with pytest.raises(ValueError, match="exceed batch size"):
            embedder.embed("x" * 40, truncate=False)
    cut, failed = llama_hooks.recorder.calls
    assert cut.facts["input_tokens"] == 16
    assert failed.outcome == "failed"
