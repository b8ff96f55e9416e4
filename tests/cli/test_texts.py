"""The registry's texts, as commands show them."""

import pytest

from sottovoce.cli import texts
from sottovoce.registry import ATTRIBUTES


@pytest.mark.parametrize("rule", sorted(ATTRIBUTES["sottovoce.gate.rule"].values))
def test_every_rule_of_the_ledger_is_explained(rule):
    assert texts.of_ledger(rule)


def test_a_rule_of_another_maker_has_no_text():
    assert texts.of_ledger("theirs") == ""
