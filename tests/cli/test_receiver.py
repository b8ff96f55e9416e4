"""The receiver, through real exporters and through sockets."""

import gzip
import http.client
import json
import socket
import sys
import threading
import zlib

import pytest
from google.rpc import status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from sottovoce.cli import otlp
from sottovoce.cli.local import CannotListen, Receiver
from sottovoce.cli.store import Store

PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}
RESOURCE = Resource({"service.name": "an app"})


def send(receiver, path, body=b"", headers=PROTOBUF, method="POST"):
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def trace_request(*names):
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for index, name in enumerate(names):
        spans.add(trace_id=b"t" * 16, span_id=index.to_bytes(8, "big"), name=name)
    return request


@pytest.mark.parametrize("compression", list(Compression))
def test_spans_of_the_real_exporter_arrive(receiver, store, compression):
    exporter = OTLPSpanExporter(f"{receiver.endpoint}/v1/traces", compression=compression)
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("a scope")
    with tracer.start_as_current_span("outer"):
        with tracer.start_as_current_span(
            "inner", attributes={"n": 1, "list": ["a", "b"]}
        ) as inner:
            inner.add_event("something", {"k": True})
    provider.shutdown()

    inner, outer = sorted(store.spans(), key=lambda span: span.name)
    assert (inner.parent, inner.trace) == (outer.id, outer.trace)
    assert inner.attributes == {"n": 1, "list": ["a", "b"]}
    assert inner.events == [{"name": "something", "attributes": {"k": True}}]
    assert inner.scope == "a scope"
    assert inner.resource == {"service.name": "an app"}
    assert 0 < inner.start_ns <= inner.end_ns
    requests = list(store.requests())
    assert [(r.signal, r.status, r.service, r.records) for r in requests] == [
        ("traces", 200, "an app", 1)
    ] * 2
    assert all(b"an app" in r.text() for r in requests)
    compressed = compression is not Compression.NoCompression
    assert all((r.body != r.text()) == compressed for r in requests)


def test_metrics_of_the_real_exporter_arrive_and_add_up(receiver, store):
    exporter = OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    provider = MeterProvider(resource=RESOURCE, metric_readers=[reader])
    meter = provider.get_meter("a scope")
    histogram = meter.create_histogram(
        "h", unit="s", explicit_bucket_boundaries_advisory=[0.1, 1.0]
    )
    counter = meter.create_counter("c", unit="{token}")
    gauge = meter.create_gauge("g")
    histogram.record(0.05, {"k": "a"})
    counter.add(2)
    gauge.set(7)
    reader.force_flush()
    histogram.record(0.5, {"k": "a"})
    histogram.record(5.0, {"k": "b"})
    counter.add(3)
    gauge.set(4)
    provider.shutdown()

    counted, gauged, first, second = store.points()
    assert (counted.name, counted.kind, counted.total, counted.unit) == ("c", "sum", 5, "{token}")
    assert (gauged.name, gauged.kind, gauged.total) == ("g", "gauge", 4)
    assert (first.attributes, first.count, first.buckets) == ({"k": "a"}, 2, (1, 1, 0))
    assert first.bounds == (0.1, 1.0)
    assert (first.low, first.high, first.total) == (0.05, 0.5, pytest.approx(0.55))
    assert (second.attributes, second.buckets) == ({"k": "b"}, (0, 0, 1))


