"""The random id of this process: the only `service.instance.id` that leaves.

Any other may be random, and may as well be a machine's or an installation's, which lasts: its
shape does not tell.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.sdk.resources import ServiceInstanceIdResourceDetector

_ours: Final[set[str]] = set()


def current() -> str:
    """The id of this process, a UUID of version 4; a forked child has another."""
    # What the SDK gives every resource of this process (1.45).
    found = str(ServiceInstanceIdResourceDetector().detect().attributes["service.instance.id"])
    _ours.add(found)
    return found


def is_ours(given: str) -> bool:
    """Whether `given` is the id of this process, or of one that it was forked from.

    What the parent began and the child ends has the parent's resource.
    """
    return given == current() or given in _ours
