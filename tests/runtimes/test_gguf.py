"""The head of a GGUF file, and what llama.cpp knows of it: whatever the bytes are."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.runtimes import gguf


def string(value):
    return struct.pack("<Q", len(value)) + value


def head(*pairs, magic=b"GGUF", version=3, count=None):
    count = len(pairs) if count is None else count
    return struct.pack("<4sIQQ", magic, version, 7, count) + b"".join(pairs)


NAMED = string(b"general.architecture") + struct.pack("<I", 8) + string(b"llama")
NUMBER = string(b"llama.block_count") + struct.pack("<II", 4, 2)
TITLE = string(b"general.name") + struct.pack("<I", 8) + string(b"alice")
LIST = string(b"tokens") + struct.pack("<IIQ", 9, 4, 0)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (head(NAMED), b"llama"),
        (head(NUMBER, TITLE, NAMED), b"llama"),
        (head(NAMED, version=2), b"llama"),
        (head(NAMED, version=1), None),
        (head(NAMED, magic=b"GGML"), None),
        (head(LIST, NAMED), None),
        (head(TITLE), None),
        (head(TITLE, count=1 << 60), None),
        (head(NAMED)[:-1], None),
        (head(NAMED.replace(b"llama", b"ll ma")), None),
        (b"", None),
    ],
)
def test_the_architecture_that_a_head_names(content, named):
    assert gguf.architecture(content) == named


def test_numbers_of_either_size():
    counted = string(b"general.parameter_count") + struct.pack("<IQ", 10, 8_030_261_312)
    found = {b"llama.block_count": 2, b"general.parameter_count": 8_030_261_312}
    assert gguf.values(head(NUMBER, counted)) == found


@given(st.one_of(st.binary(), st.binary().map(lambda rest: head(rest, count=3))))
def test_any_bytes_are_read_without_an_error(content):
    assert gguf.architecture(content) is None or len(gguf.architecture(content)) <= 64


def test_what_a_library_knows(tmp_path):
    library, file = tmp_path / "lib.so", tmp_path / "x.gguf"
    file.write_bytes(head(NAMED))
    library.write_bytes(b"some\0gpt2\0")
    assert gguf.is_unsupported(str(file), str(library))
    library.write_bytes(b"some\0my-llama\0")
    assert not gguf.is_unsupported(str(file), str(library))


def test_what_cannot_be_read_is_no_reason(tmp_path):
    library, file = tmp_path / "lib.so", tmp_path / "x.gguf"
    file.write_bytes(head(NAMED))
    library.write_bytes(b"")
    assert not gguf.is_unsupported(str(file), str(library))
    assert not gguf.is_unsupported(str(file), str(tmp_path / "none"))
    assert not gguf.is_unsupported(str(tmp_path), str(library))
    assert not gguf.is_unsupported("\0", str(library))
    os.mkfifo(tmp_path / "pipe")
    assert not gguf.is_unsupported(str(tmp_path / "pipe"), str(library))
