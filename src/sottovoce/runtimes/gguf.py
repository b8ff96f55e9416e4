"""What the head of a GGUF file says, and whether llama.cpp knows the architecture that it names.

Of a file that it could not load llama.cpp says why on its log alone, beside the path; to the app
every reason is the same error. The head names the architecture, and the library holds the names
of those that it knows as C strings. Nothing of either is told.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import re
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

_HEAD: Final = 4096
"""Bytes of a file that are read; what is general stands at the beginning."""

_KEY: Final = b"general.architecture"
_NAME: Final = re.compile(rb"[\w.-]{1,64}", re.ASCII)
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value → its bytes, of those that have a size."""

_STRING: Final = 8
_NUMBERS: Final = {4: "<I", 10: "<Q"}
"""Types of values that are whole numbers without a sign, and how they are written."""

_VERSIONS: Final = {2, 3}


def head(path: str) -> bytes | None:
    """Give the beginning of the file at `path`; None where it is none, or cannot be read."""
    with suppress(OSError, ValueError):
        # What is no file may never answer.
        if stat.S_ISREG(Path(path).stat().st_mode):
            with Path(path).open("rb") as file:
                return file.read(_HEAD)
    return None


def is_unsupported(path: str, library: str) -> bool:
    """Whether the GGUF file at `path` is of an architecture that `library` does not know.

    False where either cannot be read. Never raises.
    """
    with suppress(OSError, ValueError):
        name = architecture(head(path) or b"")
        return name is not None and not _holds(library, name)
    return False


def architecture(head: bytes) -> bytes | None:
    """Give the architecture that the beginning of a GGUF file names, if it does."""
    value = values(head).get(_KEY)
    return value if isinstance(value, bytes) and _NAME.fullmatch(value) else None


def values(head: bytes) -> dict[bytes, bytes | int]:
    """Give the strings and the larger whole numbers that the beginning of a GGUF file holds, by key.

    Those up to the first list: the vocabulary is one, the general ones stand before it.
    """
    found: dict[bytes, bytes | int] = {}
    with suppress(struct.error):
        magic, version, _, pairs = struct.unpack_from("<4sIQQ", head)
        if magic != b"GGUF" or version not in _VERSIONS:
            return found
        at = 24
        for _ in range(pairs):
            key, at = _string(head, at)
            (kind,) = struct.unpack_from("<I", head, at)
            at += 4
            if kind == _STRING:
                found[key], at = _string(head, at)
            elif kind in _SIZES:
                if kind in _NUMBERS:
                    (found[key],) = struct.unpack_from(_NUMBERS[kind], head, at)
                at += _SIZES[kind]
            else:
                break
    return found


def _string(head: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<Q", head, at)
    end = at + 8 + size
    if end > len(head):
        raise struct.error
    return head[at + 8 : end], end


def _holds(library: str, name: bytes) -> bool:
    with (
        Path(library).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        # Its linker may have let one name be the end of another.
        return content.find(name + b"\0") >= 0
