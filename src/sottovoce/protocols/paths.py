"""Facts that some providers put into the path of a request: which model, that it is streamed.

A reader gets a path, without its query, and gives facts; None when the path is not of its kind
after all. Patterns are compiled when such a path comes: most processes ask one provider.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from sottovoce.call import Facts

_GOOGLE: Final = r"(?:^|/)(models|tunedModels|endpoints)/([^/]{1,256}):[A-Za-z]+$"
_EMBEDDER: Final = r"(?:^|/)publishers/google/models/[^/]*(?:embedding|gecko)"
_PAINTER: Final = r"(?:^|/)models/(imagen|veo)[^/]*$"
_MISTRAL: Final = r"(?:^|/publishers/mistralai/models/([^/:]{1,256}):|^/)\w+$"
CONVERSATION: Final = "conv_"
"""What the id of a conversation begins with."""

_CONVERSATION: Final = r"(?:^|/)conversations(?:/conv_[^/]{1,256}(?:/restart)?)?$"
_DEPLOYMENT: Final = r"/(?:deployments|engines)/([^/]{1,512})/"


def deployment(path: str) -> str | None:
    """Find what Azure and old OpenAI paths name, so that the body need not."""
    # Asked of every path: most have neither word in them, which is told faster this way.
    if "/deployments/" not in path and "/engines/" not in path:
        return None
    found = re.search(_DEPLOYMENT, path)
    return None if found is None else unquote(found[1])


def bedrock(path: str) -> Facts | None:
    """Read ``/model/ID/VERB``; an id can be an ARN, whose slashes some libraries have decoded."""
    before, _, rest = path.partition("/model/")
    model = unquote(rest[: rest.rfind("/")]) if "/" in rest else ""
    ours = not before or before.endswith("/bedrock")  # a gateway's pass-through
    return {"request_model": model} if model and ours else None


def bedrock_stream(path: str) -> Facts | None:
    """Read the same of a verb that streams."""
    facts = bedrock(path)
    return None if facts is None else {**facts, "request_stream": True}


def vertex_claude(path: str) -> Facts | None:
    """Read ``…/publishers/anthropic/models/ID:VERB``; counting tokens is the model of that name."""
    _, found, rest = path.partition("/publishers/anthropic/models/")
    model = unquote(rest.partition(":")[0])
    return {"request_model": model} if found and model != "count-tokens" else None


def vertex_mistral(path: str) -> Facts | None:
    """Read the model of ``publishers/mistralai/models/NAME:rawPredict``.

    The SDK itself begins with ``/rawPredict`` alone and writes the rest late.
    """
    found = re.search(_MISTRAL, path)
    if found is None:
        return None
    return {"request_model": unquote(found[1])} if found[1] else {}


def conversation(path: str) -> Facts | None:
    """Read ``conversations``, ``conversations/ID`` and ``conversations/ID/restart``."""
    return {} if re.search(_CONVERSATION, path) else None


def gemini(path: str) -> Facts | None:
    """Read the model of ``models/NAME:generateContent``, a tuned model or an endpoint."""
    found = re.search(_GOOGLE, path)
    if found is None:
        return None
    kind, name = found[1], unquote(found[2])
    return {"request_model": name if kind == "models" else f"{kind}/{name}"}


def gemini_stream(path: str) -> Facts | None:
    """Read the same of ``:streamGenerateContent``."""
    facts = gemini(path)
    return None if facts is None else {**facts, "request_stream": True}


def google_embedder(path: str) -> Facts | None:
    """Read the model of ``:predict`` when it is one of Google's for embeddings.

    Everything that Vertex AI serves answers to this verb, models of one's own included; so does
    what TensorFlow Serving serves.
    """
    return gemini(path) if re.search(_EMBEDDER, path) else None


def google_painter(path: str) -> Facts | None:
    """Read the model of ``:predict`` and ``:predictLongRunning`` when it makes images or videos."""
    found, facts = re.search(_PAINTER, path), gemini(path)
    if found is None or facts is None:
        return None
    return {**facts, "output_type": "image"} if found[1] == "imagen" else facts


def huggingface(path: str) -> Facts | None:
    """Find the model in ``…/models/NAME/pipeline/TASK``; a name may have a slash."""
    _, found, rest = path.partition("/models/")
    name, task, _ = rest.partition("/pipeline/")
    return {"request_model": unquote(name)} if found and task and name else None
