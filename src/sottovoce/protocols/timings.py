"""How long an engine behind HTTP says that it worked: llama.cpp's `timings`, Ollama's durations.

llama.cpp: ``timings`` beside the answer, in a stream with the last chunk (with all of them where
the app asked for it, of which only the last counts), milliseconds; see `tools/server/README.md` of
https://github.com/ggml-org/llama.cpp. Ollama: ``…_duration`` in the last line, nanoseconds; see
https://docs.ollama.com/api/usage. Both time decoding from the first token on, so its rate
leaves that one out. A rate of a single token says nothing and is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeGuard

from sottovoce.protocols.tables import of, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.protocols.tables import Body, Find, Table

_MS: Final = 1e-3
_NS: Final = 1e-9


def rate(tokens: Any, time: Any, unit: float) -> float | None:
    """Give tokens a second; None when it would say nothing.

    Args:
        tokens: how many were read or made in that time.
        time: how long it took, in `unit`.
        unit: seconds.
    """
    if type(tokens) is not int or tokens < 1 or not _is_time(time):
        return None
    return float(tokens / (time * unit)) if time > 0 else None


def _is_time(value: Any) -> TypeGuard[float]:
    return type(value) in {int, float}


def _told(body: Body) -> dict[str, Any]:
    """Give the timings of an answer that is complete: those on the way are of a part of it."""
    timings = body.get("timings")
    if type(timings) is not dict:
        return {}
    choices = body.get("choices")
    for choice in choices if type(choices) is list else ():
        if type(choice) is dict and choice.get("finish_reason") is None:
            return {}
    return timings


def _timing(find: Callable[[dict[str, Any]], Any]) -> Find:
    return of("timings")(lambda body: find(_told(body)))


def _prompt(timings: dict[str, Any]) -> int | None:
    # Servers that do not tell what was cached tell a part of the prompt only.
    cached, read = timings.get("cache_n"), timings.get("prompt_n")
    return cached + read if type(cached) is int and type(read) is int else None


def _read_rate(timings: dict[str, Any]) -> float | None:
    tokens = timings.get("prompt_n")
    return rate(tokens, timings.get("prompt_ms"), _MS) if tokens != 1 else None


def _made_rate(timings: dict[str, Any]) -> float | None:
    return rate(_after_first(timings.get("predicted_n")), timings.get("predicted_ms"), _MS)


def _after_first(tokens: Any) -> Any:
    return tokens - 1 if type(tokens) is int else None


def _accepted(timings: dict[str, Any]) -> float | None:
    drafted, accepted = timings.get("draft_n"), timings.get("draft_n_accepted")
    if type(drafted) is not int or type(accepted) is not int or drafted < 1:
        return None
    return accepted / drafted


TIMINGS: Final[Table] = rows(
    ("input_tokens", _timing(_prompt)),
    ("output_tokens", _timing(lambda timings: timings.get("predicted_n"))),
    ("cache_read_tokens", _timing(lambda timings: timings.get("cache_n"))),
    ("prefill_rate", _timing(_read_rate)),
    ("decode_rate", _timing(_made_rate)),
    ("draft_accepted_share", _timing(_accepted)),
)
"""llama.cpp's. Its counts are for streams, which tell no others unless the app asked."""


@of("load_duration")
def _ollama_loaded(body: Body) -> float | None:
    time = body.get("load_duration")
    return time * _NS if _is_time(time) else None


@of("prompt_eval_duration")
def _ollama_read(body: Body) -> float | None:
    tokens = body.get("prompt_eval_count")
    return rate(tokens, body.get("prompt_eval_duration"), _NS) if tokens != 1 else None


@of("eval_duration")
def _ollama_made(body: Body) -> float | None:
    return rate(_after_first(body.get("eval_count")), body.get("eval_duration"), _NS)


DURATIONS: Final[Table] = rows(
    # What the server found in its cache is among the tokens: an upper bound.
    ("prefill_rate", _ollama_read),
    ("decode_rate", _ollama_made),
    # Milliseconds where the model was there already.
    ("load_s", _ollama_loaded),
)
"""Ollama's."""
