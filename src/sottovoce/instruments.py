"""The histograms and counters of a call, in each vocabulary of metrics.

Names, units, descriptions and buckets come from the registry. A call records into every
vocabulary that `SOTTOVOCE_SEMCONV` chooses, and into the model server's where it is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sottovoce.measure import Measured
from sottovoce.pages import Book
from sottovoce.privacy import buckets
from sottovoce.registry import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.metrics import Histogram, Meter

    from sottovoce.call import Call
    from sottovoce.pages import Words
    from sottovoce.points import Point
    from sottovoce.privacy.compiled import Choice

USAGE: Final = "gen_ai.client.token.usage"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - a token of text
MODALITY: Final = "gen_ai.token.modality"

_INFERENCE: Final = frozenset({"chat", "text_completion", "generate_content"})
_NS: Final = 1e-9

_SPLIT: Final[Mapping[str, Mapping[str, str]]] = {
    total: {modality: f"{prefix}_{modality}_tokens" for modality in ("text", "image", "audio")}
    for total, prefix in (
        ("input_tokens", "input"),
        ("output_tokens", "output"),
        ("cache_read_tokens", "cache_read"),
    )
}
"""Fact that is a total → modality → fact that is a part of it."""


_PACE: Final[Mapping[str, str]] = {
    "prefill_rate": "sottovoce.engine.prefill.throughput",
    "decode_rate": "sottovoce.engine.decode.throughput",
    "context_fill": "sottovoce.engine.context.utilization",
}
"""Fact → histogram."""

_NO_PACE: Final = (None,) * (1 + len(_PACE))
"""Instead of a token's time, and of the pace, of a call that failed."""

PACE: Final = frozenset(_PACE)
"""Facts that an engine's histograms are made of wherever it runs."""


def _histogram(meter: Meter, name: str) -> Histogram:
    entry = METRICS[name]
    return meter.create_histogram(
        name,
        unit=entry.unit,
        description=entry.description,
        explicit_bucket_boundaries_advisory=entry.boundaries,
    )


def measured_as(meter: Meter, name: str, choice: Choice) -> Measured:
    """Make the histogram that the registry calls `name`."""
    bounds = METRICS[name].boundaries or ()
    return Measured(_histogram(meter, name), bounds=bounds, choice=choice)


class Legacy:
    """The metrics of conventions v1.41, which today's backends read."""

    def __init__(self, meter: Meter, choice: Choice) -> None:
        usage = _histogram(meter, USAGE)
        bounds = METRICS[USAGE].boundaries or ()
        self._book = Book(
            measured_as(meter, "gen_ai.client.operation.duration", choice),
            *(
                Measured(usage, {TOKEN_TYPE: kind}, bounds=bounds, choice=choice)
                for kind in ("input", "output")
            ),
            measured_as(meter, "gen_ai.client.operation.time_to_first_chunk", choice),
            gaps=measured_as(meter, "gen_ai.client.operation.time_per_output_chunk", choice),
        )

    def record(self, call: Call, point: Point, failed: Point) -> None:
        """Record what the call took and used; `failed` says its error as well, if it has one."""
        # What is fetched was used, and counted, by the call that asked for it.
        used: Mapping[str, Any] = {} if call.operation == "fetch_response" else call.facts
        streamed = call.stream and call.chunks
        values = (
            call.duration_ns * _NS,
            used.get("input_tokens"),
            used.get("output_tokens"),
            (call.first_chunk_ns - call.start_ns) * _NS if streamed else None,
        )
        self._book.write(values, point, failed, gaps=call.gaps if streamed else None)


