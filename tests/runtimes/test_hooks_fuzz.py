"""Whatever a runtime is given and gives: the app sees its own results and exceptions only.

The hooks are put on stand-ins for the runtimes' modules, so that odd arguments and results
reach our code and not an engine that would refuse them first.
"""

from __future__ import annotations

import os
import sys
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.runtimes import llama_cpp, mlx

FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Hostile:
    """Raises for whatever is asked of it."""

    def __getattribute__(self, name):
        if name in {"__class__", "__dict__"}:
            return object.__getattribute__(self, name)
        raise RuntimeError("planted")

    def _refuse(self, *_):
        raise RuntimeError("planted")

    __bool__ = __len__ = __iter__ = __eq__ = __hash__ = __contains__ = __getitem__ = _refuse
    __str__ = __repr__ = __fspath__ = __index__ = __int__ = __float__ = _refuse


class Partial:
    """A response with only some of the attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.builds(Hostile),
    st.builds(object),
    st.builds(
        lambda names: Partial(**names),
        st.dictionaries(
            st.sampled_from(["offset", "args", "model_type", "metadata", "_n_ctx", "model_path"]),
            st.integers(),
        ),
    ),
)
responses = st.one_of(
    odd,
    st.builds(
        lambda names: Partial(**names),
        st.dictionaries(
            st.sampled_from(["generation_tokens", "finish_reason", "prompt_tokens", "text"]), odd
        ),
    ),
    st.fixed_dictionaries(
        {
            "choices": st.one_of(
                odd,
                st.lists(
                    st.dictionaries(
                        st.sampled_from(["finish_reason", "delta", "index", "message"]), odd
                    ),
                    max_size=2,
                ),
            )
        }
    ),
)
arguments = st.dictionaries(
    st.sampled_from(
        "model tokenizer prompt max_tokens prompt_cache messages tools stop stream temperature "
        "response_format tokens input return_count path_or_hf_repo repo_id sampler "
        "logits_processors draft_model num_draft_tokens max_kv_size adapter_path".split()
    ),
    odd,
    max_size=6,
)


class Planted(Exception):
    """The runtime's own error."""


def ends(item):
    """What a stand-in does at its end: raise, or not."""
    if item:
        raise Planted


class Loud:
    """A recorder that fails in everything that it may fail in."""

    def opened(self, call):
        pass

    def ended(self, call):
        pass

    def enter(self, call):
        return None

    def leave(self, token):
        pass

    def enabled(self):
        return True

    def loaded(self, *_):
        raise RuntimeError("planted")


