"""Of an error its class leaves, if a known library has it; nothing that anyone wrote."""

import asyncio
import builtins
import http.client
import importlib
import json
import socket
import ssl
import sys
import types
import urllib.error

import anthropic
import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode

from sottovoce.privacy import errors
from sottovoce.privacy.gate import gated_tracer_provider

Group = vars(builtins).get("ExceptionGroup")
if Group is None:
    Group = importlib.import_module("exceptiongroup").ExceptionGroup

CANARY = "AnnaSmithHasCancer"


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (ValueError, "ValueError"),
        (TimeoutError, "TimeoutError"),
        (openai.RateLimitError, "openai.RateLimitError"),
        (anthropic.APIStatusError, "anthropic.APIStatusError"),
        (httpx.ReadTimeout, "httpx.ReadTimeout"),
        (asyncio.CancelledError, "asyncio.exceptions.CancelledError"),
        (socket.gaierror, "socket.gaierror"),
        (ssl.SSLCertVerificationError, "ssl.SSLCertVerificationError"),
        (json.JSONDecodeError, "json.decoder.JSONDecodeError"),
        (http.client.RemoteDisconnected, "http.client.RemoteDisconnected"),
        (urllib.error.HTTPError, "urllib.error.HTTPError"),
        # Made at run time, and named by the error codes of a service.
        (type("ThrottlingException", (Exception,), {}), "ThrottlingException"),
    ],
)
def test_a_class_of_a_known_library_is_named(policy, kind, shown):
    assert policy.error(kind) == shown
    assert policy.attributes({"error.type": shown}, "span") == {"error.type": shown}


class _Liar(type):
    """A metaclass whose classes say what they like of themselves."""

    def __getattribute__(cls, name):
        said = {"__module__": "openai", "__qualname__": "RateLimitError", "__mro__": (Exception,)}
        return said.get(name) or type.__getattribute__(cls, name)

    def __eq__(cls, other):
        return True

    def __hash__(cls):
        return hash(openai.RateLimitError)

    def __instancecheck__(cls, instance):
        return True


