"""Which path is which operation in which protocol: the one table.

A path counts by how it ends, under any prefix (`/v1`, `/api/v1`, `/openai/deployments/NAME`),
so that a gateway or a local server needs no row of its own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from sottovoce.protocols import gemini, huggingface, mistral
from sottovoce.protocols.anthropic_messages import ANTHROPIC_MESSAGES
from sottovoce.protocols.bedrock_converse import BEDROCK_CONVERSE
from sottovoce.protocols.bedrock_invoke import BEDROCK_EMBEDDINGS, BEDROCK_INVOKE
from sottovoce.protocols.cohere import COHERE_CHAT, COHERE_EMBED, RERANK
from sottovoce.protocols.gemini import GEMINI, GEMINI_EMBEDDINGS
from sottovoce.protocols.gemini_interactions import GEMINI_INTERACTIONS
from sottovoce.protocols.huggingface import HF_FEATURES, HF_TEXT_GENERATION
from sottovoce.protocols.llama_server import LLAMA_COMPLETION, LLAMA_EMBEDDING
from sottovoce.protocols.mistral import MISTRAL_OCR
from sottovoce.protocols.ollama import OLLAMA_CHAT, OLLAMA_EMBED, OLLAMA_GENERATE
from sottovoce.protocols.openai_audio import OPENAI_AUDIO
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_completions import OPENAI_COMPLETIONS
from sottovoce.protocols.openai_embeddings import OPENAI_EMBEDDINGS
from sottovoce.protocols.openai_images import OPENAI_IMAGES
from sottovoce.protocols.openai_moderations import OPENAI_MODERATIONS
from sottovoce.protocols.openai_responses import OPENAI_RESPONSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.call import Facts
    from sottovoce.protocols.protocol import Protocol


class Route(NamedTuple):
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

    operation: str
    protocol: Protocol
    provider: str | None = None
    unmistakable: bool = False
    facts: Facts = {}  # noqa: RUF012 - never written to
    anywhere: bool = False
    sign: str | None = None


class PathRoute(NamedTuple):
    """A route whose path holds facts: ``models/NAME:generateContent``, ``model/NAME/converse``.

    Attributes:
        route: without those facts.
        read: finds them in a path; None when the path is not of this kind after all.
        models: (part of a model's id, route) where the model decides; the first that fits
            counts.
    """

    route: Route
    read: Callable[[str], Facts | None]
    models: tuple[tuple[str, Route], ...] = ()


def _generates(protocol: Protocol, output: str) -> Route:
    """Give the route of what is neither text nor chat: the conventions' name for the rest."""
    return Route("generate_content", protocol, unmistakable=True, facts={"output_type": output})


_IMAGES = _generates(OPENAI_IMAGES, "image")
_TRANSCRIPTS = _generates(OPENAI_AUDIO, "text")
_MESSAGES = Route("chat", ANTHROPIC_MESSAGES, "anthropic")

ROUTES: Final[dict[str, Route]] = {
    "chat/completions": Route("chat", OPENAI_CHAT, unmistakable=True),
    "completions": Route("text_completion", OPENAI_COMPLETIONS),
    "responses": Route("chat", OPENAI_RESPONSES),
    "responses/compact": Route("chat", OPENAI_RESPONSES),
    # Judgements in a schema of the provider's; asked and counted like responses.
    "decisions": Route("generate_content", OPENAI_RESPONSES, facts={"output_type": "json"}),
    "embeddings": Route("embeddings", OPENAI_EMBEDDINGS),
    "agents/completions": Route("chat", OPENAI_CHAT, "mistral_ai", unmistakable=True),
    "fim/completions": Route(
        "text_completion", OPENAI_COMPLETIONS, "mistral_ai", unmistakable=True
    ),
    "interactions": Route("generate_content", GEMINI_INTERACTIONS, "gcp.gen_ai"),
    "ocr": Route("generate_content", MISTRAL_OCR, "mistral_ai"),
    "images/generations": _IMAGES,
    "images/edits": _IMAGES,
    "images/variations": _IMAGES,
    "audio/speech": _generates(OPENAI_AUDIO, "speech"),
    "audio/transcriptions": _TRANSCRIPTS,
    "audio/translations": _TRANSCRIPTS,
    "moderations": Route("moderation", OPENAI_MODERATIONS),
    "v1/messages": _MESSAGES,
    "api/chat": Route("chat", OLLAMA_CHAT, "ollama"),
    "api/generate": Route("text_completion", OLLAMA_GENERATE, "ollama"),
    "api/embed": Route("embeddings", OLLAMA_EMBED, "ollama"),
    "api/embeddings": Route("embeddings", OLLAMA_EMBED, "ollama"),
    "v1/chat": Route("chat", COHERE_CHAT, "cohere"),
    "v2/chat": Route("chat", COHERE_CHAT, "cohere"),
    "v1/generate": Route("text_completion", COHERE_CHAT, "cohere"),
    "v1/embed": Route("embeddings", COHERE_EMBED, "cohere"),
    "v2/embed": Route("embeddings", COHERE_EMBED, "cohere"),
    "v2/rerank": Route("rerank", RERANK, "cohere"),
    "rerank": Route("rerank", RERANK),
    "generate": Route("text_completion", HF_TEXT_GENERATION, "hugging_face", sign="inputs"),
    # Text Generation Inference answers here, too, but so do servers for other tasks.
    "": Route("text_completion", HF_TEXT_GENERATION, "hugging_face", sign="max_new_tokens"),
    "completion": Route("text_completion", LLAMA_COMPLETION, "llama_cpp", sign="prompt"),
    "embedding": Route("embeddings", LLAMA_EMBEDDING, "llama_cpp", sign="content"),
    "generate_stream": Route(
        "text_completion", HF_TEXT_GENERATION, "hugging_face", unmistakable=True
    ),
}
"""By how a path ends: whole segments, the longest ending that fits counts; "" is no path at all."""


def _bedrock(path: str) -> Facts | None:
    """Read ``/model/ID/VERB``; an id can be an ARN, whose slashes some libraries have decoded."""
    before, _, rest = path.partition("/model/")
    model = unquote(rest[: rest.rfind("/")]) if "/" in rest else ""
    ours = not before or before.endswith("/bedrock")  # a gateway's pass-through
    return {"request_model": model} if model and ours else None


def _bedrock_stream(path: str) -> Facts | None:
    facts = _bedrock(path)
    return None if facts is None else {**facts, "request_stream": True}


_CONVERSE = Route("chat", BEDROCK_CONVERSE, "aws.bedrock", unmistakable=True)
_INVOKE = Route("chat", BEDROCK_INVOKE, "aws.bedrock", unmistakable=True)
_PICTURES = _INVOKE._replace(operation="generate_content", facts={"output_type": "image"})
_INVOKED = (
    ("embed", _INVOKE._replace(operation="embeddings", protocol=BEDROCK_EMBEDDINGS)),
    ("rerank", _INVOKE._replace(operation="rerank")),
    ("titan-text", _INVOKE._replace(operation="text_completion")),
    ("titan-tg1", _INVOKE._replace(operation="text_completion")),
    ("titan-image", _PICTURES),
    ("nova-canvas", _PICTURES),
    ("stability.", _PICTURES),
)


def _vertex_claude(path: str) -> Facts | None:
    """Read ``…/publishers/anthropic/models/ID:VERB``; counting tokens is the model of that name."""
    _, found, rest = path.partition("/publishers/anthropic/models/")
    model = unquote(rest.partition(":")[0])
    return {"request_model": model} if found and model != "count-tokens" else None


_CLAUDE = (
    PathRoute(_MESSAGES._replace(provider="gcp.vertex_ai", unmistakable=True), _vertex_claude),
)

# Models of two companies answer to the same verbs, in their own formats.
_RAW = (*_CLAUDE, PathRoute(Route("chat", OPENAI_CHAT, "gcp.vertex_ai"), mistral.on_vertex))

# Which of Google's services it is, is known by the host alone.
_GENERATE = Route("generate_content", GEMINI, "gcp.gen_ai", unmistakable=True)
_EMBED = Route("embeddings", GEMINI_EMBEDDINGS, "gcp.gen_ai", unmistakable=True)

_FETCH = Route("fetch_response", OPENAI_RESPONSES)

VERBS: Final[dict[str, tuple[PathRoute, ...]]] = {
    "converse": (PathRoute(_CONVERSE, _bedrock),),
    "converse-stream": (PathRoute(_CONVERSE, _bedrock_stream),),
    "invoke": (PathRoute(_INVOKE, _bedrock, _INVOKED),),
    "invoke-with-response-stream": (PathRoute(_INVOKE, _bedrock_stream, _INVOKED),),
    "generateContent": (PathRoute(_GENERATE, gemini.generates),),
    "streamGenerateContent": (PathRoute(_GENERATE, gemini.streams),),
    "embedContent": (PathRoute(_EMBED, gemini.generates),),
    "batchEmbedContents": (PathRoute(_EMBED, gemini.generates),),
    "predict": (PathRoute(_EMBED, gemini.embeds), PathRoute(_GENERATE, gemini.paints)),
    "predictLongRunning": (PathRoute(_GENERATE, gemini.paints),),
    "feature-extraction": (
        PathRoute(
            Route("embeddings", HF_FEATURES, "hugging_face", unmistakable=True),
            huggingface.model_in,
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
_NAMED = re.compile(r"/(?:deployments|engines)/([^/]{1,512})/").search


@lru_cache(maxsize=512)
def match(method: str, path: str) -> Route | None:
    """Find what a request is for.

    Args:
        method: of the HTTP request; only ``POST`` asks a model, and ``GET`` for what it made.
        path: of the URL, with or without a query.

    Returns:
        The route, or None; paths that come again are remembered. On hosts that are not
        known to be a provider's, and paths that are not unmistakable, a request without
        `request_model` among its facts is somebody else's ``/responses``.
    """
    query = path.find("?")
    if query >= 0:
        path = path[:query]
    if method != "POST":
        method = method.upper()
        if method != "POST":
            return _fetched(path) if method == "GET" and "responses/" in path else None
    if path[:1] != "/" and "://" in path:
        path = path[path.find("/", path.find("://") + 3) :]
    if path.endswith("/"):
        path = path.rstrip("/")
    last = path[path.rfind("/") + 1 :]
    for ending in _ENDINGS.get(last, ()):
        if path.endswith("/" + ending) or path == ending:
            return _with_deployment(ROUTES[ending], path)
    for found in VERBS.get(last[last.rfind(":") + 1 :], ()):
        facts = found.read(path)
        if facts is not None:
            model = facts.get("request_model", "")
            route = next((each for part, each in found.models if part in model), found.route)
            return route._replace(facts={**route.facts, **facts})
    return None


def _with_deployment(route: Route, path: str) -> Route:
    """Azure and old OpenAI paths name what the body then need not."""
    named = _NAMED(path)
    if named is None:
        return route
    return route._replace(facts={**route.facts, "request_model": unquote(named[1])})


def _fetched(path: str) -> Route | None:
    """Read ``responses/ID``: what was, or is being, made in the background is asked for."""
    before, _, identity = path.rstrip("/").rpartition("/")
    if identity and (before.endswith("/responses") or before == "responses"):
        return _FETCH._replace(unmistakable=identity.startswith("resp_"))
    return None
