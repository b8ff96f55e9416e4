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
def spans(request, tmp_path_factory):
    """What an app that uses that version of the package leaves behind."""
    folder = environments.made(tmp_path_factory.mktemp(request.param) / "env", request.param)
    ran = subprocess.run([folder / "python", APP], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert CANARY not in ran.stdout
    return [json.loads(line) for line in ran.stdout.splitlines()]


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
