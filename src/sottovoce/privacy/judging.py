"""What of a mapping of attributes may leave: each value judged by its entry, the drops counted.

This is what runs for every span, log record and metric point. What it judges by is made before
(`compiled`), and what one value is worth says its rule (`rules`, `ranges`); an error inside a
rule drops that item alone.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard
from sottovoce.privacy import ranges, rules
from sottovoce.privacy.drops import FOLD_AT
from sottovoce.privacy.identities import ADDRESS, PROVIDER
from sottovoce.privacy.rules import Changed, Drop

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from sottovoce.privacy.compiled import Choice, Entry, Plan
    from sottovoce.privacy.drops import Drops
    from sottovoce.privacy.identities import Identities

_MOST_ELEMENTS: Final = 64
_NUMERIC: Final = frozenset({"keep", "bucket"})


class Judge:
    """Judges for one policy. Thread-safe.

    Args:
        choice: what the profile decides now.
        drops: where what does not leave as it came is counted.
        identities: what may be said of models.
        allowed: kind of name → those that the operator lets leave.
    """

    __slots__ = ("_allowed", "_choice", "_drops", "_identities")

    def __init__(
        self,
        choice: Choice,
        drops: Drops,
        identities: Identities,
        allowed: Mapping[str, Container[Any]],
    ) -> None:
        self._choice = choice
        self._drops = drops
        self._identities = identities
        self._allowed = allowed

    def allows(self, kind: str, name: str) -> bool:
        """Whether the operator let his own `name` of `kind` leave; none does in a coarse profile."""
        if self._choice.now.coarse or type(name) is not str:
            return False
        return name in self._allowed[kind] and rules.text(name) is name

    def judged(  # noqa: C901, PLR0912, PLR0915 - flat, because it runs for every span
        self, mapping: Mapping[str, Any], signal: str, around: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What of `mapping` may leave on `signal`, under the registry's own names.

        Args:
            mapping: attributes, under whatever keys.
            signal: what carries them; one of `compiled.SIGNALS`.
            around: what the judgement of one may depend on, if not `mapping` alone.

        Raises:
            Exception: whatever `mapping` raises when it is read.
        """
        if type(mapping) is not dict:
            mapping = dict(mapping.items())
        compiled = self._choice.now
        keys = tuple(mapping)
        plan = compiled.plans[signal].get(hash(keys))
        if plan is None or plan.size != len(keys):
            plan = compiled.plan(signal, keys)
        kept: dict[str, Any] = {}
        # What is not as it mostly is.
        late: list[tuple[Entry, Any]] = []
        bucketed = 0
        value: Any
        # Every branch below is paid for each attribute of every span: no call that can be spared.
        for key, name, passed, entry in plan.texts:
            value = mapping[key]
            # Most strings leave as they are, and have before.
            if type(value) is str and value in passed:
                kept[name] = value
            else:
                late.append((entry, value))
        for key, name, most, entry in plan.wholes:
            value = mapping[key]
            if type(value) is int and 0 <= value < most:
                kept[name] = value
            else:
                late.append((entry, value))
        for key, name, most, entry in plan.reals:
            value = mapping[key]
            # As `ranges.real`.
            if type(value) is float and -most < value < most:
                kept[name] = (value * 1e6 + 0.5) // 1 / 1e6
            else:
                late.append((entry, value))
        for key, name, entry in plan.flags:
            value = mapping[key]
            if type(value) is bool:
                kept[name] = value
            else:
                late.append((entry, value))
        for entry in plan.bucketed:
            value = mapping[entry.key]
            bounds = entry.bounds
            if type(value) is entry.kind and 0 <= value <= bounds[-1] and value < entry.most:
                kept[entry.name] = shown = bounds[bisect_left(bounds, value)]
                if shown != value:
                    bucketed += 1
            else:
                late.append((entry, value))
        for entry in plan.lists:
            value = mapping[entry.key]
            try:
                known = entry.lists.get(value) if type(value) is tuple else None
            except Exception:  # noqa: BLE001 - it holds what cannot be looked up
                guard.let_through()
                known = None
            if known is not None:
                kept[entry.name] = known
            else:
                late.append((entry, value))
        for entry in plan.words:
            value = mapping[entry.key]
            word = entry.words.get(value) if type(value) is str else None
            if word is not None:
                kept[entry.name] = word
            else:
                late.append((entry, value))
        if plan.others:
            late += [(entry, mapping[entry.key]) for entry in plan.others]
        foreign = {key: mapping[key] for key in plan.foreign} if plan.foreign else {}
        withheld = plan.withheld
        if late:
            for entry, value in late:
                if entry.foreign:
                    foreign[entry.key] = value
                    foreign.update((key, mapping[key]) for key in entry.beaten)
                    withheld -= len(entry.beaten)
            self._late(late, signal, around or mapping, kept)
        if plan.unknown:
            if signal == "resource":
                table = compiled.tables[signal]
                for key in keys:
                    if key not in table:
                        self._unknown(key, mapping[key], signal, kept)
            else:
                self._drops.news.append((signal, "unknown", plan.unknown))
        if withheld:
            self._drops.news.append((signal, rules.DROPPED.rule, withheld))
        if bucketed:
            self._drops.news.append((signal, "bucket", bucketed))
        if foreign:
            self._said(plan, foreign, mapping, signal, kept)
        if len(self._drops.news) > FOLD_AT:
            self._drops.tidy()
        return kept

    def _late(
        self,
        late: Iterable[tuple[Entry, Any]],
        signal: str,
        mapping: Mapping[str, Any],
        kept: dict[str, Any],
    ) -> None:
        drop = self._drops.news.append
        verdict: Any
        for entry, value in late:
            if entry.foreign:
                continue
            try:
                if type(value) is str and entry.kind is str:
                    verdict = self._text(value, entry, mapping)
                else:
                    verdict = self._slow(signal, value, entry, mapping, kept)
                kind = type(verdict)
                if kind is Drop:
                    drop((signal, verdict.rule, 1))
                elif kind is Changed:
                    drop((signal, verdict.rule, 1))
                    kept[entry.name] = verdict.value
                else:
                    kept[entry.name] = verdict
            except Exception:  # noqa: BLE001 - fail closed: the item is dropped
                guard.let_through()
                drop((signal, "rule_error", 1))

    def _said(
        self,
        plan: Plan,
        foreign: Mapping[str, Any],
        mapping: Mapping[str, Any],
        signal: str,
        kept: dict[str, Any],
    ) -> None:
        """Add to `kept` what a dialect says, judged as if it had been said in our words."""
        try:
            facts = plan.said(foreign, mapping)
            if len(facts) < len(foreign):
                self._drops.add(signal, "drop", len(foreign) - len(facts))
            if facts:
                # Whether a model is local depends on what else the span says.
                around = facts
                for key in (ADDRESS, PROVIDER):
                    # What of a dialect was heard already leaves as it came.
                    if key in mapping or key in kept:
                        around = {**around, key: mapping.get(key, kept.get(key))}
                kept.update(self.judged(facts, signal, around))
        except Exception:  # noqa: BLE001 - fail closed: nothing of the dialect leaves
            guard.let_through()
            self._drops.add(signal, "rule_error", len(foreign))

    def _unknown(self, key: Any, value: Any, signal: str, kept: dict[str, Any]) -> None:
        if signal == "resource" and self.allows("resource", key):
            verdict = rules.text(value) if type(value) is str else value
            if type(verdict) in (str, bool, int, float):
                kept[key] = verdict
                return
            self._drops.add(signal, verdict.rule if type(verdict) is Drop else "type")
            return
        self._drops.add(signal, "unknown")

    def _text(self, value: str, entry: Entry, mapping: Mapping[str, Any]) -> rules.Verdict:
        """What the entry says of a string, which is remembered when it leaves as it is."""
        if entry.rule == "cat12":
            local = self._identities.is_local(mapping)
            if local and value in entry.local:
                return value
            shown = self._identities.model(value, local=local)
            if shown != value:
                return Changed(shown, "cat12")
            # A public id leaves only where its model is local.
            lasts = self._identities.is_pseudonym(value)
            passed = entry.passed if lasts else entry.local
            if (lasts or local) and len(passed) < rules.REMEMBERED and len(value) <= rules.LONGEST:
                passed.add(value)
            return value
        verdict = entry.text(value)
        if verdict is value and entry.lasts and len(entry.passed) < rules.REMEMBERED:
            entry.passed.add(value)
        return verdict

    def _slow(
        self,
        signal: str,
        value: Any,
        entry: Entry,
        mapping: Mapping[str, Any],
        kept: dict[str, Any],
    ) -> Any:
        """What the loop does not decide itself: lists, and values of a related type."""
        if entry.kind is tuple:
            return self._elements(signal, value, entry, kept)
        if entry.kind is str and isinstance(value, str):
            return self._text(str.__str__(value), entry, mapping)
        if isinstance(value, bool) or entry.rule not in _NUMERIC:
            return rules.WRONG_TYPE
        verdict: Any = rules.WRONG_TYPE
        if entry.kind is int and isinstance(value, int):
            verdict = ranges.whole(int.__int__(value), entry.most)
        elif entry.kind is float and isinstance(value, (int, float)):
            verdict = ranges.real(float(value), entry.most)
        if entry.rule == "bucket" and type(verdict) is not Drop:
            return ranges.bucketed(entry.name, entry.kind, verdict)
        return verdict

    def _elements(self, signal: str, value: Any, entry: Entry, kept: dict[str, Any]) -> Any:
        verdict = self._each(signal, value, entry, kept)
        if entry.way == "lists" and type(verdict) is tuple and len(entry.lists) < rules.REMEMBERED:
            # What is handed on is what was judged, not what claims to equal it.
            entry.lists[verdict] = verdict
        return verdict

    def _each(self, signal: str, value: Any, entry: Entry, kept: dict[str, Any]) -> Any:
        if isinstance(value, str):
            from sottovoce.privacy import dialects  # noqa: PLC0415 - lists are seldom written so

            value = dialects.elements(value)
        if not isinstance(value, (tuple, list)):
            return rules.WRONG_TYPE
        if entry.rule == "count":
            if entry.counted_as in self._choice.now.tables[signal]:
                kept[entry.counted_as] = len(value)
            return Drop("count")
        if len(value) > _MOST_ELEMENTS:
            return rules.TOO_LONG
        judged: list[Any] = []
        changed = ""
        for element in value:
            if not isinstance(element, str):
                return rules.WRONG_TYPE
            verdict = entry.text(element)
            if isinstance(verdict, Drop):
                return verdict
            if isinstance(verdict, Changed):
                changed = verdict.rule
                judged.append(verdict.value)
            else:
                judged.append(verdict)
        return Changed(tuple(judged), changed) if changed else tuple(judged)
