"""OpenTelemetry for local and remote model calls, without a word of what was said."""

from __future__ import annotations

from sottovoce._version import __version__

# Type checkers know this name; `typing` itself would be most of what this import costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sottovoce.handle import Handle, start
    from sottovoce.instrumentors import (
        AioHTTPInstrumentor,
        AnthropicInstrumentor,
        AzureInferenceInstrumentor,
        BedrockInstrumentor,
        CerebrasInstrumentor,
        CohereInstrumentor,
        GoogleGenAIInstrumentor,
        GroqInstrumentor,
        HTTPClientInstrumentor,
        HTTPXInstrumentor,
        HuggingFaceInstrumentor,
        LlamaCppInstrumentor,
        LM15Instrumentor,
        MCPInstrumentor,
        MistralInstrumentor,
        MLXInstrumentor,
        OllamaInstrumentor,
        OpenAIInstrumentor,
        RequestsInstrumentor,
        TogetherInstrumentor,
        URLLib3Instrumentor,
        XLlamaCppInstrumentor,
    )
    from sottovoce.scopes import agent, conversation, tool

__all__ = [
    "AioHTTPInstrumentor",
    "AnthropicInstrumentor",
    "AzureInferenceInstrumentor",
    "BedrockInstrumentor",
    "CerebrasInstrumentor",
    "CohereInstrumentor",
    "GoogleGenAIInstrumentor",
    "GroqInstrumentor",
    "HTTPClientInstrumentor",
    "HTTPXInstrumentor",
    "Handle",
    "HuggingFaceInstrumentor",
    "LM15Instrumentor",
    "LlamaCppInstrumentor",
    "MCPInstrumentor",
    "MLXInstrumentor",
    "MistralInstrumentor",
    "OllamaInstrumentor",
    "OpenAIInstrumentor",
    "RequestsInstrumentor",
    "TogetherInstrumentor",
    "URLLib3Instrumentor",
    "XLlamaCppInstrumentor",
    "__version__",
    "agent",
    "conversation",
    "start",
    "tool",
]

# A module must not be named like a public name: importing it would hide the name.
_HOMES = {
    "Handle": "sottovoce.handle",
    "start": "sottovoce.handle",
    "agent": "sottovoce.scopes",
    "conversation": "sottovoce.scopes",
    "tool": "sottovoce.scopes",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import sottovoce` alone costs next to nothing."""
    home = _HOMES.get(name)
    if home is None and name in __all__:
        home = "sottovoce.instrumentors"
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - as lazy as the rest

    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
