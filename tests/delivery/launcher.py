"""Runs small programs, plainly or under `opentelemetry-instrument`, with only our environment."""

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
CLEAN = ("OTEL_", "SOTTOVOCE_", "ANTHROPIC_", "PYTHON", "COV_")


@dataclass
class Ran:
    out: str
    err: str
    code: int
    seconds: float


def environment(**variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(CLEAN)}
    return {**kept, "PYTHONUNBUFFERED": "1", "SOTTOVOCE_KEY": "a key of the tests, of 32 bytes", **variables}


def run(program, *, launcher=True, cwd=None, path=(), python=sys.executable, seconds=90, **variables):
    """Run a program; `path` goes before everything else on PYTHONPATH."""
    env = environment(**variables)
    if path:
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [python, "-c", textwrap.dedent(program)]
    if launcher:
        command.insert(0, str(BIN / "opentelemetry-instrument"))
    began = time.monotonic()
    done = subprocess.run(
        command, env=env, cwd=cwd or "/", capture_output=True, text=True, timeout=seconds, check=False
    )
    return Ran(done.stdout, done.stderr, done.returncode, time.monotonic() - began)
