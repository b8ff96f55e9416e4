"""Mistral's API on loopback: OpenAI's wire, agents and code completion at paths of their own."""

import json
import re

from servers.provider import ANSWER, Handler, ProviderServer, embeddings

_ALIASES = re.compile(r"/(?:agents|fim)/completions|/models/[^/:]+:(?:r|streamR)awPredict")
OCR = {
    "pages": [
        {
            "index": 0,
            "markdown": ANSWER,
            "images": [],
            "dimensions": {"dpi": 200, "height": 2200, "width": 1700},
        }
    ],
    "model": "mistral-ocr-2512-completion",
    "document_annotation": None,
    "usage_info": {"pages_processed": 1, "doc_size_bytes": 3002},
}


class MistralHandler(Handler):
    def do_POST(self):
        if self.path.endswith("/ocr"):
            self.provider.requests.append((self.path, dict(self.headers), self.body()))
            self.answer(200, json.dumps(OCR).encode())
            return
        self.path = _ALIASES.sub("/chat/completions", self.path)
        super().do_POST()

    def whole(self, operation, body, scenario):
        if operation == "embeddings":
            self.answer(200, json.dumps({"id": "e1", **embeddings(body)}).encode())
        else:
            super().whole(operation, body, scenario)

    def stream(self, operation, body, scenario):
        super().stream(operation, {**body, "stream_options": {"include_usage": True}}, scenario)

    def refuse(self, status, raw):
        error = {
            "object": "error",
            "message": f"cannot do {raw.decode()}",
            "type": "invalid_request_error",
            "code": "1500",
        }
        self.answer(status, json.dumps(error).encode())


def mistral_server():
    return ProviderServer(MistralHandler)
