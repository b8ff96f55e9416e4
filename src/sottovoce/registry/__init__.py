"""What may leave the process, as tables: attributes, metrics, spans, events and their rules.

The tables are generated from `semconv/` by ``python semconv/generate.py``; change them there.
Texts that nothing reads at run time (what an attribute is, why it may leave) stay in
`semconv/` and in `docs/TELEMETRY.md`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from . import _dialects, _tables

if TYPE_CHECKING:
    from ._rare import PREFIXES as PREFIXES
    from ._rare import SPANS as SPANS
    from ._rare import Span as Span

PROFILES: Final = ("aggregate", "strict", "standard", "content")
"""The privacy profiles that have rules, the tightest first."""


class Attribute:
    """One attribute: what its value must look like, and what profile `standard` does with it.

    Attributes:
        type: ``string``, ``int``, ``double``, ``boolean``, ``string[]`` or, for what never
            leaves, ``any``.
        values: the closed vocabulary, else ``None``.
        rule: of profile `standard`; `rules` gives those of the others.
        signals: where it may be: of ``span event link log metric resource scope``.
    """

    # No NamedTuple: making one costs every process as much as filling all of these.

    __slots__ = ("rule", "signals", "type", "values")

    def __init__(
        self,
        type: str,  # noqa: A002 - what the registry calls it
        values: frozenset[str] | None,
        rule: str,
        signals: frozenset[str],
    ) -> None:
        self.type = type
        self.values = values
        self.rule = rule
        self.signals = signals


class Metric:
    """One metric: how its instrument is made and what its points may carry.

    Attributes:
        instrument: ``histogram``, ``counter``, ``updowncounter`` or ``gauge``.
        unit: in UCUM.
        description: for backends.
        boundaries: upper bounds of a histogram's buckets, in `unit`.
        attributes: what may be on a point.
        vocabulary: ``v1.41``, ``latest`` or both; empty: never recorded by us, let through
            from others.
        required: what must be on every point.
    """

    __slots__ = (
        "attributes", "boundaries", "description", "instrument", "required", "unit", "vocabulary",
    )  # fmt: skip

    def __init__(
        self,
        instrument: str,
        unit: str,
        description: str,
        boundaries: tuple[float, ...] | None,
        attributes: frozenset[str],
        vocabulary: frozenset[str],
        required: frozenset[str],
    ) -> None:
        self.instrument = instrument
        self.unit = unit
        self.description = description
        self.boundaries = boundaries
        self.attributes = attributes
        self.vocabulary = vocabulary
        self.required = required


ATTRIBUTES: Final = {
    name: Attribute(type_, values, rules[2], signals)
    for name, type_, values, rules, signals in _tables.ATTRIBUTES
}
"""Every declared attribute; what is not here may not leave."""


@lru_cache(maxsize=len(PROFILES))
def rules(profile: str) -> dict[str, str]:
    """Attribute → rule, in a profile of `PROFILES`.

    Raises:
        ValueError: there is no such profile.
    """
    column = PROFILES.index(profile)
    return {row[0]: row[3][column] for row in _tables.ATTRIBUTES}


METRICS: Final = {row[0]: Metric(*row[1:]) for row in _tables.METRICS}
"""Every metric that may leave, by name."""

EVENTS: Final = _tables.EVENTS
"""Names of events that may leave."""

SCOPES: Final = _tables.SCOPES
"""Instrumentation scopes whose names are known; ours is ``sottovoce``."""

SHAPES: Final = _tables.SHAPES
"""Attribute → the regular expression (ASCII) that a kept value matches as a whole, where its
value contract is one; see `semconv/contracts.yaml`."""

DIALECTS: Final = _dialects.DIALECTS
"""What other instrumentations call what we know: foreign key → (our key, how its value is read).
Of several that say the same, the first is to be heard."""

FOREIGN_WORDS: Final = _dialects.FOREIGN_WORDS
"""Foreign key whose values are words → word in small letters → word of our vocabulary."""

WORDS: Final = _dialects.WORDS
"""Our key → word of a dialect, or of an older version, in small letters → word of the vocabulary."""

USAGE: Final = _dialects.USAGE
"""Path of a token count in a JSON object → our key."""

UNITS: Final = _dialects.UNITS
"""Unit of a metric as other instrumentations write it → as the conventions do."""

SCHEMA_URLS: Final = _tables.SCHEMA_URLS
"""Metric vocabulary → schema URL of the conventions that define it."""

UPSTREAM: Final = _tables.UPSTREAM
"""Upstream repository → the version or commit that the registry agrees with."""


def __getattr__(name: str) -> Any:
    # What no call needs is made for who asks.
    if name in {"PREFIXES", "SPANS", "Span"}:
        from . import _rare  # noqa: PLC0415

        return getattr(_rare, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
