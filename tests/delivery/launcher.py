"""Runs small programs, plainly or under `opentelemetry-instrument`, with only our environment."""

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
FOREIGN = ("OTEL_", "SOTTOVOCE_", "ANTHROPIC_", "PYTHON", "COV_")

SPAN = """
from opentelemetry import trace
def call(name="chat"):
    trace.get_tracer("sottovoce").start_span(name, attributes={
        "gen_ai.operation.name": name, "gen_ai.request.max_tokens": 7,
        "planted": "the planted sentence",
    }).end()
call()
"""
"""One span as ours are, with an attribute that must not leave."""


@dataclass
class Ran:
    out: str
    err: str
    code: int
    seconds: float


PROMPT = {"SOTTOVOCE_EXIT_TIMEOUT": None, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
"""Variables of a program whose end waits as long as it does for everybody: a second."""
WITHIN = 30.0
"""Seconds: however busy the machine is, such a program is over, and an exporter would not be."""


def environment(**variables):
    """Variables of a program; None for one that is not set.

    Its end waits for the last export for as long as a busy machine may take.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    ours = {
        "PYTHONUNBUFFERED": "1",
        "SOTTOVOCE_KEY": "a key of the tests, of 32 bytes.",
        "SOTTOVOCE_EXIT_TIMEOUT": "20",
    }
    given = {**kept, **ours, **variables}
    return {name: value for name, value in given.items() if value is not None}


def run(program, *, launcher=True, path=(), python=sys.executable, seconds=90, **variables):
    """Run a program to its end; `path` goes before everything else on PYTHONPATH."""
    env = environment(**variables)
    if path:
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [python, "-c", textwrap.dedent(program)]
    if launcher:
        command.insert(0, str(BIN / "opentelemetry-instrument"))
    with tempfile.TemporaryDirectory() as empty:
        began = time.monotonic()
        done = subprocess.run(
            command,
            env=env,
            cwd=empty,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    return Ran(done.stdout, done.stderr, done.returncode, time.monotonic() - began)