def test_exponential_histograms_become_real_buckets(receiver, store):
    exporter = OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    view = View(instrument_name="h", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider(resource=RESOURCE, metric_readers=[reader], views=[view])
    histogram = provider.get_meter("m").create_histogram("h")
    for value in (0, 3, 5, 100):
        histogram.record(value)
    provider.shutdown()

    (point,) = store.points()
    assert len(point.buckets) == len(point.bounds) + 1
    assert sum(point.buckets) == point.count == 4
    assert point.buckets[0] == 1
    for value in (3, 5, 100):
        index = next(i for i, bound in enumerate(point.bounds) if value <= bound * (1 + 1e-9))
        assert point.buckets[index] == 1


def test_log_records_of_the_real_exporter_arrive(receiver, store):
    provider = LoggerProvider(resource=RESOURCE)
    exporter = OTLPLogExporter(f"{receiver.endpoint}/v1/logs")
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("a scope").emit(
        body={"nested": [1, b"bytes"]}, severity_text="WARN", event_name="happened"
    )
    provider.shutdown()
    (log,) = store.logs()
    assert (log.severity, log.event, log.scope) == ("WARN", "happened", "a scope")
    assert json.loads(log.body) == {"nested": [1, "Ynl0ZXM="]}


def test_json_is_read_as_otlp_writes_it(receiver, store):
    body = {
        "resourceSpans": [
            {
                "resource": {
                    "attributes": [{"key": "service.name", "value": {"stringValue": "js"}}]
                },
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": "5B8EFFF798038103D269B633813FC60C",
                                "spanId": "eee19b7ec3c1b174",
                                "parentSpanId": "",
                                "name": "from a browser",
                                "kind": 3,
                                "startTimeUnixNano": "1544712660000000000",
                                "endTimeUnixNano": 1544712661000000000,
                                "attributes": [
                                    {"key": "n", "value": {"intValue": "9007199254740993"}}
                                ],
                                "whatever comes next": {"is": "ignored"},
                            }
                        ]
                    }
                ],
            }
        ]
    }
    status, answer, headers = send(receiver, "/v1/traces", json.dumps(body).encode(), JSON)
    assert (status, headers["content-type"], json.loads(answer)) == (200, "application/json", {})
    (span,) = store.spans()
    assert span.trace == "5b8efff798038103d269b633813fc60c"
    assert (span.id, span.parent, span.kind) == ("eee19b7ec3c1b174", "", 3)
    assert span.attributes == {"n": 9007199254740993}
    assert span.end_ns - span.start_ns == 10**9


def test_empty_requests_are_answered_with_empty_responses(receiver):
    for signal in otlp.SIGNALS:
        status, body, headers = send(receiver, f"/v1/{signal}")
        assert (status, body, headers["content-type"]) == (200, b"", "application/x-protobuf")


