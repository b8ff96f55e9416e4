"""Every HTTP library, every way of reading, every kind of answer: with and without us.

Each app runs twice. What it notices must be the same, and of the second run exactly one call
must be left, with the right end.
"""

import gc

import pytest

from servers.byhand import CHUNKS, SCENARIOS, ByHandServer
from servers.calls import Calls
from servers.http_apps import APPS, WAYS
from servers.provider import MODEL
from sottovoce import guard, transports

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}]}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
READ = ["whole", "read", "chunks", "lines", "raw"]
FOLLOWING = {name for name in APPS if name not in {"http.client", "urllib"}}

FAILED = [
    "whole_cut",
    "stream_cut",
    "stream_cut_in_chunk",
    "stream_reset",
    "stream_hangs",
    "stream_open_hangs",
    "hangs",
    "no_answer",
    "bad_chunks",
    "garbage",
]
"""The call failed with a class, whichever the library's is."""
UNTOLD = [
    "negative_chunk",
    "garbage_gzip",
    "cut_gzip",
    "unknown_coding",
    "huge_header",
    "many_headers",
    "empty",
    "204",
    "bad_length",
    "both_lengths",
    "stream_zstd",
    "too_long",
]
"""Libraries differ in what they take; there is one call, and the app sees no difference."""
SLOW = {
    "hangs": ["whole"],
    "stream_hangs": ["whole", "chunks"],
    "stream_open_hangs": ["chunks"],
}
"""Nothing more comes until the app gives up, which is waited for: few ways of reading."""


@pytest.fixture(scope="module")
def server():
    with ByHandServer() as server:
        gc.collect()
        gc.freeze()  # or looking for what was dropped takes longer than everything else
        yield server
        gc.unfreeze()


@pytest.fixture
def hooked():
    """Call it to hook every library; gives where the calls go."""
    installed = []

    def hook():
        calls = Calls()
        transports.install_wire(*transports.TRANSPORTS)
        installed.append(calls)
        for name in transports.TRANSPORTS:
            transports.set_raw_recorder(name, calls)
        return calls

    yield hook
    for _ in installed:
        for name in transports.TRANSPORTS:
            transports.set_raw_recorder(name, None)
        transports.remove_wire(*transports.TRANSPORTS)
    assert not guard.failures


def test_every_scenario_has_an_expectation():
    assert set(FAILED) | set(UNTOLD) <= set(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("app", APPS)
def test_the_app_sees_the_same_and_one_call_is_left(server, hooked, app, scenario):
    body = {"json": STREAM if scenario.startswith("stream") else CHAT}
    ways = SLOW.get(scenario, WAYS)
    run = APPS[app]
    url = server.at(scenario)
    before = server.requests
    timeout = 0.5 if scenario in SLOW else 30
    plain = [run(url, how, body, timeout) for how in ways]
    requests = server.requests - before
    calls = hooked()
    for how, expected in zip(ways, plain, strict=True):
        calls.opened_calls.clear()
        calls.ended_calls.clear()
        assert run(url, how, body, timeout) == expected
        gc.collect()  # of a broken answer, the traceback and the response hold each other
        check(calls.wait(), app, scenario, how)
        assert calls.only
    assert server.requests - before == 2 * requests


def check(call, app, scenario, how):
    assert (call.operation, call.model, call.address) == ("chat", "tiny", "127.0.0.1")
    assert call.provider == "openai_compatible"
    assert "secret" not in repr(call.facts)
    if scenario.startswith("redirect"):
        times = int(scenario[-1])
        if app not in FOLLOWING and times:
            assert (call.attempts, call.error) == (1, "307")
            return
        assert call.attempts == times + 1
    else:
        assert call.attempts == 1
    if scenario in UNTOLD:
        return
    if scenario.isdigit():
        assert (call.outcome, call.error) == ("failed", scenario)
    elif how not in READ:
        assert call.outcome in {"completed", "abandoned", "failed"}
        if scenario not in {*FAILED, "error_in_200"}:
            assert call.outcome != "failed"
    elif scenario in FAILED:
        assert call.outcome == "failed"
        assert isinstance(call.error, type)
    elif scenario == "error_in_200":
        assert (call.outcome, call.error) == ("failed", "overloaded")
    else:
        assert (call.outcome, call.error) == ("completed", None)
        assert call.facts["response_model"] == MODEL
        assert call.facts["input_tokens"] == 11
        assert call.facts["output_tokens"] == 7
        assert call.facts["finish_reasons"] == ["stop"]
        assert call.stream is scenario.startswith("stream")
        assert call.chunks in ({0, CHUNKS} if call.stream else {0})
        if how != "whole" and call.stream:
            assert call.chunks == CHUNKS