class Latest:
    """The metrics of the conventions' development branch (`gen_ai.client.inference.*`)."""

    def __init__(self, meter: Meter, choice: Choice, *, with_legacy: bool) -> None:
        self._choice = choice
        # Embeddings keep the old duration metric, which `Legacy` already records.
        self._other = None
        if not with_legacy:
            self._other = Book(measured_as(meter, "gen_ai.client.operation.duration", choice))
        self._book = Book(
            *(
                measured_as(meter, f"gen_ai.client.inference.{name}", choice)
                for name in (
                    "duration",
                    "operation.input_tokens",
                    "operation.output_tokens",
                    "time_to_first_chunk",
                )
            ),
            blamed=3,
            gaps=measured_as(meter, "gen_ai.client.inference.time_per_output_chunk", choice),
        )
        self._counters = {
            fact: meter.create_counter(
                name, unit=METRICS[name].unit, description=METRICS[name].description
            )
            for fact, name in (
                ("input_tokens", "gen_ai.client.inference.usage.input_tokens"),
                ("output_tokens", "gen_ai.client.inference.usage.output_tokens"),
                ("cache_read_tokens", "gen_ai.client.inference.usage.cache_read.input_tokens"),
                ("cache_write_tokens", "gen_ai.client.inference.usage.cache_write.input_tokens"),
                ("reasoning_tokens", "gen_ai.client.inference.usage.reasoning.output_tokens"),
            )
        }

    def record(self, call: Call, point: Point, failed: Point) -> None:
        """Record what the call took and used; `failed` says its error as well, if it has one."""
        seconds = call.duration_ns * _NS
        if call.operation not in _INFERENCE:
            if self._other is not None:
                self._other.write((seconds,), point, failed)
            return
        facts: Mapping[str, Any] = call.facts
        streamed = call.stream and call.chunks
        values = (
            seconds,
            facts.get("input_tokens", 0),
            facts.get("output_tokens", 0),
            (call.first_chunk_ns - call.start_ns) * _NS if streamed else None,
        )
        self._book.write(values, point, failed, gaps=call.gaps if streamed else None)
        for fact, counter in self._counters.items():
            if fact in facts:
                for modality, tokens in _split(call, fact).items():
                    attributes = {**point.attributes, MODALITY: modality}
                    counter.add(self._counted(tokens), attributes, point.context)
            elif fact in {"input_tokens", "output_tokens"}:
                counter.add(0, {**point.attributes, MODALITY: "unknown"}, point.context)

    def _counted(self, tokens: int) -> int:
        """`tokens`, or their bucket: a counter that was added to once betrays what was added."""
        return (buckets.count(tokens) or 0) if self._choice.now.coarse else tokens


class Engine:
    """The model server's metrics, for engines that run in this process."""

    def __init__(self, meter: Meter, choice: Choice) -> None:
        pace = [measured_as(meter, name, choice) for name in _PACE.values()]
        self._book = Book(
            measured_as(meter, "gen_ai.server.request.duration", choice),
            measured_as(meter, "gen_ai.server.time_to_first_token", choice),
            measured_as(meter, "gen_ai.server.time_per_output_token", choice),
            *pace,
            worded_from=3,
        )
        self._pace = Book(*pace, worded_from=0)
        self.load_duration = measured_as(meter, "sottovoce.model.load.duration", choice)

    def record(self, call: Call, point: Point, failed: Point, words: Words) -> None:
        """Record what the call took and used, how fast its engine was and how full its context is.

        Args:
            call: that was answered in this process.
            point: of its measurements.
            failed: says its error as well, if it has one.
            words: what is said of the model where its pace is told.
        """
        told: Mapping[str, Any] = call.facts
        pace: tuple[float | None, ...] = _NO_PACE
        if call.error is None:
            pace = (told.get("time_per_output_token_s"), *map(told.get, _PACE))
        lasted = told.get("engine_duration_s", call.duration_ns * _NS)
        self._book.write((lasted, told.get("time_to_first_token_s"), *pace), point, failed, words)

    def record_pace(self, call: Call, point: Point, words: Words) -> None:
        """Record how fast an engine behind HTTP was, and how full its context is."""
        told: Mapping[str, Any] = call.facts
        self._pace.write(tuple(map(told.get, _PACE)), point, point, words)


def _split(call: Call, total: str) -> dict[str, int]:
    """Modality → tokens of the fact `total`; what the provider does not split is ``unknown``."""
    facts: Mapping[str, Any] = call.facts
    tokens = facts[total]
    parts = {
        modality: facts[fact] for modality, fact in _SPLIT.get(total, {}).items() if facts.get(fact)
    }
    rest = tokens - sum(parts.values())
    if rest < 0:
        # Parts of something else.
        parts, rest = {}, tokens
    if rest or not parts:
        # In-process engines are text only.
        modality = "text" if call.in_process else "unknown"
        parts[modality] = parts.get(modality, 0) + rest
    return parts
