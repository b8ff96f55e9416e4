"""Write the texts that only `sottovoce policy` reads: what, why, how sensitive, which review."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from definition import PROFILES, RULES, SENSITIVITIES
from document import LEDGER
from reviews import kind_of

if TYPE_CHECKING:
    from definition import Registry
    from reviews import Lock, Review


def render(registry: Registry, reviews: list[Review], lock: Lock) -> str:
    """The text of `sottovoce/registry/texts.json`: one entry a line."""

    def review(entry: str) -> str:
        return lock.entries.get(entry, ("", ""))[1]

    attributes = {
        key: {
            "brief": attribute.brief,
            "reason": attribute.reason,
            "sensitivity": attribute.sensitivity,
            "contract": attribute.contract,
            "rules": [attribute.rules[profile] for profile in PROFILES],
            "review": review(f"{kind_of(attribute)} {key}"),
        }
        for key, attribute in registry.attributes.items()
    }
    sections: dict[str, dict[str, Any]] = {
        "attributes": attributes,
        "contracts": {name: contract.meaning for name, contract in registry.contracts.items()},
        "ledger": LEDGER,
        "reviews": {each.id: f"{each.date}, {each.reviewer}: {each.privacy}" for each in reviews},
        "rules": RULES,
        "sensitivities": SENSITIVITIES,
    }
    parts = []
    for name, section in sections.items():
        rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in section.items()]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
