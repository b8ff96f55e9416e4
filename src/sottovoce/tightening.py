"""What code may change of the operator's settings at run time: it may tighten privacy, never loosen it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sottovoce import settings
from sottovoce.parsers import Unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.settings import Settings


def tightened(base: Settings, **changes: Any) -> tuple[Settings, list[str]]:
    """Apply what code asks for at run time: it may tighten privacy, never loosen it.

    Where telemetry goes stays the environment's choice when the environment made one.

    Args:
        base: the settings of the environment.
        changes: by field name; values as in the environment, or of the field's own type.

    Returns:
        The settings, and one warning for each change that was not made.

    Raises:
        TypeError: for a change of what is no setting.
    """
    settings.check(changes)
    accepted: dict[str, Any] = {}
    warnings: list[str] = []
    for name, given in changes.items():
        entry, old = settings.SETTINGS[name], getattr(base, name)
        text = ",".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)
        try:
            value = entry.default if given is None else entry.parse(text)
        except Unusable as error:
            # Whoever asks for a profile that there is not wanted a tighter one.
            value = error.kept or (entry.safe if name == "profile" else None)
            kept = f"Using {value!r}" if value else "Keeping what was set"
            warnings.append(settings.refused(name, entry, text, error, kept))
            if not value:
                continue
        if _LOOSENS.get(name, _contradicts)(old, value):
            warnings.append(
                f"{name}: code may only tighten; set {entry.variable} in the environment instead."
            )
            continue
        accepted[name] = value
    return settings.settled(base.but(**accepted), warnings)


_NEUTRAL: Final = frozenset({"semconv", "exit_timeout", "local"})


def _moves(old: tuple[str, ...], new: tuple[str, ...]) -> bool:
    """Whether endpoints become one's own, or stop to be somebody else's."""
    own = {each for each in new if each.endswith(":local")}
    foreign = any(each.endswith(":remote") for each in old)
    # The first that fits counts: what code puts before them could take their place.
    return not own <= set(old) or (foreign and new[: len(old)] != old)


_LOOSENS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "profile": lambda old, new: settings.is_looser(new, than=old),
    "content_ack": lambda old, new: new and not old,
    "remote_model_ids": lambda old, new: old == "hash" and new != "hash",
    "model_catalogue": lambda old, new: new != old,
    "hash_mode": lambda old, new: old == "keyed" and new != "keyed",
    "user_ids": lambda old, new: old == "drop" and new != "drop",
    "propagation": lambda old, new: old == "own" and new != "own",
    "own_hosts": lambda old, new: not set(new) <= set(old),
    "endpoints": _moves,
    "allow": lambda old, new: not set(new) <= set(old),
    "stack_frames": lambda old, new: not set(new) <= set(old),
    "coarse_span_times": lambda old, new: old and not new,
    "disabled": lambda old, new: old and not new,
    "logging_handler": lambda old, new: new and not old,
    **dict.fromkeys(_NEUTRAL, lambda _old, _new: False),
}


def _contradicts(old: Any, new: Any) -> bool:
    return old is not None and new != old
