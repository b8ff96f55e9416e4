"""The gate for log records: a copy leaves, without body, message and stack.

The caller's own record is never touched: others may still read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import ReadWriteLogRecord
from opentelemetry.sdk._logs._internal import SynchronousMultiLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import TraceFlags

from sottovoce import guard
from sottovoce.privacy.origin import Origins, emptied, is_id, is_time
from sottovoce.privacy.rules import FRAMES
from sottovoce.registry import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from sottovoce.privacy.compiled import Compiled
    from sottovoce.privacy.policy import Policy

EXCEPTION: Final = "exception.type"
_SEVERITIES: Final = frozenset(
    {"TRACE", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL", "NOTSET"}
)


class LogGate(SynchronousMultiLogRecordProcessor):
    """Hands every processor clean records only; ``LoggerProvider(multi_log_record_processor=…)``.

    A record whose copying fails is dropped and counted. An exception of a processor reaches
    neither the app nor the processors after it.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.policy = policy
        policy.choice.gates.add(self)
        self._origins = Origins(policy, "log")

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Copy what may leave of `log_record` and hand it on; never raises."""
        if not self._log_record_processors:
            return
        compiled = self.policy.choice.now
        if self._is_silent(log_record, compiled):
            self.policy.count("log", "off")
            return
        try:
            clean = self.clean(log_record)
            if self.policy.choice.now is not compiled:
                # Tightened meanwhile: what was judged before must not be queued after.
                self.policy.count("log", "off")
                return
        except Exception:  # noqa: BLE001 - fail closed
            self.policy.count("log", "gate_error")
            guard.failed("log gate")
            return
        for processor in self._log_record_processors:
            _safely("on_emit", processor.on_emit, clean)

    @staticmethod
    def _is_silent(given: ReadWriteLogRecord, compiled: Compiled) -> bool:
        """Whether records like `given` do not leave at all."""
        if compiled.logs:
            return False
        # An event of the conventions leaves where spans do.
        name = given.log_record.event_name
        return not (compiled.spans and type(name) is str and name in EVENTS)

    def enabled(
        self,
        *,
        context: Context | None = None,
        instrumentation_scope: InstrumentationScope | None = None,
        severity_number: SeverityNumber | None = None,
        event_name: str | None = None,
    ) -> bool:
        """Whether any processor wants such a record; true when one cannot tell."""
        try:
            return super().enabled(
                context=context,
                instrumentation_scope=None
                if instrumentation_scope is None
                else self._origins.scope(instrumentation_scope),
                severity_number=severity_number,
                event_name=event_name if event_name in EVENTS else None,
            )
        except Exception:  # noqa: BLE001 - a processor's error is not the app's
            guard.failed("log processor enabled")
            return True

    def discard(self) -> None:
        """Forget records that wait to be sent: they were let through by a looser profile."""
        forgotten = emptied(self._log_record_processors)
        if forgotten:
            self.policy.count("log", "off", forgotten)

    def shutdown(self) -> None:
        """Shut every processor down, whatever the ones before it do."""
        for processor in self._log_record_processors:
            _safely("shutdown", processor.shutdown)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """As the SDK does it, but false rather than an exception."""
        try:
            return super().force_flush(timeout_millis)
        except Exception:  # noqa: BLE001 - as above
            guard.failed("log processor force_flush")
            return False

    def clean(self, given: ReadWriteLogRecord) -> ReadWriteLogRecord:
        """A copy of `given` with what may leave. May raise."""
        record, count = given.log_record, self.policy.count
        if record.body is not None:
            count("log", "body")
        event_name = record.event_name
        if event_name is not None and (type(event_name) is not str or event_name not in EVENTS):
            count("log", "name")
            event_name = None
        severity_text = record.severity_text
        if severity_text is not None and (
            type(severity_text) is not str or severity_text not in _SEVERITIES
        ):
            count("log", "enum")
            severity_text = None
        number = record.severity_number
        clean = LogRecord(
            timestamp=self._sane(record.timestamp, is_time(record.timestamp)),
            observed_timestamp=self._sane(
                record.observed_timestamp, is_time(record.observed_timestamp)
            ),
            # A context of its own: the caller's holds baggage and live spans.
            context=Context(),
            severity_text=severity_text,
            severity_number=number if isinstance(number, SeverityNumber) else None,
            attributes=self.policy.attributes(self._said(record), "log"),
            event_name=event_name,
        )
        clean.context = None  # type: ignore[assignment]
        clean.trace_id = self._sane(record.trace_id, is_id(record.trace_id, 128))
        clean.span_id = self._sane(record.span_id, is_id(record.span_id, 64))
        flags = record.trace_flags
        clean.trace_flags = TraceFlags(flags & 0xFF) if isinstance(flags, int) else TraceFlags()
        scope = given.instrumentation_scope
        return ReadWriteLogRecord(
            log_record=clean,
            resource=self._origins.resource(given.resource or Resource.get_empty()),
            instrumentation_scope=None if scope is None else self._origins.scope(scope),
            limits=given.limits,
        )

    def _said(self, record: LogRecord) -> dict[str, Any]:
        said: dict[str, Any] = dict(record.attributes or {})
        told = self.policy.frames
        if told and EXCEPTION in said:
            # `LogRecord.exception` as in opentelemetry-api 1.45; handlers of `logging` write
            # attributes alone, while the exception is being handled.
            error = getattr(record, "exception", None)
            found = told.handled(said[EXCEPTION]) if error is None else told.of(error)
            if found:
                said[FRAMES] = found
        return said

    def _sane(self, number: Any, sane: bool) -> Any:
        """`number` if it can be sent, else 0: an exporter would fail on it, and lose the batch."""
        if not sane and number:
            self.policy.count("log", "type")
        return number if sane or number is None else 0


def _safely(place: str, method: Callable[..., Any], *args: Any) -> None:
    try:
        method(*args)
    except Exception:  # noqa: BLE001 - a processor's error is neither the app's nor the next one's
        guard.failed(f"log processor {place}")
