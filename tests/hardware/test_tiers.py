"""Amounts of memory become words of two ladders, and nothing else."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce import registry
from sottovoce.hardware import tiers

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.text(),
    st.integers(),
    st.floats(),
    st.binary(),
    st.lists(st.integers()),
)


@pytest.mark.parametrize(
    ("gib", "tier"),
    [
        (0.4, "8"),
        (7.9, "8"),
        (8.4, "8"),
        (8.5, "8"),
        (8.6, "16"),
        (15.5, "16"),
        (17, "18"),
        (18.5, "18"),
        (24.5, "24"),
        (31.2, "32"),
        (36, "36"),
        (47.9, "48"),
        (64, "64"),
        (96, "96"),
        (97, "128+"),
        (128, "128+"),
        (192, "128+"),
        (1e9, "128+"),
    ],
)
def test_memory_built_in_is_a_size_that_is_sold(gib, tier):
    assert tiers.built_in(gib) == tier


@pytest.mark.parametrize("gib", [None, 0, -1, math.nan, math.inf, True, "16", b"16", []])
def test_what_is_no_amount_is_in_no_tier(gib):
    assert tiers.built_in(gib) == tiers.OTHER
    assert tiers.in_use(gib) is None


@pytest.mark.parametrize(
    ("gib", "tier"),
    [
        (0.01, "lt_1GiB"),
        (0.999, "lt_1GiB"),
        (1, "1_2GiB"),
        (3.7, "2_4GiB"),
        (4, "4_8GiB"),
        (127, "96_128GiB"),
        (128, "gte_128GiB"),
        (4096, "gte_128GiB"),
    ],
)
def test_memory_in_use_lies_between_two_edges(gib, tier):
    assert tiers.in_use(gib * 2**30) == tier


@given(ANYTHING)
def test_anything_becomes_a_word_of_the_ladder(value):
    assert tiers.built_in(value) in {*tiers.BUILT_IN, tiers.OTHER}
    assert tiers.in_use(value) in {*tiers.IN_USE, None}


@pytest.mark.parametrize("attribute", ["sottovoce.memory.peak", "sottovoce.model.size"])
def test_the_registry_has_the_same_words(attribute):
    assert registry.ATTRIBUTES[attribute].values == set(tiers.IN_USE)
