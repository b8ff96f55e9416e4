"""Call → one span and its histograms; the only module that writes `gen_ai` names.

Names, units and buckets come from the registry; which vocabulary is recorded from
`SOTTOVOCE_SEMCONV`. What a call costs is decided here, so attributes are set once as one
mapping, a metric's attribute set is built once a call, and the gaps between chunks are
added to the histogram as bucket counts (`measure.py`), not one by one.

Nothing here may raise into the app, and nothing here ever sees content: a `Call` has none.
Model ids and hosts pass the policy before they become a span name or an attribute, so that
what we emit is clean even where a provider that someone else built is not gated.
"""

from __future__ import annotations

from contextvars import Token
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from sottovoce import guard, own_counters, settings
from sottovoce._version import __version__
from sottovoce.instruments import PACE, Latest, Legacy
from sottovoce.points import NOWHERE, Point
from sottovoce.privacy import policy, propagation
from sottovoce.privacy.rules import FRAMES
from sottovoce.registry import SCHEMA_URLS
from sottovoce.spans import Spans
from sottovoce.steps import current_conversation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from sottovoce.call import Call, Facts
    from sottovoce.record_engines import Engines, Loading

SCOPE: Final = own_counters.SCOPE

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
ADDRESS: Final = "server.address"
PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
CHUNKS: Final = "sottovoce.response.chunks"
OUTCOME: Final = "sottovoce.call.outcome"
RESENDS: Final = "http.request.resend_count"

ATTRIBUTE_OF: Final[Mapping[str, str]] = {
    "request_stream": "gen_ai.request.stream",
    "request_temperature": "gen_ai.request.temperature",
    "request_top_p": "gen_ai.request.top_p",
    "request_top_k": "gen_ai.request.top_k",
    "request_max_tokens": "gen_ai.request.max_tokens",
    "request_frequency_penalty": "gen_ai.request.frequency_penalty",
    "request_presence_penalty": "gen_ai.request.presence_penalty",
    "request_choice_count": "gen_ai.request.choice.count",
    "request_stop_count": "sottovoce.request.stop_sequences.count",
    "request_dimensions": "gen_ai.embeddings.dimension.count",
    "request_tool_count": "sottovoce.request.tools.count",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_write.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "input_text_tokens": "gen_ai.usage.text.input_tokens",
    "input_image_tokens": "gen_ai.usage.image.input_tokens",
    "input_audio_tokens": "gen_ai.usage.audio.input_tokens",
    "input_video_tokens": "sottovoce.usage.video.input_tokens",
    "output_text_tokens": "gen_ai.usage.text.output_tokens",
    "output_image_tokens": "gen_ai.usage.image.output_tokens",
    "output_audio_tokens": "gen_ai.usage.audio.output_tokens",
    "cache_read_text_tokens": "gen_ai.usage.text.cache_read.input_tokens",
    "cache_read_image_tokens": "gen_ai.usage.image.cache_read.input_tokens",
    "cache_read_audio_tokens": "gen_ai.usage.audio.cache_read.input_tokens",
    "tool_call_count": "sottovoce.response.tool_calls.count",
    "user_turn": "sottovoce.request.user_turn",
    "passes": "sottovoce.engine.passes",
    "context_size": "sottovoce.model.context_size",
    "context_fill": "sottovoce.context.utilization",
    "batch_size": "sottovoce.request.batch.size",
    "prefill_rate": "sottovoce.prefill.throughput",
    "decode_rate": "sottovoce.decode.throughput",
    "draft_accepted_share": "sottovoce.draft.acceptance_rate",
    "model_adapter": "sottovoce.model.adapted",
    "load_s": "sottovoce.model.load.wait",
    "queue_s": "sottovoce.request.queue.wait",
}
"""Fact → span attribute, for the facts that are exported as they are: numbers and flags."""

JUDGED: Final[Mapping[str, str]] = {
    "conversation": "gen_ai.conversation.id",
    "request_reasoning_level": "gen_ai.request.reasoning.level",
    "request_encoding_formats": "gen_ai.request.encoding_formats",
    "request_service_tier": "openai.request.service_tier",
    "output_type": "gen_ai.output.type",
    "response_service_tier": "openai.response.service_tier",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "model_architecture": "sottovoce.model.architecture",
    "model_quantization": "sottovoce.model.quantization",
    "model_parameters": "sottovoce.model.parameters",
    "model_size": "sottovoce.model.size",
    "model_offload": "sottovoce.model.offload",
    "peak_memory": "sottovoce.memory.peak",
    "tool_names": "sottovoce.response.tool_calls.names",
}
"""Fact → span attribute, for words: an app, a server or a model's file can say anything where
one is expected, so the policy decides what is exported, also where nobody gates the provider."""

_NAMED: Final[Mapping[str, str]] = {**ATTRIBUTE_OF, **JUDGED}
_NS: Final = 1e-9
_SUPPRESSED: Final = "suppress_instrumentation"
_MOST_SAID: Final = 1000
_LONGEST_SAID: Final = 200


