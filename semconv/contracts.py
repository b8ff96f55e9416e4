"""Value contracts: what a value that leaves looks like, by name; read from `contracts.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Contract:
    """What values look like, in words, and where that says it all, as a pattern."""

    meaning: str
    pattern: str | None


# What follows from a rule, and what follows from a type; the first that applies is it.
_BY_RULE: Final = (
    ("cat12", "model_id"),
    ("host", "host"),
    ("error", "error"),
    ("host_class", "host"),
    ("route", "template"),
    ("frames", "frame"),
    ("scope", "scope"),
    ("hash_rot", "pseudonym"),
    ("hash_user", "pseudonym"),
    ("allow12", "name"),
    ("curated", "name"),
    ("count", "length"),
)
_BY_TYPE: Final = {"int": "count", "double": "number", "boolean": "boolean"}
_NOTHING: Final = frozenset({"drop", "seal"})
FOLLOWS: Final = frozenset({*dict(_BY_RULE).values(), *_BY_TYPE.values(), "vocabulary", "nothing"})
"""Contracts that are not named by an attribute, because they follow from what it says."""


def following(kind: str, values: tuple[str, ...] | None, rules: frozenset[str]) -> str | None:
    """The contract that follows from type, vocabulary and rules; None when it must be named."""
    if rules <= _NOTHING:
        return "nothing"
    for rule, name in _BY_RULE:
        if rule in rules:
            return name
    return "vocabulary" if values else _BY_TYPE.get(kind)


def read(
    content: Mapping[str, Any], wrong: Callable[[str, str], None], file: str
) -> dict[str, Contract]:
    """The contracts in the content of `file`; `wrong` is told where and what is a mistake."""
    given = content.get("contracts")
    found: dict[str, Contract] = {}
    for name, entry in (given if isinstance(given, dict) else {}).items():
        where = f"{file}, contract {name}"
        fields = entry if isinstance(entry, dict) else {}
        for field in sorted(set(fields) - {"meaning", "pattern"}):
            wrong(where, f"`{field}` is not known here")
        meaning, pattern = fields.get("meaning"), fields.get("pattern")
        if not isinstance(meaning, str) or not meaning.strip():
            wrong(where, "`meaning` is missing")
        if pattern is not None:
            try:
                re.compile(pattern, re.ASCII)
            except (re.error, TypeError) as error:
                wrong(where, f"`pattern` is no regular expression: {error}")
        found[str(name)] = Contract(str(meaning), None if pattern is None else str(pattern))
    for name in sorted(FOLLOWS - set(found)):
        wrong(file, f"contract {name} is missing")
    return found
