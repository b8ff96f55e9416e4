"""One model call as the app sees it: opened, fed facts and chunks, ended exactly once.

Words: a *call* is one logical model operation, retries included; an *attempt* is one HTTP
request of it; a *chunk* is one streamed event; a *fact* is something learnt that is not
content. This module knows no OpenTelemetry, no HTTP and no SDK, and it must never be given
content: `Facts` has no key that could hold any.

Life of a call::

    call = Call(recorder, operation="chat", provider="openai", ...)   # opened
    call.facts["input_tokens"] = 12                                   # fed, from any thread
    call.chunk()                                                      # a streamed event arrived
    call.end()  |  call.fail(exc)  |  call.abandon()                  # the first one wins

All times come from one monotonic clock (`time.perf_counter_ns`), so a duration that is
recorded as a metric equals the length of the span.
"""

from __future__ import annotations

from bisect import bisect_left
from contextvars import ContextVar
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, Final, Literal

Outcome = Literal["completed", "failed", "abandoned", "cancelled"]

CHUNK_BOUNDS_S: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
"""Upper bounds, in seconds, of the buckets that gaps between chunks fall into: those of
`gen_ai.client.operation.time_per_output_chunk` in the GenAI semantic conventions."""

_CHUNK_BOUNDS_NS: Final = tuple(round(bound * 1e9) for bound in CHUNK_BOUNDS_S)

_NONE: Final = 0, 0
_CANCELLED: Final = frozenset({"CancelledError", "Cancelled"})  # asyncio's and trio's


if TYPE_CHECKING:
    from typing import Protocol, TypedDict

    class Facts(TypedDict, total=False):
        """What may be learnt about a call. Counts are non-negative ints, times are seconds.

        `request_*` facts repeat what the app asked for; `record.py` maps every key to the name
        that the conventions give it, and a key without a mapping is never exported.
        """

        request_model: str
        request_stream: bool
        request_temperature: float
        request_top_p: float
        request_top_k: int
        request_max_tokens: int
        request_frequency_penalty: float
        request_presence_penalty: float
        request_choice_count: int
        request_stop_count: int
        request_reasoning_level: str
        request_encoding_formats: list[str]
        request_dimensions: int
        request_service_tier: str
        request_tool_count: int
        output_type: str
        response_model: str
        response_service_tier: str
        finish_reasons: list[str]
        input_tokens: int
        output_tokens: int
        cache_read_tokens: int
        cache_write_tokens: int
        reasoning_tokens: int
        # By modality, where the provider splits its counts: each is part of the total above.
        input_text_tokens: int
        input_image_tokens: int
        input_audio_tokens: int
        input_video_tokens: int
        output_text_tokens: int
        output_image_tokens: int
        output_audio_tokens: int
        cache_read_text_tokens: int
        cache_read_image_tokens: int
        cache_read_audio_tokens: int
        tool_call_count: int
        tool_names: list[str]  # of the tools called, in order; the policy decides what may be seen
        conversation: str  # the app's id of it; the policy makes a pseudonym of it
        user_turn: bool
        # In-process engines only.
        time_to_first_token_s: float
        time_per_output_token_s: float
        engine_duration_s: float
        passes: int
        model_architecture: str
        model_quantization: str
        model_parameters: str
        context_size: int
        # Of engines, in this process or behind HTTP where they tell.
        context_fill: float  # tokens in the context after the call / context size, 0 to 1
        batch_size: int
        prefill_rate: float  # tokens per second, as is the next
        decode_rate: float
        draft_accepted_share: float  # 0 to 1
        model_adapter: bool
        model_offload: str  # "none", "partial" or "full"
        model_size: str  # a tier of memory, of `runtimes.identity`; so is the next but one
        load_s: float  # a load that the request waited for
        queue_s: float  # until the engine began with the request, loading included
        peak_memory: str

else:
    # At run time nobody asks for these, and making them would cost every process a millisecond.
    Facts, Protocol = dict, object


