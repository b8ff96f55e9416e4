"""What apps do with each HTTP library, and what they see of it: the same function for all.

An app asks ``run(url, how, body, timeout)`` and gives everything that it could notice: types, status,
bytes, exceptions, whether the connection went back to the pool. Ways of reading:

* ``whole``: the plain call, which returns when all was read;
* ``read``, ``chunks``, ``lines``, ``raw``: as a stream, read in one of these ways;
* ``some``: as a stream, closed after the first piece;
* ``close``: as a stream, closed unread;
* ``drop``: as a stream, forgotten.
"""

import asyncio
import gc
import http.client
import json
import re
import urllib.error
import urllib.request

import aiohttp
import httpx
import httpx2
import requests
import urllib3

WAYS = ["whole", "read", "chunks", "lines", "raw", "some", "close", "drop"]


def first(items):
    for item in items:
        return type(item)
    return None


def joined(items):
    items = list(items)
    return type(items[0]), type(items[0])().join(items) if items else None


def lines(items):
    return [bytes(item) if isinstance(item, bytearray) else item for item in items]


class Seen:
    """What an app noticed, but for what differs from run to run."""

    def __init__(self):
        self.things = []

    def note(self, *things):
        self.things.extend(things)

    def headers(self, pairs):
        self.note(sorted((name.lower(), value) for name, value in pairs))

    def error(self, raised):
        while raised is not None:
            text = re.sub(
                r"0x[0-9a-f]+|port[ =:]+\d+|timeout=[0-9.]+|\(\d{4,}\)|127\.0\.0\.1[:']*,? *\d*",
                "",
                str(raised),
            )
            self.note(type(raised), text)
            raised = raised.__cause__


def httpx_app(library):
    def run(url, how, body, timeout=60):
        seen = Seen()
        try:
            with library.Client(verify=False, timeout=timeout, follow_redirects=True) as client:
                if how == "whole":
                    note(seen, client.post(url, **body))
                    return seen.things
                request = client.build_request("POST", url, **body)
                response = client.send(request, stream=True)
                if how == "read":
                    seen.note(response.read())
                elif how == "chunks":
                    seen.note(joined(response.iter_bytes()))
                elif how == "lines":
                    seen.note(lines(response.iter_lines()))
                elif how == "raw":
                    seen.note(joined(response.iter_raw()))
                elif how == "some":
                    seen.note(first(response.iter_bytes()))
                if how == "drop":
                    del response
                    gc.collect()
                    return seen.things
                response.close()
                note(seen, response, whole=how == "read")
        except Exception as raised:
            seen.error(raised)
        return seen.things

    def note(seen, response, whole=True):
        seen.note(type(response), response.status_code, response.is_closed, response.http_version)
        seen.note(len(response.history), type(response.stream).__mro__[-2:])
        seen.headers(response.headers.items())
        if whole:
            seen.note(response.content)

    return run


def httpx_async_app(library):
    def run(url, how, body, timeout=60):
        seen = Seen()

        async def main():
            async with library.AsyncClient(
                verify=False, timeout=timeout, follow_redirects=True
            ) as client:
                if how == "whole":
                    response = await client.post(url, **body)
                    seen.note(type(response), response.status_code, response.content)
                    return
                request = client.build_request("POST", url, **body)
                response = await client.send(request, stream=True)
                if how == "read":
                    seen.note(await response.aread())
                elif how == "chunks":
                    seen.note(joined([part async for part in response.aiter_bytes()]))
                elif how == "lines":
                    seen.note([line async for line in response.aiter_lines()])
                elif how == "raw":
                    seen.note(joined([part async for part in response.aiter_raw()]))
                elif how == "some":
                    parts = response.aiter_bytes()
                    async for part in parts:
                        seen.note(type(part))
                        break
                    await parts.aclose()
                if how == "drop":
                    del response
                    gc.collect()
                    return
                await response.aclose()
                seen.note(type(response), response.status_code, response.is_closed)
                seen.headers(response.headers.items())

        try:
            asyncio.run(main())
        except Exception as raised:
            seen.error(raised)
        return seen.things

    return run


def requests_app(url, how, body, timeout=60):
    seen = Seen()
    try:
        with requests.Session() as session:
            if how == "whole":
                response = session.post(url, timeout=timeout, **body)
                seen.note(response.content)
            else:
                response = session.post(url, timeout=timeout, stream=True, **body)
                if how == "read":
                    seen.note(response.content)
                elif how == "chunks":
                    seen.note(joined(response.iter_content(None)))
                elif how == "lines":
                    seen.note(list(response.iter_lines()))
                elif how == "raw":
                    seen.note(response.raw.read(7), response.raw.read())
                elif how == "some":
                    seen.note(first(response.iter_content(20)))
                if how == "drop":
                    del response
                    gc.collect()
                    return seen.things
                response.close()
            seen.note(type(response), type(response.raw), type(response.raw._original_response))
            seen.note(response.status_code, len(response.history), response._content_consumed)
            seen.headers(response.headers.items())
    except Exception as raised:
        seen.error(raised)
    return seen.things


