"""Forked children deliver their own telemetry, gated, and nothing of their parent's."""

import os

import pytest

from delivery.launcher import PROMPT, SPAN, WITHIN, run
from delivery.sink import Sink

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

PROGRAM = (
    SPAN.replace("\ncall()\n", "\n")
    + """
import os, sys, warnings
warnings.simplefilter("ignore")
call("chat")
CHILD
call("text_completion")
"""
)

CHILDREN = {
    "that falls off the end": """
pid = os.fork()
if pid == 0:
    call("embeddings")
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
""",
    "that raises": """
pid = os.fork()
if pid == 0:
    call("embeddings")
    raise SystemExit(5)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
""",
    "of multiprocessing": """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=call, args=("embeddings",))
process.start()
process.join()
assert process.exitcode == 0
""",
    "of a pool": """
import multiprocessing
with multiprocessing.get_context("fork").Pool(1) as pool:
    pool.map(call, ["embeddings"])
    pool.close()
    pool.join()
""",
}


@pytest.mark.parametrize("child", CHILDREN.values(), ids=CHILDREN)
def test_parent_and_child_each_deliver_their_own(child):
    with Sink() as sink:
        ran = run(PROGRAM.replace("CHILD", child), OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert ran.err == ""
    assert ran.code == 0
    assert sorted(sink.span_names) == ["chat", "embeddings", "text_completion"]
    # What the end of a child takes is one request a signal, all at once.
    paths = [path for path, _ in sink.requests]
    assert (paths.count("/v1/metrics"), paths.count("/v1/traces")) == (2, 2)
    instances = {span.name: resource["service.instance.id"] for resource, _, span in sink.spans}
    assert instances["chat"] == instances["text_completion"] != instances["embeddings"]
    assert all("process.pid" not in resource for resource, _, _ in sink.spans)
    assert b"planted" not in sink.bytes


def test_a_child_that_records_nothing_sends_nothing():
    children = (CHILDREN["that falls off the end"], CHILDREN["of multiprocessing"])
    silent = "\n".join(children).replace('call("embeddings")', "pass").replace("=call", "=str")
    with Sink() as sink:
        ran = run(PROGRAM.replace("CHILD", silent), OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert (ran.err, ran.code) == ("", 0)
    assert sorted(path for path, _ in sink.requests) == ["/v1/metrics", "/v1/traces"]


def test_a_child_whose_collector_is_dead_ends_within_the_deadline():
    program = PROGRAM.replace("CHILD", CHILDREN["that falls off the end"])
    with Sink("never") as sink:
        ran = run(program, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **PROMPT)
    assert ran.code == 0
    assert ran.seconds < WITHIN
