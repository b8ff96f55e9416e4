"""Which route templates may leave: those that can only have been declared, never a path called.

`http.route` is meant to be a template, but some frameworks put the path there when no route
matches. A path of words, ``/patients/anna``, has the shape of a template; so a template is known
by its placeholders, and one without any leaves only if all its words are common ones of APIs.
What the operator lists (`SOTTOVOCE_ALLOW=route:/patients/today`) leaves besides.
"""

from __future__ import annotations

from typing import Final

from sottovoce.privacy.patterns import Pattern

WORDS: Final = frozenset({
    "api", "auth", "batches", "chat", "complete", "completion", "completions", "embed",
    "embeddings", "favicon.ico", "files", "generate", "graphql", "health", "healthcheck",
    "healthz", "index.html", "live", "livez", "login", "logout", "mcp", "messages", "metrics",
    "models", "openapi.json", "ping", "ready", "readyz", "rerank", "responses", "robots.txt",
    "rpc", "search", "sse", "static", "status", "stream", "token", "tokenize", "upload",
    "version", "webhook", "webhooks", "ws",
})  # fmt: skip
"""Words of routes that say nothing about anyone."""

_SHAPE: Final = Pattern(r"/[\w\-./{}<>:]*")
_VERSION: Final = Pattern(r"v\d{1,2}")
# In braces alone, which no URL has as they are: a path that was called may well say ``:anna``.
_NAME: Final = r"[A-Za-z_]{1,32}\d{0,2}(?::[A-Za-z_]{1,32})?"
_PLACEHOLDER: Final = Pattern(rf"\{{{_NAME}\}}|<{_NAME}>")
# Digits in numbers or an id in hex are somebody's value.
_WORD: Final = Pattern(r"v\d{1,2}|[A-Za-z][A-Za-z_\-]{0,31}(?:\.[a-z]{1,5})?")


def is_template(path: str) -> bool:
    """Whether `path` can only be a template that somebody declared."""
    if not _SHAPE.fullmatch(path):
        return False
    # A slash at the end says nothing, more of them are a number.
    parts = path[1:].removesuffix("/").split("/") if path != "/" else []
    literal = [part for part in parts if not _PLACEHOLDER.fullmatch(part)]
    if len(literal) < len(parts):
        return all(map(_WORD.fullmatch, literal))
    return all(part in WORDS or _VERSION.fullmatch(part) for part in literal)
