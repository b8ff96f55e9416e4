"""The `sottovoce` command: a local receiver for development, and what it saw.

Its libraries are the extra `local`, so that instrumenting an app brings none of them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Final

EXTRA: Final = ("click", "rich", "starlette", "uvicorn")


def main() -> int:
    """Run the command line; returns the exit code (2 when the extra is not installed)."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        print(
            f"sottovoce: the command line needs {', '.join(missing)}; "
            "install it with: pip install 'sottovoce[local]'",
            file=sys.stderr,
        )
        return 2
    from sottovoce.cli.commands import commands

    return int(commands.main(prog_name="sottovoce", standalone_mode=True) or 0)