@pytest.mark.parametrize(
    ("path", "headers", "body", "method", "status"),
    [
        ("/v1/traces", PROTOBUF, b"\xff\xff\xff", "POST", 400),
        ("/v1/traces", JSON, b"{", "POST", 400),
        ("/v1/traces", JSON, b"", "POST", 400),
        ("/v1/traces", JSON, b"[]", "POST", 400),
        ("/v1/traces", JSON, b'"text"', "POST", 400),
        ("/v1/traces", JSON, b'{"resourceSpans": 1}', "POST", 400),
        ("/v1/traces", JSON, b'{"resourceSpans": [{"traceId": "xyz"}]}', "POST", 400),
        ("/v1/traces", JSON, b"[" * 100_000, "POST", 400),
        ("/v1/traces", JSON, b'{"a":' * 100_000, "POST", 400),
        ("/v1/logs", JSON, b"\xff\xfe{}", "POST", 400),
        ("/v1/metrics", {**PROTOBUF, "Content-Encoding": "gzip"}, b"no gzip", "POST", 400),
        ("/v1/metrics", {**PROTOBUF, "Content-Encoding": "gzip"}, gzip.compress(b"x" * 99, mtime=0)[:-9], "POST", 400),
        ("/v1/metrics", {**PROTOBUF, "Content-Encoding": "deflate"}, b"x", "POST", 400),
        ("/v1/metrics", {**PROTOBUF, "Content-Encoding": "br"}, b"x", "POST", 415),
        ("/v1/traces", {"Content-Type": "text/plain"}, b"{}", "POST", 415),
        ("/v1/traces", {}, b"{}", "POST", 415),
        ("/v1/traces", PROTOBUF, b"", "GET", 405),
        ("/v1/traces", PROTOBUF, b"", "DELETE", 405),
        ("/v1/traces", JSON, b"", "OPTIONS", 405),
        ("/v1/profiles", PROTOBUF, b"", "POST", 404),
        ("/", JSON, b"", "GET", 404),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_refused_as_otlp_wants(
    receiver, store, path, headers, body, method, status
):
    got, answer, answered = send(receiver, path, body, headers, method)
    assert got == status
    if headers == PROTOBUF or "Content-Encoding" in headers:
        assert answered["content-type"] == "application/x-protobuf"
        refusal = status_pb2.Status.FromString(answer)
        assert refusal.code and refusal.message
    else:
        assert answered["content-type"] == "application/json"
        assert json.loads(answer)["message"]
    if status == 405:
        assert answered["allow"] == "POST"
    if status in {400, 415}:
        # What left an app can be searched, understood or not.
        (kept,) = store.requests()
        assert (kept.body, kept.status) == (body, status)
    assert send(receiver, "/v1/traces")[0] == 200


def test_a_body_that_is_announced_too_large_is_not_read(receiver, store):
    headers = {**PROTOBUF, "Content-Length": str(10**15)}
    status, answer, _ = send(receiver, "/v1/traces", b"", headers)
    assert status == 413
    assert str(otlp.MAX_PLAIN) in status_pb2.Status.FromString(answer).message
    (kept,) = store.requests()
    assert (kept.status, kept.body, kept.size) == (413, b"", 10**15)
    assert store.totals().unseen == 1


def test_a_body_without_a_length_is_cut_off_when_it_is_too_large(receiver):
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        block = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        try:
            for _ in range(otlp.MAX_PLAIN // 0x100000 + 1):
                connection.sendall(block)
        except OSError:
            pass  # the answer may come, and the connection go, before everything was sent
        assert b" 413 " in connection.recv(64)
    assert send(receiver, "/v1/traces")[0] == 200


def test_a_client_that_goes_away_in_the_middle_is_no_trouble(receiver, store):
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            b"Content-Length: 100\r\n\r\nonly this"
        )
    assert send(receiver, "/v1/traces")[0] == 200
    assert [request.status for request in store.requests()] == [200]


def test_a_compressed_body_is_bounded_by_what_it_unfolds_to(receiver, store):
    bomb = gzip.compress(bytes(otlp.MAX_PLAIN + 1), 9)
    assert len(bomb) < 100_000
    status, _, _ = send(receiver, "/v1/traces", bomb, {**PROTOBUF, "Content-Encoding": "gzip"})
    assert status == 413


def test_compressed_members_in_a_row_are_one_body(receiver, store):
    whole = trace_request("one", "two").SerializeToString()
    body = gzip.compress(whole[:10]) + gzip.compress(whole[10:])
    assert send(receiver, "/v1/traces", body, {**PROTOBUF, "Content-Encoding": "GZIP"})[0] == 200
    assert {span.name for span in store.spans()} == {"one", "two"}
    deflated = zlib.compress(trace_request("three").SerializeToString())
    assert (
        send(receiver, "/v1/traces", deflated, {**PROTOBUF, "Content-Encoding": "deflate"})[0]
        == 200
    )


def test_more_records_than_one_request_may_bring_are_reported_as_rejected(receiver, store):
    names = ["s"] * (otlp.MAX_RECORDS + 7)
    body = trace_request(*names).SerializeToString()
    status, answer, _ = send(receiver, "/v1/traces", body)
    assert status == 200
    response = ExportTraceServiceResponse.FromString(answer)
    assert response.partial_success.rejected_spans == 7
    assert store.totals().spans == otlp.MAX_RECORDS


def test_numbers_that_sqlite_cannot_hold_are_clamped(receiver, store):
    request = trace_request("far future")
    request.resource_spans[0].scope_spans[0].spans[0].end_time_unix_nano = 2**64 - 1
    assert send(receiver, "/v1/traces", request.SerializeToString())[0] == 200
    assert store.spans()[0].end_ns == 2**63 - 1
    metrics = ExportMetricsServiceRequest()
    metric = metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="h")
    point = metric.histogram.data_points.add(count=2**64 - 1, sum=float("nan"))
    point.bucket_counts.extend([2**64 - 1, 1])
    point.explicit_bounds.append(float("inf"))
    assert send(receiver, "/v1/metrics", metrics.SerializeToString())[0] == 200
    assert store.points()[0].count == 2**63 - 1


@pytest.mark.parametrize("scale", [-(2**31), -11, -10, -9, 0, 20, 21, 2**31 - 1])
@pytest.mark.parametrize("offset", [-(2**31), 0, 2**31 - 1])
def test_exponential_histograms_of_any_scale_are_taken(receiver, store, scale, offset):
    metrics = ExportMetricsServiceRequest()
    metric = metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="h")
    point = metric.exponential_histogram.data_points.add(count=2, sum=3, scale=scale)
    point.positive.offset = offset
    point.positive.bucket_counts.extend([1, 1])
    assert send(receiver, "/v1/metrics", metrics.SerializeToString())[0] == 200
    assert store.points()[0].count == 2


