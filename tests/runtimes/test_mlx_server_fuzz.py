"""Whatever mlx-lm's server is given and gives: the app sees its own results and exceptions only.

The hooks are put on a stand-in for the server's module, as in `test_hooks_fuzz.py`.
"""

from __future__ import annotations

import sys
import types

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtimes.test_hooks_fuzz import FUZZ, Loud, Partial, Planted, ends, odd
from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.runtimes import mlx_server

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
            ends(script["fails"] == "at once")
            return script["answer"](answers)

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
            return script

    module.ResponseGenerator, module.APIHandler = ResponseGenerator, APIHandler
    module.ModelProvider = ModelProvider
    monkeypatch.setitem(sys.modules, "mlx_lm.server", module)
    recorder, hooks, patches = Keeping(), guard.ImportHooks(), guard.Patches()
    waiting = {}
    hooks.when_imported = waiting.__setitem__
    mlx_server.install(recorder, hooks, patches)
    waiting["mlx_lm.server"](module, False)
    yield types.SimpleNamespace(module=module, script=script, recorder=recorder)
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
