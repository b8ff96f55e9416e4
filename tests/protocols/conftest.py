"""A call that is opened for a reader to read into, and what came of it."""

import json

import pytest

from sottovoce.call import Call
from sottovoce.protocols import Reader
from sottovoce.protocols.openai_chat import OPENAI_CHAT


class Silent:
    """A recorder that records nothing but how often a call ended."""

    def __init__(self):
        self.ends = 0

    def opened(self, call):
        pass

    def enter(self, call):
        pass

    def leave(self, token):
        pass

    def ended(self, call):
        self.ends += 1


class Reading:
    """A call, its reader, and what the reader complained of."""

    def __init__(self, protocol=OPENAI_CHAT, content_type="text/event-stream"):
        self.malformed = []
        self.call = Call(Silent(), operation="chat", provider="openai")
        self.reader = Reader(self.call, protocol, content_type, self.malformed.append)

    def feed(self, *chunks):
        for chunk in chunks:
            self.reader.feed(chunk)
        return self

    def finish(self):
        self.reader.finish()
        return self

    @property
    def facts(self):
        return dict(self.call.facts)

    @property
    def result(self):
        """Everything that must not depend on how the network cut the bytes."""
        call = self.call
        return self.facts, call.chunks, call.outcome, call.error, call.is_open, self.malformed


@pytest.fixture(scope="session")
def reading():
    return Reading


@pytest.fixture(scope="session")
def sse():
    """Write bodies as the events of a stream, in the spelling of OpenAI."""

    def write(*bodies, end=b"data: [DONE]\n\n"):
        events = [b"data: " + json.dumps(b, separators=(",", ":")).encode() for b in bodies]
        return b"".join(event + b"\n\n" for event in events) + end

    return write
