"""The policy of this process: what of each attribute may leave, compiled for a profile.

Default deny. An attribute leaves only if the registry declares it for the signal, its value
has the declared type, and its rule lets it; whatever does not leave is counted under
``(signal, rule)``. Nothing here raises: an error inside a rule drops the item.

At run time a policy can be tightened (`tighten`), never loosened.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from bisect import bisect_left
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sottovoce import settings as settings_
from sottovoce.privacy import errors, ranges, rules, tripwire
from sottovoce.privacy.compiled import Choice, Names, compile_profile
from sottovoce.privacy.drops import FOLD_AT, Drops
from sottovoce.privacy.frames import Frames
from sottovoce.privacy.pseudonyms import Pseudonyms, from_settings
from sottovoce.privacy.rules import Changed, Drop
from sottovoce.registry import PROFILES, SCOPES

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Container, Iterable, Mapping

    from sottovoce.privacy.compiled import Compiled, Entry, Plan
    from sottovoce.settings import Settings

PROVIDER: Final = "gen_ai.provider.name"
ADDRESS: Final = "server.address"
PORT: Final = "server.port"

IN_PROCESS: Final = frozenset({"mlx", "llama_cpp"})
"""Providers whose models run in this process."""

_MOST_ELEMENTS: Final = 64
_LONGEST: Final = rules.LONGEST
_NO_FRAMES: Final = Frames()
_NUMERIC: Final = frozenset({"keep", "bucket"})


class Policy:
    """What may leave, for one set of settings. Thread-safe; no method raises.

    Attributes:
        choice: what the profile decides now.
    """

    def __init__(self, settings: Settings) -> None:
        off = settings.profile == "off" or settings.profile not in PROFILES
        self._own_hosts = settings.own_hosts
        self._user_ids = settings.user_ids == "hash"
        self._remote_catalogue = settings.remote_model_ids == "catalogue"
        # Made now rather than at the first model: a forked worker must have the same secret. With
        # telemetry off none is kept on disk.
        self._pseudonyms = Pseudonyms(os.urandom(32)) if off else from_settings(settings)
        self._frames = Frames(settings.stack_frames)
        self._allowed: dict[str, Container[Any]] = {
            kind: Names(settings.allow, kind) for kind in settings_.ALLOWED_KINDS
        }
        self._allowed["frames"] = self._frames
        self.coarse_span_times = settings.coarse_span_times
        self.choice = Choice(self._compiled("off" if off else settings.profile))
        self._local_addresses: set[str] = set()
        self._cat12 = lru_cache(maxsize=rules.REMEMBERED)(self._model)
        self._here = lru_cache(maxsize=rules.REMEMBERED)(self._is_here)
        self._host = lru_cache(maxsize=rules.REMEMBERED)(self._address)
        self._error: Callable[[Any], str] = lru_cache(maxsize=rules.REMEMBERED)(errors.error)
        self._drops = Drops()
        with _process:
            _policies.add(self)

    @property
    def off(self) -> bool:
        """Whether nothing may leave."""
        return self.choice.now.off

    @property
    def profile(self) -> str:
        """The profile that holds now."""
        return self.choice.now.profile

    @property
    def key_id(self) -> str:
        """What tells the secret of the pseudonyms from others."""
        return self._pseudonyms.key_id

    def tighten(self, profile: str) -> None:
        """Let no more leave than `profile` does, from now on; a looser one changes nothing."""
        with _process:
            if settings_.is_looser(self.profile, than=profile):
                self.choice.now = self._compiled(profile, late=True)
                for gate in list(self.choice.gates):
                    gate.discard()

    def _compiled(self, profile: str, *, late: bool = False) -> Compiled:
        return compile_profile(
            profile, self._pseudonyms, self._allowed, user_ids=self._user_ids, late=late
        )

    @property
    def dropped(self) -> Counter[tuple[str, str]]:
        """(signal, rule) → how many items were dropped or replaced so far; a copy."""
        return self._drops.counts()

    def count(self, signal: str, rule: str, times: int = 1) -> None:
        """Count `times` drops of `signal` under `rule`."""
        self._drops.add(signal, rule, times)

    def quiet(self) -> Policy:
        """This policy, counting nothing: for looks at what has not left yet."""
        quiet = copy.copy(self)
        quiet._drops = Drops(most=0)
        return quiet

    def forked(self) -> None:
        """In a child process: count from zero, since the parent exports its own drops."""
        self._drops = Drops()

    def allows(self, kind: str, name: str) -> bool:
        """Whether the operator let his own `name` of `kind` (span, metric, resource, scope) leave."""
        if self.choice.now.coarse or type(name) is not str:
            return False
        return name in self._allowed[kind] and rules.text(name) is name

    def model(self, raw: str, *, local: bool) -> str:
        """What may be said of a model id: the id if it is public and local, else a pseudonym."""
        try:
            return (self._cat12 if len(raw) <= rules.LONGEST else self._model)(raw, local)
        except Exception:  # noqa: BLE001 - the promise of this class
            self.count("span", "rule_error")
            return rules.OTHER

    def error(self, value: type[BaseException] | str | None) -> str:
        """The `error.type` of an exception class, a provider's error code or an HTTP status."""
        try:
            long = isinstance(value, str) and len(value) > rules.LONGEST
            return rules.OTHER if long else self._error(value)
        except Exception:  # noqa: BLE001 - the promise of this class
            self.count("span", "rule_error")
            return rules.OTHER

    @property
    def frames(self) -> Frames:
        """The frames of exceptions that may be told: none unless asked for, and none in `strict`."""
        return _NO_FRAMES if self.choice.now.coarse else self._frames

    def address(self, host: str | None, *, local: bool) -> str | None:
        """The `server.address` of a host. `local`: the host is this machine or the operator's own."""
        if not host:
            return None
        try:
            shown = (self._host if len(host) <= rules.LONGEST else self._address)(host)
        except Exception:  # noqa: BLE001 - the promise of this class
            self.count("span", "rule_error")
            return None
        if local and len(self._local_addresses) < rules.REMEMBERED:
            # So that the gate, which sees the pseudonym alone, knows a span of ours as local.
            self._local_addresses.add(shown)
        return shown

    def scope(self, name: str) -> str:
        """The name of an instrumentation scope if it is known or allowed, else ``_OTHER``."""
        known = type(name) is str and (name in SCOPES or self.allows("scope", name))
        return name if known else rules.OTHER

    def attributes(
        self,
        mapping: Mapping[str, Any] | None,
        signal: str,
        around: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The attributes of `mapping` that may leave on `signal`; the others are counted.

        Args:
            mapping: the attributes.
            signal: what carries them.
            around: all that it carries, where these are but a part: what one is worth can depend
                on others.
        """
        if not mapping:
            return {}
        try:
            kept = self._judged(mapping, signal, around)
        except Exception:  # noqa: BLE001 - fail closed: a mapping that cannot be read is dropped
            self.count(signal, "rule_error")
            return {}
        if (
            PORT in kept
            and self.choice.now.coarse
            and kept.get(ADDRESS, "private") in rules.HOST_CLASSES
        ):
            # The port could tell which of the hosts that are not named it is.
            del kept[PORT]
            self.count(signal, "drop")
        return kept

    def _judged(  # noqa: C901, PLR0912, PLR0915 - flat, because it runs for every span
        self, mapping: Mapping[str, Any], signal: str, around: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        if type(mapping) is not dict:
            mapping = dict(mapping.items())
        compiled = self.choice.now
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
        for entry in plan.texts:
            value = mapping[entry.key]
            # Most strings leave as they are, and have before.
            if type(value) is str and value in entry.passed:
                kept[entry.name] = value
            else:
                late.append((entry, value))
        for entry in plan.wholes:
            value = mapping[entry.key]
            if type(value) is int and 0 <= value < entry.most:
                kept[entry.name] = value
            else:
                late.append((entry, value))
        for entry in plan.reals:
            value = mapping[entry.key]
            # As `ranges.real`.
            if type(value) is float and -entry.most < value < entry.most:
                kept[entry.name] = (value * 1e6 + 0.5) // 1 / 1e6
            else:
                late.append((entry, value))
        for entry in plan.flags:
            value = mapping[entry.key]
            if type(value) is bool:
                kept[entry.name] = value
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
        foreign = {key: mapping[key] for key in plan.foreign}
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
                self.count(signal, "drop", len(foreign) - len(facts))
            if facts:
                # Whether a model is local depends on what else the span says.
                around = facts
                for key in (ADDRESS, PROVIDER):
                    # What of a dialect was heard already leaves as it came.
                    if key in mapping or key in kept:
                        around = {**around, key: mapping.get(key, kept.get(key))}
                kept.update(self._judged(facts, signal, around))
        except Exception:  # noqa: BLE001 - fail closed: nothing of the dialect leaves
            self.count(signal, "rule_error", len(foreign))

    def _unknown(self, key: Any, value: Any, signal: str, kept: dict[str, Any]) -> None:
        if signal == "resource" and type(key) is str and self.allows("resource", key):
            verdict = rules.text(value) if type(value) is str else value
            if type(verdict) in (str, bool, int, float):
                kept[key] = verdict
                return
            self.count(signal, verdict.rule if type(verdict) is Drop else "type")
            return
        self.count(signal, "unknown")

    def _text(self, value: str, entry: Entry, mapping: Mapping[str, Any]) -> rules.Verdict:
        """What the entry says of a string, which is remembered when it leaves as it is."""
        if entry.rule == "cat12":
            shown = self.model(value, local=self._is_local(mapping))
            if shown != value:
                return Changed(shown, "cat12")
            # A public id leaves only where its model is local.
            lasts = self._pseudonyms.has_made(value)
            verdict: rules.Verdict = value
        else:
            verdict, lasts = entry.text(value), entry.lasts
        if verdict is value and lasts and len(entry.passed) < rules.REMEMBERED:
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
            if entry.counted_as in self.choice.now.tables[signal]:
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

    def _model(self, raw: str, local: bool) -> str:
        from sottovoce.privacy import catalogue  # noqa: PLC0415 - an app may never name a model

        if self._pseudonyms.has_made(raw) or (local and catalogue.is_descriptor(raw)):
            return raw
        known = (local or self._remote_catalogue) and catalogue.is_public(raw)
        # The operator's list may hold what he did not think of.
        return raw if known and not tripwire.hit(raw) else self._pseudonyms.model(raw)

    def _address(self, host: str) -> str:
        return rules.host(host, self._pseudonyms)

    def _is_local(self, mapping: Mapping[str, Any]) -> bool:
        """Whether the model of these attributes runs on this machine or on an own host."""
        address = mapping.get(ADDRESS)
        if address is None:
            return mapping.get(PROVIDER) in IN_PROCESS
        return isinstance(address, str) and (
            address in self._local_addresses or (len(address) <= _LONGEST and self._here(address))
        )

    def _is_here(self, address: str) -> bool:
        name = rules.host_of(address)
        return rules.is_loopback(name) or rules.is_own(name, self._own_hosts)


_process = threading.RLock()
"""Held while the policies of this process are made, listed or tightened."""
_policies: weakref.WeakSet[Policy] = weakref.WeakSet()
_active: list[Policy] = []
_tightest = settings_.PROFILES[-1]


def activate(settings: Settings) -> Policy:
    """Make the policy of this process anew, from `settings`; no looser than `tighten` allows."""
    policy = Policy(settings)
    with _process:
        policy.tighten(_tightest)
        _active[:] = [policy]
        return policy


def active(settings: Settings | None = None) -> Policy:
    """The policy of this process; made of `settings`, else of the environment, if there is none."""
    try:
        return _active[0]
    except IndexError:
        return activate(settings or settings_.read()[0])


def tighten(profile: str) -> None:
    """Let no more leave this process than `profile` does, from now on and until it ends.

    It holds at once for everything that was instrumented before, for what is started later
    and for forked children. Only the environment may loosen: for the next process. Spans and
    log records that wait in the SDK's queues are discarded, since they were judged before;
    what an exporter is sending at this moment is sent.

    Args:
        profile: ``off``, ``aggregate``, ``strict``, ``standard`` or ``content``.

    Raises:
        ValueError: there is no such profile, or it would let more leave than the one that
            holds; nothing is changed.
    """
    global _tightest  # noqa: PLW0603 - one process, one floor
    if profile not in settings_.PROFILES:
        choices = ", ".join(settings_.PROFILES)
        raise ValueError(f"no such profile: {profile!r}; choose one of {choices}")
    with _process:
        held = _active[0].profile if _active else settings_.read()[0].profile
        if settings_.is_looser(held, than=_tightest):
            held = _tightest
        if settings_.is_looser(profile, than=held):
            raise ValueError(
                f"the profile is {held!r}, and code may only tighten it: {profile!r} would let "
                "more leave. Set SOTTOVOCE_PROFILE in the environment instead."
            )
        # First what will be made, then what there is: nothing can come in between.
        _tightest = profile
        for policy in list(_policies):
            policy.tighten(profile)


def _forked() -> None:
    global _process  # noqa: PLW0603 - the thread that held it is not in the child
    _process = threading.RLock()
    for policy in list(_policies):
        policy.forked()
        # The parent may have been at it.
        policy.tighten(_tightest)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
