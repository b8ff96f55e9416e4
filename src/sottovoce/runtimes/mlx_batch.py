"""mlx-lm's batches: `batch_generate` is one call, each sequence of a `BatchGenerator` is one."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

suppressed: Final[ContextVar[bool]] = ContextVar("sottovoce_mlx_suppressed", default=False)
"""Whether someone else records what mlx-lm generates here: its server's own thread sets it."""
