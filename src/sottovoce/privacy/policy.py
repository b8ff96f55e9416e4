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
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard
from sottovoce import settings as settings_
from sottovoce.privacy import errors, hosts, rules
from sottovoce.privacy.compiled import Choice, Names, compile_profile
from sottovoce.privacy.drops import Drops
from sottovoce.privacy.identities import ADDRESS, Identities
from sottovoce.privacy.judging import Judge
from sottovoce.privacy.pseudonyms import Pseudonyms, from_settings
from sottovoce.registry import PROFILES, SCOPES

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Container, Mapping

    from sottovoce.privacy.compiled import Compiled
    from sottovoce.privacy.frames import Frames
    from sottovoce.settings import Settings

PORT: Final = "server.port"


class Policy:
    """What may leave, for one set of settings. Thread-safe; no method raises.

    Attributes:
        choice: what the profile decides now.
    """

    def __init__(self, settings: Settings) -> None:
        off = settings.profile == "off" or settings.profile not in PROFILES
        self._user_ids = settings.user_ids == "hash"
        # Made now rather than at the first model: a forked worker must have the same secret. With
        # telemetry off none is kept on disk.
        self._pseudonyms = Pseudonyms(os.urandom(32)) if off else from_settings(settings)
        self._frames = _frames(settings.stack_frames)
        self._allowed: dict[str, Container[Any]] = {
            kind: Names(settings.allow, kind) for kind in settings_.ALLOWED_KINDS
        }
        self._allowed["frames"] = self._frames or ()
        self.coarse_span_times = settings.coarse_span_times
        self.choice = Choice(self._compiled("off" if off else settings.profile))
        self._identities = Identities(settings, self._pseudonyms)
        self._error: Callable[[Any], str] = lru_cache(maxsize=rules.REMEMBERED)(errors.error)
        self._count_in(Drops())
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

    def follow(self, before: Policy) -> None:
        """Take the place of `before`: what was recorded under a looser profile may be exact."""
        looser = settings_.is_looser(before.profile, than=self.profile)
        if looser or before.choice.now.late:
            self.choice.now = self._compiled(self.profile, late=True)
        before.tighten(self.profile)

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
        quiet._count_in(Drops(most=0))
        return quiet

    def forked(self) -> None:
        """In a child process: count from zero, since the parent exports its own drops."""
        self._count_in(Drops())

    def _count_in(self, drops: Drops) -> None:
        self._drops = drops
        self._judge = Judge(self.choice, drops, self._identities, self._allowed)

    def allows(self, kind: str, name: str) -> bool:
        """Whether the operator let his own `name` of `kind` (span, metric, resource, scope) leave."""
        return self._judge.allows(kind, name)

    def model(self, raw: str, *, local: bool) -> str:
        """What may be said of a model id: the id if it is public and local, else a pseudonym."""
        try:
            return self._identities.model(raw, local=local)
        except Exception:  # noqa: BLE001 - the promise of this class
            self._broke("span")
            return rules.OTHER

    def error(self, value: type[BaseException] | str | None) -> str:
        """The `error.type` of an exception class, a provider's error code or an HTTP status."""
        try:
            long = isinstance(value, str) and len(value) > rules.LONGEST
            return rules.OTHER if long else self._error(value)
        except Exception:  # noqa: BLE001 - the promise of this class
            self._broke("span")
            return rules.OTHER

    @property
    def frames(self) -> Frames | None:
        """The frames of exceptions that may be told: none unless asked for, and none in `strict`."""
        return None if self.choice.now.coarse else self._frames

    def address(self, host: str | None, *, local: bool) -> str | None:
        """The `server.address` of a host. `local`: the host is this machine or the operator's own."""
        if not host:
            return None
        try:
            return self._identities.address(host, local=local)
        except Exception:  # noqa: BLE001 - the promise of this class
            self._broke("span")
            return None

    def scope(self, name: str) -> str:
        """The name of an instrumentation scope if it is known or allowed, else ``_OTHER``."""
        known = type(name) is str and (name in SCOPES or self.allows("scope", name))
        return name if known else rules.OTHER

    def _broke(self, signal: str) -> None:
        guard.let_through()
        self.count(signal, "rule_error")

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
            kept = self._judge.judged(mapping, signal, around)
        except Exception:  # noqa: BLE001 - fail closed: a mapping that cannot be read is dropped
            self._broke(signal)
            return {}
        if (
            PORT in kept
            and self.choice.now.coarse
            and kept.get(ADDRESS, "private") in hosts.CLASSES
        ):
            # The port could tell which of the hosts that are not named it is.
            del kept[PORT]
            self.count(signal, "drop")
        return kept


def _frames(packages: tuple[str, ...]) -> Frames | None:
    if not packages:
        return None
    from sottovoce.privacy.frames import Frames  # noqa: PLC0415 - few operators want any

    return Frames(packages)


_process = threading.RLock()
"""Held while the policies of this process are made, listed or tightened."""
_policies: weakref.WeakSet[Policy] = weakref.WeakSet()
_active: list[Policy] = []
_tightest = settings_.PROFILES[-1]


def activate(settings: Settings) -> Policy:
    """Make the policy of this process anew, from `settings`; no looser than `tighten` allows.

    What was instrumented before keeps the policy that it has, which is tightened as well.
    """
    policy = Policy(settings)
    with _process:
        policy.tighten(_tightest)
        for before in _active:
            policy.follow(before)
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
