"""What becomes of a sequence of keys is remembered, and none of the keys and values of others."""

import enum
import gc
import weakref

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sottovoce.privacy.compiled import MOST_PLANS
from sottovoce.privacy.policy import Policy
from sottovoce.registry import ATTRIBUTES, DIALECTS, _tables, read
from sottovoce.settings import Settings

WORDS = ["LLM", "llm", "tool", "stop", '"stop"', "length", "openai", "mlx", "gpt-4o", "a b c", ""]
KEYS = st.sampled_from([*ATTRIBUTES, *DIALECTS, "acme.note"]) | st.sampled_from([
    "openinference.span.kind", "llm.provider", "llm.system", "llm.vendor", "llm.model_name",
    "llm.token_count.prompt", "llm.finish_reason", "gen_ai.openai.api_base", "server.address",
    "gen_ai.provider.name", "gen_ai.usage.raw", "ai.operationId",
])  # fmt: skip
VALUES = (
    st.sampled_from(WORDS)
    | st.integers(-2, 10**10)
    | st.floats()
    | st.booleans()
    | st.none()
    | st.lists(st.sampled_from(WORDS), max_size=3).map(tuple)
    | st.sampled_from(["http://127.0.0.1:8080/v1", "localhost", '{"input_tokens": 3}'])
)
SIGNALS = st.sampled_from(["span", "event", "log", "metric", "resource"])


def fresh(profile):
    return Policy(Settings(key="a secret of the tests", profile=profile))


def shown(attributes):
    """With their types, and what is not a number is equal to itself."""
    return {key: repr(value) for key, value in attributes.items()}


PROFILES = st.sampled_from(["aggregate", "strict", "standard"])


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.lists(KEYS, unique=True, max_size=8), st.data(), PROFILES, SIGNALS)
def test_what_leaves_does_not_depend_on_what_was_judged_before(keys, data, profile, signal):
    steady = fresh(profile)
    for _ in range(3):
        attributes = {key: data.draw(VALUES) for key in keys}
        first = fresh(profile)
        before = steady.dropped
        left = steady.attributes(attributes, signal)
        assert shown(left) == shown(first.attributes(attributes, signal))
        assert steady.dropped - before == first.dropped


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.lists(KEYS, unique=True, min_size=1, max_size=6),
    st.lists(KEYS, unique=True, min_size=1, max_size=6),
    st.data(),
)
@example(["gen_ai.operation.name"], ["gen_ai.input.messages"], None)
def test_sequences_of_one_hash_let_nothing_else_leave(keys, others, data):
    policy = fresh("standard")
    table = policy.choice.now.plans["span"]
    policy.attributes(dict.fromkeys(keys, "x"), "span")
    table[hash(tuple(others))] = table[hash(tuple(keys))]
    attributes = {key: data.draw(VALUES) if data else "chat" for key in others}
    whole = fresh("standard").attributes(attributes, "span")
    left = policy.attributes(attributes, "span")
    assert shown(left).items() <= shown(whole).items()


def test_no_key_of_others_is_kept(policy):
    said = b"the quick brown fox".decode()
    policy.attributes({said: 1, "gen_ai.operation.name": "chat"}, "span")
    assert [plan.unknown for plan in policy.choice.now.plans["span"].values()] == [1]
    holders = [
        each for each in gc.get_referrers(said) if isinstance(each, (tuple, list, dict, set))
    ]
    assert all(holder is locals() or "said" in holder for holder in holders)


class Claiming(str):  # noqa: SLOT000 - it must be able to be watched
    """A key of the app's that equals one of ours and says something else."""

    def __eq__(self, other):
        return other == "gen_ai.workflow.name"

    def __hash__(self):
        return hash("gen_ai.workflow.name")


@pytest.mark.parametrize("profile", ["aggregate", "strict", "standard", "content"])
def test_nor_is_one_that_only_claims_to_be_ours(profile):
    said = Claiming("the quick brown fox")
    for signal in ("span", "event", "log", "metric", "resource"):
        left = fresh(profile).attributes({said: "shop"}, signal)
        assert "fox" not in repr(left)
    kept = weakref.ref(said)
    del said
    gc.collect()
    assert kept() is None


class Wavering(Claiming):
    """One that equals ours for a while."""

    times = 0

    def __eq__(self, other):
        self.times -= 1
        return self.times >= 0 and super().__eq__(other)

    __hash__ = Claiming.__hash__


@pytest.mark.parametrize("times", range(6))
def test_nor_is_one_that_claims_so_for_a_while(times):
    # As in a process that has met no attribute yet.
    declared = read(_tables.ATTRIBUTES)
    said = Wavering("the quick brown fox")
    said.times = times
    declared.get(said)
    kept = weakref.ref(said)
    del said
    gc.collect()
    assert kept() is None
    assert declared["gen_ai.workflow.name"].name == "gen_ai.workflow.name"


def test_a_key_of_a_kind_of_its_own_is_what_it_says():
    key = enum.Enum("Key", {"WORKFLOW": "gen_ai.workflow.name"}, type=str).WORKFLOW
    assert read(_tables.ATTRIBUTES)[key].name == "gen_ai.workflow.name"


@given(st.permutations([*ATTRIBUTES, *DIALECTS]), PROFILES, SIGNALS)
@hypothesis_settings(deadline=None, max_examples=5)
def test_the_order_in_which_keys_are_met_changes_nothing(keys, profile, signal):
    one, other = fresh(profile).choice.now.tables[signal], fresh(profile).choice.now.tables[signal]
    told = [
        [table.get(key) for key in order] for table, order in ((one, keys), (other, keys[::-1]))
    ]
    for first, second in zip(told[0], reversed(told[1]), strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            names = ("name", "kind", "rule", "foreign", "drops", "way", "bounds", "most")
            assert all(getattr(first, name) == getattr(second, name) for name in names)


def test_few_sequences_are_remembered(policy):
    for n in range(3 * MOST_PLANS):
        policy.attributes({f"acme.{n}": 1}, "span")
    assert 0 < len(policy.choice.now.plans["span"]) <= MOST_PLANS


def test_of_two_that_say_the_same_the_second_is_heard_where_the_first_cannot_be(policy):
    keys = ("llm.provider", "llm.system")
    for first, second, heard in (
        ("openai", "anthropic", "openai"),
        ("openai", "anthropic", "openai"),
        (7, "anthropic", "anthropic"),
        ("openai", 7, "openai"),
    ):
        left = policy.attributes(dict(zip(keys, (first, second), strict=True)), "span")
        assert left == {"gen_ai.provider.name": heard}
    assert policy.dropped == {("span", "drop"): 4}


def test_a_model_of_this_process_is_local_whoever_says_where_it_runs(policy):
    for _ in range(3):
        left = policy.attributes(
            {"llm.provider": "mlx", "llm.model_name": "mlx-community/Qwen3-4B-4bit"}, "span"
        )
        assert left["gen_ai.request.model"] == "mlx-community/Qwen3-4B-4bit"
        left = policy.attributes(
            {"llm.provider": "openai", "llm.model_name": "mlx-community/Qwen3-4B-4bit"}, "span"
        )
        assert left["gen_ai.request.model"].startswith("h:")
