"""Amazon Bedrock's runtime on loopback: Converse and InvokeModel, whole and as event streams.

Bodies are those of the API's reference and of the pages on each family's format. `play()` says how
the next requests are answered, as in `provider.py`; `endpoint_url=server.url` leads here.
"""

import base64
import json
import struct
import time
import zlib
from urllib.parse import unquote

from servers.provider import ANSWER, HELD, Handler, ProviderServer

STREAM_TYPE = "application/vnd.amazon.eventstream"
WORDS = 5
CLAUDE = "us.anthropic.claude-3-5-sonnet-20241022-v2:0"
QUESTION = [{"role": "user", "content": [{"text": "a secret question"}]}]
USAGE = {
    "inputTokens": 11,
    "outputTokens": 7,
    "totalTokens": 23,
    "cacheReadInputTokens": 3,
    "cacheWriteInputTokens": 2,
}
COUNTED = {
    "input_tokens": 16,
    "output_tokens": 7,
    "cache_read_tokens": 3,
    "cache_write_tokens": 2,
}
METRICS = {
    "amazon-bedrock-invocationMetrics": {
        "inputTokenCount": 11,
        "outputTokenCount": 7,
        "invocationLatency": 548,
        "firstByteLatency": 548,
    }
}
ERRORS = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}

CONVERSE = {
    "metrics": {"latencyMs": 1275},
    "output": {"message": {"role": "assistant", "content": [{"text": ANSWER}]}},
    "stopReason": "end_turn",
    "usage": USAGE,
}
CONVERSE_TOOL = {
    "metrics": {"latencyMs": 1275},
    "output": {
        "message": {
            "role": "assistant",
            "content": [
                {"text": ANSWER},
                {
                    "toolUse": {
                        "toolUseId": "tooluse_1",
                        "name": "weather",
                        "input": {"place": "a secret place"},
                    }
                },
            ],
        }
    },
    "stopReason": "tool_use",
    "usage": USAGE,
}


def delta(text, index=0):
    return "contentBlockDelta", {"delta": {"text": text}, "contentBlockIndex": index}


CONVERSE_EVENTS = [
    ("messageStart", {"role": "assistant"}),
    *[delta("secret word ")] * WORDS,
    ("contentBlockStop", {"contentBlockIndex": 0}),
    ("messageStop", {"stopReason": "end_turn"}),
    ("metadata", {"usage": USAGE, "metrics": {"latencyMs": 1275}}),
]
CONVERSE_TOOL_EVENTS = [
    ("messageStart", {"role": "assistant"}),
    delta("secret word "),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    (
        "contentBlockStart",
        {
            "start": {"toolUse": {"toolUseId": "tooluse_1", "name": "weather"}},
            "contentBlockIndex": 1,
        },
    ),
    (
        "contentBlockDelta",
        {"delta": {"toolUse": {"input": '{"place": "a secret place"}'}}, "contentBlockIndex": 1},
    ),
    ("contentBlockStop", {"contentBlockIndex": 1}),
    ("messageStop", {"stopReason": "tool_use"}),
    ("metadata", {"usage": USAGE, "metrics": {"latencyMs": 1275}}),
]

