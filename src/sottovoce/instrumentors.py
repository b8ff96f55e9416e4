"""The instrumentors, as OpenTelemetry users know them: `XInstrumentor().instrument()`.

Each only names what it hooks; the hooks live in `clients`, `transports` and `runtimes`.
Nothing is imported that the app has not imported: hooks wait for the import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from sottovoce import settings
from sottovoce.guard import ImportHooks, Patches
from sottovoce.record import SpanRecorder

if TYPE_CHECKING:
    from collections.abc import Collection


class _Instrumentor(BaseInstrumentor):  # type: ignore[misc]
    """What all share: a recorder, the patches made and the import hooks waiting.

    `instrument()` takes `tracer_provider` and `meter_provider` (the global ones when
    absent) and `settings` (read from the environment when absent).
    """

    _patches: Patches
    _hooks: ImportHooks
    _own_hosts: tuple[str, ...]

    def instrumentation_dependencies(self) -> Collection[str]:
        """Name no version: what a hook does not recognise it leaves alone."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        chosen = kwargs.get("settings") or settings.read()[0]
        self._patches, self._hooks = Patches(), ImportHooks()
        self._own_hosts = chosen.own_hosts
        self._install(
            SpanRecorder(kwargs.get("tracer_provider"), kwargs.get("meter_provider"), chosen)
        )

    def _uninstrument(self, **_: Any) -> None:
        self._hooks.stop()
        self._remove()
        self._patches.undo()

    def _install(self, recorder: SpanRecorder) -> None:
        raise NotImplementedError

    def _remove(self) -> None:
        """Undo what is not a patch."""


class OpenAIInstrumentor(_Instrumentor):
    """The openai SDK, sync and async, and every client that is one (AzureOpenAI, …)."""

    def _install(self, recorder: SpanRecorder) -> None:
        from sottovoce.clients import generated  # noqa: PLC0415 - only what is used is loaded
        from sottovoce.transports import httpx  # noqa: PLC0415

        generated.install(recorder, self._hooks, self._patches, ("openai",), self._own_hosts)
        httpx.install_wire()

    def _remove(self) -> None:
        from sottovoce.transports import httpx  # noqa: PLC0415

        httpx.remove_wire()


class HTTPXInstrumentor(_Instrumentor):
    """Model calls made with httpx or httpx2 alone, on any host."""

    def _install(self, recorder: SpanRecorder) -> None:
        from sottovoce.transports import httpx  # noqa: PLC0415

        httpx.install_wire()
        httpx.set_raw_recorder(recorder, self._own_hosts)

    def _remove(self) -> None:
        from sottovoce.transports import httpx  # noqa: PLC0415

        httpx.set_raw_recorder(None)
        httpx.remove_wire()


class MLXInstrumentor(_Instrumentor):
    """mlx-lm in this process: loading and generating."""

    def _install(self, recorder: SpanRecorder) -> None:
        from sottovoce.runtimes import mlx  # noqa: PLC0415

        mlx.install(recorder, self._hooks, self._patches)


class LlamaCppInstrumentor(_Instrumentor):
    """llama-cpp-python in this process: loading, completing, chatting, embedding."""

    def _install(self, recorder: SpanRecorder) -> None:
        from sottovoce.runtimes import llama_cpp  # noqa: PLC0415

        llama_cpp.install(recorder, self._hooks, self._patches)


ALL = (OpenAIInstrumentor, HTTPXInstrumentor, MLXInstrumentor, LlamaCppInstrumentor)
"""Every instrumentor, in the order in which `start()` applies them."""
