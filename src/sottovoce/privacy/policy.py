"""The policy of this process: what of each attribute may leave, compiled once for a profile.

Default deny. An attribute leaves only if the registry declares it for the signal, its value
has the declared type, and its rule lets it; whatever does not leave is counted under
``(signal, rule)``. Nothing here raises: an error inside a rule drops the item.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections import Counter, deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sottovoce import settings as settings_
from sottovoce.privacy import catalogue, rules
from sottovoce.privacy.pseudonyms import Pseudonyms, from_settings
from sottovoce.privacy.rules import Changed, Drop
from sottovoce.registry import ATTRIBUTES, RULES, SCOPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.settings import Settings

SIGNALS: Final = ("span", "event", "link", "log", "metric", "resource", "scope")

PROVIDER: Final = "gen_ai.provider.name"
ADDRESS: Final = "server.address"

IN_PROCESS: Final = frozenset({"mlx", "llama_cpp"})
"""Providers whose models run in this process."""

_TYPES: Final = {"string": str, "int": int, "double": float, "boolean": bool, "string[]": tuple}
_MOST_ELEMENTS: Final = 64
_INT64: Final = 1 << 63
_FOLD_AT: Final = 1024


class _Entry:
    """How one attribute is judged: its declared type, and the rule for its strings."""

    __slots__ = ("counted_as", "drops", "judge", "kind", "rule", "special")

    def __init__(
        self, name: str, kind: type, rule: str, judge: Callable[[str], rules.Verdict]
    ) -> None:
        self.kind = kind
        self.rule = rule
        self.judge = judge
        self.counted_as = rules.COUNTED_AS.get(name, "")
        # What the loop of `Policy.attributes` leaves to `_slow`.
        self.drops = rule not in rules.NAMES
        self.special = (
            kind is tuple or rule == "cat12" or (kind is not str and rule != "keep") or self.drops
        )


class Policy:
    """What may leave, for one set of settings. Thread-safe; no method raises."""

    def __init__(self, settings: Settings) -> None:
        self.off = settings.profile == "off" or settings.profile not in RULES
        self._own_hosts = settings.own_hosts
        self._remote_catalogue = settings.remote_model_ids == "catalogue"
        # Made now rather than at the first model: a forked worker must have the same secret. With
        # telemetry off none is kept on disk.
        self._pseudonyms = Pseudonyms(os.urandom(32)) if self.off else from_settings(settings)
        self._allowed = {
            kind: _Names(settings.allow, kind) for kind in ("span", "metric", "resource", "scope")
        }
        self._tables = self._compile({} if self.off else RULES[settings.profile])
        self._local_addresses: set[str] = set()
        self._cat12 = lru_cache(maxsize=rules.REMEMBERED)(self._model)
        self._here = lru_cache(maxsize=rules.REMEMBERED)(self._is_here)
        self._host = lru_cache(maxsize=rules.REMEMBERED)(self._address)
        self._error: Callable[[Any], str] = lru_cache(maxsize=rules.REMEMBERED)(rules.error)
        # Appending to a deque is atomic: the hot path counts without a lock.
        self._news: deque[tuple[str, str, int]] = deque()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        _policies.add(self)

    def _compile(self, chosen: Mapping[str, str]) -> dict[str, dict[str, _Entry]]:
        tables: dict[str, dict[str, _Entry]] = {signal: {} for signal in SIGNALS}
        for name, attribute in ATTRIBUTES.items():
            rule = chosen.get(name)
            if rule is None:
                continue
            kind = _TYPES.get(attribute.type)
            if kind is None:
                rule, kind = "drop", str
            entry = _Entry(
                name, kind, rule, rules.make(name, rule, attribute.values, self._pseudonyms)
            )
            for signal in attribute.signals:
                if signal in tables:
                    tables[signal][name] = entry
        return tables

    @property
    def dropped(self) -> Counter[tuple[str, str]]:
        """(signal, rule) → how many items were dropped or replaced so far; a copy."""
        with self._lock:
            self._fold()
            return Counter(self._counts)

    def count(self, signal: str, rule: str, times: int = 1) -> None:
        """Count `times` drops of `signal` under `rule`."""
        self._news.append((signal, rule, times))
        if len(self._news) > _FOLD_AT:
            self._tidy()

    def _tidy(self) -> None:
        # Whoever comes while another folds need not wait: it is being done.
        if self._lock.acquire(blocking=False):
            try:
                self._fold()
            finally:
                self._lock.release()

    def _fold(self) -> None:
        news, counts = self._news, self._counts
        try:
            while True:
                signal, rule, times = news.popleft()
                counts[signal, rule] += times
        except IndexError:
            pass

    def quiet(self) -> Policy:
        """This policy, counting nothing: for looks at what has not left yet."""
        quiet = copy.copy(self)
        quiet._news = deque(maxlen=0)
        return quiet

    def forked(self) -> None:
        """In a child process: count from zero, since the parent exports its own drops."""
        self._lock = threading.Lock()
        self._news = deque()
        self._counts = Counter()

    def allows(self, kind: str, name: str) -> bool:
        """Whether the operator let his own `name` of `kind` (span, metric, resource, scope) leave."""
        return name in self._allowed[kind] and rules.text(name) is name

    def model(self, raw: str, *, local: bool) -> str:
        """What may be said of a model id: the id if it is public and local, else a pseudonym."""
        try:
            return self._cat12(raw, local)
        except Exception:  # noqa: BLE001 - the promise of this class
            self.count("span", "rule_error")
            return rules.OTHER

    def error(self, value: type[BaseException] | str | None) -> str:
        """The `error.type` of an exception class, a provider's error code or an HTTP status."""
        try:
            return self._error(value)
        except Exception:  # noqa: BLE001 - the promise of this class
            self.count("span", "rule_error")
            return rules.OTHER

    def address(self, host: str | None, *, local: bool) -> str | None:
        """The `server.address` of a host. `local`: the host is this machine or the operator's own."""
        if not host:
            return None
        try:
            shown = self._host(host)
        except Exception:  # noqa: BLE001 - the promise of this class
            self.count("span", "rule_error")
            return None
        if local and len(self._local_addresses) < rules.REMEMBERED:
            # So that the gate, which sees the pseudonym alone, knows a span of ours as local.
            self._local_addresses.add(shown)
        return shown

    def scope(self, name: str) -> str:
        """The name of an instrumentation scope if it is known or allowed, else ``_OTHER``."""
        return name if name in SCOPES or self.allows("scope", name) else rules.OTHER

    def attributes(self, mapping: Mapping[str, Any] | None, signal: str) -> dict[str, Any]:
        """The attributes of `mapping` that may leave on `signal`; the others are counted."""
        if not mapping:
            return {}
        try:
            return self._judged(mapping, signal)
        except Exception:  # noqa: BLE001 - fail closed: a mapping that cannot be read is dropped
            self.count(signal, "rule_error")
            return {}

    def _judged(  # noqa: C901, PLR0912 - one loop, flat, because it runs for every span
        self, mapping: Mapping[str, Any], signal: str
    ) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        get = self._tables[signal].get
        drop = self._news.append
        unknown = 0
        extensible = signal == "resource"
        verdict: Any
        # Every branch below is paid for each attribute of every span: no call that can be spared.
        for key, value in mapping.items():
            entry = get(key)
            if entry is None:
                if extensible:
                    self._unknown(key, value, signal, kept)
                else:
                    unknown += 1
                continue
            try:
                kind = type(value)
                if kind is not entry.kind or entry.special:
                    verdict = self._slow(signal, value, entry, mapping, kept)
                elif kind is str:
                    verdict = entry.judge(value)
                    # Most strings leave as they are: one comparison settles those.
                    if verdict is value:
                        kept[key] = value
                        continue
                elif kind is int:
                    if 0 <= value < _INT64:
                        kept[key] = value
                        continue
                    verdict = rules.WRONG_TYPE
                elif kind is float and value - value != 0.0:
                    # An infinity or a NaN, which can carry anything in its payload.
                    verdict = rules.WRONG_TYPE
                else:
                    kept[key] = value
                    continue
                kind = type(verdict)
                if kind is Drop:
                    drop((signal, verdict.rule, 1))
                elif kind is Changed:
                    drop((signal, verdict.rule, 1))
                    kept[key] = verdict.value
                else:
                    kept[key] = verdict
            except Exception:  # noqa: BLE001 - fail closed: the item is dropped
                drop((signal, "rule_error", 1))
        if unknown:
            drop((signal, "unknown", unknown))
        if len(self._news) > _FOLD_AT:
            self._tidy()
        return kept

    def _unknown(self, key: Any, value: Any, signal: str, kept: dict[str, Any]) -> None:
        if signal == "resource" and type(key) is str and self.allows("resource", key):
            verdict = rules.text(value) if type(value) is str else value
            if type(verdict) in (str, bool, int, float):
                kept[key] = verdict
                return
            self.count(signal, verdict.rule if type(verdict) is Drop else "type")
            return
        self.count(signal, "unknown")

    def _slow(
        self,
        signal: str,
        value: Any,
        entry: _Entry,
        mapping: Mapping[str, Any],
        kept: dict[str, Any],
    ) -> Any:
        """What the loop does not decide itself: model ids, lists, and values of a related type."""
        if entry.drops:
            return rules.DROPPED
        if entry.kind is tuple:
            return self._elements(signal, value, entry, kept)
        if entry.rule == "cat12":
            if not isinstance(value, str):
                return rules.WRONG_TYPE
            shown = self._cat12(str.__str__(value), self._is_local(mapping))
            return shown if shown == value else Changed(shown, "cat12")
        if isinstance(value, bool):
            return rules.WRONG_TYPE
        if entry.kind is str and isinstance(value, str):
            return entry.judge(str.__str__(value))
        if entry.rule != "keep":
            return rules.WRONG_TYPE
        if entry.kind is int and isinstance(value, int):
            number = int.__int__(value)
            return number if 0 <= number < _INT64 else rules.WRONG_TYPE
        if entry.kind is float and isinstance(value, (int, float)):
            real = float(value)
            return real if real - real == 0.0 else rules.WRONG_TYPE
        return rules.WRONG_TYPE

    def _elements(self, signal: str, value: Any, entry: _Entry, kept: dict[str, Any]) -> Any:
        if not isinstance(value, (tuple, list)):
            return rules.WRONG_TYPE
        if entry.rule == "count":
            if entry.counted_as in self._tables[signal]:
                kept[entry.counted_as] = len(value)
            return Drop("count")
        if len(value) > _MOST_ELEMENTS:
            return rules.TOO_LONG
        judged: list[Any] = []
        changed = ""
        for element in value:
            if not isinstance(element, str):
                return rules.WRONG_TYPE
            verdict = entry.judge(str.__str__(element))
            if isinstance(verdict, Drop):
                return verdict
            if isinstance(verdict, Changed):
                changed = verdict.rule
                judged.append(verdict.value)
            else:
                judged.append(verdict)
        return Changed(tuple(judged), changed) if changed else tuple(judged)

    def _model(self, raw: str, local: bool) -> str:
        if rules.is_model_pseudonym(raw) or catalogue.is_descriptor(raw):
            return raw
        if (local or self._remote_catalogue) and catalogue.is_public(raw):
            return raw
        return self._pseudonyms.model(raw)

    def _address(self, host: str) -> str:
        return rules.host(host, self._pseudonyms)

    def _is_local(self, mapping: Mapping[str, Any]) -> bool:
        """Whether the model of these attributes runs on this machine or on an own host."""
        address = mapping.get(ADDRESS)
        if address is None:
            return mapping.get(PROVIDER) in IN_PROCESS
        return isinstance(address, str) and (
            address in self._local_addresses or self._here(address)
        )

    def _is_here(self, address: str) -> bool:
        return rules.is_loopback(address) or rules.is_own(address, self._own_hosts)


class _Names:
    """Names of one kind that the operator let leave: exact ones, and beginnings."""

    __slots__ = ("_beginnings", "_exact")

    def __init__(self, allow: tuple[str, ...], kind: str) -> None:
        mine = [item.partition(":")[2] for item in allow if item.partition(":")[0] == kind]
        self._exact = frozenset(name for name in mine if not name.endswith("*"))
        self._beginnings = tuple(name[:-1] for name in mine if name.endswith("*") and name != "*")

    def __contains__(self, name: str) -> bool:
        return name in self._exact or (bool(self._beginnings) and name.startswith(self._beginnings))


_policies: weakref.WeakSet[Policy] = weakref.WeakSet()
_active: list[Policy] = []


def activate(settings: Settings) -> Policy:
    """Make the policy of this process anew, from `settings`."""
    policy = Policy(settings)
    _active[:] = [policy]
    return policy


def active(settings: Settings | None = None) -> Policy:
    """The policy of this process; made of `settings`, else of the environment, if there is none."""
    try:
        return _active[0]
    except IndexError:
        return activate(settings or settings_.read()[0])


def _forked() -> None:
    for policy in list(_policies):
        policy.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