class Recorder(Protocol):
    """Turns a call into telemetry; implemented by `record.SpanRecorder`.

    Every method promises never to raise into the caller.
    """

    def opened(self, call: Call) -> None:
        """The call was opened: start its span, with what a sampler needs."""

    def enter(self, call: Call) -> Any:
        """Make the call's span current in this frame; returns a token for `leave`."""

    def leave(self, token: Any) -> None:
        """Undo `enter`, in the same frame and thread."""

    def ended(self, call: Call) -> None:
        """The call ended: end its span, record its histograms. Called exactly once."""


class Gaps:
    """Gaps between chunks by bucket: constant memory however long the stream is.

    Attributes:
        buckets: place in `CHUNK_BOUNDS_S`, whose bounds are inclusive → how many gaps fell into
            it, and their nanoseconds in all.
        minimum: the shortest gap, in nanoseconds.
        maximum: the longest gap, in nanoseconds.
    """

    __slots__ = ("buckets", "maximum", "minimum", "waiting")

    def __init__(self) -> None:
        self.buckets: dict[int, tuple[int, int]] = {}
        self.minimum = 1 << 62
        self.maximum = 0
        # The last gaps fell into one bucket and are yet to be added: to which, after how many
        # chunks they began and when; and the bucket's shortest and longest gap.
        self.waiting = (0, 0, 0, 1, 0)

    def settle(self, chunks: int, at_ns: int) -> None:
        """Add what waits: the gaps before the last of so many chunks, which came at `at_ns`."""
        bucket, after, since_ns, low, high = self.waiting
        if 0 < after < chunks:
            count, total = self.buckets.get(bucket, _NONE)
            self.buckets[bucket] = count + chunks - after, total + at_ns - since_ns
        self.waiting = bucket, chunks, at_ns, low, high


