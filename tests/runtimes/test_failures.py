"""Why an engine failed: closed codes, whatever an exception is and says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce import guard
from sottovoce.registry import ATTRIBUTES
from sottovoce.runtimes import failures

SECRET = "alice"


def test_the_codes_are_in_the_registry():
    assert failures.CODES <= ATTRIBUTES["error.type"].values


@pytest.mark.parametrize(
    ("error", "of_call", "of_load"),
    [
        (MemoryError(SECRET), "out_of_memory", "out_of_memory"),
        (
            RuntimeError(
                "[metal::malloc] Attempting to allocate 4398046511104 bytes which is greater than"
                " the maximum allowed buffer size of 86586540032 bytes."
            ),
            "out_of_memory",
            "out_of_memory",
        ),
        (
            RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
            "out_of_memory",
            "out_of_memory",
        ),
        (
            RuntimeError("[malloc] Unable to allocate 1073741824 bytes."),
            "out_of_memory",
            "out_of_memory",
        ),
        (
            RuntimeError(
                "[METAL] Command buffer execution failed: Insufficient Memory"
                " (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
            ),
            "out_of_memory",
            "out_of_memory",
        ),
        (
            RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"),
            "out_of_memory",
            "out_of_memory",
        ),
        (RuntimeError("cudaGraphLaunch failed: an illegal memory access"), None, None),
        (RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout"), None, None),
        (RuntimeError("llama_decode returned 1"), "context_length_exceeded", None),
        (RuntimeError("llama_decode returned -2"), "out_of_memory", None),
        (RuntimeError("llama_decode returned -1"), None, None),
        (
            ValueError("Requested tokens (1602) exceed context window of 512"),
            "context_length_exceeded",
            None,
        ),
        (
            ValueError("Requested tokens (600) exceed batch size of 512"),
            "context_length_exceeded",
            None,
        ),
        (ValueError("Prompt exceeds n_ctx: 700 > 512"), "context_length_exceeded", None),
        (ValueError("Failed to load mtmd context from: /alice"), "bad_model_file", None),
        (ValueError("Failed to create llama_context"), None, "out_of_memory"),
        (ValueError("The checkpoint has no weights for layers [3]."), None, "bad_model_file"),
        (ValueError("Failed to get vocab from model: /alice"), None, "bad_model_file"),
        (ValueError("No file found in alice/x that match y"), None, "model_not_found"),
        (RuntimeError("[load_gguf] gguf_init failed"), None, "bad_model_file"),
        (
            RuntimeError("Failed to initialize LoRA adapter from lora path: /alice"),
            None,
            "bad_model_file",
        ),
        (FileNotFoundError(2, "No such file", SECRET), None, "model_not_found"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, SECRET), None, "bad_model_file"),
        (json.JSONDecodeError(SECRET, "", 0), None, "bad_model_file"),
        (KeyError(SECRET), None, "bad_model_file"),
        (PermissionError(13, "Permission denied", SECRET), None, None),
        (ImportError(SECRET), None, None),
        (TypeError(SECRET), None, None),
        (ValueError("alice: Model path does not exist: "), None, None),
        (ValueError(), None, None),
        (ValueError(7), None, None),
        (KeyboardInterrupt(), None, None),
    ],
)
def test_what_an_error_is_called(error, of_call, of_load):
    assert failures.of_call(error) == of_call
    assert failures.of_load(error) == of_load


def test_the_hubs_errors_by_the_nearest_class_that_is_known():
    errors = pytest.importorskip("huggingface_hub.errors")
    for kind, code in (
        (errors.LocalEntryNotFoundError, "model_not_found"),
        (errors.HFValidationError, "model_not_found"),
        (errors.OfflineModeIsEnabled, None),
    ):
        assert failures.of_load(kind(SECRET)) == code
    refused = errors.GatedRepoError.__new__(errors.GatedRepoError)
    assert failures.of_load(refused) is None
    absent = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    assert failures.of_load(absent) == "model_not_found"


def test_a_safetensors_file_that_is_none():
    numpy = pytest.importorskip("safetensors.numpy")
    with pytest.raises(Exception) as caught:  # noqa: B017 - SafetensorError, made in Rust
        numpy.load(b"alice" * 9)
    assert failures.of_load(caught.value) == "bad_model_file"


def test_a_class_of_the_app_is_asked_nothing():
    class Own(ValueError):
        def __str__(self):
            raise AssertionError

        __repr__ = __str__

    assert failures.of_load(Own("Model path does not exist: /alice")) is None

    class Strange(type):
        @property
        def __module__(cls):
            raise RuntimeError

    class Odd(Exception, metaclass=Strange):
        pass

    before = guard.failures["runtime.failure"]
    assert failures.of_load(Odd(SECRET)) is None
    assert guard.failures.pop("runtime.failure") == before + 1


STARTS = sorted(
    {
        phrase.start
        for table in (failures._OF_CALLS, failures._OF_LOADS)
        for phrases in table.values()
        for phrase in phrases
    }
)
MESSAGES = st.one_of(
    st.text(), st.builds(lambda start, rest: start + rest, st.sampled_from(STARTS), st.text())
)
KINDS = st.sampled_from(
    [ValueError, RuntimeError, KeyError, OSError, MemoryError, Exception, FileNotFoundError]
)
ARGUMENTS = st.lists(
    st.one_of(MESSAGES, st.integers(), st.none(), st.binary(), st.lists(st.text())), max_size=3
)


@given(kind=KINDS, arguments=ARGUMENTS)
def test_no_part_of_a_message_ever_comes_out(kind, arguments):
    error = kind(*arguments)
    for told in (failures.of_call(error), failures.of_load(error)):
        assert told is None or told in failures.CODES
        # The very word of the vocabulary: not one that a message holds.
        assert told is None or any(told is code for code in failures.CODES)
    assert "runtime.failure" not in guard.failures


def test_a_long_message_is_not_searched():
    # By its beginning alone: what a message holds may be a gigabyte.
    error = ValueError("Missing " + "x" * 300 + " parameters: ")
    assert failures.of_load(error) is None
