"""requests: each request that a session sends, redirects included.

`Session.send` is what every verb and every prepared request goes through, and what calls itself
for each redirect. What was not asked for as a stream has been read when it returns; a stream is
watched where http.client reads it (`tap.py`), below `iter_content`, `iter_lines` and `raw` alike.
Other bodies, which an adapter of the app's own makes up, are not read.

Seen in requests 2.28 and 2.34.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sottovoce import guard
from sottovoce.transports import TRANSPORTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.transports import Transport
    from sottovoce.transports.sending import Sending, Where

_transport = TRANSPORTS["requests"]
install_wire = _transport.install_wire
remove_wire = _transport.remove_wire
set_raw_recorder = _transport.set_raw_recorder


def patch(transport: Transport, module: ModuleType) -> None:
    """Hook requests."""
    transport.patches.wrap(module.Session, "send", _wrap_send)


def _wrap_send(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def send(session: Any, request: Any, **kwargs: Any) -> Any:
        begun = _begin(request)
        if begun is None:
            return original(session, request, **kwargs)
        try:
            response = original(session, request, **kwargs)
        except BaseException as error:
            begun.sent()
            begun.broken(error)
            raise
        begun.sent()
        _answered(begun, response)
        begun.finish()
        return response

    return send


@guard.never_raise("requests.begin")
def _begin(request: Any) -> Sending | None:
    url = request.url
    return _transport.begin(request.method, url, request.body, _where, url)


def _where(url: str) -> Where:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port, parts.path


@guard.never_raise("requests.answered")
def _answered(begun: Sending, response: Any) -> None:
    """Learn the facts of a body that is there, or watch one that is yet to be read."""
    if not begun.answered(response.history, response.status_code):
        return
    body = response._content  # `False` until somebody reads it, in every version seen
    if isinstance(body, bytes):
        begun.read(response.headers.get("content-type"), body)
        return
    original = getattr(response.raw, "_original_response", None)
    if body is False and original is not None and response.raw.tell() == 0:
        begun.tap(original)
