"""Environments of other people's packages, with this checkout in each; made by uv."""

import os
import platform
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def made(folder, requirements, *, ours=True):
    """The `bin` folder of a new environment with the pins in ``requirements/NAME.txt``.

    `ours`: with this checkout, in place.
    """
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
    if ours:
        # In place: uv would take the package as it built it last from its cache.
        here = ("--no-deps", "--no-build-isolation", "-e", ROOT)
        run("pip", "install", "-q", "--offline", *here)
    return folder / "bin"


def llama(folder, library, requirements):
    """The same with the llama-cpp-python that ``tools/environment.sh`` built of `library`'s pins."""
    pins = (ROOT / "requirements" / f"{library}.txt").read_bytes()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("SOTTOVOCE_CACHE") or Path(base) / "sottovoce")
    version = "cp{}{}".format(*sys.version_info)
    tag = f"{sys.platform}-{platform.machine()}-{version}-{sha256(pins).hexdigest()[:16]}"
    [wheel] = (cache / "wheels" / tag).glob("*.whl")
    done = made(folder, requirements)
    uv = Path(sys.executable).with_name("uv")
    environ = {**os.environ, "VIRTUAL_ENV": str(folder)}
    install = [uv, "pip", "install", "-q", "--offline", "--no-deps", wheel]
    subprocess.run(install, env=environ, check=True)
    return done
