"""Bytes or JSON of a model's API → facts of a call; knows no HTTP library, no SDK, no OpenTelemetry.

`match` says what a request's path asks for, `request_facts` reads the request, `Reader`
the answer; `provider` and `is_local` say who answers at a host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sottovoce.protocols.bodies import request_facts
    from sottovoce.protocols.hosts import is_local, provider
    from sottovoce.protocols.protocol import Protocol
    from sottovoce.protocols.reader import Reader
    from sottovoce.protocols.routes import Route, match

__all__ = ["Protocol", "Reader", "Route", "is_local", "match", "provider", "request_facts"]

# Each is loaded by who asks for it: what a hook needs of this room is less than all.
_HOMES = {
    "Protocol": "protocol",
    "Reader": "reader",
    "Route": "routes",
    "is_local": "hosts",
    "match": "routes",
    "provider": "hosts",
    "request_facts": "bodies",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - as lazy as the rest

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
