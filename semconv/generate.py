"""Check the registry in this directory, and write from it tables, texts, page and allow-list.

    python semconv/generate.py               # write what is generated (`OUTPUTS`)
    python semconv/generate.py --check       # write nothing; exit 1 when something is out of date
    python semconv/generate.py --review ID   # accept what changed as review ID in reviews.yaml says

Each exits with 1 when an entry changed without a review that names it, and says what to do.
Needs PyYAML only. When Weaver is on PATH, it checks the registry too.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import subprocess
import sys
from pathlib import Path

import allow_list
import dialects
import document
import reviews
import tables
import texts
from definition import HERE, Invalid, load

OUTPUTS = (
    (
        "src/sottovoce/registry/_tables.py",
        lambda registry, _reviews, _lock: tables.render(registry),
    ),
    (
        "src/sottovoce/registry/_dialects.py",
        lambda registry, _reviews, _lock: dialects.render(registry.dialects),
    ),
    ("src/sottovoce/registry/texts.json", texts.render),
    ("docs/TELEMETRY.md", document.render),
    ("collector-config/allow.yaml", lambda registry, _reviews, _lock: allow_list.render(registry)),
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
    parser.add_argument("--registry", type=Path, default=HERE, help="directory of the registry")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="where to write")
    parser.add_argument("--review", metavar="ID", help="accept what changed as this review says")
    options = parser.parse_args(arguments)
    try:
        registry = load(options.registry)
        if options.review:
            for entry in reviews.accept(registry, options.registry, options.review):
                print(f"{entry}: covered by {options.review}")
        known, lock = reviews.read_reviews(options.registry), reviews.read_lock(options.registry)
        unreviewed = reviews.check(registry, options.registry)
    except Invalid as error:
        print(*error.args, sep="\n", file=sys.stderr)
        return 1
    status = 0
    for name, render in OUTPUTS:
        path: Path = options.root / name
        new = render(registry, known, lock)
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
    if unreviewed:
        print(*unreviewed, sep="\n")
        status = 1
    if not _weaver():
        status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
