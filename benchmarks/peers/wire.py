"""The provider of `server.py` in memory: what an HTTP client reads of its network, and no kernel.

A socket makes a stream's cost a matter of luck: how many events a read brings depends on what else
the machine does. Here each read brings one event, as from a model that is slower than its client,
and 50 streams take turns. All above the socket is the client's own: its pool, its parser, the SDK.
"""

import asyncio
from collections import deque
from functools import lru_cache
from itertools import count

import server

READ = 1 << 16  # at most this is asked for at once


def join(client):
    """Put an SDK's client on this wire; by the pool's `_network_backend`, httpcore 1 and 2."""
    pool = client._client._transport._pool
    pool._network_backend = AsyncBackend() if "Async" in type(pool).__name__ else Backend()


@lru_cache
def answered(path, model, stream):
    """The pieces that the provider writes."""
    pieces = list(server.ANSWERS[path]({"model": model, "stream": stream, **server.ASKED}))
    if not stream:
        [body] = pieces
        return [server.head(200, body) + body]
    return [server.STREAM_HEAD, *map(server.framed, pieces), server.STREAM_END]


class Conversation:
    """What was written of a request, and what is still to be read of its answer."""

    numbers = count(10**7)

    def __init__(self):
        self.written, self.missing, self.left = [], None, deque()

    def take(self, data):
        self.written.append(data)
        if self.missing is None:
            head = b"".join(self.written)
            if b"\r\n\r\n" not in head:
                return
            head, _, body = head.partition(b"\r\n\r\n")
            self.missing = server.length(head) - len(body)
        else:
            self.missing -= len(data)
        if self.missing <= 0:
            asked = b"".join(self.written)
            self.written, self.missing = [], None
            path = asked.split(b" ", 2)[1].decode()
            model = asked.rpartition(b'"model":"')[2].partition(b'"')[0].decode()
            self.left.extend(answered(path, model, b'"stream":true' in asked))
            if len(self.left) == 1:
                # An id twice is an answer twice, to some.
                whole = self.left.pop().replace(server.ID, b"%d" % next(self.numbers), 1)
                self.left.extend(whole[at : at + READ] for at in range(0, len(whole), READ))

    def get_extra_info(self, info):
        return False if info == "is_readable" else None


class Stream(Conversation):
    def write(self, buffer, timeout=None):
        self.take(buffer)

    def read(self, max_bytes, timeout=None):
        return self.left.popleft()

    def close(self):
        pass


class AsyncStream(Conversation):
    async def write(self, buffer, timeout=None):
        self.take(buffer)

    async def read(self, max_bytes, timeout=None):
        await asyncio.sleep(0)
        return self.left.popleft()

    async def aclose(self):
        pass


class Backend:
    def connect_tcp(self, *args, **kwargs):
        return Stream()


class AsyncBackend:
    async def connect_tcp(self, *args, **kwargs):
        return AsyncStream()
