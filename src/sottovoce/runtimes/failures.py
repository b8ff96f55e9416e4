"""Why a local engine failed, as a code of a closed vocabulary.

=========================== ============================================================
``out_of_memory``           the machine or its accelerator has no more memory
``context_length_exceeded`` the prompt does not fit the context
``bad_model_file``          a file of the model is damaged, or fits the others of it not
``unsupported_architecture`` this version of the runtime has no code for the model
``model_not_found``         there is no such model, here or at the hub
=========================== ============================================================

A code follows from the exception's class, or from how the message of an exception of Python's
own begins: runtimes raise those with fixed phrases around a path, a name or a number. Of a
message nothing else is looked at (but the path of a file that llama.cpp refused, see `gguf.py`),
and nothing of it becomes part of a code. What no row matches has no code: its class is what
there is to say.

Phrases of mlx 0.29 to 0.32, mlx-lm 0.28 to 0.32.2, llama-cpp-python 0.3.x, huggingface_hub
0.x and 1.x, transformers 5.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from sottovoce.guard import never_raise

if TYPE_CHECKING:
    from collections.abc import Mapping

OUT_OF_MEMORY: Final = "out_of_memory"
CONTEXT: Final = "context_length_exceeded"
BAD_FILE: Final = "bad_model_file"
UNSUPPORTED: Final = "unsupported_architecture"
NOT_FOUND: Final = "model_not_found"

CODES: Final = frozenset({OUT_OF_MEMORY, CONTEXT, BAD_FILE, UNSUPPORTED, NOT_FOUND})
"""The vocabulary."""

_LOOKED_AT: Final = 256
"""Characters of a message that are looked at."""


_REFUSED: Final = "Failed to load model from file: "
"""What llama-cpp-python says before the path, whatever the reason."""


class _Phrase(NamedTuple):
    code: str
    start: str
    rest: str = ""


_MEMORY: Final = (
    # mlx's allocators, of the processor, Metal and CUDA.
    _Phrase(OUT_OF_MEMORY, "[malloc"),
    _Phrase(OUT_OF_MEMORY, "[metal::malloc]"),
    _Phrase(OUT_OF_MEMORY, "[cuda::malloc]"),
    _Phrase(OUT_OF_MEMORY, "[METAL] Command buffer execution failed: Insufficient Memory"),
    _Phrase(OUT_OF_MEMORY, "cuda", "failed: out of memory"),
)
_OF_CALLS: Final[Mapping[type[BaseException], tuple[_Phrase, ...]]] = {
    ValueError: (
        _Phrase(CONTEXT, "Requested tokens (", "exceed context window"),
        _Phrase(CONTEXT, "Requested tokens (", "exceed batch size"),
        # Of llama-cpp-python's handlers of images, which load their model when they are first
        # asked.
        _Phrase(CONTEXT, "Prompt exceeds n_ctx: "),
        _Phrase(BAD_FILE, "Failed to load mtmd context from: "),
    ),
    RuntimeError: (
        *_MEMORY,
        # `llama_decode` of llama.h: no slot in the key-value cache; an allocation failed.
        _Phrase(CONTEXT, "llama_decode returned 1"),
        _Phrase(OUT_OF_MEMORY, "llama_decode returned -2"),
    ),
}
_OF_LOADS: Final[Mapping[type[BaseException], tuple[_Phrase, ...]]] = {
    ValueError: (
        _Phrase(UNSUPPORTED, "Model type ", " not supported"),
        _Phrase(UNSUPPORTED, "Unsupported RoPE type "),
        _Phrase(BAD_FILE, "Missing ", " parameters: "),
        _Phrase(BAD_FILE, "Received ", " parameters not in model"),
        _Phrase(BAD_FILE, "Expected shape ", " for parameter "),
        _Phrase(BAD_FILE, "Adapter at ", " contains incompatible tensors"),
        _Phrase(BAD_FILE, "The checkpoint has no weights for layers "),
        _Phrase(BAD_FILE, "Couldn't instantiate the backend tokenizer from "),
        _Phrase(NOT_FOUND, "Model path does not exist: "),
        _Phrase(NOT_FOUND, "No file found in ", " that match "),
        _Phrase(BAD_FILE, _REFUSED),
        _Phrase(BAD_FILE, "Failed to get vocab from model: "),
        # The key-value cache and the buffers of the computation are made here.
        _Phrase(OUT_OF_MEMORY, "Failed to create llama_context"),
        _Phrase(OUT_OF_MEMORY, "Failed to create llama_batch"),
    ),
    RuntimeError: (
        *_MEMORY,
        _Phrase(BAD_FILE, "[load_safetensors]"),
        _Phrase(BAD_FILE, "[load_gguf]"),
        _Phrase(BAD_FILE, "[load]"),
        _Phrase(BAD_FILE, "[read] Unable to read"),
        _Phrase(BAD_FILE, "[safetensor] unsupported dtype"),
        _Phrase(BAD_FILE, "Failed to initialize LoRA adapter"),
        _Phrase(BAD_FILE, "Failed to set LoRA adapter"),
    ),
    # A setting that the configuration lacks.
    TypeError: (_Phrase(BAD_FILE, "ModelArgs.__init__() missing "),),
}

# Class → code, by the package and name of the class or the nearest base; "" is none of its own.
_CLASSES_OF_CALLS: Final[Mapping[tuple[str, str], str]] = {
    ("builtins", "MemoryError"): OUT_OF_MEMORY,
}
_CLASSES_OF_LOADS: Final[Mapping[tuple[str, str], str]] = {
    ("builtins", "MemoryError"): OUT_OF_MEMORY,
    ("builtins", "FileNotFoundError"): NOT_FOUND,
    # A single file, of another runtime's.
    ("builtins", "NotADirectoryError"): BAD_FILE,
    ("builtins", "UnicodeDecodeError"): BAD_FILE,
    # A setting that every model's configuration has.
    ("builtins", "KeyError"): BAD_FILE,
    ("json", "JSONDecodeError"): BAD_FILE,
    ("safetensors", "SafetensorError"): BAD_FILE,
    ("safetensors_rust", "SafetensorError"): BAD_FILE,
    # There is one, for others.
    ("huggingface_hub", "GatedRepoError"): "",
    ("huggingface_hub", "DisabledRepoError"): "",
    ("huggingface_hub", "RepositoryNotFoundError"): NOT_FOUND,
    ("huggingface_hub", "RevisionNotFoundError"): NOT_FOUND,
    ("huggingface_hub", "EntryNotFoundError"): NOT_FOUND,
    ("huggingface_hub", "LocalEntryNotFoundError"): NOT_FOUND,
    # What is no id was meant as a path, and nothing is there.
    ("huggingface_hub", "HFValidationError"): NOT_FOUND,
}


@never_raise("runtime.failure")
def of_call(error: BaseException) -> str | None:
    """Give the code of what a call failed with; None when its class is all there is to say."""
    return _code(error, _CLASSES_OF_CALLS, _OF_CALLS)


@never_raise("runtime.failure")
def of_load(error: BaseException) -> str | None:
    """Give the code of what a load failed with; None when its class is all there is to say."""
    code = _code(error, _CLASSES_OF_LOADS, _OF_LOADS)
    if code is BAD_FILE and type(error) is ValueError and _is_unsupported(error.args[0]):
        return UNSUPPORTED
    return code


def _is_unsupported(said: str) -> bool:
    """Whether llama.cpp refused a file for its architecture."""
    before, start, path = said.partition(_REFUSED)
    # Read in llama-cpp-python 0.2 and 0.3: the library as `ctypes` loaded it.
    low = sys.modules.get("llama_cpp.llama_cpp")
    library = getattr(getattr(low, "_lib", None), "_name", None)
    if before or not start or type(library) is not str:
        return False
    from sottovoce.runtimes import gguf  # noqa: PLC0415 - most loads succeed

    return gguf.is_unsupported(path, library)


def _code(
    error: BaseException,
    classes: Mapping[tuple[str, str], str],
    phrases: Mapping[type[BaseException], tuple[_Phrase, ...]],
) -> str | None:
    for kind in type(error).__mro__:
        code = classes.get((str(kind.__module__).partition(".")[0], kind.__name__))
        if code is not None:
            return code or None
    known = phrases.get(type(error))
    # What `str` gives is the app's own where the class is.
    said = error.args[0] if known and error.args else None
    if known and type(said) is str:
        said = said[:_LOOKED_AT]
        for phrase in known:
            if said.startswith(phrase.start) and phrase.rest in said:
                return phrase.code
    return None
