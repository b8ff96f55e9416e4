"""What one profile decides of every attribute: the registry's rules, made into functions.

A policy exchanges it as a whole: whoever works with one finishes with it, and what is begun
afterwards finds the tighter one.

An instrumentation gives the same keys time after time. What becomes of each is found out once
for a sequence of keys, and remembered by its hash alone, since keys of others may say anything;
a value is judged every time. A plan reads only declared attributes, by their names: if ever two
sequences had one hash, attributes could be missed, and none that may not leave could.
"""

from __future__ import annotations

import copy
import weakref
from functools import lru_cache
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce import registry
from sottovoce.privacy import ranges, rules
from sottovoce.registry import ATTRIBUTES, PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from sottovoce.privacy.dialects import Alone
    from sottovoce.privacy.pseudonyms import Pseudonyms
    from sottovoce.registry import Attribute

SIGNALS: Final = ("span", "event", "link", "log", "metric", "resource", "scope")

_TYPES: Final = {"string": str, "int": int, "double": float, "boolean": bool, "string[]": tuple}
MOST_PLANS: Final = 256
"""Sequences of keys that are remembered for a signal."""

_WITH_TEXT: Final = frozenset({str, tuple})


class Entry:
    """How one attribute is judged: its declared type, and the rule for its strings."""

    __slots__ = (
        "beaten", "bounds", "counted_as", "drops", "foreign", "judge", "key", "kind", "lasts", "lists", "local", "most", "name", "passed", "rule", "unkept", "way", "words"
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        kind: type,
        rule: str,
        judge: Callable[[str], rules.Verdict],
        *,
        foreign: bool = False,
    ) -> None:
        # A key of a dialect: never let through, but read.
        self.foreign = foreign
        # What leaves is this very string: one that only claims to equal it may hold anything.
        self.name = name
        # Where its value is found.
        self.key = name
        self.kind: Any = kind
        self.rule = rule
        self.judge = judge
        # The same without a memory, in which a long string would stay for good.
        self.unkept: Callable[[str], rules.Verdict] = getattr(judge, "__wrapped__", judge)
        # What is said of a string once holds for ever.
        self.lasts = self.unkept is not judge
        # Strings that leave as they are.
        self.passed: set[str] = set()
        # Those that do so where their model is local.
        self.local: set[str] = set()
        self.counted_as = rules.COUNTED_AS.get(name, "")
        self.most = ranges.MOST.get(name, ranges.LARGEST)
        # Lists of words of the vocabulary that were judged: few, and on every span.
        self.lists: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        # Upper bounds of the buckets that a number leaves as; those of `ranges.bucketed`.
        self.bounds: tuple[float, ...] = ()
        if rule == "bucket" and name not in ranges.SCORES:
            self.bounds = ranges.bounds(name, kind)
        # See `dialects.Alone`.
        self.words: Mapping[Any, Any] = {}
        self.beaten: tuple[str, ...] = ()
        self.drops = rule not in rules.NAMES
        # The list of a `Plan` that it is in.
        self.way = "bucketed" if self.bounds else _WAYS.get((kind, rule), "others")
        if kind is str:
            self.way = "texts"

    def text(self, value: str) -> rules.Verdict:
        """What the rule says of a string, which may be of a type of its own."""
        text = str.__str__(value)
        return (self.judge if len(text) <= rules.LONGEST else self.unkept)(text)

    def under(self, alone: Alone) -> Entry:
        """The same for a value that a dialect has under a key of its own."""
        entry = copy.copy(self)
        entry.foreign = True
        entry.key, entry.words, entry.beaten = alone.key, alone.words, alone.beaten
        return entry


