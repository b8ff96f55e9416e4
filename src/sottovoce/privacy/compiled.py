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
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce import registry
from sottovoce.privacy import ranges, rules
from sottovoce.registry import ATTRIBUTES, DIALECTS, PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from sottovoce.privacy.dialects import Alone
    from sottovoce.privacy.pseudonyms import Pseudonyms

SIGNALS: Final = ("span", "event", "link", "log", "metric", "resource", "scope")

_TYPES: Final = {"string": str, "int": int, "double": float, "boolean": bool, "string[]": tuple}
MOST_PLANS: Final = 256
"""Sequences of keys that are remembered for a signal."""

_WITH_TEXT: Final = frozenset({str, tuple})


class Entry:
    """How one attribute is judged: its declared type, and the rule for its strings."""

    __slots__ = (
        "beaten", "bounds", "counted_as", "drops", "foreign", "judge", "key", "kind", "lasts", "lists", "most", "name", "passed", "rule", "unkept", "way", "words"
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

    def __init__(self, table: Mapping[str, Entry], keys: Sequence[Any]) -> None:
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

    def __init__(
        self, profile: str, tables: Mapping[str, Mapping[str, Entry]], *, late: bool
    ) -> None:
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
) -> dict[str, dict[str, Entry]]:
    chosen = registry.rules(profile) if profile in PROFILES else {}
    tables: dict[str, dict[str, Entry]] = {signal: {} for signal in SIGNALS}
    never = rules.make("", "drop", None, pseudonyms)
    # Most attributes are dropped whatever they hold: one entry does for all of them.
    dropped = Entry("", str, "drop", never)
    for name, attribute in ATTRIBUTES.items():
        rule = chosen.get(name)
        if rule is None:
            continue
        rule = _meant(rule, profile, user_ids=user_ids)
        if rule == "opt_in":
            rule = "keep" if name in allowed["resource"] else "drop"
        kind = _TYPES.get(attribute.type)
        if kind is None or rule not in rules.NAMES:
            entry = dropped
        elif kind in _WITH_TEXT:
            names = allowed[rules.KINDS_OF_NAMES.get(name, "name")]
            judge = rules.make(name, rule, attribute.values, pseudonyms, names)
            entry = Entry(name, kind, rule, judge)
        else:
            entry = Entry(name, kind, rule, never)
        for signal in attribute.signals:
            if signal in tables:
                tables[signal][name] = entry
    _add_dialects(tables, never)
    return tables


def _add_dialects(
    tables: dict[str, dict[str, Entry]], never: Callable[[str], rules.Verdict]
) -> None:
    for key, (ours, _) in DIALECTS.items():
        entry = Entry(key, str, "drop", never, foreign=True)
        for signal in ("span", "event", "log", "metric"):
            if ours in tables[signal]:
                tables[signal][key] = entry


def _meant(rule: str, profile: str, *, user_ids: bool) -> str:
    """`rule` as it is meant in `profile` and with these settings."""
    if rule == "curated" and profile == "aggregate":
        # A metric has no use for a series of everything that may not be named.
        return "curated_only"
    return "drop" if rule == "hash_user" and not user_ids else rule
