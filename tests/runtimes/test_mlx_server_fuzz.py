"""Whatever mlx-lm's server is given and gives: the app sees its own results and exceptions only.

The hooks are put on a stand-in for the server's module, as in `test_hooks_fuzz.py`.
"""

from __future__ import annotations

import contextlib
import sys
import types

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtimes.test_hooks_fuzz import FUZZ, Loud, Partial, Planted, ends, odd
from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.runtimes import mlx_generate, mlx_models, mlx_server
from sottovoce.runtimes.engine import Runtime

SAID = "words that someone said"


def some(*names):
    """An object with some of the attributes, of any value."""
    return st.builds(lambda found: Partial(**found), st.dictionaries(st.sampled_from(names), odd))


said = st.one_of(odd, st.just(SAID), st.just([SAID]), st.just({SAID: SAID}))
contexts = st.one_of(odd, some("prompt", "prompt_cache_count", "stop"))
tokens = st.lists(st.one_of(odd, some("finish_reason", "token", "text")), max_size=4)
requests = st.one_of(
    odd,
    st.builds(
        lambda kind, words: Partial(request_type=kind, messages=words, prompt=words, tools=words),
        st.one_of(st.sampled_from(["chat", "text"]), said),
        said,
    ),
)
models = st.builds(lambda name: Partial(model=name, draft=name, adapter=name), said)
groups = st.builds(
    lambda each: Partial(**each),
    st.dictionaries(
        st.sampled_from(["temperature", "top_p", "top_k", "presence_penalty"]),
        st.one_of(said, st.floats(allow_nan=False, allow_infinity=False)),
    ),
)
arguments = st.one_of(
    odd,
    st.builds(
        lambda model, group, words: Partial(
            model=model, sampling=group, logits=group, max_tokens=words, stop_words=words
        ),
        models,
        groups,
        said,
    ),
)
providers = st.one_of(
    odd,
    st.builds(
        lambda key, model: Partial(
            model_key=key, model=model, tokenizer=model, cli_args=Partial(model=key)
        ),
        st.one_of(said, st.tuples(said)),
        odd,
    ),
)


class Keeping(Loud):
    """Keeps the calls that ended."""

    def __init__(self):
        self.ended_calls, self.count = [], 0

    def ended(self, call):
        self.ended_calls.append(call)
        self.count += 1

    def join(self, headers):
        return None


@pytest.fixture
def standin(monkeypatch):
    module, script = types.ModuleType("mlx_lm.server"), {}

    def answers():
        yield from script["tokens"]
        ends(script["fails"] == "while it answers")

    class ResponseGenerator:
        model_provider = None

        def generate(self, request, generation_args, progress_callback=None):
            wanted = ()
            with contextlib.suppress(Exception):
                model = generation_args.model
                wanted = model.model, model.adapter, model.draft
            assert ModelProvider().load(*wanted) is script
            self._serve_single((None, request, generation_args))
            ends(script["fails"] == "at once")
            return script["answer"](answers)

        def _serve_single(self, request):
            with contextlib.suppress(Planted):
                list(stream(draft_model=script["reason"]))
            self._tokenize(None, request[1])

        def _tokenize(self, *args):
            return script

    class APIHandler:
        stream = False

        def generate_response(self, text, finish_reason, *args, **kwargs):
            return finish_reason

        def do_POST(self):
            got = script["engine"].generate(script["request"], script["arguments"])
            script["got"] = got
            if isinstance(got, tuple) and isinstance(got[-1], types.GeneratorType):
                script["got"] = list(got[-1])
            self.generate_response("", script["reason"])
            ends(script["fails"] == "at the end")
            return "done"

    class ModelProvider:
        def load(self, *args):
            with mlx_models.waiting.get() or contextlib.nullcontext():
                return script

    module.ResponseGenerator, module.APIHandler = ResponseGenerator, APIHandler
    module.ModelProvider = ModelProvider
    with hooked(module, monkeypatch) as recorder:
        stream = streaming(recorder, lambda **_: answers())
        yield types.SimpleNamespace(module=module, script=script, recorder=recorder)


def streaming(recorder, original):
    """What the hooks make of mlx-lm's `stream_generate` in a server."""
    runtime = Runtime("mlx", recorder, guard.ImportHooks())
    return mlx_generate.stream_generate(runtime, None, original)


