"""The registry's texts for people: reasons, reviews, what a rule does."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any


@lru_cache(maxsize=1)
def read() -> dict[str, dict[str, Any]]:
    """What nothing else reads at run time: 100 kB of reasons."""
    path = files("sottovoce.registry").joinpath("texts.json")
    texts: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return texts


def of_ledger(rule: str) -> str:
    """What stands in the ledger under the name `rule`; empty for a name that is none of ours."""
    texts = read()
    if rule == "drop":
        return "an attribute that is declared never to leave"
    if rule in texts["rules"]:
        return f"an attribute: {texts['rules'][rule].replace('`', '')}"
    return str(texts["ledger"].get(rule, ""))
