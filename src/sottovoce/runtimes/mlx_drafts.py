"""How much of what a draft model proposes is accepted, as the responses of mlx-lm tell it.

A round is what the draft model proposes, as far as the model agrees, and one token of the model's
own. What is proposed is not told, but follows from the settings.

Seen in mlx-lm 0.28.0 to 0.32.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_TOKENS: Final = 256
_DRAFT_TOKENS: Final = 2
"""What mlx-lm takes where nothing is said."""


class Drafts:
    """Counts of one generation.

    Args:
        asked: what `stream_generate` is called with, by name; settings alone are read.
    """

    __slots__ = ("_accepted", "_between", "_drafted", "_limit", "_width")

    def __init__(self, asked: Mapping[str, Any]) -> None:
        limit, width = asked.get("max_tokens"), asked.get("num_draft_tokens")
        self._limit = limit if type(limit) is int else _MAX_TOKENS
        self._width = width if type(width) is int else _DRAFT_TOKENS
        self._accepted = self._drafted = 0
        # Whether the next token begins a round.
        self._between = True

    def read(self, piece: Any) -> None:
        """Take whether a token was drafted; may raise."""
        if self._between:
            room = self._limit - piece.generation_tokens + 1
            self._drafted += self._width if room >= self._width else max(0, room)
        if piece.from_draft:
            self._accepted += 1
            self._between = False
        else:
            self._between = True

    @property
    def share(self) -> float | None:
        """What was accepted of what was drafted, 0 to 1; None before the first token."""
        return min(1.0, self._accepted / self._drafted) if self._drafted else None
