"""Bytes or JSON of a model's API → facts of a call; knows no HTTP library, no SDK, no OpenTelemetry.

`match` says what a request's path asks for, `request_facts` reads the request, `Reader`
the answer; `provider` and `is_local` say who answers at a host.
"""

from __future__ import annotations

from sottovoce.protocols.hosts import is_local, provider
from sottovoce.protocols.protocol import Protocol
from sottovoce.protocols.reader import Reader, request_facts
from sottovoce.protocols.routes import Route, match

__all__ = ["Protocol", "Reader", "Route", "is_local", "match", "provider", "request_facts"]
