"""A provider on loopback for `benchmarks/peers.py`: OpenAI's and Anthropic's wire.

    python server.py        # prints its port, ends with its standard input

What is answered depends on the model that the request names: ``chunks-N`` streams N pieces,
``cut`` breaks off in mid-stream, ``refuse`` answers 400 and repeats the prompt in the error,
``busy`` answers 429 to every other request. Each piece of a stream is a write of its own.
"""

import asyncio
import base64
import json
import re
import struct
import sys

USAGE = {
    "prompt_tokens": 1011,
    "completion_tokens": 707,
    "total_tokens": 1718,
    "prompt_tokens_details": {"cached_tokens": 303},
    "completion_tokens_details": {"reasoning_tokens": 202},
}
RESPONSES_USAGE = {
    "input_tokens": 1011,
    "output_tokens": 707,
    "total_tokens": 1718,
    "input_tokens_details": {"cached_tokens": 303},
    "output_tokens_details": {"reasoning_tokens": 202},
}
MODEL = "gpt-4o-2024-08-06"
TEXT = "word " * 60
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
ID = b"10000001"  # of an answer; its place is all that matters
STREAM_END = b"0\r\n\r\n"
# What every measured call asks for, where it can.
ASKED = {"stream_options": {"include_usage": True}, "encoding_format": "base64"}


def chunk(delta, reason=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    return {
        "id": "chatcmpl-10000001",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        **more,
    }


def data(body):
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def event(body):
    return b"event: " + body["type"].encode() + b"\n" + data(body)


def chat(body):
    if not body.get("stream"):
        message = {"role": "assistant", "content": TEXT, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        yield json.dumps(
            {
                "id": "chatcmpl-10000001",
                "object": "chat.completion",
                "created": 1,
                "model": MODEL,
                "choices": [choice],
                "usage": USAGE,
            }
        ).encode()
        return
    piece = data(chunk({"content": "word "}))
    yield data(chunk({"role": "assistant", "content": ""}))
    for _ in range(pieces(body)):
        yield piece
    yield data(chunk({}, "stop"))
    if (body.get("stream_options") or {}).get("include_usage"):
        yield data({**chunk({}), "choices": [], "usage": USAGE})
    yield b"data: [DONE]\n\n"


def responses(body):
    part = {"type": "output_text", "text": TEXT, "annotations": []}
    message = {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    whole = {
        "id": "resp_10000001",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": MODEL,
        "output": [message],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "metadata": {},
        "usage": RESPONSES_USAGE,
    }
    if not body.get("stream"):
        yield json.dumps(whole).encode()
        return
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield event({"type": "response.created", "sequence_number": 0, "response": begun})
    for number in range(pieces(body)):
        yield event(
            {
                "type": "response.output_text.delta",
                "sequence_number": number + 1,
                "item_id": "msg_1",
                "output_index": 0,
                "content_index": 0,
                "delta": "word ",
                "logprobs": [],
            }
        )
    yield event({"type": "response.completed", "sequence_number": 9999, "response": whole})


def embeddings(body):
    vector = [round(0.0001 * place, 7) for place in range(1536)]
    if body.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<1536f", *vector)).decode()
    items = [{"object": "embedding", "index": i, "embedding": vector} for i in range(8)]
    yield json.dumps(
        {
            "object": "list",
            "data": items,
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 909, "total_tokens": 909},
        }
    ).encode()


def messages(body):
    usage = {
        "input_tokens": 708,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 303,
        "output_tokens": 707,
    }
    whole = {
        "id": "msg_10000001",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    if not body.get("stream"):
        yield json.dumps(whole).encode()
        return
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield event({"type": "message_start", "message": begun})
    block = {"type": "text", "text": ""}
    yield event({"type": "content_block_start", "index": 0, "content_block": block})
    delta = {"type": "text_delta", "text": "word "}
    piece = event({"type": "content_block_delta", "index": 0, "delta": delta})
    for _ in range(pieces(body)):
        yield piece
    yield event({"type": "content_block_stop", "index": 0})
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    yield event({"type": "message_delta", "delta": ended, "usage": {"output_tokens": 707}})
    yield event({"type": "message_stop"})


ANSWERS = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/embeddings": embeddings,
    "/v1/messages": messages,
}


def pieces(body):
    found = re.fullmatch(r"chunks-(\d+)", body["model"])
    return int(found[1]) if found else 5


class Provider:
    def __init__(self):
        self.asked = 0

    async def serve(self, reader, writer):
        try:
            while await self.answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, reader, writer):
        asked = await reader.readuntil(b"\r\n\r\n")
        path = asked.split(b" ", 2)[1].decode().partition("?")[0]
        body = json.loads(await reader.readexactly(length(asked)) or b"{}")
        model = body.get("model", "")
        if model == "refuse":
            problem = {"message": f"bad: {body['messages']}", "type": "invalid_request_error"}
            return whole(writer, 400, json.dumps({"error": problem}).encode())
        self.asked += model == "busy"
        if model == "busy" and self.asked % 2:
            return whole(writer, 429, b'{"error": {"message": "busy"}}', b"retry-after-ms: 1\r\n")
        parts = ANSWERS[path](body)
        if not body.get("stream"):
            return whole(writer, 200, next(parts))
        writer.write(STREAM_HEAD)
        for number, part in enumerate(parts):
            if model == "cut" and number == 3:
                return False
            writer.write(framed(part))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(STREAM_END)
        await writer.drain()
        return True


def whole(writer, status, body, more=b""):
    writer.write(head(status, body, more) + body)
    return True


def head(status, body, more=b""):
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n" % (
        status,
        len(body),
        more,
    )


def framed(part):
    return b"%x\r\n%s\r\n" % (len(part), part)


def length(asked):
    """How long the body is that comes after this head."""
    found = re.search(rb"content-length: *(\d+)", asked, re.IGNORECASE)
    return int(found[1]) if found else 0


async def main():
    server = await asyncio.start_server(Provider().serve, "127.0.0.1", 0, limit=1 << 22)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