class Plan:
    """What becomes of the attributes of one sequence of keys; the lists say how each is judged.

    Attributes:
        size: how many keys there are.
        unknown: how many are not declared.
        withheld: how many are dropped, whatever they hold.
        foreign: keys of dialects, whose values decide what is heard.
        said: what hears them.
    """

    __slots__ = (
        "bucketed", "flags", "foreign", "lists", "others", "reals", "said", "size", "texts", "unknown", "wholes", "withheld", "words"
    )  # fmt: skip

    def __init__(self, table: Table, keys: Sequence[Any]) -> None:
        self.size = len(keys)
        self.unknown = self.withheld = 0
        self.said: Callable[..., dict[str, Any]] = dict
        ways: dict[str, list[Entry]] = {}
        foreign = []
        for key in keys:
            entry = table.get(key)
            if entry is None:
                self.unknown += 1
            elif entry.foreign:
                foreign.append(entry.key)
            elif entry.drops:
                self.withheld += 1
            else:
                ways.setdefault(entry.way, []).append(entry)
        if foreign:
            from sottovoce.privacy import dialects  # noqa: PLC0415 - few apps have any

            self.said = dialects.said
            for alone in dialects.alone(foreign, frozenset(keys), table):
                entry = table[alone.name].under(alone)
                ways.setdefault("words" if entry.words else entry.way, []).append(entry)
                self.withheld += len(alone.beaten)
                foreign = [key for key in foreign if key not in (alone.key, *alone.beaten)]
        self.foreign = tuple(foreign)
        # With what is read of an entry nearly always: every attribute of every span is.
        self.texts = [(each.key, each.name, each.passed, each) for each in ways.get("texts", ())]
        self.wholes = [(each.key, each.name, each.most, each) for each in ways.get("wholes", ())]
        self.reals = [(each.key, each.name, each.most, each) for each in ways.get("reals", ())]
        self.flags = [(each.key, each.name, each) for each in ways.get("flags", ())]
        self.bucketed = ways.get("bucketed", ())
        self.lists = ways.get("lists", ())
        self.words = ways.get("words", ())
        self.others = ways.get("others", ())


_WAYS: Final = {
    (int, "keep"): "wholes",
    (float, "keep"): "reals",
    (bool, "keep"): "flags",
    (tuple, "enum"): "lists",
}


class Compiled:
    """What one profile decides.

    Attributes:
        profile: its name.
        off: nothing leaves.
        spans: spans may leave.
        logs: log records that are no events of the conventions may leave.
        coarse: numbers leave as buckets, and only what the registry names leaves.
        hourly: metric points say the hour alone.
        late: it was chosen after exact numbers may have been recorded.
        since_ns: when that was, in nanoseconds since the epoch; 0: never.
        tables: signal → attribute → how it is judged.
        plans: signal → hash of keys → what becomes of them.
    """

    __slots__ = (
        "coarse", "hourly", "late", "logs", "off", "plans", "profile", "since_ns", "spans", "tables"
    )  # fmt: skip

    def __init__(self, profile: str, tables: Mapping[str, Table], *, late: bool) -> None:
        chosen = _chosen(profile)
        self.profile = profile
        self.off = chosen == "off"
        self.spans = chosen in {"strict", "standard"}
        self.logs = chosen == "standard"
        self.coarse = chosen != "standard"
        self.hourly = chosen == "aggregate"
        self.late = late
        self.since_ns = time_ns() if late else 0
        self.tables = tables
        self.plans: Mapping[str, dict[int, Plan]] = {signal: {} for signal in SIGNALS}

    def plan(self, signal: str, keys: tuple[Any, ...]) -> Plan:
        """What becomes of attributes with these keys on `signal`; it is remembered."""
        made = Plan(self.tables[signal], keys)
        plans = self.plans[signal]
        if len(plans) >= MOST_PLANS:
            plans.clear()
        plans[hash(keys)] = made
        return made


class Choice:
    """What is `Compiled` now, for a policy and all that was made of it.

    Attributes:
        now: it.
        gates: what must forget, at a change, what it let through before.
    """

    __slots__ = ("gates", "now")

    def __init__(self, now: Compiled) -> None:
        self.now = now
        self.gates: weakref.WeakSet[Any] = weakref.WeakSet()


class Names:
    """Names of one kind that the operator let leave: exact ones, and beginnings."""

    __slots__ = ("_beginnings", "_exact")

    def __init__(self, allow: tuple[str, ...], kind: str) -> None:
        mine = [item.partition(":")[2] for item in allow if item.partition(":")[0] == kind]
        self._exact = frozenset(name for name in mine if not name.endswith("*"))
        self._beginnings = tuple(name[:-1] for name in mine if name.endswith("*") and name != "*")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in self._exact or (bool(self._beginnings) and name.startswith(self._beginnings))
        )


def compile_profile(
    profile: str,
    pseudonyms: Pseudonyms,
    allowed: Mapping[str, Container[Any]],
    *,
    user_ids: bool,
    late: bool = False,
) -> Compiled:
    """What `profile` decides; a profile that has no rules lets nothing leave.

    Args:
        profile: its name.
        pseudonyms: of this deployment.
        allowed: kind of name → those of the operator.
        user_ids: ids of users leave as pseudonyms, where the profile has them.
        late: see `Compiled`.
    """
    tables = _tables(_chosen(profile), pseudonyms, allowed, user_ids=user_ids)
    return Compiled(profile, tables, late=late)


