"""What may leave the process, as tables: attributes, metrics, spans, events and their rules.

The tables are generated from `semconv/` by ``python semconv/generate.py``; change them there.
Texts that nothing reads at run time (what an attribute is, why it may leave) stay in
`semconv/` and in `docs/TELEMETRY.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import _tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._dialects import DIALECTS as DIALECTS
    from ._dialects import FOREIGN_WORDS as FOREIGN_WORDS
    from ._dialects import UNITS as UNITS
    from ._dialects import USAGE as USAGE
    from ._dialects import WORDS as WORDS
    from ._rare import PREFIXES as PREFIXES
    from ._rare import SPANS as SPANS
    from ._rare import Span as Span

Row = TypeVar("Row")
Item = TypeVar("Item")

PROFILES: Final = ("aggregate", "strict", "standard", "content")
"""The privacy profiles that have rules, the tightest first."""
_STANDARD: Final = PROFILES.index("standard")


class Attribute:
    """One attribute: what its value must look like, and what the profiles do with it.

    Attributes:
        name: it, as it is written when it leaves.
        type: ``string``, ``int``, ``double``, ``boolean``, ``string[]`` or, for what never
            leaves, ``any``.
        values: the closed vocabulary, else ``None``.
        rules: of the profiles, in the order of `PROFILES`.
        rule: of profile `standard`.
        signals: where it may be: of ``span event link log metric resource scope``.
    """

    # No NamedTuple: making one costs every process as much as filling all of these.

    __slots__ = ("name", "rule", "rules", "signals", "type", "values")

    def __init__(
        self,
        name: str,
        type: str,  # noqa: A002 - what the registry calls it
        values: frozenset[str] | None,
        rules: tuple[str, ...],
        signals: frozenset[str],
    ) -> None:
        self.name = name
        self.type = type
        self.values = values
        self.rules = rules
        self.rule = rules[_STANDARD]
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

    def __init__(  # noqa: PLR0917 - one for each column
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


class _Read(Mapping[str, Item]):
    """Items by name, each made of its row when it is first asked for: a process needs few.

    Args:
        rows: name → what it is made of.
        make: makes it.
    """

    def __init__(self, rows: Mapping[str, Row], make: Callable[[Row], Item]) -> None:
        self._rows: Mapping[str, Any] = rows
        self._make = make
        # With keys of its own: a name that is asked for may be the app's.
        self._made: dict[str, Item | None] = dict.fromkeys(rows)

    def __getitem__(self, name: str) -> Item:
        made = self._made[name]
        if made is None:
            # Such a key need not say the same twice, and what it really is is not kept.
            own = str.__str__(name) if isinstance(name, str) else ""
            made = self._made[own] = self._make(self._rows[own])
        return made

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def read(text: str) -> Mapping[str, Attribute]:
    """Give the attributes of a table, by name."""
    return _Read({row[: row.index(" ")]: row for row in text.splitlines()}, _attribute)


def _attribute(row: str) -> Attribute:
    name, type_, vocabulary, rules_, signals = row.split(" ")
    values = None if vocabulary == "-" else frozenset(_tables.VOCABULARIES[vocabulary].split(" "))
    return Attribute(name, type_, values, tuple(rules_.split(",")), frozenset(signals.split(",")))


def _metric(row: tuple[str, str, str, tuple[float, ...] | None, str, str, str]) -> Metric:
    instrument, unit, description, boundaries, *sets = row
    attributes, vocabulary, required = (frozenset(each.split()) for each in sets)
    return Metric(instrument, unit, description, boundaries, attributes, vocabulary, required)


ATTRIBUTES: Final = read(_tables.ATTRIBUTES)
"""Every declared attribute; what is not here may not leave."""


@lru_cache(maxsize=len(PROFILES))
def rules(profile: str) -> dict[str, str]:
    """Attribute → rule, in a profile of `PROFILES`.

    Raises:
        ValueError: there is no such profile.
    """
    column = PROFILES.index(profile)
    return {name: attribute.rules[column] for name, attribute in ATTRIBUTES.items()}


METRICS: Final[Mapping[str, Metric]] = _Read(_tables.METRICS, _metric)
"""Every metric that may leave, by name."""

EVENTS: Final = _tables.EVENTS
"""Names of events that may leave."""

SCOPES: Final = _tables.SCOPES
"""Instrumentation scopes whose names are known; ours is ``sottovoce``."""

SHAPES: Final = _tables.SHAPES
"""Attribute → the regular expression (ASCII) that a kept value matches as a whole, where its
value contract is one; see `semconv/contracts.yaml`."""

SCHEMA_URLS: Final = _tables.SCHEMA_URLS
"""Metric vocabulary → schema URL of the conventions that define it."""

UPSTREAM: Final = _tables.UPSTREAM
"""Upstream repository → the version or commit that the registry agrees with."""


def __getattr__(name: str) -> Any:
    # What few processes need is loaded for those.
    if name in {"PREFIXES", "SPANS", "Span"}:
        from . import _rare  # noqa: PLC0415

        return getattr(_rare, name)
    if name in {"DIALECTS", "FOREIGN_WORDS", "UNITS", "USAGE", "WORDS"}:
        from . import _dialects  # noqa: PLC0415

        return getattr(_dialects, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
