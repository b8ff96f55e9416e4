"""Our own log, with all of it shown: where something of ours failed, and nothing that was said."""

import logging
import re

import pytest
from opentelemetry import context, propagate
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import SpanProcessor

from sottovoce import guard
from sottovoce.privacy import gate, pseudonyms
from sottovoce.privacy.propagation import GatedPropagator
from sottovoce.settings import Settings

CANARY = "kanarienvogel"


class Talkative(SpanProcessor):
    """Quotes what it was given when it fails, as many do, also in the cause and in its frames."""

    def on_end(self, span):
        prompt = CANARY
        try:
            int(prompt)
        except ValueError as error:
            raise RuntimeError(f"cannot send {prompt}") from error


class Echoing(TextMapPropagator):
    def extract(self, carrier, context=None, getter=None):
        raise ValueError(carrier)

    def inject(self, carrier, context=None, setter=None):
        raise ValueError(carrier)

    @property
    def fields(self):
        return set()


@pytest.fixture
def logged(caplog):
    """What any handler of logs could show, frames' variables and causes included: nothing."""

    def of_ours():
        records = [each for each in caplog.records if each.name == "sottovoce"]
        assert records
        assert not any(each.exc_info or each.exc_text or each.stack_info for each in records)
        assert not any(isinstance(arg, BaseException) for each in records for arg in each.args)
        text = "\n".join(each.getMessage() for each in records)
        assert CANARY not in text
        return text

    with caplog.at_level(logging.DEBUG, logger="sottovoce"):
        yield of_ours


def test_a_failure_is_told_by_its_class_and_place(policy, logged):
    provider = gate.gated_tracer_provider(policy, shutdown_on_exit=False)
    provider.add_span_processor(Talkative())
    provider.get_tracer("x").start_span("x").end()
    text = logged()
    assert "span processor on_end" in text
    assert re.search(
        r"\(RuntimeError > sottovoce\.privacy\.spans\._safely:\d+ > \S+on_end:\d+\)", text
    )


def test_trace_context_that_cannot_be_read_or_written_is_not_quoted(policy, logged):
    propagator = GatedPropagator(Echoing(), policy)
    assert propagate.get_global_textmap() is not propagator
    assert propagator.extract({"traceparent": CANARY}) is context.get_current()
    propagator.inject({"baggage": CANARY})
    assert logged().count("ValueError") == 2


def test_a_secret_that_cannot_be_used_is_not_quoted(tmp_path, monkeypatch, logged):
    """Also the file's name says who somebody is; an error of decoding holds the secret itself."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / CANARY))
    pseudonyms.from_settings(Settings(key_file=str(tmp_path / CANARY / "none")))
    assert "FileNotFoundError" in logged()


def test_a_failure_in_code_of_no_module_is_told_as_well(logged):
    @guard.never_raise("nowhere")
    def broken():
        exec("def f():\n    1 / 0\nf()", {"__name__": object()})

    assert broken() is None
    assert "ZeroDivisionError" in logged()
    assert guard.handled() == "nothing"