@pytest.fixture
def standins(monkeypatch):
    """Modules in the place of the runtimes', whose functions do what `script` says."""
    script = {}

    def generator(*args, **kwargs):
        script["args"] = (args, kwargs)
        yield from script["items"]
        ends(script["fails"])
        return script["result"]

    def function(*args, **kwargs):
        script["args"] = (args, kwargs)
        ends(script["fails"])
        return script["result"]

    generate = types.ModuleType("mlx_lm.generate")
    utils = types.ModuleType("mlx_lm.utils")

    def stream_generate(model=None, tokenizer=None, prompt=None, max_tokens=256, **kwargs):
        return generator(model, tokenizer, prompt, max_tokens, **kwargs)

    def whole(*args, **kwargs):
        for _ in generate.stream_generate(*args, **kwargs):
            pass
        return script["result"]

    generate.stream_generate, generate.generate = stream_generate, whole
    utils.load, utils.load_model = function, function

    def batch_generate(model=None, tokenizer=None, prompts=None, prompt_caches=None, **kwargs):
        batch = generate.BatchGenerator(model)
        batch.insert(prompts)
        batch.next()
        batch.close()
        return function(model, **kwargs)

    class BatchGenerator:
        def __init__(self, model=None):
            self.model = self.sampler = model

        def insert(self, prompts, max_tokens=None, caches=None, samplers=None, **kwargs):
            return function(prompts, **kwargs)

        def next(self):
            return function()

        def remove(self, uids):
            return function(uids)

        def close(self):
            return function()

    generate.batch_generate, generate.BatchGenerator = batch_generate, BatchGenerator
    samples = types.ModuleType("mlx_lm.sample_utils")
    samples.make_sampler = samples.make_presence_penalty = function
    tuner = types.ModuleType("mlx_lm.tuner.utils")
    tuner.load_adapters = function

    llama = types.ModuleType("llama_cpp.llama")
    llama.llama_cpp = types.SimpleNamespace(llama_vocab_is_eog=lambda *_: ends(True))

    class Llama:
        def __init__(self, *args, **kwargs):
            function(*args, **kwargs)

        def create_completion(self, *args, **kwargs):
            return generator(*args, **kwargs) if script["streams"] else function(*args, **kwargs)

        create_chat_completion = create_embedding = __call__ = create_completion

        def embed(self, *args, **kwargs):
            return function(*args, **kwargs)

        def generate(self, tokens=None, **kwargs):
            return generator(tokens, **kwargs)

        def eval(self, tokens):
            return function(tokens)

        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            return function(*args, **kwargs)

    llama.Llama = Llama
    recorder, hooks, patches = Loud(), guard.ImportHooks(), guard.Patches()
    for module in (generate, utils, samples, tuner, llama):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    # Straight to the hooks: the stand-ins are never imported.
    waiting = {}
    hooks.when_imported = waiting.__setitem__
    mlx.install(recorder, hooks, patches)
    llama_cpp.install(recorder, hooks, patches)
    for module in (generate, utils, samples, tuner, llama):
        waiting[module.__name__](module, False)
    yield types.SimpleNamespace(
        generate=generate, utils=utils, samples=samples, tuner=tuner, llama=llama, script=script
    )
    hooks.stop()
    patches.undo()
    guard.failures.clear()


def seen_by_the_app(script, run):
    """Compare what the app gets with what the stand-in did."""
    fails = script["fails"]
    try:
        result = run()
    except Planted:
        assert fails
    else:
        assert not fails
        return result
    finally:
        assert current_call.get() is None
    return None


@FUZZ
@given(
    items=st.lists(responses, max_size=4), result=responses, fails=st.booleans(), kwargs=arguments
)
def test_mlx_streams(standins, items, result, fails, kwargs):
    script = standins.script
    script.update(items=items, result=result, fails=fails)
    got = []

    def run():
        got.extend(standins.generate.stream_generate(**kwargs))
        return True

    seen_by_the_app(script, run)
    assert [id(item) for item in got] == [id(item) for item in items]
    assert all(
        given is kwargs.get(name, given)
        for name, given in zip(("model", "tokenizer", "prompt"), script["args"][0], strict=False)
    )


@FUZZ
@given(
    items=st.lists(responses, max_size=4), result=responses, fails=st.booleans(), kwargs=arguments
)
def test_mlx_whole(standins, items, result, fails, kwargs):
    standins.script.update(items=items, result=result, fails=fails)
    got = seen_by_the_app(standins.script, lambda: standins.generate.generate(**kwargs))
    assert fails or got is result


@FUZZ
@given(result=st.one_of(odd, st.tuples(odd, odd)), fails=st.booleans(), asked=odd, kwargs=arguments)
def test_mlx_loads(standins, result, fails, asked, kwargs):
    standins.script.update(result=result, fails=fails)
    for load in (standins.utils.load, standins.utils.load_model):
        got = seen_by_the_app(standins.script, lambda load=load: load(asked, **kwargs))
        assert fails or got is result


stepped = st.one_of(
    responses,
    st.lists(
        st.builds(
            lambda names: Partial(**names),
            st.dictionaries(
                st.sampled_from(["uid", "finish_reason", "token"]), st.one_of(odd, st.just(0))
            ),
        ),
        max_size=3,
    ),
)