TOLD = {"input_tokens": 11, "output_tokens": 7}
# Model → what is asked, its facts; what is answered, its facts; a stream's chunks, its facts.
FAMILIES = {
    "anthropic.claude-3-5-sonnet-20240620-v1:0": (
        {
            "anthropic_version": "bedrock-2023-05-31",
            "max_tokens": 1024,
            "system": "a secret instruction",
            "stop_sequences": ["a secret stop"],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a secret question"}]}
            ],
        },
        {"request_max_tokens": 1024, "request_stop_count": 1, "user_turn": True},
        {
            "id": "msg_bdrk_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-3-5-sonnet-20240620",
            "content": [{"type": "text", "text": ANSWER}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 11,
                "cache_creation_input_tokens": 2,
                "cache_read_input_tokens": 3,
                "output_tokens": 7,
            },
        },
        {**COUNTED, "finish_reasons": ["end_turn"], "response_model": "claude-3-5-sonnet-20240620"},
        [
            {
                "type": "message_start",
                "message": {
                    "id": "msg_bdrk_1",
                    "type": "message",
                    "role": "assistant",
                    "model": "claude-3-5-sonnet-20240620",
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                    "usage": {
                        "input_tokens": 11,
                        "cache_creation_input_tokens": 2,
                        "cache_read_input_tokens": 3,
                        "output_tokens": 1,
                    },
                },
            },
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
            *[
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": "secret word "},
                }
            ]
            * WORDS,
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 7},
            },
            {"type": "message_stop", **METRICS},
        ],
        {**COUNTED, "finish_reasons": ["end_turn"], "response_model": "claude-3-5-sonnet-20240620"},
    ),
    "amazon.nova-lite-v1:0": (
        {
            "schemaVersion": "messages-v1",
            "messages": QUESTION,
            "inferenceConfig": {
                "max_new_tokens": 512,
                "top_p": 0.9,
                "top_k": 20,
                "temperature": 0.5,
                "stopSequences": ["a secret stop"],
            },
        },
        {
            "request_max_tokens": 512,
            "request_top_p": 0.9,
            "request_top_k": 20,
            "request_temperature": 0.5,
            "request_stop_count": 1,
            "user_turn": True,
        },
        {**CONVERSE, "usage": {"inputTokens": 11, "outputTokens": 7, "totalTokens": 18}},
        {**TOLD, "finish_reasons": ["end_turn"]},
        [
            {"messageStart": {"role": "assistant"}},
            *[{"contentBlockDelta": {"delta": {"text": "secret word "}, "contentBlockIndex": 0}}]
            * WORDS,
            {"contentBlockStop": {"contentBlockIndex": 0}},
            {"messageStop": {"stopReason": "end_turn"}},
            {"metadata": {"usage": {"inputTokens": 11, "outputTokens": 7}}, **METRICS},
        ],
        {**TOLD, "finish_reasons": ["end_turn"]},
    ),
    "amazon.titan-text-express-v1": (
        {
            "inputText": "a secret question",
            "textGenerationConfig": {
                "maxTokenCount": 8192,
                "stopSequences": [],
                "temperature": 0,
                "topP": 1,
            },
        },
        {
            "request_max_tokens": 8192,
            "request_stop_count": 0,
            "request_temperature": 0.0,
            "request_top_p": 1.0,
        },
        {
            "inputTextTokenCount": 11,
            "results": [{"tokenCount": 7, "outputText": ANSWER, "completionReason": "FINISH"}],
        },
        {**TOLD, "finish_reasons": ["FINISH"]},
        [
            {
                "outputText": "secret word ",
                "index": 0,
                "totalOutputTextTokenCount": None,
                "completionReason": None,
                "inputTextTokenCount": 11,
            },
            {
                "outputText": "secret word ",
                "index": 0,
                "totalOutputTextTokenCount": 7,
                "completionReason": "LENGTH",
                "inputTextTokenCount": None,
                **METRICS,
            },
        ],
        {**TOLD, "finish_reasons": ["LENGTH"]},
    ),
    "meta.llama3-70b-instruct-v1:0": (
        {
            "prompt": "a secret question",
            "temperature": 0.5,
            "top_p": 0.9,
            "max_gen_len": 512,
        },
        {"request_temperature": 0.5, "request_top_p": 0.9, "request_max_tokens": 512},
        {
            "generation": ANSWER,
            "prompt_token_count": 11,
            "generation_token_count": 7,
            "stop_reason": "stop",
        },
        {**TOLD, "finish_reasons": ["stop"]},
        [
            {
                "generation": "secret word ",
                "prompt_token_count": 11,
                "generation_token_count": 1,
                "stop_reason": None,
            },
            {
                "generation": "",
                "prompt_token_count": None,
                "generation_token_count": 7,
                "stop_reason": "length",
                **METRICS,
            },
        ],
        {**TOLD, "finish_reasons": ["length"]},
    ),
    "mistral.mistral-7b-instruct-v0:2": (
        {
            "prompt": "<s>[INST] a secret question [/INST]",
            "max_tokens": 400,
            "stop": ["a secret stop"],
            "temperature": 0.7,
            "top_p": 0.7,
            "top_k": 50,
        },
        {
            "request_max_tokens": 400,
            "request_stop_count": 1,
            "request_temperature": 0.7,
            "request_top_p": 0.7,
            "request_top_k": 50,
        },
        {"outputs": [{"text": ANSWER, "stop_reason": "stop"}]},
        {**TOLD, "finish_reasons": ["stop"]},
        [
            {"outputs": [{"text": "secret word ", "stop_reason": None}]},
            {"outputs": [{"text": "", "stop_reason": "stop"}], **METRICS},
        ],
        {**TOLD, "finish_reasons": ["stop"]},
    ),
    "cohere.command-r-v1:0": (
        {
            "message": "a secret question",
            "max_tokens": 100,
            "temperature": 0.3,
            "p": 0.75,
            "k": 10,
            "stop_sequences": ["a secret stop"],
        },
        {
            "request_max_tokens": 100,
            "request_temperature": 0.3,
            "request_top_p": 0.75,
            "request_top_k": 10,
            "request_stop_count": 1,
            "user_turn": True,
        },
        {
            "response_id": "1",
            "generation_id": "2",
            "chat_history": [{"role": "USER", "message": "a secret question"}],
            "text": ANSWER,
            "finish_reason": "COMPLETE",
        },
        {**TOLD, "finish_reasons": ["COMPLETE"]},
        [
            {"event_type": "text-generation", "text": "secret word ", "is_finished": False},
            {
                "event_type": "stream-end",
                "is_finished": True,
                "finish_reason": "COMPLETE",
                "response": {"text": ANSWER, "finish_reason": "COMPLETE"},
                **METRICS,
            },
        ],
        {**TOLD, "finish_reasons": ["COMPLETE"]},
    ),
    "ai21.jamba-1-5-mini-v1:0": (
        {
            "messages": [{"role": "user", "content": "a secret question"}],
            "max_tokens": 256,
            "temperature": 0.7,
            "n": 1,
        },
        {"request_max_tokens": 256, "request_temperature": 0.7, "user_turn": True},
        {
            "id": "chat-1",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": ANSWER},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        },
        {**TOLD, "finish_reasons": ["stop"]},
        [
            {"id": "chat-1", "choices": [{"index": 0, "delta": {"content": "secret word "}}]},
            {
                "id": "chat-1",
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
                **METRICS,
            },
        ],
        {**TOLD, "finish_reasons": ["stop"]},
    ),
    "us.deepseek.r1-v1:0": (
        {"prompt": "a secret question", "temperature": 0.5, "top_p": 0.9, "max_tokens": 512},
        {"request_temperature": 0.5, "request_top_p": 0.9, "request_max_tokens": 512},
        {"choices": [{"text": ANSWER, "stop_reason": "length"}]},
        {**TOLD, "finish_reasons": ["length"]},
        [
            {"choices": [{"text": "secret word ", "stop_reason": None}]},
            {"choices": [{"text": "", "stop_reason": "stop"}], **METRICS},
        ],
        {**TOLD, "finish_reasons": ["stop"]},
    ),
    "amazon.titan-embed-text-v2:0": (
        {"inputText": "a secret question", "dimensions": 256, "embeddingTypes": ["float"]},
        {"request_dimensions": 256, "request_encoding_formats": ["float"]},
        {"embedding": [0.25, -0.5, 1.0], "inputTextTokenCount": 11},
        {"input_tokens": 11},
        None,
        None,
    ),
    "cohere.embed-multilingual-v3": (
        {
            "texts": ["a secret question"],
            "input_type": "search_document",
            "embedding_types": ["float", "int8"],
        },
        {"request_encoding_formats": ["float", "int8"]},
        {"id": "1", "response_type": "embeddings_by_type", "embeddings": {"float": [[0.25]]}},
        {"input_tokens": 11},
        None,
        None,
    ),
}


