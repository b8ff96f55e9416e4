"""Chats of llama-cpp-python by every kind of handler: one call with what the engine really did."""

from __future__ import annotations

import contextlib

import pytest

llama_cpp = pytest.importorskip("llama_cpp")
from llama_cpp import Llama, LogitsProcessorList, llama_chat_format

pytestmark = pytest.mark.llama_cpp

PROMPT = "Grüße aus der Küche"
MESSAGES = [{"role": "user", "content": PROMPT}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 4}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "planted", "parameters": PARAMETERS},
    }
    for name in ("weather", "time")
]
CHOICE = {"type": "function", "function": {"name": "weather"}}
SYSTEM = "<|system|>"
FORMATS = sorted(
    set(llama_chat_format.LlamaChatCompletionHandlerRegistry()._chat_handlers)
    - {"functionary-v1", "functionary-v2"}
)


@pytest.fixture(scope="module")
def _llama(gguf_path):
    """A model with room for the prompts that some handlers write."""
    with contextlib.closing(
        Llama(str(gguf_path), n_ctx=2048, n_threads=1, n_threads_batch=1, verbose=False)
    ) as llama:
        yield llama


@pytest.fixture
def chat(llama, watch, llama_hooks, monkeypatch):
    """Chat with the tiny model; gives the answer, or all chunks, the call's facts and the truth."""

    def run(messages=MESSAGES, *, chat_format=None, handler=None, **kwargs):
        if chat_format:
            monkeypatch.setattr(llama, "chat_format", chat_format)
        if handler:
            monkeypatch.setattr(llama, "chat_handler", handler)
        llama.reset()
        engine = watch(llama)
        kwargs = {"max_tokens": 5, "temperature": 0} | kwargs
        answer = llama.create_chat_completion(messages, **kwargs)
        if kwargs.get("stream"):
            answer = list(answer)
        call = llama_hooks.recorder.call
        assert call.operation == "chat"
        assert counts(call) == engine.totals
        assert call.facts.get("passes", 1) == len(engine.passes)
        assert call.facts["context_fill"] == llama.n_tokens / llama.n_ctx()
        llama_hooks.recorder.calls.clear()
        return answer, call, engine

    return run


def counts(call):
    facts = call.facts
    return facts["input_tokens"], facts.get("cache_read_tokens", 0), facts["output_tokens"]


