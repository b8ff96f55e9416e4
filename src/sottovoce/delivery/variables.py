"""Variables of the SDK's own that it fails on, or sends nothing by, when it cannot use them.

And what may be said of an error that the operator's configuration makes in somebody's code.

OpenTelemetry would have an unusable value ignored, with a warning; its Python SDK raises an
error at import or when a provider is made (1.45), and the app would start without telemetry.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_SDKS: Final[tuple[tuple[frozenset[str], str, str], ...]] = (
    (
        frozenset(
            f"OTEL_{owner}{what}_{measure}_LIMIT"
            for owner in ("", "SPAN_", "EVENT_", "LINK_", "LOGRECORD_")
            for what in ("ATTRIBUTE", "EVENT", "LINK")
            for measure in ("COUNT", "VALUE_LENGTH")
        ),
        r"\d*",
        "give a whole number from 0",
    ),
    (
        frozenset(
            f"OTEL_{processor}_{what}"
            for processor in ("BSP", "BLRP")
            for what in (
                "SCHEDULE_DELAY", "EXPORT_TIMEOUT", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE",
            )
        ),
        r"0*[1-9]\d*",
        "give a whole number from 1",
    ),
    (
        frozenset(
            f"OTEL_EXPORTER_OTLP_{signal}TIMEOUT" for signal in ("", "TRACES_", "METRICS_", "LOGS_")
        ),
        r"(?=[\d.]*[1-9])(?:\d+\.?\d*|\.\d+)(?:e[+\-]?\d{1,2})?",
        "give a number of seconds above 0",
    ),
    (
        frozenset({"OTEL_METRICS_EXEMPLAR_FILTER"}),
        r"always_on|always_off|trace_based",
        "choose one of always_on, always_off, trace_based",
    ),
)  # fmt: skip
"""Variables, the pattern of what can be used, and what to use instead. No pattern is compiled
before there is a value: most processes have none of these."""


_QUOTED: Final = r"([\"'`]).*\1"
_CUT: Final = r"[\"'`].*\Z"
_WHERE_AND_WHO: Final = r"://\S*|\S*@\S*|\d{3,}"
_WORDS: Final = r"[\"'`]([a-z]{1,16}(?:_[a-z]{1,16}){1,3})[\"'`]"
_LONGEST: Final = 200


def told(error: Exception) -> str:
    """What an error says of the operator's configuration, without the values that it quotes.

    Keys, headers and addresses are among those: its first line without what stands in quotation
    marks, addresses after their scheme, and long numbers; of what was quoted the first name, such
    as ``otlp_http``, at the end.
    """
    line = str(error).strip().partition("\n")[0][:_LONGEST]
    name = re.search(_WORDS, line)
    for pattern in (_QUOTED, _CUT, _WHERE_AND_WHO):
        line = re.sub(pattern, "…", line)
    return f"{type(error).__name__}: {line}" + (f": {name[1]}" if name else "")


def unusable(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that the SDK cannot use, with a warning for each."""
    return {
        variable: f"{variable}: {value[:64]!r} cannot be used; {choices}. Using the default."
        for variables, usable, choices in _SDKS
        for variable, value in sorted(environ.items())
        if variable in variables and not re.fullmatch(usable, value.strip(), re.IGNORECASE)
    }