@contextlib.contextmanager
def hooked(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx_lm.server", module)
    recorder, hooks, patches = Keeping(), guard.ImportHooks(), guard.Patches()
    waiting = {}
    hooks.when_imported = waiting.__setitem__
    mlx_server.install(recorder, hooks, patches)
    waiting["mlx_lm.server"](module, False)
    yield recorder
    assert recorder.count
    hooks.stop()
    patches.undo()
    guard.failures.clear()


@FUZZ
@example(
    request=Partial(request_type="chat", messages=[SAID], prompt=SAID, tools=[SAID]),
    arguments=Partial(
        model=Partial(model=SAID), sampling=None, logits=None, max_tokens=1, stop_words=[SAID]
    ),
    provider=Partial(model_key=(SAID,), model=None, tokenizer=None, cli_args=None),
    context=Partial(prompt=[SAID]),
    tokens=[Partial(finish_reason=None, text=SAID)],
    shape="pair",
    reason=SAID,
    fails="never",
)
@given(
    request=requests,
    arguments=arguments,
    provider=providers,
    context=contexts,
    tokens=tokens,
    shape=st.sampled_from(["pair", "list", "none", "one", "iterator"]),
    reason=said,
    fails=st.sampled_from(["never", "at once", "while it answers", "at the end"]),
)
def test_requests(standin, request, arguments, provider, context, tokens, shape, reason, fails):
    shapes = {
        "pair": lambda answers: (context, answers()),
        "list": lambda answers: [context, answers()],
        "none": lambda answers: None,
        "one": lambda answers: (answers(),),
        "iterator": lambda answers: (context, iter(tokens)),
    }
    engine = standin.module.ResponseGenerator()
    engine.model_provider = provider
    script = standin.script
    script.update(
        engine=engine,
        request=request,
        arguments=arguments,
        tokens=tokens,
        answer=shapes[shape],
        reason=reason,
        fails=fails,
        got=None,
    )
    try:
        result = standin.module.APIHandler().do_POST()
    except Planted:
        assert fails != "never"
    else:
        assert result == "done"
        if shape == "pair":
            assert [id(token) for token in script["got"]] == [id(token) for token in tokens]
    assert current_call.get() is None
    for call in standin.recorder.ended_calls:
        assert not call.is_open
        # A reason is a word that the policy judges before anyone sees it.
        facts = {name: value for name, value in call.facts.items() if name != "finish_reasons"}
        assert SAID not in repr((call.model, facts))
    standin.recorder.ended_calls.clear()
    assert standin.module.ModelProvider().load() is script
    assert engine._tokenize() is script


@pytest.fixture
def older(monkeypatch):
    """A stand-in for a server that has no engine."""
    module, script = types.ModuleType("mlx_lm.server"), {}

    def stream_generate(**named):
        yield from script["tokens"]
        ends(script["fails"] == "while it answers")

    class ModelProvider:
        def load(self, *args):
            ends(script["fails"] == "at once")
            return script

    class APIHandler:
        def __init__(self, **said):
            vars(self).update(said)

        def generate_response(self, text, finish_reason, *args, **kwargs):
            return finish_reason

        def get_prompt_cache(self, prompt):
            return script["rest"]

        def handle_completion(self, prompt, stop_id_sequences):
            assert self.get_prompt_cache(prompt) is script["rest"]
            draft = script["draft"]
            script["got"] = list(
                stream(draft_model=draft, max_tokens=draft, num_draft_tokens=draft)
            )
            self.generate_response("", script["reason"])
            ends(script["fails"] == "at the end")

        def do_POST(self):
            try:
                script["provider"].load(script["reason"])
            except Planted:
                return "refused"
            self.handle_completion(script["prompt"], [])
            return "done"

    module.APIHandler, module.ModelProvider = APIHandler, ModelProvider
    with hooked(module, monkeypatch) as recorder:
        stream = streaming(recorder, stream_generate)
        yield types.SimpleNamespace(module=module, script=script, recorder=recorder)


bodies = st.one_of(odd, st.dictionaries(st.sampled_from(["stop", "tools", "stream"]), said))
attributes = st.dictionaries(
    st.sampled_from(
        ["body", "path", "stream", "max_tokens", "temperature", "top_p", "top_k", "headers"]
        + ["requested_model", "requested_draft_model", "adapter", "model_provider"]
    ),
    said,
)
TOKENS = [Partial(finish_reason=None, text=SAID, from_draft=True, generation_tokens=1)]


@FUZZ
@example(
    handler=dict.fromkeys(
        ["requested_model", "requested_draft_model", "adapter", "temperature", "top_p", "top_k"],
        SAID,
    )
    | {"max_tokens": 5, "path": "/v1/chat/completions"},
    body={"stop": SAID, "tools": [SAID]},
    provider=Partial(model_key=(SAID,), model=None, tokenizer=None, cli_args=None),
    prompt=[SAID],
    rest=[],
    tokens=TOKENS,
    draft=None,
    reason=SAID,
    fails="never",
)
@given(
    handler=attributes,
    body=bodies,
    provider=providers,
    prompt=said,
    rest=said,
    tokens=st.one_of(tokens, st.just(TOKENS)),
    draft=st.one_of(odd, st.integers()),
    reason=said,
    fails=st.sampled_from(["never", "at once", "while it answers", "at the end"]),
)
def test_older_requests(older, handler, body, provider, prompt, rest, tokens, draft, reason, fails):
    script = older.script
    script.update(tokens=tokens, rest=rest, draft=draft, reason=reason, fails=fails, prompt=prompt)
    script["provider"] = older.module.ModelProvider()
    said = {"model_provider": provider, "body": body, "path": "/", **handler}
    try:
        result = older.module.APIHandler(**said).do_POST()
    except Planted:
        assert fails in {"while it answers", "at the end"}
    else:
        assert result == ("refused" if fails == "at once" else "done")
        if result == "done":
            assert [id(token) for token in script["got"]] == [id(token) for token in tokens]
    assert current_call.get() is None
    for call in older.recorder.ended_calls:
        assert not call.is_open
        facts = {name: value for name, value in call.facts.items() if name != "finish_reasons"}
        assert SAID not in repr((call.model, facts))
    older.recorder.ended_calls.clear()
