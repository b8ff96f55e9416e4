"""Write docs/TELEMETRY.md: what is captured, why, under which rule, and what is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from definition import Registry


def render(registry: Registry) -> str:
    """The text of `docs/TELEMETRY.md`."""
    return f"# Telemetry\n\n{len(registry.attributes)} attributes.\n"