class Call:
    """One logical model operation.

    Args:
        recorder: what turns the call into telemetry.
        operation: `gen_ai.operation.name` of the conventions: ``chat``, ``embeddings``, …
        provider: `gen_ai.provider.name`: a value of the conventions' list or of ours.
        model: the requested model id exactly as the app gave it; the recorder and the gate
            decide what of it may be seen. ``None`` when the app named none.
        in_process: the model runs in this process (span kind INTERNAL, server metrics).
        served: this process answers a request for it (span kind SERVER, no client metrics).
        local: the model runs on this machine or on a host of the operator's own.
        address: host name of the server, ``None`` in process.
        port: TCP port of the server.
        start_ns: `time.perf_counter_ns` at which the call began; now when absent.
    """

    __slots__ = (
        "__weakref__",
        "_gaps",
        "_open",
        "address",
        "attempts",
        "chunks",
        "duration_ns",
        "end_ns",
        "error",
        "facts",
        "first_chunk_ns",
        "handle",
        "in_process",
        "last_chunk_ns",
        "local",
        "longest",
        "model",
        "operation",
        "outcome",
        "port",
        "provider",
        "recorder",
        "served",
        "shortest",
        "start_ns",
        "start_unix_ns",
        "stream",
    )

    def __init__(
        self,
        recorder: Recorder,
        *,
        operation: str,
        provider: str,
        model: str | None = None,
        in_process: bool = False,
        served: bool = False,
        local: bool = False,
        address: str | None = None,
        port: int | None = None,
        start_ns: int | None = None,
    ) -> None:
        now = perf_counter_ns()
        self.recorder = recorder
        self.operation = operation
        self.provider = provider
        self.model = model
        self.in_process = in_process
        self.served = served
        self.local = local
        self.address = address
        self.port = port
        self.start_ns = now if start_ns is None else start_ns
        self.start_unix_ns = time_ns() - (now - self.start_ns)
        self.facts: Facts = {}
        self.stream = False
        self.attempts = 0
        self.chunks = 0
        self.first_chunk_ns = 0
        self.last_chunk_ns = 0
        self._gaps: Gaps | None = None
        # Nanoseconds: of gaps that need not be looked at one by one; none yet.
        self.shortest, self.longest = 1, 0
        self.outcome: Outcome = "completed"
        self.error: type[BaseException] | str | None = None
        # The second: nanoseconds from start to end; both 0 while the call is open.
        self.end_ns = self.duration_ns = 0
        # Whatever the recorder keeps between `opened` and `ended`; opaque to everyone else.
        self.handle: Any = None
        # Popping is atomic, so the first end wins without a lock.
        self._open = [True]
        recorder.opened(self)

    @property
    def is_open(self) -> bool:
        """Whether nobody has ended the call yet."""
        return bool(self._open)

    def chunk(self) -> None:
        """A streamed event arrived just now."""
        now = perf_counter_ns()
        gap = now - self.last_chunk_ns
        self.last_chunk_ns = now
        self.chunks += 1
        if not self.shortest <= gap <= self.longest:
            self.other_gap(gap)

    def other_gap(self, gap: int) -> None:
        """The last chunk came after another gap than `shortest` to `longest`, or is the first."""
        chunks, now = self.chunks - 1, self.last_chunk_ns
        if not chunks:
            self.first_chunk_ns = now
            return
        gaps = self._gaps
        if gaps is None:
            gaps = self._gaps = Gaps()
        gaps.minimum = minimum = min(gap, gaps.minimum)
        gaps.maximum = maximum = max(gap, gaps.maximum)
        _, _, _, low, high = gaps.waiting
        if not low <= gap <= high:
            bucket = bisect_left(_CHUNK_BOUNDS_NS, gap)
            low = _CHUNK_BOUNDS_NS[bucket - 1] + 1 if bucket else 0
            high = _CHUNK_BOUNDS_NS[bucket] if bucket < len(_CHUNK_BOUNDS_NS) else 1 << 62
            gaps.settle(chunks, now - gap)
            gaps.waiting = bucket, chunks, now - gap, low, high
        self.shortest, self.longest = max(minimum, low), min(maximum, high)

    @property
    def gaps(self) -> Gaps | None:
        """The gaps between all chunks so far; ``None`` when there are none."""
        gaps = self._gaps
        if gaps is not None:
            gaps.settle(self.chunks, self.last_chunk_ns)
        return gaps

    def gather(self) -> None:
        """Write the facts that are kept elsewhere until the call ends. Never raises."""

    def end(self, *, at_ns: int | None = None) -> bool:
        """The call completed. Returns whether this was the end that counted."""
        return self._end("completed", None, at_ns)

    def fail(
        self, error: BaseException | type[BaseException] | str, *, at_ns: int | None = None
    ) -> bool:
        """The call failed with an exception (or its class), or with a provider's error code or HTTP status.

        Of an exception only the class is ever looked at. A task's cancellation is told
        apart from a failure of the provider.
        """
        outcome: Outcome = "failed"
        if isinstance(error, BaseException) and type(error).__name__ in _CANCELLED:
            outcome = "cancelled"
        return self._end(outcome, error, at_ns)

    def abandon(self, *, at_ns: int | None = None) -> bool:
        """The app stopped reading the stream: not an error, ended when the last chunk came.

        `at_ns` is the time to use when no chunk came at all; now when absent.
        """
        return self._end("abandoned", None, self.last_chunk_ns or at_ns)

    def forget(self) -> None:
        """Never end here: in a forked child, where this is a copy of the parent's call."""
        self._open.clear()

    def _end(
        self,
        outcome: Outcome,
        error: BaseException | type[BaseException] | str | None,
        at_ns: int | None,
    ) -> bool:
        if not self._open:
            return False
        try:
            self._open.pop()
        except IndexError:
            return False
        self.end_ns = end_ns = perf_counter_ns() if at_ns is None else at_ns
        self.duration_ns = max(0, end_ns - self.start_ns)
        self.outcome = outcome
        # Keep the class alone: an exception's traceback would keep the app's frames alive.
        self.error = type(error) if isinstance(error, BaseException) else error
        self.recorder.ended(self)
        return True


current_call: ContextVar[Call | None] = ContextVar("sottovoce_current_call", default=None)
"""The call that the code of this frame works for. Set and reset in the same frame, never
left set across a yield: a stream's later chunks reach their call by reference instead."""
