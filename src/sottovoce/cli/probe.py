"""Tells what our hooks find in this environment: runs as a program, prints JSON.

A process of its own, because it imports what the app may import. The instrumentors are the
real ones, applied to providers that keep nothing.

Output: ``{entry point: {"library": module found or null, "error": class name or null,
"hooks": ["module.Class.method", …], "gauges": ["metric", …]}}``; a library that is not installed
has no module. Gauges are what a runtime's instrumentor lets this machine tell.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from sottovoce import gauges
from sottovoce.instrumentors import ALL
from sottovoce.settings import Settings


def main() -> int:
    """Print what each instrumentor hooked."""
    names = {
        entry.value.rpartition(":")[2]: entry.name
        for entry in entry_points(group="opentelemetry_instrumentor")
        if entry.value.startswith("sottovoce.")
    }
    chosen = Settings(key="not a secret: nothing is sent")
    applied = []
    for kind in ALL:
        instrumentor = kind()
        instrumentor.instrument(settings=chosen, skip_dep_check=True)
        applied.append((names.get(kind.__name__, kind.__name__), instrumentor))
    found = {name: _look(instrumentor) for name, instrumentor in applied}
    for name, instrumentor in applied:
        found[name]["hooks"] = instrumentor.hooked()
        gauged = instrumentor.in_process and found[name]["hooks"]
        found[name]["gauges"] = gauges.told_here() if gauged else ()
    json.dump(found, sys.stdout)
    return 0


def _look(instrumentor: Any) -> dict[str, Any]:
    """Import what the instrumentor waits for, as an app would."""
    library, errors = None, []
    for module in instrumentor.modules:
        if not _is_installed(module):
            continue
        library = library or module
        try:
            importlib.import_module(module)
        except Exception as raised:  # noqa: BLE001 - any library may fail in any way
            errors.append(type(raised).__name__)
        else:
            return {"library": module, "error": None}
    return {"library": library, "error": errors[0] if errors else None}


def _is_installed(module: str) -> bool:
    """Whether there is such a module; its parents are imported to find out."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
    except Exception:  # noqa: BLE001 - a parent is there and fails
        return True


if __name__ == "__main__":
    sys.exit(main())
