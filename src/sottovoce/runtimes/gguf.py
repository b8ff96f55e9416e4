"""Whether llama.cpp knows the architecture of a file that it could not load.

It says why on its log alone, beside the path; to the app every reason is the same error. The
head of a GGUF file names the architecture, and the library holds the names of those that it
knows as C strings. Both are looked at only after a load failed, and nothing of either is told.

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
"""Bytes of a file that are read; the architecture stands at the beginning."""

_KEY: Final = b"general.architecture"
_NAME: Final = re.compile(rb"[\w.-]{1,64}", re.ASCII)
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value → its bytes, of those that have a size."""

_STRING: Final = 8
_VERSIONS: Final = {2, 3}


def is_unsupported(path: str, library: str) -> bool:
    """Whether the GGUF file at `path` is of an architecture that `library` does not know.

    False where either cannot be read. Never raises.
    """
    with suppress(OSError, ValueError):
        # What is no file may never answer.
        if stat.S_ISREG(Path(path).stat().st_mode):
            with Path(path).open("rb") as file:
                name = architecture(file.read(_HEAD))
            return name is not None and not _holds(library, name)
    return False


def architecture(head: bytes) -> bytes | None:
    """Give the architecture that the beginning of a GGUF file names, if it does."""
    with suppress(struct.error):
        magic, version, _, pairs = struct.unpack_from("<4sIQQ", head)
        if magic != b"GGUF" or version not in _VERSIONS:
            return None
        at = 24
        for _ in range(pairs):
            key, at = _string(head, at)
            (kind,) = struct.unpack_from("<I", head, at)
            at += 4
            if kind == _STRING:
                value, at = _string(head, at)
                if key == _KEY:
                    return value if _NAME.fullmatch(value) else None
            elif kind in _SIZES:
                at += _SIZES[kind]
            else:
                break
    return None


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