def _chosen(profile: str) -> str:
    # What `content` keeps besides goes to no exporter.
    return "standard" if profile == "content" else profile


def _tables(
    profile: str, pseudonyms: Pseudonyms, allowed: Mapping[str, Container[Any]], *, user_ids: bool
) -> dict[str, Table]:
    entries = _Entries(profile, pseudonyms, allowed, user_ids=user_ids)
    return {signal: Table(signal, entries) for signal in SIGNALS}


class _Entries:
    """What a profile decides of declared attributes, each found out when it is first met."""

    __slots__ = ("_allowed", "_column", "_made", "_profile", "_pseudonyms", "_user_ids", "never")

    def __init__(
        self,
        profile: str,
        pseudonyms: Pseudonyms,
        allowed: Mapping[str, Container[Any]],
        *,
        user_ids: bool,
    ) -> None:
        self._column = PROFILES.index(profile) if profile in PROFILES else None
        self._profile = profile
        self._pseudonyms = pseudonyms
        self._allowed = allowed
        self._user_ids = user_ids
        self._made: dict[str, Entry] = {}
        self.never = rules.make("", "drop", None, pseudonyms)

    def of(self, attribute: Attribute) -> Entry | None:
        """The same for all signals; None where the profile has no rules."""
        entry = self._made.get(attribute.name)
        if entry is None and self._column is not None:
            # Two threads may both make it; the first is everybody's.
            made = self._make(attribute, attribute.rules[self._column])
            entry = self._made.setdefault(attribute.name, made)
        return entry

    def _make(self, attribute: Attribute, rule: str) -> Entry:
        name, kind = attribute.name, _TYPES.get(attribute.type)
        rule = _meant(rule, self._profile, user_ids=self._user_ids)
        if rule == "opt_in":
            rule = "keep" if name in self._allowed["resource"] else "drop"
        if kind is None or rule not in rules.NAMES:
            return Entry(name, str, "drop", self.never)
        if kind not in _WITH_TEXT:
            return Entry(name, kind, rule, self.never)
        names = self._allowed[rules.KINDS_OF_NAMES.get(name, "name")]
        judge = rules.make(name, rule, attribute.values, self._pseudonyms, names)
        return Entry(name, kind, rule, judge)


class Table:
    """How each key on one signal is judged: declared ones, and those of dialects."""

    __slots__ = ("_entries", "_hears", "_made", "_signal")

    def __init__(self, signal: str, entries: _Entries) -> None:
        self._signal = signal
        self._entries = entries
        self._hears = signal in _HEARING
        self._made: dict[str, Entry] = {}

    def __contains__(self, key: Any) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: Any) -> Entry:
        entry = self.get(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def get(self, key: Any) -> Entry | None:
        """None for a key that is not declared for this signal."""
        entry = self._made.get(key)
        if entry is None:
            entry = self._found(key)
            if entry is not None:
                self._made[entry.key] = entry
        return entry

    def _found(self, key: Any) -> Entry | None:
        attribute = ATTRIBUTES.get(key)
        # What a dialect says in its own words leaves under none of them.
        if self._hears and (attribute is None or _ALWAYS_DROPPED.issuperset(attribute.rules)):
            found = _foreign().get(key)
            if found is not None and found[1] in self:
                return Entry(found[0], str, "drop", self._entries.never, foreign=True)
        if attribute is None or self._signal not in attribute.signals:
            return None
        return self._entries.of(attribute)


_HEARING: Final = frozenset({"span", "event", "log", "metric"})
"""Signals on which dialects are heard."""
_ALWAYS_DROPPED: Final = frozenset({"drop"})


@lru_cache(maxsize=1)
def _foreign() -> dict[str, tuple[str, str]]:
    """Key of a dialect → it, and what we call it."""
    # Read late: few apps have keys that are not ours.
    return {key: (key, ours) for key, (ours, _) in registry.DIALECTS.items()}


def _meant(rule: str, profile: str, *, user_ids: bool) -> str:
    """`rule` as it is meant in `profile` and with these settings."""
    if rule == "curated" and profile == "aggregate":
        # A metric has no use for a series of everything that may not be named.
        return "curated_only"
    return "drop" if rule == "hash_user" and not user_ids else rule
