"""A loopback OTLP/HTTP receiver that keeps what it got, decoded; it can also misbehave."""

import atexit
import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}


def plain(value):
    """A protobuf AnyValue as Python."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def mapping(attributes):
    return {item.key: plain(item.value) for item in attributes}


class Sink:
    """Receives OTLP on `endpoint`; a context manager.

    `manner` is how it answers: "well", "never" (accepts, reads, is silent), "drip" (a byte
    of the answer now and then), or an HTTP status as a number.
    """

    def __init__(self, manner="well"):
        self.manner = manner
        self.requests = []  # (path, message), in the order of arrival
        self.bytes = b""
        self.changed = threading.Condition()
        self._closing = threading.Event()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with sink.changed:
                    sink.bytes += body
                    sink.requests.append((self.path, KINDS[self.path].FromString(body)))
                    sink.changed.notify_all()
                sink._answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def _answer(self, handler):
        if self.manner == "never":
            self._closing.wait()
        elif self.manner == "drip":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not self._closing.wait(0.2):
                try:
                    handler.wfile.write(b"x")
                except OSError:
                    return
        else:
            handler.send_response(200 if self.manner == "well" else self.manner)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def wait(self, condition, seconds=60):
        """Wait until something arrived, for what is sent while the process runs on."""
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self), seconds)

    def _scoped(self, path, resources, scopes, items):
        with self.changed:
            requests = list(self.requests)
        for found, message in requests:
            if found == path:
                for one in getattr(message, resources):
                    for scope in getattr(one, scopes):
                        for item in getattr(scope, items):
                            yield mapping(one.resource.attributes), scope.scope, item

    @property
    def spans(self):
        """(resource, scope, span) of every span, in order of arrival."""
        return list(self._scoped("/v1/traces", "resource_spans", "scope_spans", "spans"))

    @property
    def span_names(self):
        return [span.name for _, _, span in self.spans]

    @property
    def metrics(self):
        return list(self._scoped("/v1/metrics", "resource_metrics", "scope_metrics", "metrics"))

    @property
    def metric_names(self):
        return {metric.name for _, _, metric in self.metrics}

    @property
    def logs(self):
        return list(self._scoped("/v1/logs", "resource_logs", "scope_logs", "log_records"))


_taken = socket.socket()
"""Bound, but not listening: as long as it is open nobody else can, either."""


def dead_endpoint():
    """An address at which nothing listens."""
    if not _taken.getsockname()[1]:
        _taken.bind(("127.0.0.1", 0))
        atexit.register(_taken.close)
    return f"http://127.0.0.1:{_taken.getsockname()[1]}"


def now():
    return time.monotonic()
