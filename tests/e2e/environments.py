"""Environments of other people's packages, with this checkout in each; made by uv."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def made(folder, requirements):
    """The `bin` folder of a new environment with the pins in ``requirements/NAME.txt``."""
    uv = Path(sys.executable).with_name("uv")
    environ = {**os.environ, "VIRTUAL_ENV": str(folder)}

    def run(*arguments, check=True):
        done = subprocess.run(
            [uv, *map(str, arguments)], env=environ, capture_output=True, text=True, cwd=ROOT
        )
        assert not check or done.returncode == 0, done.stderr
        return done.returncode == 0

    run("venv", "-q", "--python", sys.executable, folder)
    pinned = ("--require-hashes", "-r", ROOT / "requirements" / f"{requirements}.txt")
    # From uv's cache, when everything is there: without a look at any index.
    if not run("pip", "install", "-q", "--offline", *pinned, check=False):
        run("pip", "install", "-q", *pinned)
    # In place: uv would take the package as it built it last from its cache.
    here = ("--no-deps", "--no-build-isolation", "-e", ROOT)
    run("pip", "install", "-q", "--offline", *here)
    return folder / "bin"