@FUZZ
@given(
    prompts=st.one_of(odd, st.lists(odd, max_size=3)),
    uids=st.one_of(odd, st.just([0, 1]), st.lists(odd, max_size=2)),
    caches=st.one_of(odd, st.lists(odd, max_size=3)),
    steps=st.lists(st.one_of(stepped, st.tuples(odd, stepped)), max_size=3),
    fails=st.booleans(),
    model=odd,
)
def test_mlx_batches(standins, prompts, uids, caches, steps, fails, model):
    script = standins.script
    script.update(result=uids, fails=False)
    batch = standins.generate.BatchGenerator(model)
    got = seen_by_the_app(script, lambda: batch.insert(prompts, caches, caches, caches))
    assert got is uids
    for step in steps:
        script.update(result=step, fails=fails)
        got = seen_by_the_app(script, batch.next)
        assert fails or got is step
        got = seen_by_the_app(script, lambda: batch.remove(uids))
        assert fails or got is step
    got = seen_by_the_app(script, batch.close)
    script.update(result=uids, fails=fails)
    got = seen_by_the_app(
        script, lambda: standins.generate.batch_generate(model, None, prompts, caches)
    )
    assert fails or got is uids


@FUZZ
@given(made=odd, fails=st.booleans(), args=st.lists(odd, max_size=5), kwargs=arguments)
def test_mlx_samplers_and_adapters(standins, made, fails, args, kwargs):
    script = standins.script
    script.update(result=made, fails=fails)
    for function in (
        standins.samples.make_sampler,
        standins.samples.make_presence_penalty,
        standins.tuner.load_adapters,
    ):
        got = seen_by_the_app(script, lambda function=function: function(*args, **kwargs))
        assert fails or got is made


@FUZZ
@given(
    method=st.sampled_from(
        ["create_completion", "create_chat_completion", "create_embedding", "__call__", "embed"]
    ),
    streams=st.booleans(),
    items=st.lists(responses, max_size=4),
    result=responses,
    fails=st.booleans(),
    args=st.lists(odd, max_size=3),
    kwargs=arguments,
    attributes=st.dictionaries(
        st.sampled_from(["metadata", "_model", "_n_ctx", "model_path"]), odd
    ),
)
def test_llama_methods(standins, method, streams, items, result, fails, args, kwargs, attributes):
    script = standins.script
    script.update(items=[], result=None, fails=False, streams=False)
    llama = standins.llama.Llama()
    vars(llama).update(attributes)
    script.update(items=items, result=result, fails=fails, streams=streams)
    got = []

    def run():
        answer = getattr(llama, method)(*args, **kwargs)
        if streams and method != "embed":
            got.extend(answer)
        return answer

    answer = seen_by_the_app(script, run)
    if streams and method != "embed":
        assert [id(item) for item in got] == [id(item) for item in items]
    else:
        assert fails or answer is result


@FUZZ
@given(tokens=odd, items=st.lists(odd, max_size=4), result=odd, fails=st.booleans())
def test_llama_engine(standins, tokens, items, result, fails):
    script = standins.script
    script.update(items=[], result=None, fails=False)
    llama = standins.llama.Llama()
    script.update(items=items, result=result, fails=fails)
    got = []
    seen_by_the_app(script, lambda: got.extend(llama.generate(tokens)))
    assert [id(item) for item in got] == [id(item) for item in items]
    assert fails or llama.eval(tokens) is result
    loaded = seen_by_the_app(script, lambda: standins.llama.Llama.from_pretrained(tokens))
    assert fails or loaded is result


def test_a_fork_in_the_middle_of_a_stream(standins):
    script = standins.script
    script.update(items=[1, 2, 3], result=None, fails=False)
    stream = standins.generate.stream_generate(None, None, "x")
    assert next(stream) == 1
    child = os.fork()
    if child == 0:
        rest = list(stream)
        os._exit(0 if rest == [2, 3] and current_call.get() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(stream) == [2, 3]
