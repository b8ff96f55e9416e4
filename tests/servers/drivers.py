"""The same test for a synchronous and an asynchronous client."""

import asyncio
import gc
import inspect

import openai


class Sync:
    """Calls and reads at once."""

    name = "sync"

    sdk = openai.OpenAI
    http = openai.DefaultHttpxClient

    def client(self, server, cls=None, **kwargs):
        if "http_client" not in kwargs:
            # Loading the trusted certificates takes longer than everything else here.
            kwargs["http_client"] = self.http(verify=False)
        kwargs = {"base_url": server.url + "/v1", "api_key": "key", "max_retries": 0, **kwargs}
        return (cls or self.sdk)(**kwargs)

    def do(self, function, *args, **kwargs):
        return function(*args, **kwargs)

    def items(self, stream, count=None):
        found = []
        for item in stream:
            found.append(item)
            if len(found) == count:
                break
        return found

    def enter(self, manager):
        return manager.__enter__()

    def leave(self, manager):
        manager.__exit__(None, None, None)

    def close(self, thing):
        thing.close()

    def collect(self):
        """Let what was dropped go."""
        gc.collect()

    def stop(self):
        pass


class Async(Sync):
    """The same on an event loop of its own."""

    name = "async"
    sdk = openai.AsyncOpenAI
    http = openai.DefaultAsyncHttpxClient

    def __init__(self):
        self._loop = asyncio.new_event_loop()

    def do(self, function, *args, **kwargs):
        async def main():
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return self._loop.run_until_complete(main())

    def items(self, stream, count=None):
        async def read():
            found = []
            async for item in stream:
                found.append(item)
                if len(found) == count:
                    break
            return found

        return self._loop.run_until_complete(read())

    def enter(self, manager):
        return self.do(manager.__aenter__)

    def leave(self, manager):
        self.do(manager.__aexit__, None, None, None)

    def close(self, thing):
        self.do(getattr(thing, "aclose", None) or thing.close)

    def collect(self):
        gc.collect()
        for _ in range(10):  # the loop closes dropped generators in tasks, one inside the other
            self._loop.run_until_complete(asyncio.sleep(0))
        gc.collect()

    def stop(self):
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
