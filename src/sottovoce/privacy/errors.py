"""What may be said of an error: the class of a known library, or a word of the registry.

A class is named only if it is what a loaded module of a known library has under that very
name. So a class that somebody made, named or moved there says nothing but `OTHER`, whatever
it calls itself; nor does a message, a note, a cause or the members of a group, which nothing
here reads.
"""

from __future__ import annotations

import builtins
import sys
from typing import Any, Final

from sottovoce.privacy.patterns import Pattern
from sottovoce.registry import ATTRIBUTES

OTHER: Final = "_OTHER"

LONGEST: Final = 128
"""Characters of the longest name."""

KNOWN_MODULES: Final = frozenset({
    "aiobotocore", "aiohttp", "anthropic", "anyio", "asyncio", "azure.ai.agents",
    "azure.ai.inference", "azure.ai.projects", "azure.core", "azure.identity", "botocore",
    "builtins", "cerebras.cloud.sdk", "cohere", "concurrent.futures", "google.api_core",
    "google.auth", "google.cloud.aiplatform", "google.genai", "google.protobuf", "groq", "grpc",
    "h11", "h2", "http.client", "http.cookiejar", "httpcore", "httpcore2", "httpx", "httpx2",
    "huggingface_hub", "json", "jsonschema", "llama_cpp", "mistralai", "mlx", "mlx_lm", "ollama",
    "openai", "opentelemetry.context", "opentelemetry.exporter", "opentelemetry.sdk", "pydantic",
    "pydantic_core", "requests", "sniffio", "socket", "sottovoce", "ssl", "together", "torch",
    "transformers", "trio", "urllib", "urllib3",
})  # fmt: skip
"""Modules whose exception classes may be named, theirs and those of the modules in them.

Of a namespace that several distributors share, those that are meant: anyone can add a module
to ``google`` or ``azure``."""

_DEEPEST: Final = max(module.count(".") for module in KNOWN_MODULES) + 1
_STATUS: Final = Pattern(r"[1-5]\d\d")
_CLASS: Final = Pattern(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*){0,12}")
VALUES: Final = ATTRIBUTES["error.type"].values or frozenset()
"""Error codes of providers that may be named."""

# What a class says of itself where no metaclass and no attribute of its own is asked.
_module_of: Final = type.__dict__["__module__"].__get__
_name_of: Final = type.__dict__["__qualname__"].__get__
_members_of: Final = type.__dict__["__dict__"].__get__


def error(value: type[BaseException] | str | None, values: frozenset[str] | None = VALUES) -> str:
    """The `error.type` of an exception class, a provider's code or an HTTP status.

    Args:
        value: the class, or its name as others write it, or the code.
        values: codes that are known.
    """
    if isinstance(value, type):
        return _of_class(value, values)
    if not isinstance(value, str):
        return OTHER
    # The characters themselves: of a subclass, `==` and `hash` say what they like.
    text = str.__str__(value)
    if len(text) > LONGEST:
        return OTHER
    if (values is not None and text in values) or _STATUS.fullmatch(text):
        return text
    return text if _CLASS.fullmatch(text) and _exists(text) else OTHER


def is_known(module: str) -> bool:
    """Whether the classes of `module` may be named."""
    parts = module.split(".", _DEEPEST)
    return any(".".join(parts[:size]) in KNOWN_MODULES for size in range(1, _DEEPEST + 1))


def _of_class(kind: type, values: frozenset[str] | None) -> str:
    module, name = _module_of(kind), _name_of(kind)
    if type(module) is not str or type(name) is not str:
        return OTHER
    if is_known(module) and _found(module, name) is kind and _is_error(kind):
        shown = name if module == "builtins" else f"{module}.{name}"
        return shown if len(shown) <= LONGEST and _CLASS.fullmatch(shown) else OTHER
    # Some libraries make classes at run time, named by the error codes of their services.
    return name if values is not None and name in values else OTHER


def _exists(path: str) -> bool:
    """Whether `path` is the class of an error, under its own name or as its module exports it."""
    if "." not in path:
        return any(_is_error(_found(module, path)) for module in KNOWN_MODULES)
    module, _, name = path.rpartition(".")
    while module not in sys.modules:
        module, _, head = module.rpartition(".")
        if not module:
            return False
        name = f"{head}.{name}"
    return is_known(module) and _is_error(_found(module, name))


def _found(module: str, name: str) -> Any:
    """What the loaded `module` has under the dotted `name`; None when it has nothing."""
    # Never `getattr`: a module may import lazily when asked for a name, and a class answer.
    loaded = builtins if module == "builtins" else sys.modules.get(module)
    members: Any = getattr(loaded, "__dict__", None) or {}
    found: Any = None
    for part in name.split("."):
        found = members.get(part)
        if not isinstance(found, type):
            return None
        members = _members_of(found)
    return found


def _is_error(found: Any) -> bool:
    return isinstance(found, type) and BaseException in type.__dict__["__mro__"].__get__(found)
