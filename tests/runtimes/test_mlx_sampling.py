"""What an app made its sampler and its penalties with, and speculative decoding."""

from __future__ import annotations

import functools
import gc
import sys
import weakref

import pytest

mlx_lm = pytest.importorskip("mlx_lm")
import mlx.core as mx
from mlx_lm import sample_utils

from sottovoce.runtimes import mlx_sampling

pytestmark = pytest.mark.mlx

PROMPT = "Grüße aus der Küche"
SAMPLING = {"request_temperature", "request_top_p", "request_top_k"}
BOUND_EARLIER = sample_utils.make_sampler


def told(hooks):
    facts = hooks.recorder.calls[-1].facts
    return {name: facts[name] for name in SAMPLING & facts.keys()}


@pytest.mark.parametrize(("asked", "facts"), [
    ({}, {"request_temperature": 0.0}),
    ({"temp": 0.0, "top_p": 0.5, "top_k": 3}, {"request_temperature": 0.0}),
    ({"temp": 1}, {"request_temperature": 1.0}),
    ({"temp": 0.7, "top_p": 0.9, "top_k": 40}, {
        "request_temperature": 0.7, "request_top_p": 0.9, "request_top_k": 40,
    }),
    ({"temp": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.05}, {"request_temperature": 0.7}),
])  # fmt: skip
def test_what_the_sampler_was_made_with(mlx_hooks, mlx_model, asked, facts):
    sampler = sample_utils.make_sampler(**asked)
    for _ in mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=1, sampler=sampler):
        pass
    assert told(mlx_hooks) == facts
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=1, sampler=sampler)
    assert told(mlx_hooks) == facts
    mlx_lm.batch_generate(*mlx_model, [[7, 8]], max_tokens=1, sampler=sampler)
    assert told(mlx_hooks) == facts
    module = sys.modules["mlx_lm.generate"]
    for options in ({"sampler": sampler}, {}):
        batch = module.BatchGenerator(mlx_model[0], max_tokens=1, **options)
        batch.insert([[7, 8]], **({} if options else {"samplers": [sampler]}))
        while getattr(batch, "next_generated", batch.next)():
            pass
        assert told(mlx_hooks) == facts


def test_nothing_is_told_of_a_sampler_that_the_app_wrote(mlx_hooks, mlx_model):
    class Sampler:
        __hash__ = None

        def __call__(self, logits):
            return mx.argmax(logits, axis=-1)

    own = (None, lambda x: mx.argmax(x, axis=-1), functools.partial(mx.argmax, axis=-1), Sampler())
    for sampler in own:
        mlx_lm.generate(*mlx_model, PROMPT, max_tokens=1, sampler=sampler)
        assert told(mlx_hooks) == {}


def test_a_name_that_was_bound_earlier_makes_samplers_that_are_known(mlx_hooks, mlx_model):
    sampler = BOUND_EARLIER(0.3)
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=1, sampler=sampler)
    assert told(mlx_hooks) == {"request_temperature": 0.3}


def test_a_wrong_sampler_is_the_apps_error(mlx_hooks):
    with pytest.raises(TypeError):
        sample_utils.make_sampler(no_such_option=1)
    for odd in ("0.5", None, True, [1]):
        try:
            sampler = sample_utils.make_sampler(temp=odd)
        except Exception:  # noqa: BLE001, S112 - its own affair
            continue
        assert mlx_sampling.asked(sampler) == {}


def test_samplers_are_not_kept_alive(mlx_hooks):
    gc.collect()
    before = len(mlx_sampling._asked)
    samplers = [sample_utils.make_sampler(0.1 * step) for step in range(1, 9)]
    assert len(mlx_sampling._asked) == before + 8
    gone = weakref.ref(samplers[0])
    del samplers
    gc.collect()
    assert gone() is None
    assert len(mlx_sampling._asked) == before


def test_penalties_are_told(mlx_hooks, mlx_model):
    penalties = sample_utils.make_logits_processors(
        repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.25
    )
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=1, logits_processors=penalties)
    facts = mlx_hooks.recorder.call.facts
    assert facts["request_presence_penalty"] == 0.5
    assert facts["request_frequency_penalty"] == 0.25


def drafted(hooks, responses, width, limit):
    """The accepted share, counted round by round as the algorithm is described."""
    flags = [response.from_draft for response in responses]
    proposed = at = 0
    while at < len(flags):
        proposed += min(width, limit - at)
        while at < len(flags) and flags[at]:
            at += 1
        at += 1
    share = sum(flags) / proposed
    assert hooks.recorder.calls[-1].facts["draft_accepted_share"] == pytest.approx(share)
    return share


@pytest.mark.parametrize(("options", "width", "limit"), [
    ({"max_tokens": 20}, 2, 20),
    ({"max_tokens": 21, "num_draft_tokens": 4}, 4, 21),
    ({"num_draft_tokens": 3}, 3, 256),
])  # fmt: skip
def test_a_draft_that_is_the_model_is_always_right(mlx_hooks, mlx_model, options, width, limit):
    stream = mlx_lm.stream_generate(*mlx_model, PROMPT, draft_model=mlx_model[0], **options)
    assert drafted(mlx_hooks, list(stream), width, limit) > 0.9
    facts = mlx_hooks.recorder.call.facts
    assert facts["output_tokens"] == limit
    assert facts["input_tokens"] == len(mlx_model[1].encode(PROMPT))


def test_a_draft_that_guesses_is_seldom_right(mlx_hooks, mlx_model, mlx_maker, tmp_path):
    draft, _ = mlx_lm.load(str(mlx_maker(tmp_path / "secret-draft", hidden=32, layers=1)))
    responses = list(mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=12, draft_model=draft))
    assert drafted(mlx_hooks, responses, 2, 12) < 0.9
    facts = mlx_hooks.recorder.call.facts
    assert facts["output_tokens"] == 12
    # Of two models the one that answers is named.
    assert mlx_hooks.recorder.call.model == "llama-lt_1M-f32"
    assert "secret" not in repr(facts)
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=12, draft_model=draft)
    again = mlx_hooks.recorder.calls[-1].facts["draft_accepted_share"]
    assert again == facts["draft_accepted_share"]


def test_an_abandoned_speculation_has_a_share(mlx_hooks, mlx_model):
    stream = mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=20, draft_model=mlx_model[0])
    read = [next(stream) for _ in range(5)]
    stream.close()
    assert drafted(mlx_hooks, read, 2, 20) > 0


def test_without_a_draft_there_is_no_share(mlx_hooks, mlx_model):
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=2)
    assert "draft_accepted_share" not in mlx_hooks.recorder.call.facts