def urllib3_app(url, how, body, timeout=60):
    seen = Seen()
    with urllib3.PoolManager() as manager:
        try:
            response = manager.request(
                "POST",
                url,
                preload_content=how == "whole",
                timeout=urllib3.Timeout(timeout),
                retries=urllib3.Retry(3, redirect=3, connect=0, read=0, other=0),
                **as_bytes(body),
            )
            if how == "whole":
                seen.note(response.data)
            elif how == "read":
                seen.note(response.read(), response.read())
            elif how == "chunks":
                seen.note(joined(response.stream(None)))
            elif how == "lines":
                seen.note(list(response))
            elif how == "raw":
                parts = [response.read(3, decode_content=False)]
                parts.append(response.read1(4, decode_content=False))
                seen.note(b"".join([*parts, response.read(decode_content=False)]))
            elif how == "some":
                seen.note(len(response.read(10)))
            if how == "drop":
                del response
                gc.collect()
                return seen.things
            if how not in {"some", "close"}:
                seen.note(response._connection is None, response.closed)
                response.release_conn()
            response.close()
            seen.note(type(response), type(response._fp), response.status, response.tell())
            seen.headers(response.headers.items())
        except Exception as raised:
            seen.error(raised)
    return seen.things


def http_client_app(url, how, body, timeout=60):
    seen = Seen()
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=timeout)
    try:
        connection.request("POST", "/" + path, **as_bytes(body))
        response = connection.getresponse()
        seen.note(type(response), type(response.fp), response.status, response.length)
        seen.headers(response.getheaders())
        if how in {"whole", "read"}:
            seen.note(response.read())
        elif how == "chunks":
            parts = []
            while part := response.read1(30):
                parts.append(part)
            seen.note(b"".join(parts))
        elif how == "lines":
            seen.note(list(response))
        elif how == "raw":
            buffer = bytearray(20)
            # Of an answer without a body, `peek` waits for the next one.
            parts = [response.peek()[:1] if response.length != 0 else b"", response.readline()]
            while count := response.readinto(buffer):
                parts.append(bytes(buffer[:count]))
            seen.note(b"".join(parts), response.fileno() if not response.isclosed() else None)
        elif how == "some":
            seen.note(response.read(5))
        if how == "drop":
            del response
            gc.collect()
            return seen.things
        seen.note(response.isclosed() if how not in {"some", "close"} else None)
        response.close()
        seen.note(response.closed, response.isclosed())
    except Exception as raised:
        seen.error(raised)
    finally:
        connection.close()
    return seen.things


def urllib_app(url, how, body, timeout=60):
    seen = Seen()
    request = urllib.request.Request(url, **as_data(body))
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
        seen.note(type(response), response.status, response.url.partition("/v1")[2])
        if how in {"whole", "read", "raw"}:
            seen.note(response.read())
        elif how == "chunks":
            parts = []
            while part := response.read(16):
                parts.append(part)
            seen.note(parts)
        elif how == "lines":
            seen.note(response.readlines())
        elif how == "some":
            seen.note(response.readline())
        if how == "drop":
            del response
            gc.collect()
            return seen.things
        response.close()
    except urllib.error.HTTPError as raised:
        seen.note(raised.status, raised.read())
        raised.close()
        seen.error(raised)
    except Exception as raised:
        seen.error(raised)
    return seen.things


def aiohttp_app(url, how, body, timeout=60):
    seen = Seen()

    async def main():
        times = aiohttp.ClientTimeout(total=None, sock_read=timeout, sock_connect=timeout)
        async with aiohttp.ClientSession(timeout=times) as session:
            if how == "drop":
                response = await session.post(url, **as_aiohttp(body))
                del response
                gc.collect()
                return
            async with session.post(url, **as_aiohttp(body)) as response:
                content = response.content
                seen.note(type(response), type(content), response.status, len(response.history))
                seen.headers(response.headers.items())
                if how in {"whole", "read"}:
                    seen.note(await response.read(), content.at_eof(), content.is_eof())
                elif how == "chunks":
                    seen.note(joined([part async for part in content.iter_any()]))
                elif how == "lines":
                    seen.note([line async for line in content])
                elif how == "raw":
                    seen.note(await content.readexactly(5), await content.readuntil(b":"))
                    seen.note(joined([part async for part, _ in content.iter_chunks()]))
                elif how == "some":
                    seen.note(await content.readexactly(5))
                seen.note(response.closed if how not in {"some", "close"} else None)
            seen.note(response.closed, content.total_bytes if how in {"whole", "read"} else None)

    try:
        asyncio.run(main())
    except Exception as raised:
        seen.error(raised)
    return seen.things


def as_bytes(body):
    if "json" in body:
        return {
            "body": json.dumps(body["json"]).encode(),
            "headers": {"Content-Type": "application/json"},
        }
    return {"body": body["data"] if "data" in body else body["content"]}


def as_data(body):
    body = as_bytes(body)
    return {"data": body["body"], "headers": body.get("headers", {})}


def as_aiohttp(body):
    return {"data": body["content"]} if "content" in body else body


APPS = {
    "httpx": httpx_app(httpx),
    "httpx2": httpx_app(httpx2),
    "httpx-async": httpx_async_app(httpx),
    "httpx2-async": httpx_async_app(httpx2),
    "requests": requests_app,
    "urllib3": urllib3_app,
    "http.client": http_client_app,
    "urllib": urllib_app,
    "aiohttp": aiohttp_app,
}
