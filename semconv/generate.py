"""Check the registry in this directory, and write from it the tables and the documentation.

    python semconv/generate.py           # write src/sottovoce/registry/_tables.py and docs/TELEMETRY.md
    python semconv/generate.py --check   # write nothing; exit 1 when one of them is out of date

Needs PyYAML only. When Weaver is on PATH, it checks the registry too.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import subprocess
import sys
from pathlib import Path

import document
import tables
from definition import HERE, Invalid, load

OUTPUTS = (
    ("src/sottovoce/registry/_tables.py", tables.render),
    ("docs/TELEMETRY.md", document.render),
)
_SHOWN = 40


def _weaver() -> bool:
    """Whether Weaver is content with the registry; it is, where there is no Weaver."""
    weaver = shutil.which("weaver")
    if weaver is None:
        return True
    done = subprocess.run(
        [weaver, "registry", "check", "--v2", "--registry", str(HERE / "model")], check=False
    )
    return done.returncode == 0


def main(arguments: list[str] | None = None) -> int:
    """Do what the module's docstring says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 on a difference"
    )
    parser.add_argument(
        "--registry", type=Path, default=HERE, help="directory of model/ and upstream/"
    )
    parser.add_argument(
        "--root", type=Path, default=HERE.parent, help="directory of src/ and docs/"
    )
    options = parser.parse_args(arguments)
    try:
        registry = load(options.registry)
    except Invalid as error:
        print(*error.args, sep="\n", file=sys.stderr)
        return 1
    status = 0
    for name, render in OUTPUTS:
        path: Path = options.root / name
        new = render(registry)
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if new == old:
            continue
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(new, encoding="utf-8")
            print(f"{name}: written")
            continue
        status = 1
        changes = list(
            difflib.unified_diff(old.splitlines(), new.splitlines(), name, name, lineterm="", n=0)
        )
        print(
            f"{name} is out of date: run `python semconv/generate.py`", *changes[:_SHOWN], sep="\n"
        )
    if not _weaver():
        status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
