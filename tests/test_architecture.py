"""Who may import whom, who may read and write the environment: `design.md`, as a test."""

import ast
from pathlib import Path

import pytest

import sottovoce

SOURCE = Path(sottovoce.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
FOREIGN = {
    "httpx",
    "httpx2",
    "openai",
    "anthropic",
    "mlx",
    "mlx_lm",
    "llama_cpp",
    "requests",
    "aiohttp",
}

OURS = {
    # room: what of ours it may import
    "call": set(),
    "_version": set(),
    "parsers": set(),
    "settings": {"parsers"},
    "tightening": {"parsers", "settings"},
    "guard": set(),
    "registry": {"registry"},
    "hardware": {"guard", "hardware"},
    "protocols": {"call", "guard", "protocols"},
    "dropped": {"call", "guard"},
    "exchange": {"call", "dropped", "guard", "protocols"},
    "clients": {"call", "clients", "exchange", "guard", "protocols", "steps"},
    "loaded": set(),
    "runtimes": {
        "call",
        "dropped",
        "guard",
        "hardware",
        "loaded",
        "protocols",
        "registry",
        "runtimes",
    },
    "transports": {"call", "dropped", "exchange", "guard", "protocols", "transports"},
    "privacy": {"privacy", "registry", "settings", "guard"},
    "points": set(),
    "aggregations": {"call", "guard"},
    "measure": {"call", "points", "privacy"},
    "steps": {"call", "guard"},
    "scopes": {"guard", "steps"},
    "pages": {"aggregations", "call", "guard", "measure", "points"},
    "instruments": {"call", "measure", "pages", "privacy", "registry"},
    "record": {
        "_version",
        "call",
        "guard",
        "instruments",
        "own_counters",
        "points",
        "privacy",
        "record_engines",
        "registry",
        "settings",
        "spans",
        "steps",
    },
    "record_engines": {
        "instruments",
        "pages",
        "loaded",
        "points",
        "privacy",
        "record",
        "registry",
        "spans",
    },
    "record_requests": {"dropped", "guard", "privacy", "record", "spans"},
    "record_steps": {
        "dropped",
        "guard",
        "instruments",
        "pages",
        "points",
        "privacy",
        "record",
        "spans",
        "steps",
    },
    "shortcut": {"privacy"},
    "spans": {"guard", "privacy", "shortcut"},
    "own_counters": {"aggregations", "guard", "pages", "points", "registry"},
}
NO_OPENTELEMETRY = {
    "call",
    "steps",
    "scopes",
    "dropped",
    "exchange",
    "guard",
    "hardware",
    "loaded",
    "parsers",
    "settings",
    "tightening",
    "protocols",
    "clients",
    "runtimes",
    "transports",
}


def room_of(path):
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


def imports_of(tree):
    """Every module that is imported anywhere in the file, except for annotations only."""
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            hidden.update(id(child) for child in ast.walk(node))
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "sottovoce":
                yield from (f"sottovoce.{alias.name}" for alias in node.names)
            else:
                yield node.module


def environment_uses(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"}:
            yield node


def writes_environment(tree):
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else ()
        for target in targets:
            if isinstance(target, ast.Subscript) and "environ" in ast.dump(target.value):
                yield node
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"setdefault", "update", "pop", "putenv"}
            and "environ" in ast.dump(node.func.value)
        ):
            yield node


@pytest.fixture(params=MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def module(request):
    path = request.param
    return path, room_of(path), ast.parse(path.read_text(encoding="utf-8"))


def test_rooms_import_only_what_they_may(module):
    path, room, tree = module
    allowed = OURS.get(room)
    if allowed is None:
        return
    ours = {name.split(".")[1] for name in imports_of(tree) if name.startswith("sottovoce.")}
    assert ours <= allowed, f"{room} may import {sorted(allowed)}"


def test_only_record_and_privacy_and_what_launches_know_opentelemetry(module):
    path, room, tree = module
    if room in NO_OPENTELEMETRY:
        assert not [name for name in imports_of(tree) if name.startswith("opentelemetry")]


def test_no_sdk_and_no_runtime_is_imported_by_a_hook(module):
    path, room, tree = module
    if room == "cli":
        return
    assert not [name for name in imports_of(tree) if name.split(".")[0] in FOREIGN]


def test_only_settings_reads_the_environment_and_only_the_distro_writes_it(module):
    path, room, tree = module
    if room not in {"settings", "distro", "cli"}:
        assert not list(environment_uses(tree))
    if room != "distro":
        assert not list(writes_environment(tree))


def test_only_record_writes_gen_ai_names(module):
    path, room, tree = module
    writers = {"record", "record_engines", "record_steps", "instruments"}
    if room in {"registry", "privacy", "cli", *writers}:
        return
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    named = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("gen_ai.")
        and id(node) not in docstrings
    ]
    assert not named


def test_every_module_says_what_it_is_for(module):
    path, room, tree = module
    assert ast.get_docstring(tree), f"{path.name} has no docstring"


def test_no_module_is_a_drawer(module):
    path, _, _ = module
    assert path.stem not in {"utils", "helpers", "common", "misc"}
