"""Rows of facts: what is found key by key is what the rows say one by one."""

from importlib import import_module
from itertools import combinations
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.protocols.checks import checked
from sottovoce.protocols.routes import ROUTES, VERBS
from sottovoce.protocols.tables import learnt, read


def _protocols():
    rows = [*ROUTES.values(), *(way.route for ways in VERBS.values() for way in ways)]
    for name in sorted({row.protocol for row in rows}):
        module, _, constant = name.partition(":")
        yield getattr(import_module(f"sottovoce.protocols.{module}"), constant)


TABLES = [table for protocol in _protocols() for table in (protocol.asked, protocol.answered)]
NAMES = sorted(
    {name for table in TABLES for _, key, find in table for name in vars(find).get("path", (key,))}
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.sampled_from([2**70, 0.5, -0.5, float("nan")])
    | st.sampled_from(["", "stop", "completed", "user", "two words", "json_object"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6)
    ),
    max_leaves=12,
)


@given(st.sampled_from(TABLES), st.data())
@settings(max_examples=500, deadline=None)
def test_what_is_found_key_by_key_is_what_the_rows_say(table, data):
    paths = [vars(find).get("path", (key,)) for _, key, find in table] or [("model",)]
    body = {}
    for path in data.draw(st.lists(st.sampled_from(paths), max_size=8)):
        place = body
        for name in path[:-1]:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                break
        else:
            place[path[-1]] = data.draw(VALUES)
    told, said = [], []
    # A mapping that is no dict is asked row by row.
    one_by_one = read(table, MappingProxyType(body))
    assert repr(read(table, body)) == repr({fact: one_by_one[fact] for fact in read(table, body)})
    assert read(table, body).keys() == one_by_one.keys()
    assert learnt(table, body, told.append) == checked(one_by_one, said.append)
    assert told == said


def test_of_several_rows_for_a_fact_the_first_counts_wherever_they_look():
    pairs = 0
    for table in TABLES:
        paths = [(fact, vars(find).get("path", (key,))) for fact, key, find in table]
        for (fact, first), (other, second) in combinations(paths, 2):
            if fact != other or second[: len(first)] == first or first[: len(second)] == second:
                continue
            body = {}
            for path in (second, first):
                place = body
                for name in path[:-1]:
                    place = place.setdefault(name, {})
                place[path[-1]] = pairs = pairs + 1
            for each in (body, dict(reversed(body.items()))):
                assert read(table, each) == read(table, MappingProxyType(each)), (fact, body)
    assert pairs > 100


@pytest.mark.parametrize(
    ("body", "facts", "told"),
    [
        (
            {"usage": {"prompt_tokens": 3, "completion_tokens": 0}},
            {"input_tokens": 3, "output_tokens": 0},
            [],
        ),
        # Of several rows the first that finds a value counts, also where it is of no use.
        (
            {"x_groq": {"usage": {"prompt_tokens": 4}}, "usage": {"prompt_tokens": 3}},
            {"input_tokens": 3},
            [],
        ),
        (
            {"x_groq": {"usage": {"prompt_tokens": 4}}, "usage": {"prompt_tokens": "3"}},
            {},
            ["type"],
        ),
        (
            {"x_groq": {"usage": {"prompt_tokens": "4"}}, "usage": {"prompt_tokens": 3}},
            {"input_tokens": 3},
            [],
        ),
        ({"model": "", "usage": {"prompt_tokens": True}}, {}, ["type"]),
        ({"model": ""}, {}, []),
        ({"model": 5, "usage": [], "choices": 3}, {}, ["type"]),
    ],
)
def test_values_are_checked_where_they_are_found(body, facts, told):
    from sottovoce.protocols.openai_chat import OPENAI_CHAT

    said = []
    assert OPENAI_CHAT.response(body, said.append) == facts
    assert said == told
