"""Which path is which operation in which protocol: the one table.

A path counts by how it ends, under any prefix (`/v1`, `/api/v1`, `/openai/deployments/NAME`),
so that a gateway or a local server needs no row of its own. A protocol is loaded when the first
path comes that asks for it: most processes ask in one or two.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from sottovoce.protocols import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

    from sottovoce.call import Facts
    from sottovoce.protocols.protocol import Protocol


_NO_FACTS: Final[Facts] = {}


class Route:
    """What a path asks for.

    Attributes:
        operation: by its name in the conventions.
        protocol: what it is asked and answered in.
        provider: who answers, where the address does not say.
        unmistakable: nobody uses the path for anything else, so that the body need not name
            a model, nor be readable.
        facts: what the path itself says: a model, that the answer is streamed.
        anywhere: a client that opens a call for it sends it to a path that does not say so.
        sign: key of a request's body that tells it from what other apps use the path for, on
            hosts of the operator's own.
    """

    # No NamedTuple here and beside it: each is made anew by every process, for a tenth of a
    # millisecond.

    __slots__ = (
        "anywhere", "facts", "operation", "protocol", "provider", "sign", "unmistakable",
    )  # fmt: skip

    protocol: Protocol

    def __init__(
        self,
        operation: str,
        protocol: Any,
        provider: str | None = None,
        *,
        unmistakable: bool = False,
        facts: Facts = _NO_FACTS,
        anywhere: bool = False,
        sign: str | None = None,
    ) -> None:
        self.operation = operation
        self.protocol = protocol
        self.provider = provider
        self.unmistakable = unmistakable
        self.facts = facts
        self.anywhere = anywhere
        self.sign = sign

    def but(self, **changes: Any) -> Self:
        """Give the same with other values."""
        values: dict[str, Any] = {name: getattr(self, name) for name in Route.__slots__}
        return type(self)(**{**values, **changes})


class Row(Route):
    """A `Route` whose protocol is not loaded yet, but named: ``module:NAME``."""

    __slots__ = ()

    protocol: Any

    def route(self, facts: Facts | None = None) -> Route:
        """Load the protocol; `facts` are what the path says besides."""
        module, _, name = self.protocol.partition(":")
        return Route(
            self.operation,
            getattr(import_module(f"{__package__}.{module}"), name),
            self.provider,
            unmistakable=self.unmistakable,
            facts={**self.facts, **facts} if facts else self.facts,
            sign=self.sign,
        )


class PathRoute:
    """A route whose path holds facts: ``models/NAME:generateContent``, ``model/NAME/converse``.

    Attributes:
        route: without those facts.
        read: finds them in a path; None when the path is not of this kind after all.
        models: (part of a model's id, route) where the model decides; the first that fits
            counts.
    """

    __slots__ = ("models", "read", "route")

    def __init__(
        self,
        route: Row,
        read: Callable[[str], Facts | None],
        models: tuple[tuple[str, Row], ...] = (),
    ) -> None:
        self.route = route
        self.read = read
        self.models = models


ANTHROPIC_MESSAGES: Final = "anthropic_messages:ANTHROPIC_MESSAGES"
BEDROCK_CONVERSE: Final = "bedrock_converse:BEDROCK_CONVERSE"
BEDROCK_EMBEDDINGS: Final = "bedrock_invoke:BEDROCK_EMBEDDINGS"
BEDROCK_INVOKE: Final = "bedrock_invoke:BEDROCK_INVOKE"
COHERE_CHAT: Final = "cohere:COHERE_CHAT"
COHERE_EMBED: Final = "cohere:COHERE_EMBED"
RERANK: Final = "cohere:RERANK"
GEMINI: Final = "gemini:GEMINI"
GEMINI_EMBEDDINGS: Final = "gemini:GEMINI_EMBEDDINGS"
GEMINI_INTERACTIONS: Final = "gemini_interactions:GEMINI_INTERACTIONS"
HF_FEATURES: Final = "huggingface:HF_FEATURES"
HF_TEXT_GENERATION: Final = "huggingface:HF_TEXT_GENERATION"
LLAMA_COMPLETION: Final = "llama_server:LLAMA_COMPLETION"
LLAMA_EMBEDDING: Final = "llama_server:LLAMA_EMBEDDING"
LM_STUDIO_CHAT: Final = "lm_studio:LM_STUDIO_CHAT"
MISTRAL_CONVERSATIONS: Final = "mistral_conversations:MISTRAL_CONVERSATIONS"
MISTRAL_OCR: Final = "mistral:MISTRAL_OCR"
OLLAMA_CHAT: Final = "ollama:OLLAMA_CHAT"
OLLAMA_EMBED: Final = "ollama:OLLAMA_EMBED"
OLLAMA_GENERATE: Final = "ollama:OLLAMA_GENERATE"
OPENAI_AUDIO: Final = "openai_audio:OPENAI_AUDIO"
OPENAI_CHAT: Final = "openai_chat:OPENAI_CHAT"
OPENAI_COMPLETIONS: Final = "openai_completions:OPENAI_COMPLETIONS"
OPENAI_EMBEDDINGS: Final = "openai_embeddings:OPENAI_EMBEDDINGS"
OPENAI_IMAGES: Final = "openai_images:OPENAI_IMAGES"
OPENAI_MODERATIONS: Final = "openai_moderations:OPENAI_MODERATIONS"
OPENAI_RESPONSES: Final = "openai_responses:OPENAI_RESPONSES"


def _generates(protocol: str, output: str) -> Row:
    """Give the row of what is neither text nor chat: the conventions' name for the rest."""
    return Row("generate_content", protocol, unmistakable=True, facts={"output_type": output})


_IMAGES = _generates(OPENAI_IMAGES, "image")
_TRANSCRIPTS = _generates(OPENAI_AUDIO, "text")
_MESSAGES = Row("chat", ANTHROPIC_MESSAGES, "anthropic")

ROUTES: Final[dict[str, Row]] = {
    "chat/completions": Row("chat", OPENAI_CHAT, unmistakable=True),
    "completions": Row("text_completion", OPENAI_COMPLETIONS),
    "responses": Row("chat", OPENAI_RESPONSES),
    "responses/compact": Row("chat", OPENAI_RESPONSES),
    # Judgements in a schema of the provider's; asked and counted like responses.
    "decisions": Row("generate_content", OPENAI_RESPONSES, facts={"output_type": "json"}),
    "embeddings": Row("embeddings", OPENAI_EMBEDDINGS),
    "v1/sonar": Row("chat", OPENAI_CHAT, "perplexity"),
    "agents/completions": Row("chat", OPENAI_CHAT, "mistral_ai", unmistakable=True),
    "fim/completions": Row("text_completion", OPENAI_COMPLETIONS, "mistral_ai", unmistakable=True),
    "interactions": Row("generate_content", GEMINI_INTERACTIONS, "gcp.gen_ai"),
    "ocr": Row("generate_content", MISTRAL_OCR, "mistral_ai"),
    "images/generations": _IMAGES,
    "images/edits": _IMAGES,
    "images/variations": _IMAGES,
    "audio/speech": _generates(OPENAI_AUDIO, "speech"),
    "audio/transcriptions": _TRANSCRIPTS,
    "audio/translations": _TRANSCRIPTS,
    "moderations": Row("moderation", OPENAI_MODERATIONS),
    "v1/messages": _MESSAGES,
    "api/chat": Row("chat", OLLAMA_CHAT, "ollama"),
    "api/generate": Row("text_completion", OLLAMA_GENERATE, "ollama"),
    "api/embed": Row("embeddings", OLLAMA_EMBED, "ollama"),
    "api/embeddings": Row("embeddings", OLLAMA_EMBED, "ollama"),
    "api/v1/chat": Row("chat", LM_STUDIO_CHAT, "lm_studio", sign="input"),
    "v1/chat": Row("chat", COHERE_CHAT, "cohere"),
    "v2/chat": Row("chat", COHERE_CHAT, "cohere"),
    "v1/generate": Row("text_completion", COHERE_CHAT, "cohere"),
    "v1/embed": Row("embeddings", COHERE_EMBED, "cohere"),
    "v2/embed": Row("embeddings", COHERE_EMBED, "cohere"),
    "v2/rerank": Row("rerank", RERANK, "cohere"),
    "rerank": Row("rerank", RERANK),
    "reranking": Row("rerank", RERANK, "llama_cpp"),
    "generate": Row("text_completion", HF_TEXT_GENERATION, "hugging_face", sign="inputs"),
    # Text Generation Inference answers here, too, but so do servers for other tasks.
    "": Row("text_completion", HF_TEXT_GENERATION, "hugging_face", sign="max_new_tokens"),
    "completion": Row("text_completion", LLAMA_COMPLETION, "llama_cpp", sign="prompt"),
    "infill": Row("text_completion", LLAMA_COMPLETION, "llama_cpp", sign="input_prefix"),
    "embedding": Row("embeddings", LLAMA_EMBEDDING, "llama_cpp", sign="content"),
    "generate_stream": Row(
        "text_completion", HF_TEXT_GENERATION, "hugging_face", unmistakable=True
    ),
}
"""By how a path ends: whole segments, the longest ending that fits counts; "" is no path at all."""


# OpenAI keeps what was said at the same paths, and asks no model there.
_CONVERSES = Row("chat", MISTRAL_CONVERSATIONS, "mistral_ai", sign="inputs")

_CONVERSE = Row("chat", BEDROCK_CONVERSE, "aws.bedrock", unmistakable=True)
_INVOKE = Row("chat", BEDROCK_INVOKE, "aws.bedrock", unmistakable=True)
_PICTURES = _INVOKE.but(operation="generate_content", facts={"output_type": "image"})
_INVOKED = (
    ("embed", _INVOKE.but(operation="embeddings", protocol=BEDROCK_EMBEDDINGS)),
    ("rerank", _INVOKE.but(operation="rerank")),
    ("titan-text", _INVOKE.but(operation="text_completion")),
    ("titan-tg1", _INVOKE.but(operation="text_completion")),
    ("titan-image", _PICTURES),
    ("nova-canvas", _PICTURES),
    ("stability.", _PICTURES),
)


_CLAUDE = (
    PathRoute(_MESSAGES.but(provider="gcp.vertex_ai", unmistakable=True), paths.vertex_claude),
)

# Models of two companies answer to the same verbs, in their own formats.
_RAW = (*_CLAUDE, PathRoute(Row("chat", OPENAI_CHAT, "gcp.vertex_ai"), paths.vertex_mistral))

# Which of Google's services it is, is known by the host alone.
_GENERATE = Row("generate_content", GEMINI, "gcp.gen_ai", unmistakable=True)
_EMBED = Row("embeddings", GEMINI_EMBEDDINGS, "gcp.gen_ai", unmistakable=True)

_FETCH = Row("fetch_response", OPENAI_RESPONSES)

VERBS: Final[dict[str, tuple[PathRoute, ...]]] = {
    "converse": (PathRoute(_CONVERSE, paths.bedrock),),
    "converse-stream": (PathRoute(_CONVERSE, paths.bedrock_stream),),
    "invoke": (PathRoute(_INVOKE, paths.bedrock, _INVOKED),),
    "invoke-with-response-stream": (PathRoute(_INVOKE, paths.bedrock_stream, _INVOKED),),
    "generateContent": (PathRoute(_GENERATE, paths.gemini),),
    "streamGenerateContent": (PathRoute(_GENERATE, paths.gemini_stream),),
    "embedContent": (PathRoute(_EMBED, paths.gemini),),
    "batchEmbedContents": (PathRoute(_EMBED, paths.gemini),),
    "predict": (
        PathRoute(_EMBED, paths.google_embedder),
        PathRoute(_GENERATE, paths.google_painter),
    ),
    "predictLongRunning": (PathRoute(_GENERATE, paths.google_painter),),
    "conversations": (PathRoute(_CONVERSES, paths.conversation),),
    "restart": (PathRoute(_CONVERSES, paths.conversation),),
    paths.CONVERSATION: (PathRoute(_CONVERSES, paths.conversation),),
    "feature-extraction": (
        PathRoute(
            Row("embeddings", HF_FEATURES, "hugging_face", unmistakable=True),
            paths.huggingface,
        ),
    ),
    "rawPredict": _RAW,
    "streamRawPredict": _RAW,
}
"""By the last segment of a path, or by what follows its last colon; the first that can read
the path counts."""


def _by_last_segment() -> dict[str, list[str]]:
    endings: dict[str, list[str]] = {}
    for ending in sorted(ROUTES, key=len, reverse=True):
        endings.setdefault(ending.rpartition("/")[2], []).append(ending)
    return endings


_ENDINGS: Final = _by_last_segment()

_matched: dict[str, Route] = {}
_MOST: Final = 512
_LONGEST: Final = 256


def match(method: str, path: str) -> Route | None:
    """Find what a request is for.

    Args:
        method: of the HTTP request; only ``POST`` asks a model, and ``GET`` for what it made.
        path: of the URL, with or without a query; or the whole URL.

    Returns:
        The route, or None, at the cost of a look at the last segment. On hosts that are not
        known to be a provider's, and paths that are not unmistakable, a request without
        `request_model` among its facts is somebody else's ``/responses``.
    """
    if method != "POST":
        method = method.upper()
        if method != "POST":
            return _fetched(path) if method == "GET" and "responses/" in path else None
    route = _matched.get(path)
    return _match(path) if route is None else route


def _match(path: str) -> Route | None:
    if "?" in path:
        path = path[: path.index("?")]
    if path[-1:] == "/":
        path = path.rstrip("/")
    slash = path.rfind("/")
    if path[slash - 2 : slash] == ":/" and path[0] != "/" and path.find("://") == slash - 2:
        # An address that has no path.
        path, slash = "", -1
    last = path[slash + 1 :]
    verb = last[last.rfind(":") + 1 :] if ":" in last else last
    if last[: len(paths.CONVERSATION)] == paths.CONVERSATION:
        verb = paths.CONVERSATION
    if last not in _ENDINGS and verb not in VERBS:
        # What apps ask of others: said fast, and not kept.
        return None
    if path[:1] != "/" and "://" in path:
        path = path[path.index("/", path.index("://") + 3) :]
    route = _matched.get(path) or _route(path, _ENDINGS.get(last, ()), VERBS.get(verb, ()))
    # Without the query, and the host, that it was given with.
    if route is not None and path not in _matched and len(path) <= _LONGEST:
        # Most processes ask on a few paths: found at once when they come again.
        if len(_matched) >= _MOST:
            _matched.clear()
        _matched[path] = route
    return route


def _route(path: str, endings: Iterable[str], verbs: Iterable[PathRoute]) -> Route | None:
    for ending in endings:
        if path.endswith("/" + ending) or path == ending:
            named = paths.deployment(path)
            return ROUTES[ending].route(None if named is None else {"request_model": named})
    for found in verbs:
        facts = found.read(path)
        if facts is not None:
            model = facts.get("request_model", "")
            row = next((each for part, each in found.models if part in model), found.route)
            return row.route(facts)
    return None


def _fetched(path: str) -> Route | None:
    """Read ``responses/ID``: what was, or is being, made in the background is asked for."""
    before, _, identity = path.partition("?")[0].rstrip("/").rpartition("/")
    if identity and (before.endswith("/responses") or before == "responses"):
        return _FETCH.but(unmistakable=identity.startswith("resp_")).route()
    return None
