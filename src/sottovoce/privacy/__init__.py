"""What may leave the process, and the one place through which it does."""

from __future__ import annotations

__all__ = ["tighten"]


def tighten(profile: str) -> None:
    """Let no more leave this process than `profile` does, from now on and until it ends.

    It holds at once for everything that was instrumented before, for what is started later
    and for forked children. Only the environment may loosen (`SOTTOVOCE_PROFILE`), for the
    next process. What waits in the SDK's queues is discarded, since it was judged before;
    what an exporter is sending at this moment is sent.

    Args:
        profile: ``off``, ``aggregate``, ``strict``, ``standard`` or ``content``.

    Raises:
        ValueError: there is no such profile, or it would let more leave than the one that
            holds; nothing is changed.
    """
    from sottovoce.privacy import policy  # noqa: PLC0415 - `import sottovoce.privacy` is light

    policy.tighten(profile)