def frame(payload, **headers):
    """One frame of an event stream; of headers ``event_type`` is ``:event-type``."""
    fields = b""
    for name, value in headers.items():
        name, value = (":" + name.replace("_", "-")).encode(), value.encode()
        fields += bytes([len(name)]) + name + b"\x07" + struct.pack(">H", len(value)) + value
    prelude = struct.pack(">II", len(fields) + len(payload) + 16, len(fields))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    message = prelude + fields + payload
    return message + struct.pack(">I", zlib.crc32(message))


def event(kind, body):
    payload = json.dumps({**body, "p": "abcdefgh"}).encode()
    return frame(payload, event_type=kind, content_type="application/json", message_type="event")


def wrapped(body):
    return event("chunk", {"bytes": base64.b64encode(json.dumps(body).encode()).decode()})


def exception(kind="modelStreamErrorException"):
    payload = json.dumps({"message": "the secret reason"}).encode()
    return frame(
        payload, exception_type=kind, content_type="application/json", message_type="exception"
    )


class BedrockHandler(Handler):
    def do_POST(self):
        raw = self.body()
        self.provider.requests.append((self.path, dict(self.headers), raw))
        _, _, rest = self.path.partition("/model/")
        model, _, verb = rest.partition("/")
        scenarios = self.provider.scenarios
        scenario = scenarios.popleft() if scenarios else "ok"
        if scenario.isdigit():
            self.refuse(int(scenario), raw)
        elif scenario == "disconnect":
            self.hang_up()
        elif verb.startswith("converse"):
            self.converse(verb, json.loads(raw), scenario)
        elif verb.startswith("invoke"):
            self.invoke(verb, FAMILIES[unquote(model)], scenario)
        else:
            self.answer(200, json.dumps({"inputTokens": 11}).encode())

    def refuse(self, status, raw):
        message = {"message": f"cannot do {raw.decode('utf-8', 'replace')}"}
        kind = ERRORS[status] + ":http://internal.amazon.com/coral/com.amazon.bedrock/"
        self.answer(status, json.dumps(message).encode(), x_amzn_ErrorType=kind)

    def converse(self, verb, body, scenario):
        tools = "toolConfig" in body
        if verb == "converse":
            self.said(CONVERSE_TOOL if tools else CONVERSE, scenario)
        else:
            events = CONVERSE_TOOL_EVENTS if tools else CONVERSE_EVENTS
            self.told([event(kind, each) for kind, each in events], scenario)

    def invoke(self, verb, family, scenario):
        if verb == "invoke":
            counts = {"X_Amzn_Bedrock_Input_Token_Count": "11"}
            if family[4]:
                counts["X_Amzn_Bedrock_Output_Token_Count"] = "7"
            self.said(family[2], scenario, **counts)
        else:
            self.told([wrapped(each) for each in family[4]], scenario)

    def said(self, body, scenario, **headers):
        data = json.dumps(body).encode()
        if scenario == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:20])
            self.hang_up()
            return
        if scenario == "huge":
            data = json.dumps({"padding": "x" * 1_000_000, **body}).encode()
        self.answer(200, data, **headers)

    def told(self, frames, scenario):
        self.send_response(200)
        self.send_header("Content-Type", STREAM_TYPE)
        self.send_header("X-Amzn-Bedrock-Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for count, each in enumerate(frames):
                if scenario == "cut" and count == 3:
                    self.hang_up()
                    return
                if scenario == "slow":
                    time.sleep(0.01)
                    self.provider.gate.wait(HELD)
                if scenario == "one" and count:
                    self.provider.gate.wait(HELD)
                if scenario == "error" and count == 3:
                    each = exception()
                step = 1 if scenario == "bytewise" else len(each)
                for at in range(0, len(each), step):
                    self.chunk(each[at : at + step])
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def serve():
    return ProviderServer(BedrockHandler)