class _Text(str):
    """A string that equals everything."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash("429")

    def __str__(self):
        return "429"


def made(name, module="openai", qualname=None, bases=(Exception,)):
    kind = type(name, bases, {"__module__": module})
    if qualname is not None:
        kind.__qualname__ = qualname
    return kind


HOSTILE = [
    made(CANARY),
    made(CANARY, "builtins"),
    made("RateLimitError"),
    made(CANARY, qualname="RateLimitError"),
    made("x", "builtins", "ValueError"),
    made("x", f"openai.{CANARY}"),
    made("x", CANARY),
    made("x", _Text("openai"), "RateLimitError"),
    made(f"{CANARY} said", "openai"),
    made("x", "openai", f"RateLimitError.{CANARY}"),
    made("x", "openai", "f.<locals>.X"),
    made("x", ""),
    made(CANARY, 4711),
    made(CANARY, bases=(openai.RateLimitError,)),
    made(CANARY, bases=(Group,), module="builtins"),
    _Liar(CANARY, (Exception,), {}),
    _Liar("RateLimitError", (openai.RateLimitError,), {"__module__": "openai"}),
]


@pytest.mark.parametrize("kind", HOSTILE, ids=range(len(HOSTILE)))
def test_a_class_that_only_says_so_is_not_named(policy, kind):
    assert policy.error(kind) == "_OTHER"


def test_a_class_of_a_module_that_somebody_named_is_not_named(policy, monkeypatch):
    for path in (f"google.{CANARY}", f"azure.{CANARY}", f"opentelemetry.{CANARY}", CANARY):
        module = types.ModuleType(path)
        module.Oops = made("Oops", path)
        monkeypatch.setitem(sys.modules, path, module)
        assert policy.error(module.Oops) == "_OTHER"
        assert policy.error(f"{path}.Oops") == "_OTHER"


def test_what_is_no_error_is_no_errors_class(policy):
    assert policy.error(dict) == "_OTHER"
    assert policy.error("openai.OpenAI") == "_OTHER"
    assert policy.error("json.decoder.JSONDecoder") == "_OTHER"


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        f"openai.{CANARY}",
        f"openai.RateLimitError.{CANARY}",
        f"builtins.{CANARY}",
        "RateLimitErro\u0433",
        "4\u0662\u0669",
        "ValueError\n",
        " ValueError",
        "x" * 10_000,
        "ValueError: Anna",
        "os.environ",
        "sys.modules",
        "",
        ".",
        "openai.",
        "..",
    ],
)
def test_a_name_that_is_none_is_not_kept(policy, text):
    assert policy.error(text) == "_OTHER"
    assert policy.attributes({"exception.type": text}, "event").get("exception.type") in {
        None,
        "_OTHER",
    }


def test_a_string_that_claims_to_equal_a_code_is_read_for_what_it_is(policy):
    for given_text in (_Text(CANARY), _Text("429")):
        shown = policy.error(given_text)
        assert type(shown) is str
        assert CANARY not in str.__str__(shown)
        left = policy.attributes({"error.type": given_text}, "span")["error.type"]
        assert type(left) is str and CANARY not in left


@given(st.one_of(st.text(), st.from_regex(r"[a-z_]+(\.[A-Za-z_]+){0,3}", fullmatch=True)))
def test_any_text_is_a_known_name_or_nothing(text):
    shown = errors.error(text)
    assert shown in {text, "_OTHER"}
    if shown == text != "_OTHER" and not text.isdigit() and text not in errors.VALUES:
        module, _, name = text.rpartition(".")
        assert module == "" or errors.is_known(module)
        assert name.isidentifier()


@given(st.text(min_size=1), st.text())
def test_any_class_is_a_known_name_or_nothing(name, module):
    kind = type(name.replace("\0", "").encode("utf-8", "replace").decode(), (Exception,), {})
    kind.__module__ = module
    assert errors.error(kind) in {"_OTHER"} | errors.VALUES


class Odd(Exception):
    __module__ = "openai"

    def __str__(self):
        return CANARY

    __repr__ = __str__


def raised():
    """Exceptions with a canary wherever one can be."""
    secret = type(CANARY, (Exception,), {})
    noted = ValueError(CANARY)
    noted.__notes__ = [CANARY]
    chained = ValueError(CANARY)
    chained.__cause__ = secret(CANARY)
    chained.__context__ = Odd(CANARY)
    group = Group(CANARY, [ValueError(CANARY), Group(CANARY, [secret(CANARY)])])
    code = compile(f"def {CANARY}(): raise ValueError({CANARY!r})", f"/home/{CANARY}", "exec")
    space = {"__name__": f"shop.{CANARY}"}
    exec(code, space)
    try:
        space[CANARY]()
    except ValueError as error:
        compiled = error
    return [noted, chained, group, secret(CANARY), Odd(CANARY), compiled, KeyError(CANARY)]


@pytest.mark.parametrize("stack_frames", [(), ("shop", "builtins", "tests", "__main__")])
@pytest.mark.parametrize("number", range(7))
def test_no_message_leaves_by_any_road(make_policy, number, stack_frames):
    error = raised()[number]
    policy = make_policy(stack_frames=stack_frames)
    provider = gated_tracer_provider(policy, shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("x")
    with pytest.raises(type(error)), tracer.start_as_current_span(CANARY) as span:
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_attribute("exception.message", str(error))
        span.record_exception(error, {CANARY: CANARY, "exception.escaped": CANARY})
        span.set_status(Status(StatusCode.ERROR, CANARY))
        raise error
    (left,) = exporter.get_finished_spans()
    assert len(left.events) == 2
    assert left.status.status_code is StatusCode.ERROR
    sent = encode_spans([left]).SerializeToString()
    assert CANARY.encode() not in sent
    assert b"/home/" not in sent
