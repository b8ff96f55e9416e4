"""The mcp package before 2.0: client and server, over pipes and over streamable HTTP.

Each version lives in an environment of its own, made by uv from `requirements/mcp-*.txt`; the
newest is what `tests/clients/test_mcp.py` runs on.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from e2e import environments

pytestmark = pytest.mark.e2e

APP = Path(__file__).with_name("mcp_v1_app.py")
CANARY = "xq-canary-ring-a-bell"
CLIENT = [
    ("initialize", None, "completed"),
    ("tools/call bash", None, "completed"),
    ("tools/call PSEUDONYM", "tool_error", "failed"),
    ("prompts/get PSEUDONYM", "_OTHER", "failed"),
    ("tools/call PSEUDONYM", "408", "failed"),
    ("tools/call PSEUDONYM", "asyncio.exceptions.CancelledError", "cancelled"),
]


@pytest.fixture(scope="module", params=["mcp-oldest", "mcp-v1"])
def left(request, tmp_path_factory):
    """What an app that uses that version of the package leaves behind."""
    folder = environments.made(tmp_path_factory.mktemp(request.param) / "env", request.param)
    # What pydantic has to say of a request that is not as it should be is a warning.
    command = [folder / "python", "-W", "error:Pydantic", APP]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert CANARY not in ran.stdout
    return json.loads(ran.stdout)


@pytest.fixture
def spans(left):
    return left["spans"]


def of(spans, kind, transport):
    return [
        (
            re.sub(r" [0-9a-f]{12}$", " PSEUDONYM", span["name"]),
            span["attributes"].get("error.type"),
            span["attributes"]["sottovoce.call.outcome"],
        )
        for span in spans
        if span["kind"] == f"SpanKind.{kind}"
        and span["attributes"].get("network.transport") == transport
        # From some version on the package asks for it on its own.
        and span["name"] != "tools/list"
    ]


@pytest.mark.parametrize("transport", ["pipe", "tcp"])
def test_every_request_of_the_client_is_a_span(spans, transport):
    assert of(spans, "CLIENT", transport) == CLIENT


def test_so_is_every_request_that_the_server_answers(spans):
    # Which of its sleeping tools a version cancels with their clients is its own affair.
    assert of(spans, "SERVER", "tcp")[:3] == CLIENT[1:4]


def test_what_the_two_sides_agreed_on_is_said_of_every_request(spans):
    versions = {
        span["attributes"].get("mcp.protocol.version")
        for span in spans
        if span["kind"] == "SpanKind.CLIENT"
    }
    assert len(versions) == 1
    assert versions <= {"2025-03-26", "2025-11-25"}


def test_both_sides_name_one_session(spans):
    sessions = {span["attributes"].get("mcp.session.id") for span in spans} - {None}
    assert len(sessions) == 1
    assert re.fullmatch("[0-9a-f]{16}", sessions.pop())


def test_a_childs_spans_are_part_of_the_trace(left):
    asked = {
        span["context"]["span_id"]: span["context"]["trace_id"]
        for span in left["read"]
        if span["kind"] == "SpanKind.CLIENT"
    }
    answered = [span for span in left["child"] if span["parent_id"] is not None]
    # All but the one that the app gave a context of its own, which is none.
    assert len([span for span in answered if span["name"] != "ping"]) == 4
    assert "ping" in {span["name"] for span in answered}
    for span in answered:
        assert span["kind"] == "SpanKind.SERVER"
        assert asked[span["parent_id"]] == span["context"]["trace_id"]


def test_so_are_those_of_a_server_on_this_machine(left):
    asked = {s["context"]["span_id"] for s in left["read"] if s["kind"] == "SpanKind.CLIENT"}
    answered = [span for span in left["read"] if span["kind"] == "SpanKind.SERVER"]
    parents = {span["parent_id"] for span in answered if span["name"] != "ping"} - {None}
    assert parents <= asked
    # Over HTTP four, and one in this process; the rest as if it were somebody else's.
    assert len(parents) == 5


def test_the_tool_finds_the_context_beside_what_the_app_gave_along(left):
    meta = left["meta"]
    for name in ("plain", "kept", "mapping", "progress", "here"):
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-9a-f]", meta[name]["traceparent"])
    assert meta["plain"].keys() == meta["here"].keys() == {"traceparent"}
    assert meta["kept"].items() >= {"of/app": 7, "progressToken": "p"}.items()
    assert meta["mapping"].keys() == {"of/app", "traceparent"}
    assert meta["progress"].keys() == {"traceparent", "progressToken"}


def test_what_the_app_says_of_a_trace_stays(left):
    assert left["meta"]["theirs"] == {"traceparent": "of the app"}


def test_a_server_of_somebody_elses_is_told_nothing(left):
    meta = left["meta"]
    assert meta["foreign plain"] is None
    assert meta["foreign kept"] == {"of/app": 7, "progressToken": "p"}
    assert meta["foreign mapping"] == {"of/app": 7}
    assert meta["foreign progress"].keys() == {"progressToken"}
