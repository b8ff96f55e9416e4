"""Doors of methods that ask later: when the stream that they return is entered or first read.

The call is open, and the current one, exactly while the SDK makes its request, however long the
app waits before and takes afterwards. A stream that is never begun is no call. What the app gets
is of the kind that the SDK returns, a generator or a context manager, and passes everything on;
what is neither is given as it is.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from sottovoce.clients.door import Door

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    Given = tuple[Any, tuple[Any, ...], dict[str, Any]]
    """What a method was called on and with."""


class LateDoor(Door):
    """A door that can also be put before what a method returns."""

    def begin(self, stream: Any, given: Given) -> Any:
        """Give a generator that opens the call when it is first read, as `stream` would ask."""
        if inspect.isgenerator(stream):
            return _named(self._reading(stream, given), stream)
        if inspect.isasyncgen(stream):
            return _named(self._reading_async(stream, given), stream)
        return stream

    def wrap_stream(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Make the replacement of a method that returns a generator, asynchronous or not."""

        @functools.wraps(original)
        def method(client: Any, *args: Any, **kwargs: Any) -> Any:
            return self.begin(original(client, *args, **kwargs), (client, args, kwargs))

        return method

    def wrap_context(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Make the replacement of a method that returns a context manager, of either kind."""

        @functools.wraps(original)
        def method(client: Any, *args: Any, **kwargs: Any) -> Any:
            manager = original(client, *args, **kwargs)
            if hasattr(manager, "__aenter__"):
                return self._entering_async(manager, (client, args, kwargs))
            if hasattr(manager, "__enter__"):
                return self._entering(manager, (client, args, kwargs))
            return manager

        return method

    def _reading(self, stream: Any, given: Given) -> Generator[Any, Any, Any]:
        opened = self._open(*given)
        del given  # what is asked is not ours to keep
        if opened is None:
            return (yield from stream)
        try:
            first = next(stream)
        except StopIteration as stop:
            self._returned(opened, None)
            return stop.value
        except BaseException as error:
            self._failed(opened, error)
            raise
        self._returned(opened, None)
        try:
            yield first
            return (yield from stream)
        finally:
            stream.close()

    async def _reading_async(self, stream: Any, given: Given) -> AsyncIterator[Any]:
        opened = self._open(*given)
        del given  # what is asked is not ours to keep
        try:
            if opened is not None:
                try:
                    first = await anext(stream)
                except StopAsyncIteration:
                    self._returned(opened, None)
                    return
                except BaseException as error:
                    self._failed(opened, error)
                    raise
                self._returned(opened, None)
                yield first
            async for item in stream:
                yield item
        finally:
            await stream.aclose()

    @contextmanager
    def _entering(self, manager: Any, given: Given) -> Iterator[Any]:
        with ExitStack() as stack:
            opened = self._open(*given)
            del given
            try:
                result = stack.enter_context(manager)
            except BaseException as error:
                if opened is not None:
                    self._failed(opened, error)
                raise
            if opened is not None:
                self._returned(opened, result)
            yield result

    @asynccontextmanager
    async def _entering_async(self, manager: Any, given: Given) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            opened = self._open(*given)
            del given
            try:
                result = await stack.enter_async_context(manager)
            except BaseException as error:
                if opened is not None:
                    self._failed(opened, error)
                raise
            if opened is not None:
                self._returned(opened, result)
            yield result


def _named(given: Any, like: Any) -> Any:
    given.__name__, given.__qualname__ = like.__name__, like.__qualname__
    return given
