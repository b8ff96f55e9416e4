"""What a batch of mlx-lm's learns, and a sequence of one that an app keeps by itself.

How their tokens get here stands in `mlx_batch.py`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

from sottovoce.guard import never_raise
from sottovoce.runtimes import mlx_call
from sottovoce.runtimes.engine import NS
from sottovoce.runtimes.mlx_call import MlxCall

if TYPE_CHECKING:
    from sottovoce.runtimes.engine import Runtime
    from sottovoce.runtimes.identity import Identity
    from sottovoce.runtimes.mlx_cache import Held

MOST_REASONS: Final = 64
"""Finish reasons that a call tells at most, in the order of the prompts."""


class Clock(Protocol):
    """How long a generator has worked.

    Attributes:
        busy_ns: nanoseconds, in all its steps.
    """

    busy_ns: int


class Batch(MlxCall):
    """A call for many prompts: counts of all, and the finish reason of each."""

    __slots__ = ("reasons", "sizes", "steps")

    def __init__(
        self,
        runtime: Runtime,
        size: int,
        identity: Identity | None,
        held: Held,
        asked: dict[str, Any],
    ) -> None:
        # How long each sequence is, and why it ended.
        self.sizes: dict[Any, int] = {}
        self.reasons: dict[Any, str] = {}
        self.steps = 0
        MlxCall.__init__(self, runtime, identity, False, held, asked)
        self.prompt = 0
        self.facts["batch_size"] = size

    def settle(self) -> None:
        """Write what all sequences add up to."""
        MlxCall.settle(self)
        facts, reasons = self.facts, self.reasons
        if self.first_ns:
            self.count_input(self.prompt)
            facts["output_tokens"] = self.made - list(reasons.values()).count("stop")
        if reasons:
            found = filter(None, map(reasons.get, self.sizes))
            facts["finish_reasons"] = list(islice(found, MOST_REASONS))
        if self.steps > 1:
            # What one sequence waits for its next token, whatever else is in the batch.
            per_token = (self.busy_ns - self.first_ns) / (self.steps - 1)
            facts["time_per_output_token_s"] = max(0.0, per_token * NS)
        size = facts.get("context_size")
        if size and self.sizes:
            facts["context_fill"] = min(1.0, max(self.sizes.values()) / size)

    @never_raise("mlx.learn")
    def learn(self, result: Any) -> None:
        """Take what mlx-lm measured: only it knows which of its steps read and which wrote."""
        stats = result.stats
        reading, writing = stats.prompt_time, stats.generation_time
        if reading > 0 and self.prompt:
            self.facts["prefill_rate"] = self.prompt / reading
        if writing > 0:
            self.facts["decode_rate"] = self.made / writing
        self.peak = mlx_call.peak()


class Sequence(MlxCall):
    """One sequence that the app inserted into a generator of its own."""

    __slots__ = ("alone", "batch", "began_ns")

    def __init__(  # noqa: PLR0917 - as `EngineCall`
        self,
        runtime: Runtime,
        batch: Clock,
        prompt: int,
        identity: Identity | None,
        held: Held,
        asked: dict[str, Any],
    ) -> None:
        # Whether it had the generator for itself until its first token.
        self.alone = False
        # Its clock, until nothing more is asked of it.
        self.batch: Clock | None = batch
        self.began_ns = batch.busy_ns
        MlxCall.__init__(self, runtime, identity, True, held, asked)
        self.prompt = prompt

    def gather(self) -> None:
        """Take the time on the generator's clock, too. Never raises."""
        batch, self.batch = self.batch, None
        if batch is not None:
            self.busy_ns = batch.busy_ns - self.began_ns
        MlxCall.gather(self)
        if not self.alone:
            self.facts.pop("prefill_rate", None)

    def settle(self) -> None:
        """Write what was counted of the sequence."""
        MlxCall.settle(self)
        if self.first_ns:
            self.count_input(self.prompt)
            self.facts["output_tokens"] = self.made - (self.reason == "stop")
        if isinstance(self.reason, str):
            self.facts["finish_reasons"] = [self.reason]