class Handle:
    """What the recorder keeps of an open call."""

    __slots__ = ("attributes", "context", "span")

    def __init__(self, span: Span, context: Context, attributes: dict[str, Any]) -> None:
        self.span = span
        self.context = context
        self.attributes = attributes


class Recording:
    """What recorders share: tracer, meter and policy, and how a span becomes the current one.

    Args:
        tracer_provider: where spans go; the global one when absent.
        meter_provider: where histograms go; the global one when absent.
        settings: read from the environment when absent.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        settings_: settings.Settings | None = None,
    ) -> None:
        self._settings = chosen = settings_ or settings.read()[0]
        self._policy = policy.active(chosen)
        self._withhold = chosen.propagation == "own"
        schema = SCHEMA_URLS["latest" if chosen.semconv == "latest" else "v1.41"]
        tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, schema_url=schema)
        self._spans = Spans(tracer, self._policy)
        self._meters = meter_provider or metrics.get_meter_provider()
        self._meter = self._meters.get_meter(SCOPE, __version__, schema_url=schema)
        own_counters.observe(self._meters, self._meter, self._policy)

    def enabled(self) -> bool:
        """Whether what the app does now is recorded: neither it nor the profile forbids it."""
        if self._policy.choice.now.off:
            return False
        # As `is_instrumentation_enabled` of opentelemetry-instrumentation, in fewer calls.
        context = otel_context.get_current()
        return not (context.get(_SUPPRESS_INSTRUMENTATION_KEY) or context.get(_SUPPRESSED))

    def enter(self, call: Call) -> Any:
        """Make the call's span current; context goes no further than to hosts of our own."""
        try:
            handle: Handle | None = call.handle
            if handle is None:
                return None
            context = handle.context
            if self._withhold and not call.local:
                # As `set_value`, which copies twice.
                context = Context({**context, propagation.WITHHOLD: True})
            return otel_context.attach(context)
        except Exception:  # noqa: BLE001 - never into the app
            guard.failed("record.enter")
            return None

    def leave(self, token: Any) -> None:
        """Undo `enter` in the frame that called it."""
        try:
            if isinstance(token, Token):
                token.var.reset(token)
            elif token is not None:
                otel_context.detach(token)
        except ValueError:
            pass  # a dropped coroutine, closed in another context: `detach` would log an error
        except Exception:  # noqa: BLE001 - never into the app
            guard.failed("record.leave")

    @guard.never_raise("record.join")
    def join(self, headers: Mapping[str, str]) -> Any:
        """Make the caller's span, as a request's headers name it, the parent of what begins here.

        Not where a span of the caller's trace is current: whoever made it has read the headers.
        Baggage and trace state are left where they are. Returns a token for `leave`.
        """
        span = propagation.caller(headers)
        caller, current = span.get_span_context(), trace.get_current_span().get_span_context()
        if not caller.is_valid or caller.trace_id == current.trace_id:
            return None
        return otel_context.attach(trace.set_span_in_context(span))

    @guard.never_raise("record.carried")
    def carried(self, call: Call, *, local: bool) -> Mapping[str, str] | None:
        """Give the headers that make the call's span the parent of what a server does for it.

        Args:
            call: whose request is about to be sent.
            local: it goes to this machine or to a host of the operator's own.
        """
        handle: Handle | None = call.handle
        if handle is None or (self._withhold and not local):
            return None
        return propagation.headers(handle.context)

    def withholds(self, call: Call) -> bool:
        """Whether trace context must not go where this call goes."""
        return self._withhold and not call.local

    def _where(self, call: Call) -> dict[str, Any]:
        """Say which server, as far as the policy lets it be said."""
        address = self._policy.address(call.address, local=call.local)
        if not address:
            return {}
        return {ADDRESS: address} if call.port is None else {ADDRESS: address, PORT: call.port}