def begins_with(llama, *texts):
    """Make the first tokens of each pass those of a text, and leave the rest to the model."""
    wanted = [llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    state = {"prompt": [], "pass": -1, "at": 0}

    def processor(ids, scores):
        # A pass begins where what was evaluated does not end with our last choice.
        if state["prompt"] != ids[:-1].tolist():
            state.update({"pass": state["pass"] + 1, "at": 0})
        state["prompt"] = ids.tolist()
        text = wanted[state["pass"]] if state["pass"] < len(wanted) else ()
        if state["at"] < len(text):
            scores[:] = -1e9
            scores[text[state["at"]]] = 1e9
            state["at"] += 1
        return scores

    return LogitsProcessorList([processor])


# Some of the formats begin with a token that the model's vocabulary adds as well.
@pytest.mark.filterwarnings("ignore:Detected duplicate leading:RuntimeWarning")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat_format", FORMATS)
def test_every_format_of_the_package(chat, llama, chat_format, stream):
    answer, call, engine = chat(chat_format=chat_format, stream=stream)
    assert call.facts["output_tokens"] == 5
    assert call.facts["finish_reasons"] == ["length"]
    assert call.chunks == (len(answer) if stream else 0)
    assert len(engine.passes) == 1 and "tool_call_count" not in call.facts


@pytest.mark.parametrize("stream", [False, True])
def test_the_models_own_template(chat, llama, stream):
    assert llama.chat_format == "chat_template.default"
    _, call, _ = chat(stream=stream)
    text = f"<s><|user|>{PROMPT}</s><|assistant|>"
    assert call.facts["input_tokens"] == len(
        llama.tokenize(text.encode(), add_bos=False, special=True)
    )
    assert call.facts["user_turn"] is True


@pytest.mark.parametrize("stream", [False, True])
def test_a_tokenizer_configuration(chat, llama, stream):
    config = {"chat_template": "{{ messages[0]['content'] }}", "bos_token": "", "eos_token": "</s>"}
    handler = llama_chat_format.hf_tokenizer_config_to_chat_completion_handler(config)
    _, call, _ = chat(handler=handler, stream=stream)
    assert call.facts["input_tokens"] == len(llama.tokenize(PROMPT.encode(), add_bos=False))


@pytest.mark.parametrize("stream", [False, True])
def test_a_tokenizer_of_hugging_face(chat, hugging_face, stream):
    handler = llama_chat_format.hf_autotokenizer_to_chat_completion_handler(str(hugging_face()))
    _, call, _ = chat(handler=handler, stream=stream)
    assert call.facts["input_tokens"] > len(PROMPT.encode())


@pytest.fixture
def registered():
    """Handlers and formats that the app registers, which the package keeps for good."""
    kept = llama_chat_format.LlamaChatCompletionHandlerRegistry()._chat_handlers
    before = dict(kept)
    yield llama_chat_format
    kept.clear()
    kept.update(before)


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_app_registers(chat, registered, stream):
    @registered.register_chat_format("mine")
    def form(messages, **kwargs):
        return registered.ChatFormatterResponse(prompt=messages[0]["content"], stop="never")

    @registered.register_chat_completion_handler("my own")
    def handle(llama, messages, stream, max_tokens, **kwargs):
        llama.create_completion(messages[0]["content"], max_tokens=2, temperature=0)
        answer = llama.create_completion("und", max_tokens=3, temperature=0, stream=stream)
        return registered._convert_completion_to_chat(answer, stream=stream)

    _, call, _ = chat(chat_format="mine", stream=stream)
    assert call.facts["output_tokens"] == 5
    _, call, engine = chat(chat_format="my own", stream=stream)
    assert (call.facts["output_tokens"], len(engine.passes)) == (2 + 3, 2)


def test_a_handler_of_the_apps_own_may_say_why_it_ends_before_the_engine_stops(chat):
    def handle(llama, messages, **kwargs):
        for number, _ in enumerate(llama.generate(llama.tokenize(b"und"), temp=0)):
            reason = "stop" if number == 2 else None
            yield {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
            if reason:
                return

    _, call, _ = chat(handler=handle, stream=True)
    assert call.facts["finish_reasons"] == ["stop"]


@pytest.mark.parametrize("kind", ["json_object", "json_schema", "text"])
def test_a_response_format(chat, kind):
    answer, call, _ = chat(
        response_format={"type": kind, "schema": PARAMETERS}, max_tokens=40, stop=["planted"]
    )
    assert call.facts["output_type"] == ("text" if kind == "text" else "json")
    if kind == "json_object":
        assert answer["choices"][0]["message"]["content"].startswith("{")


def test_a_grammar(chat):
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    answer, call, _ = chat(grammar=grammar)
    text = answer["choices"][0]["message"]["content"]
    assert text in {"yes", "no"}
    assert call.facts["output_tokens"] == len(text)
    assert call.facts["finish_reasons"] == ["stop"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "tools",
    [
        {"tools": TOOLS, "tool_choice": CHOICE},
        {"functions": [TOOLS[0]["function"]], "function_call": {"name": "weather"}},
    ],
    ids=["tools", "functions"],
)
@pytest.mark.parametrize("chat_format", ["chatml", "chatml-function-calling"])
def test_a_chosen_tool(chat, chat_format, tools, stream):
    _, call, engine = chat(chat_format=chat_format, stream=stream, max_tokens=30, **tools)
    assert len(engine.passes) == 1
    facts = call.facts
    assert facts["finish_reasons"] == ["tool_calls"]
    assert facts["request_tool_count"] == len(tools.get("tools", [None]))
    assert (facts["tool_call_count"], facts["tool_names"]) == (1, ["weather"])


def test_an_automatic_choice_that_calls(chat, llama):
    words = "functions.weather:", '{"city":"a"}', "<|im_end|>"
    answer, call, engine = chat(
        chat_format="chatml-function-calling",
        tools=TOOLS,
        tool_choice="auto",
        logits_processor=begins_with(llama, *words),
    )
    assert len(engine.passes) == 3
    facts = call.facts
    assert (facts["tool_call_count"], facts["tool_names"]) == (1, ["weather"])
    assert facts["input_tokens"] > answer["usage"]["prompt_tokens"], "of some passes alone"
    assert facts["output_tokens"] > answer["usage"]["completion_tokens"]
    assert facts["cache_read_tokens"] > 0, "a pass begins with the prompt of the one before"
    assert 0 < facts["time_per_output_token_s"] < facts["engine_duration_s"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_automatic_choice_that_answers(chat, llama, stream):
    answer, call, engine = chat(
        chat_format="chatml-function-calling",
        tools=TOOLS,
        tool_choice="auto",
        stream=stream,
        logits_processor=begins_with(llama, "message:", "<|im_end|>"),
    )
    assert len(engine.passes) == 2
    assert "tool_call_count" not in call.facts
    assert call.facts["finish_reasons"] == ["stop"]
    assert call.stream is stream and call.chunks == (len(answer) if stream else 0)


def test_no_tools_wanted(chat):
    _, call, engine = chat(chat_format="chatml-function-calling", tools=TOOLS, tool_choice="none")
    assert len(engine.passes) == 1
    assert call.facts["request_tool_count"] == 2
    assert "tool_call_count" not in call.facts


def test_what_a_handler_does_not_know_is_its_own_error(llama_hooks, llama, monkeypatch):
    monkeypatch.setattr(llama, "chat_format", "chatml-function-calling")
    nothing = {"type": "function", "function": {"name": "nothing"}}
    for choice, error in (("required", AssertionError), (nothing, ValueError)):
        with pytest.raises(error):
            llama.create_chat_completion(MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=3)
    with pytest.raises(ValueError, match="not supported"):
        llama.create_chat_completion(MESSAGES, tools=TOOLS, tool_choice="auto", stream=True)
    monkeypatch.setattr(llama, "chat_format", "functionary")
    with pytest.raises(AssertionError):
        llama.create_chat_completion(MESSAGES, tools=TOOLS, stream=True, max_tokens=3)
    calls = llama_hooks.recorder.calls
    assert {call.outcome for call in calls} == {"failed"} and len(calls) == 4
    assert [call.facts.get("passes", 1) for call in calls] == [1, 1, 1, 2]


@pytest.mark.parametrize("choice", ["auto", CHOICE, None])
def test_functionary(chat, choice, capfd):
    _, call, engine = chat(chat_format="functionary", tools=TOOLS, tool_choice=choice)
    assert len(engine.passes) == (1 if choice is CHOICE else 2)
    assert call.facts["tool_call_count"] == 1
    assert call.facts["finish_reasons"] == ["tool_calls"]


@pytest.fixture
def functionary(gguf_path, hugging_face):
    """Load the tiny model with a tokenizer as functionary's models bring one."""
    made = []

    def load(*special):
        tokenizer = llama_cpp.llama_tokenizer.LlamaHFTokenizer.from_pretrained(
            str(hugging_face(*special))
        )
        # What handlers ask for; newer `transformers` renamed it.
        tokenizer.hf_tokenizer.__dict__["additional_special_tokens"] = list(special)
        made.append(
            Llama(
                str(gguf_path),
                n_ctx=2048,
                n_threads=1,
                n_threads_batch=1,
                verbose=False,
                tokenizer=tokenizer,
                chat_format="functionary-v2",
            )
        )
        return made[-1]

    yield load
    for llama in made:
        llama.close()


@pytest.mark.parametrize(
    ("stream", "choice", "passes"),
    [(False, "none", 1), (False, "auto", 3), (False, CHOICE, 1), (True, "none", 1)]
    + [(True, "auto", 3), (True, CHOICE, 1)],
)
def test_functionary_v2(functionary, watch, llama_hooks, stream, choice, passes):
    llama = functionary()
    engine = watch(llama)
    answer = llama.create_chat_completion(
        MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=6, temperature=0, stream=stream
    )
    if stream:
        list(answer)
    call = llama_hooks.recorder.call
    assert counts(call) == engine.totals
    assert call.facts.get("passes", 1) == len(engine.passes) == passes
    called = {"none": None, "auto": 1}.get(str(choice), 1)
    assert call.facts.get("tool_call_count") == called
    assert call.facts["finish_reasons"] == (["tool_calls"] if called else ["length"])


@pytest.mark.parametrize(("choice", "passes"), [("none", 1), ("auto", 1), (CHOICE, 1)])
def test_functionary_v1(functionary, watch, llama_hooks, choice, passes):
    llama = functionary("<|START_OF_FUNCTION_CALL|>")
    engine = watch(llama)
    llama.create_chat_completion(
        MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=6, temperature=0
    )
    call = llama_hooks.recorder.call
    assert counts(call) == engine.totals and len(engine.passes) == passes
    assert call.facts.get("tool_call_count") == (1 if choice is CHOICE else None)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """Write a tokenizer of the `transformers` library with the vocabulary of the tiny model."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")

    def make(*special):
        names = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", SYSTEM)
        words = [*names, *(f"<0x{byte:02X}>" for byte in range(256))]
        vocabulary = {word: number for number, word in enumerate(words)}
        model = tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.decoder = tokenizers.decoders.ByteFallback()
        tokenizer.add_special_tokens(list(names))
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        )
        fast.additional_special_tokens = list(special)
        path = tmp_path_factory.mktemp("tokenizer")
        fast.save_pretrained(path)
        return path

    return make
