"""What a call of mlx-lm learns of one generation, speculative ones included.

Token counts are the engine's own, one response for each token, so they are exact for streams
that were abandoned or failed. The end-of-sequence token that mlx-lm counts on ``stop`` is not
part of the output (llama-cpp-python does not count it either), prompt tokens that came from a
prompt cache are part of the input.
"""

from __future__ import annotations

import sys
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce.hardware import tiers
from sottovoce.runtimes import mlx_sampling
from sottovoce.runtimes.engine import EngineCall
from sottovoce.runtimes.mlx_drafts import Drafts

if TYPE_CHECKING:
    from sottovoce.runtimes.engine import Runtime
    from sottovoce.runtimes.identity import Identity
    from sottovoce.runtimes.mlx_cache import Held

OPERATION: Final = "text_completion"

GB: Final = 1e9
"""Bytes in what mlx-lm and mlx-vlm call a gigabyte."""


class MlxCall(EngineCall):
    """A call of mlx-lm: who runs, and what was asked for.

    Args:
        identity: who runs, as far as is known.
        stream: whether the app gets the answer piece by piece.
        held: what a prompt cache holds before, which mlx-lm does not count.
        asked: the arguments by name, of which only settings are read.
        operation: what the conventions call it.
    """

    __slots__ = ("cached", "fed", "peak", "prompt", "reason")

    def __init__(  # noqa: PLR0917 - as `EngineCall`
        self,
        runtime: Runtime,
        identity: Identity | None,
        stream: bool,
        held: Held,
        asked: dict[str, Any],
        operation: str = OPERATION,
    ) -> None:
        # Before the call is opened: what fails here must not leave one that nobody ends.
        settings = mlx_sampling.asked(asked.get("sampler"), asked.get("logits_processors"))
        limit = asked.get("max_tokens")
        self.cached = held.tokens
        # The most bytes that arrays ever took in this process, as mlx has them.
        self.peak: Any = None
        # Tokens of the prompt, and why the answer ended, as the engine tells them; whether what
        # generates inside a whole is found.
        self.prompt: Any = None
        self.reason: Any = None
        self.fed = False
        EngineCall.__init__(self, runtime.recorder, operation, runtime.provider, identity, stream)
        facts = self.facts
        if settings:
            facts.update(settings)
        # -1 asks for no limit.
        if type(limit) is int and limit > 0:
            facts["request_max_tokens"] = limit
        if held.window is not None:
            facts["context_size"] = min(held.window, facts.get("context_size", held.window))

    def settle(self) -> None:
        """Write the tier of memory."""
        if self.peak is None and self.made:
            # The engine tells it at the end, which this one did not come to.
            self.peak = peak()
        if self.peak is not None:
            tier = tiers.in_use(self.peak)
            if tier is not None:
                self.facts["peak_memory"] = tier

    def count_input(self, prompt: int) -> None:
        """Write how many tokens the model read: those of the prompt and of the cache."""
        self.facts["input_tokens"] = prompt + self.cached
        if self.cached:
            self.facts["cache_read_tokens"] = self.cached


def peak() -> int | None:
    """The most bytes that arrays ever took: a number that is there, in any thread."""
    ask = getattr(sys.modules.get("mlx.core"), "get_peak_memory", None)
    return ask() if callable(ask) else None


class Generation(MlxCall):
    """One generation: the engine's counts as the latest response has them."""

    __slots__ = ()

    def read(self, piece: Any) -> None:
        """Take the counts of a response; may raise."""
        self.made = piece.generation_tokens
        self.reason = piece.finish_reason
        if not self.first_ns:
            self.first_ns = self.busy_ns or perf_counter_ns() - self.started_ns
            self.prompt = piece.prompt_tokens
        if self.reason is not None:
            self.peak = piece.peak_memory * GB

    def settle(self) -> None:
        """Write the counts of the latest response, too."""
        MlxCall.settle(self)
        facts, reason, made = self.facts, self.reason, self.made
        if type(self.prompt) is int:
            self.count_input(self.prompt)
        if isinstance(reason, str):
            facts["finish_reasons"] = [reason]
        if self.first_ns and type(made) is int:
            made -= reason == "stop"
            facts["output_tokens"] = max(0, made)


class Speculation(Generation):
    """A generation with a draft model: how much of what it drafts is accepted."""

    __slots__ = ("drafts",)

    def __init__(
        self,
        runtime: Runtime,
        identity: Identity | None,
        stream: bool,
        held: Held,
        asked: dict[str, Any],
    ) -> None:
        self.drafts = Drafts(asked)
        MlxCall.__init__(self, runtime, identity, stream, held, asked)

    def read(self, piece: Any) -> None:
        """Take whether the token was drafted, too."""
        # Not by way of `super`: this runs for every token.
        Generation.read(self, piece)
        self.drafts.read(piece)

    def settle(self) -> None:
        """Write the share of what was drafted that the model accepted, too."""
        super().settle()
        share = self.drafts.share
        if share is not None:
            self.facts["draft_accepted_share"] = share
