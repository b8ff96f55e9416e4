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


def environment(**variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    ours = {"PYTHONUNBUFFERED": "1", "SOTTOVOCE_KEY": "a key of the tests, of 32 bytes."}
    return {**kept, **ours, **variables}


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
