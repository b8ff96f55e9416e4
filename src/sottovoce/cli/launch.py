"""Runs a command under `opentelemetry-instrument` with one receiver as its only destination."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LAUNCHER: Final = "opentelemetry-instrument"
# What would send somewhere else, or nowhere, whatever the endpoint says.
_ELSEWHERE: Final = frozenset(
    {
        "OTEL_CONFIG_FILE",
        "OTEL_TRACES_EXPORTER",
        "OTEL_METRICS_EXPORTER",
        "OTEL_LOGS_EXPORTER",
    }
)
# A server that a signal ends sends no last batch: little shall wait for it. In milliseconds.
_SOON: Final = {"OTEL_BSP_SCHEDULE_DELAY": "500", "OTEL_METRIC_EXPORT_INTERVAL": "10000"}


class CannotLaunch(Exception):
    """The command or the launcher is not there; the message is for the person who typed it."""


def instrumented(command: Sequence[str]) -> list[str]:
    """`command` under the launcher of this Python's environment, unless it names it itself.

    Raises:
        CannotLaunch: there is no such command, or no launcher.
    """
    if shutil.which(command[0]) is None:
        hint = f"; did you mean: python {command[0]}" if Path(command[0]).is_file() else ""
        raise CannotLaunch(f"there is no command {command[0]}{hint}")
    if Path(command[0]).name == _LAUNCHER:
        return list(command)
    beside = Path(sys.executable).with_name(_LAUNCHER)
    found = str(beside) if beside.exists() else shutil.which(_LAUNCHER)
    if found is None:
        raise CannotLaunch(f"{_LAUNCHER} is not installed beside {sys.executable}")
    return [found, *command]


def overridden(base: Mapping[str, str] | None = None) -> list[str]:
    """Names of the variables of `base` that a command run by us does not get."""
    names = os.environ if base is None else base
    return sorted(
        name for name in names if name.startswith("OTEL_EXPORTER_OTLP_") or name in _ELSEWHERE
    )


def environment(endpoint: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """`base` (this process's environment) with `endpoint` as the only place to send to.

    What is made is sent soon, unless `base` says when.
    """
    base = os.environ if base is None else base
    inherited = {name: base[name] for name in base.keys() - set(overridden(base))}
    return {
        **_SOON,
        **inherited,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }


def run(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run `command` to its end; returns the exit code as a shell gives it.

    An interrupt is the command's to answer, and a request to terminate is passed on to it.
    For the main thread.
    """
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: object) -> None:
        # The terminal interrupts the whole foreground group, so the child has had that.
        if child is not None and number != signal.SIGINT:
            child.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        child = subprocess.Popen(list(command), env=dict(env))  # noqa: S603 - the user's command
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
