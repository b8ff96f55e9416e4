"""Other instrumentations of what ours record: each would make a second span of every call.

Under the launcher they are not applied, unless the operator says so or has disabled ours.
What an app applies from code is its own choice; those spans pass the gate like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from opentelemetry.util._importlib_metadata import EntryPoint

RIVALS: Final[Mapping[str, str]] = {
    # OpenTelemetry's own, by their entry points in November 2026.
    "opentelemetry.instrumentation.genai.anthropic": "sottovoce_anthropic",
    "opentelemetry.instrumentation.genai.openai": "sottovoce_openai",
    "opentelemetry.instrumentation.google_genai": "sottovoce_google_genai",
    "opentelemetry.instrumentation.openai_v2": "sottovoce_openai",
    # OpenLLMetry's; Elastic's has the module of its openai.
    "opentelemetry.instrumentation.anthropic": "sottovoce_anthropic",
    "opentelemetry.instrumentation.bedrock": "sottovoce_bedrock",
    "opentelemetry.instrumentation.cohere": "sottovoce_cohere",
    "opentelemetry.instrumentation.google_generativeai": "sottovoce_google_genai",
    "opentelemetry.instrumentation.groq": "sottovoce_groq",
    "opentelemetry.instrumentation.mcp": "sottovoce_mcp",
    "opentelemetry.instrumentation.mistralai": "sottovoce_mistral",
    "opentelemetry.instrumentation.ollama": "sottovoce_ollama",
    "opentelemetry.instrumentation.openai": "sottovoce_openai",
    "opentelemetry.instrumentation.together": "sottovoce_together",
    # OpenInference's; its `mcp` only carries context.
    "openinference.instrumentation.anthropic": "sottovoce_anthropic",
    "openinference.instrumentation.bedrock": "sottovoce_bedrock",
    "openinference.instrumentation.google_genai": "sottovoce_google_genai",
    "openinference.instrumentation.groq": "sottovoce_groq",
    "openinference.instrumentation.litellm": "sottovoce_httpx",
    "openinference.instrumentation.mistralai": "sottovoce_mistral",
    "openinference.instrumentation.openai": "sottovoce_openai",
}
"""Module of an instrumentor -> the entry point of ours that records the same calls."""


def covered_by(entry_point: EntryPoint, disabled: Collection[str] = ()) -> str | None:
    """Name the entry point of ours that records what `entry_point`'s instrumentor would.

    Args:
        entry_point: of the group ``opentelemetry_instrumentor``.
        disabled: names in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``.

    Returns:
        The name; None for anything else, and where ours is disabled.
    """
    module = entry_point.value.partition(":")[0]
    ours = RIVALS.get(module)
    return None if ours in disabled or "*" in disabled else ours