def test_many_clients_at_once(receiver, store):
    failures = []

    def post(number):
        for turn in range(5):
            body = trace_request(f"{number}-{turn}")
            body.resource_spans[0].scope_spans[0].spans[0].trace_id = bytes([number, turn]) * 8
            if send(receiver, "/v1/traces", body.SerializeToString())[0] != 200:
                failures.append(number)

    threads = [threading.Thread(target=post, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {span.name for span in store.spans()} == {f"{n}-{t}" for n in range(8) for t in range(5)}


def test_credentials_in_headers_are_not_kept(receiver, store):
    headers = {
        **PROTOBUF,
        "Authorization": "Bearer s3cret",
        "X-Api-Key": "s3cret",
        "X-Team": "blue",
    }
    send(receiver, "/v1/traces?tag=visible", b"", headers)
    (kept,) = store.requests()
    assert "s3cret" not in kept.head
    assert "POST /v1/traces?tag=visible" in kept.head and "x-team: blue" in kept.head


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_only_loopback_is_listened_on(store, host):
    with pytest.raises(CannotListen, match="loopback only"):
        Receiver(store, port=0, host=host)


def test_the_address_is_loopback_and_a_taken_port_is_named(store, receiver):
    assert receiver.endpoint == f"http://127.0.0.1:{receiver.port}"
    with pytest.raises(CannotListen, match=f"port {receiver.port}"):
        Receiver(store, port=receiver.port)


def test_a_store_that_cannot_be_written_is_a_reason_to_try_again(store, receiver):
    store.close()
    status, answer, headers = send(receiver, "/v1/traces")
    assert status == 503
    assert "retry-after" in headers
    assert status_pb2.Status.FromString(answer).message


def test_requests_in_progress_are_answered_when_it_stops(tmp_path, closing):
    store = Store(tmp_path / "x.db", create=True)
    closing(store.close)
    seen = []
    with Receiver(store, port=0, on_request=seen.append) as receiver:
        send(receiver, "/v1/logs", b"", JSON)
        assert send(receiver, "/v1/logs")[1] == ExportLogsServiceResponse().SerializeToString()
    assert [request.status for request in seen] == [400, 200]
    with pytest.raises(OSError):
        send(receiver, "/v1/logs")


@given(body=st.binary(max_size=300), signal=st.sampled_from(otlp.SIGNALS), as_json=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_malformed(body, signal, as_json):
    try:
        rows = otlp.rows(signal, otlp.parse(signal, body, as_json=as_json))
    except otlp.Malformed as error:
        assert body[:20].decode("latin-1") not in str(error) or len(body) < 4
    else:
        assert rows.count >= 0


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["resourceSpans", "scopeSpans", "spans", "traceId", "name", "attributes", "key",
             "value", "stringValue", "kvlistValue", "values", "startTimeUnixNano", "events",
             "resourceMetrics", "scopeMetrics", "metrics", "histogram", "exponentialHistogram",
             "dataPoints", "bucketCounts", "explicitBounds", "count", "scale", "positive", "sum"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@given(document=JSON_VALUES, signal=st.sampled_from(otlp.SIGNALS))
@settings(max_examples=200, deadline=None)
def test_any_json_is_read_or_malformed(document, signal):
    body = json.dumps(document).encode()
    try:
        otlp.rows(signal, otlp.parse(signal, body, as_json=True))
    except otlp.Malformed:
        pass


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_bent_requests_are_kept_or_refused_and_never_break_the_receiver(receiver, data):
    whole = bytearray(trace_request("a", "b").SerializeToString())
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    body = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    status, _, _ = send(receiver, "/v1/traces", body)
    assert status in {200, 400}


def test_nothing_of_an_sdk_is_imported_by_the_receiver():
    # It may run beside any version of it.
    import subprocess

    code = "import sys, sottovoce.cli.local; print(sorted(m for m in sys.modules if m.startswith('opentelemetry.sdk')))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
