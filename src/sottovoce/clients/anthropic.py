"""The anthropic SDK: a row of the generated family, whose later versions make spans themselves.

Since 2.0 the SDK makes a span of every call as soon as there is a tracer provider, with the
account's id on it. Beside ours it would be the call's second; so the SDK is told that it has no
tracer while a call of ours is being made, unless the app or the operator asked for its spans:
by the environment variable, or by options of the client that say what they should be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sottovoce import exchange, guard
from sottovoce.clients import generated

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches

SWITCH: Final = "ANTHROPIC_OPEN_TELEMETRY"
"""The environment variable that says whether the SDK makes spans."""


def install(
    recorder: Recorder,
    hooks: ImportHooks,
    patches: Patches,
    own_hosts: tuple[str, ...] = (),
    *,
    keep_own_spans: bool = False,
) -> None:
    """Open a call for every request for a message, now or once the SDK is imported.

    Args:
        recorder: what turns the calls into telemetry.
        hooks: registers the import hooks; once it is stopped, kept wrappers pass through.
        patches: undoes everything.
        own_hosts: hosts of the operator's own, besides this machine.
        keep_own_spans: somebody set `SWITCH`, and not to ``false``.
    """
    generated.install(recorder, hooks, patches, families=("anthropic",), own_hosts=own_hosts)
    if keep_own_spans:
        return

    def patch(module: ModuleType, _late: bool) -> None:
        # A property, seen in 2.0 to 2.11; `request` makes no span when it is None.
        patches.wrap(module.BaseClient, "_tracer", _none_in_our_calls)

    hooks.when_imported("anthropic._base_client", patch)


_ASKING: Final = frozenset({"tracer_provider", "conversation_id"})
"""Options of a client that say what its spans should be, and are absent by default."""


class _Property(property):
    """One that can be marked as ours."""


def _none_in_our_calls(original: property) -> property:
    read: Callable[[Any], Any] | None = original.fget
    if read is None:
        return original

    def tracer(client: Any) -> Any:
        return None if _left_out(client) else read(client)

    return _Property(tracer)


@guard.never_raise("anthropic.left_out")
def _left_out(client: Any) -> bool:
    """Whether the span that the SDK would make now is one that ours replaces."""
    if not isinstance(exchange.current(), exchange.HTTPCall):
        return False
    options = client.open_telemetry
    asked = _ASKING & options.keys() or options["traces"]["content_mode"] != "metadata_only"
    return not asked