class SpanRecorder(Recording):
    """Implements `call.Recorder` for model calls, with OpenTelemetry's tracer and meter."""

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        settings_: settings.Settings | None = None,
    ) -> None:
        super().__init__(tracer_provider, meter_provider, settings_)
        meter, semconv = self._meter, self._settings.semconv
        legacy = semconv in {"v1.41", "both"}
        latest = semconv in {"latest", "both"}
        self._vocabularies: list[Legacy | Latest] = []
        if legacy:
            self._vocabularies.append(Legacy(meter, self._policy.choice))
        if latest:
            self._vocabularies.append(Latest(meter, self._policy.choice, with_legacy=legacy))
        self._made_engines: Engines | None = None
        self._said: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}

    def opened(self, call: Call) -> None:
        """Start the span with what a sampler needs; the facts follow when the call ends."""
        try:
            key = (call.operation, call.provider, call.model, call.local, call.address, call.port)
            name, said = self._said.get(key) or self._say(call, key)
            conversation = current_conversation.get()
            if conversation is not None:
                call.facts["conversation"] = conversation
            attributes = said.copy()
            span, context = self._spans.begin(
                name,
                attributes,
                otel_context.get_current(),
                kind=_kind(call),
                start_ns=call.start_unix_ns,
            )
            call.handle = Handle(span, context, attributes)
        except Exception:  # noqa: BLE001 - never into the app
            guard.failed("record.opened")

    def _say(self, call: Call, key: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
        """Give the name and the first attributes of a call's span, and remember them."""
        attributes: dict[str, Any] = {OPERATION: call.operation, PROVIDER: call.provider}
        name = call.operation
        if call.model:
            model = attributes[REQUEST_MODEL] = self._policy.model(call.model, local=call.local)
            name = f"{name} {model}"
        attributes.update(self._where(call))
        if len(self._said) < _MOST_SAID and len(call.model or "") <= _LONGEST_SAID:
            self._said[key] = name, attributes
        return name, attributes

    @guard.never_raise("record.named")
    def named(self, call: Call) -> None:
        """Say which model answers an open call, where that was not known when it began."""
        handle: Handle | None = call.handle
        if handle is None or not call.model:
            return
        model = handle.attributes[REQUEST_MODEL] = self._policy.model(call.model, local=call.local)
        if handle.span.is_recording():
            handle.span.update_name(f"{call.operation} {model}")
            self._spans.finish(handle.span, {REQUEST_MODEL: model}, handle.attributes)

    def ended(self, call: Call) -> None:
        """Set the rest of the attributes, end the span, record the histograms."""
        try:
            handle: Handle | None = call.handle
            if handle is not None:
                call.handle = None
                self._end(call, handle)
        except Exception:  # noqa: BLE001 - never into the app
            guard.failed("record.ended")

    def _end(self, call: Call, handle: Handle) -> None:
        facts, common = call.facts, handle.attributes
        if "response_model" in facts:
            common[RESPONSE_MODEL] = self._policy.model(facts["response_model"], local=call.local)
        error = None
        if call.error is not None:
            error = self._policy.error(call.error)
        attributes: dict[str, Any] = {}
        try:
            if handle.span.is_recording():
                attributes = self._last(call, handle, error)
        finally:
            self._spans.end(handle.span, attributes, common, call.start_unix_ns, call.duration_ns)
        now, context = self._policy.choice.now, handle.context
        if now.off:
            return
        ids = handle.span.get_span_context()
        span = ids if ids.is_valid else None
        if now.coarse:
            # Also where nobody gates the meter.
            common, context, span = self._policy.attributes(common, "metric"), NOWHERE, None
        point = failed = Point(common, context, span=span)
        if error is not None:
            failed = Point({**common, ERROR_TYPE: error}, context, span=span)
        # Who asked records the client's metrics.
        for vocabulary in () if call.served else self._vocabularies:
            vocabulary.record(call, point, failed)
        if call.in_process or not PACE.isdisjoint(facts):
            self._engines.record(call, point, failed)

    @property
    def _engines(self) -> Engines:
        made = self._made_engines
        if made is None:
            from sottovoce.record_engines import Engines  # noqa: PLC0415 - most apps have none

            made = self._made_engines = Engines(
                self._spans, self._meters, self._meter, self._policy, withhold=self._withhold
            )
        return made

    def _last(self, call: Call, handle: Handle, error: str | None) -> dict[str, Any]:
        """Give what the span says of how the call ended, and set its status."""
        attributes: dict[str, Any] = {OUTCOME: call.outcome}
        for fact, value in call.facts.items():
            name = _NAMED.get(fact)
            if name is not None:
                # As the policy remembers lists.
                attributes[name] = tuple(value) if type(value) is list else value
        if RESPONSE_MODEL in handle.attributes:
            attributes[RESPONSE_MODEL] = handle.attributes[RESPONSE_MODEL]
        if call.stream:
            attributes["gen_ai.request.stream"] = True
            attributes[CHUNKS] = call.chunks
            if call.chunks:
                attributes[FIRST_CHUNK] = (call.first_chunk_ns - call.start_ns) * _NS
        else:
            # The convention: only set when streaming.
            attributes.pop("gen_ai.request.stream", None)
        if call.attempts > 1:
            attributes[RESENDS] = call.attempts - 1
        if error is not None:
            attributes[ERROR_TYPE] = error
            told = self._policy.frames
            found = told.handled(call.error) if told and call.error is not None else ()
            if found:
                attributes[FRAMES] = found
            handle.span.set_status(Status(StatusCode.ERROR))
        return attributes

    @guard.never_raise("record.loading")
    def loading(self, provider: str) -> Loading | None:
        """A model is being loaded into this process; returns what `loaded` gets in the same frame."""
        return self._engines.begin(provider)

    @guard.never_raise("record.loaded")
    def loaded(
        self,
        provider: str,
        facts: Facts,
        seconds: float,
        error: BaseException | str | None = None,
        loading: Loading | None = None,
    ) -> None:
        """A model was loaded into this process, or failed to be, in `seconds` of wall time."""
        self._engines.loaded(provider, facts, seconds, error, loading)


def _kind(call: Call) -> SpanKind:
    if call.served:
        return SpanKind.SERVER
    return SpanKind.INTERNAL if call.in_process else SpanKind.CLIENT
