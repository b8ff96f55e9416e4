"""Which path is which operation in which protocol: the one table.

A path counts by how it ends, under any prefix (`/v1`, `/api/v1`, `/openai/deployments/NAME`),
so that a gateway or a local server needs no row of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_completions import OPENAI_COMPLETIONS
from sottovoce.protocols.openai_embeddings import OPENAI_EMBEDDINGS
from sottovoce.protocols.openai_responses import OPENAI_RESPONSES

if TYPE_CHECKING:
    from sottovoce.protocols.protocol import Protocol


class Route(NamedTuple):
    """An operation by its name in the conventions, and the protocol that it is asked in."""

    operation: str
    protocol: Protocol


ROUTES: Final[dict[str, Route]] = {
    "chat/completions": Route("chat", OPENAI_CHAT),
    "completions": Route("text_completion", OPENAI_COMPLETIONS),
    "responses": Route("chat", OPENAI_RESPONSES),
    "embeddings": Route("embeddings", OPENAI_EMBEDDINGS),
}

_LAST_SEGMENTS: Final = frozenset(ending.rpartition("/")[2] for ending in ROUTES)


def match(method: str, path: str) -> Route | None:
    """Find what a request is for.

    Args:
        method: of the HTTP request; only ``POST`` asks a model.
        path: of the URL, with or without a query.

    Returns:
        The route, or None, at the cost of a look at the last segment. On hosts that are not
        known to be a provider's, a request without `request_model` among its facts is
        somebody else's ``/responses``.
    """
    if method != "POST" and method.upper() != "POST":
        return None
    query = path.find("?")
    if query >= 0:
        path = path[:query]
    if path.endswith("/"):
        path = path.rstrip("/")
    cut = path.rfind("/")
    last = path[cut + 1 :]
    if last not in _LAST_SEGMENTS:
        return None
    if cut > 0:
        two = path[path.rfind("/", 0, cut) + 1 :]
        if two in ROUTES:
            return ROUTES[two]
    return ROUTES[last]
