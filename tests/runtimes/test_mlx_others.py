"""mlx-vlm, mlx-embeddings and mlx-whisper by contract: signatures and results as theirs are.

Their dependencies are too heavy for the suite. The modules here have the names, signatures,
defaults and result classes of mlx-vlm 0.7.10, mlx-embeddings 0.1.0 and mlx-whisper 0.4.3, on
top of a real tiny model.
"""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
import textwrap

import pytest

mlx_lm = pytest.importorskip("mlx_lm")
import mlx.core as mx

from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.runtimes import mlx, mlx_models, mlx_others

pytestmark = pytest.mark.mlx

PROMPT = "a planted sentence"

VLM_COMMON = """
from dataclasses import dataclass
from typing import List, Optional

@dataclass
class GenerationResult:
    text: str = ""
    token: Optional[int] = None
    logprobs: Optional[List[float]] = None
    prompt_tokens: int = 0
    generation_tokens: int = 0
    total_tokens: int = 0
    prompt_tps: float = 0.0
    generation_tps: float = 0.0
    peak_memory: float = 0.0
    cached_tokens: int = 0
    finish_reason: Optional[str] = None
    is_draft: bool = False
    draft_text: str = ""
    token_ids: Optional[List[int]] = None
"""

VLM_DISPATCH = """
from .common import GenerationResult

def stream_generate(model, processor, prompt, image=None, audio=None, video=None, **kwargs):
    given = kwargs.pop("script", {})
    cached, drafts = given.get("cached", 0), given.get("drafts", 0)
    for _ in range(drafts):
        yield GenerationResult(text="", is_draft=True, draft_text=prompt)
    counts = {
        "prompt_tokens": len(prompt) + cached, "cached_tokens": cached, "peak_memory": 1.5,
    }
    tokens = kwargs.get("max_tokens", 100)
    for index in range(tokens - 1):
        if given.get("fails") == index:
            raise ZeroDivisionError(prompt)
        yield GenerationResult(text="x", token=7, generation_tokens=index + 1, **counts)
    reason = given.get("reason", "length")
    yield GenerationResult(
        text="x", token=7, generation_tokens=tokens, finish_reason=reason, **counts
    )

def generate(
    model, processor, prompt, image=None, audio=None, video=None, verbose=False, **kwargs
):
    text, last = "", None
    for response in stream_generate(
        model, processor, prompt, image, audio, video, verbose=verbose, **kwargs
    ):
        text, last = text + response.text, response
    return GenerationResult(text=text, prompt_tokens=last.prompt_tokens)
"""

VLM_PACKAGE = """
from .common import GenerationResult
from .dispatch import generate, stream_generate

def __getattr__(name):
    from . import dispatch
    return getattr(dispatch, name)
"""

LOAD = """
import mlx_lm.utils

ORIGINAL = mlx_lm.utils.load.__dict__.get("__wrapped__", mlx_lm.utils.load)
"""

VLM_UTILS = (
    LOAD
    + """
def load(path_or_hf_repo, adapter_path=None, lazy=False, revision=None, strict=True, **kwargs):
    return ORIGINAL(path_or_hf_repo, lazy=lazy)
"""
)

EMBEDDINGS_UTILS = (
    LOAD
    + """
import mlx.core as mx

def load(path_or_hf_repo, tokenizer_config={}, model_config={}, adapter_path=None, lazy=False):
    return ORIGINAL(path_or_hf_repo, lazy=lazy)

def prepare_inputs(
    processor, images, texts, max_length, padding, truncation, resize_shape=None
):
    if isinstance(texts, str):
        return mx.array([processor.encode(texts)])
    if isinstance(texts, list):
        return {"input_ids": mx.zeros((len(texts), max(map(len, texts))))}
    raise ValueError(f"Unsupported input type: {type(texts)}")

def generate(
    model, processor, texts, images=None, max_length=512, padding=True, truncation=True, **kwargs
):
    inputs = prepare_inputs(processor, images, texts, max_length, padding, truncation)
    return inputs
"""
)

WHISPER_LOAD = """
import mlx.core as mx
import mlx.nn as nn

class Whisper(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 32)

Whisper.__module__ = "mlx_whisper.whisper"

def load_model(path_or_hf_repo, dtype=mx.float32):
    if "nothing" in path_or_hf_repo:
        raise FileNotFoundError(path_or_hf_repo)
    return Whisper()
"""

WHISPER_TRANSCRIBE = """
from .load_models import load_model

class ModelHolder:
    model = None
    model_path = None

    @classmethod
    def get_model(cls, model_path, dtype):
        if cls.model is None or model_path != cls.model_path:
            cls.model = load_model(model_path, dtype=dtype)
            cls.model_path = model_path
        return cls.model

def transcribe(
    audio, *, path_or_hf_repo="mlx-community/whisper-tiny", verbose=None,
    temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0), compression_ratio_threshold=2.4,
    logprob_threshold=-1.0, no_speech_threshold=0.6, condition_on_previous_text=True,
    initial_prompt=None, word_timestamps=False, **decode_options,
):
    ModelHolder.get_model(path_or_hf_repo, decode_options.get("dtype"))
    segments = [{"text": audio, "tokens": [1, 2, 3]}, {"text": audio, "tokens": [4]}]
    return dict(text=audio, segments=segments, language="en")
"""

FILES = {
    "mlx_vlm/__init__.py": "from .generate import generate, stream_generate\n"
    "from .utils import load\n",
    "mlx_vlm/generate/__init__.py": VLM_PACKAGE,
    "mlx_vlm/generate/common.py": VLM_COMMON,
    "mlx_vlm/generate/dispatch.py": VLM_DISPATCH,
    "mlx_vlm/utils.py": VLM_UTILS,
    "mlx_embeddings/__init__.py": "from .utils import generate, load\n",
    "mlx_embeddings/utils.py": EMBEDDINGS_UTILS,
    "mlx_whisper/__init__.py": "from . import load_models\nfrom .transcribe import transcribe\n",
    "mlx_whisper/load_models.py": WHISPER_LOAD,
    "mlx_whisper/transcribe.py": WHISPER_TRANSCRIBE,
}
PACKAGES = ("mlx_vlm", "mlx_embeddings", "mlx_whisper")


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The three packages where they can be imported, and not imported yet."""
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield tmp_path
    forget()


@pytest.fixture(params=["early", "late"])
def hooks(request, packages, instrumented_mlx):
    """Our hooks, before the app imports the packages and after it bound their functions."""
    if request.param == "late":
        for name in PACKAGES:
            importlib.import_module(name)
    return instrumented_mlx()


def test_every_module_of_the_table_is_waited_for():
    assert set(mlx_others.MODULES) < set(mlx.MODULES)


def test_a_stream_of_mlx_vlm(hooks, mlx_model):
    import mlx_vlm

    stream = mlx_vlm.stream_generate(
        *mlx_model, PROMPT, image="/alice/secret.png", max_tokens=5, temperature=0.7,
        top_p=0.9, top_k=40, script={"cached": 11, "drafts": 2},
    )  # fmt: skip
    assert inspect.isgenerator(stream)
    assert len(list(stream)) == 7
    call = hooks.recorder.call
    assert (call.operation, call.provider) == ("text_completion", "mlx")
    assert call.model == "llama-lt_1M-f32"
    facts = call.facts
    assert facts["input_tokens"] == len(PROMPT) + 11
    assert facts["cache_read_tokens"] == 11
    assert facts["output_tokens"] == facts["request_max_tokens"] == 5
    assert facts["finish_reasons"] == ["length"]
    assert facts["request_temperature"] == 0.7
    assert (facts["request_top_p"], facts["request_top_k"]) == (0.9, 40)
    assert facts["peak_memory"] == "1_2GiB"
    assert "alice" not in repr(facts) and PROMPT not in repr(facts)


def test_a_whole_of_mlx_vlm_is_one_call(hooks, mlx_model):
    import mlx_vlm

    result = mlx_vlm.generate(*mlx_model, PROMPT, max_tokens=4, script={"reason": "stop"})
    assert type(result).__name__ == "GenerationResult" and result.text == "xxxx"
    facts = hooks.recorder.call.facts
    assert facts["output_tokens"] == 3
    assert facts["finish_reasons"] == ["stop"]
    assert facts["input_tokens"] == len(PROMPT)
    assert "cache_read_tokens" not in facts


def test_mlx_vlm_fails_and_is_left(hooks, mlx_model):
    import mlx_vlm

    with pytest.raises(ZeroDivisionError):
        mlx_vlm.generate(*mlx_model, PROMPT, max_tokens=9, script={"fails": 3})
    stream = mlx_vlm.stream_generate(*mlx_model, PROMPT, max_tokens=9)
    next(stream)
    del stream
    first, second = hooks.recorder.calls
    assert (first.error, first.facts["output_tokens"]) == (ZeroDivisionError, 3)
    assert (second.outcome, second.facts["output_tokens"]) == ("abandoned", 1)


def test_what_an_older_mlx_vlm_leaves_out(packages, instrumented_mlx, mlx_model):
    # One module instead of a package, and results without reasons and cached tokens.
    common = VLM_COMMON.replace("cached_tokens", "unknown_tokens").replace("finish", "unknown")
    dispatch = VLM_DISPATCH.replace("from .common import GenerationResult", common)
    for known in ("cached_tokens", "finish_reason"):
        dispatch = dispatch.replace(known, "unknown_" + known.partition("_")[2])
    shutil.rmtree(packages / "mlx_vlm" / "generate")
    (packages / "mlx_vlm" / "generate.py").write_text(dispatch)
    importlib.invalidate_caches()
    hooks = instrumented_mlx()
    import mlx_vlm

    list(mlx_vlm.stream_generate(*mlx_model, PROMPT, max_tokens=4))
    call = hooks.recorder.call
    assert call.outcome == "completed"
    assert (call.facts["input_tokens"], call.facts["output_tokens"]) == (len(PROMPT), 4)
    assert "finish_reasons" not in call.facts


def test_loading_with_mlx_vlm_and_mlx_embeddings(hooks, mlx_model_4bit_path):
    for name in ("mlx_vlm", "mlx_embeddings"):
        package = importlib.import_module(name)
        model, _ = package.load(str(mlx_model_4bit_path))
        assert mlx_models.models.get(model).name == "llama-lt_1M-4bit"
    assert [load[1]["request_model"] for load in hooks.recorder.loads] == ["llama-lt_1M-4bit"] * 2
    assert "alice" not in repr(hooks.recorder.loads)


def test_embeddings(hooks, mlx_model):
    import mlx_embeddings

    result = mlx_embeddings.generate(*mlx_model, PROMPT)
    assert isinstance(result, mx.array)
    call = hooks.recorder.call
    assert (call.operation, call.provider) == ("embeddings", "mlx")
    assert call.model == "llama-lt_1M-f32"
    assert call.facts["input_tokens"] == len(PROMPT)
    assert "batch_size" not in call.facts
    mlx_embeddings.generate(*mlx_model, [PROMPT, "x", "y"])
    facts = hooks.recorder.calls[1].facts
    assert facts["batch_size"] == 3
    assert "input_tokens" not in facts
    with pytest.raises(ValueError, match="Unsupported input"):
        mlx_embeddings.generate(*mlx_model, 7)
    assert hooks.recorder.calls[2].error is ValueError
    assert PROMPT not in repr([call.facts for call in hooks.recorder.calls])


def test_a_transcription_and_its_load(hooks):
    import mlx_whisper

    result = mlx_whisper.transcribe("planted speech")
    assert result["text"] == "planted speech"
    call = hooks.recorder.call
    assert (call.operation, call.provider) == ("generate_content", "mlx")
    assert call.model == "mlx-community/whisper-tiny"
    facts = call.facts
    assert facts["output_type"] == "text"
    assert facts["output_tokens"] == 4
    assert facts["model_architecture"] == "whisper"
    assert "request_temperature" not in facts
    assert "planted" not in repr(facts)
    ((_, loaded, _, error),) = hooks.recorder.loads
    assert error is None
    assert loaded["model_architecture"] == "whisper"
    mlx_whisper.transcribe("planted speech", temperature=0.2)
    assert len(hooks.recorder.loads) == 1, "the model was kept"
    assert hooks.recorder.calls[1].facts["request_temperature"] == 0.2
    assert hooks.recorder.calls[1].model == loaded["request_model"]


def test_a_transcription_with_a_model_of_the_users(hooks, tmp_path):
    import mlx_whisper

    path = tmp_path / "alice-voice"
    path.mkdir()
    mlx_whisper.transcribe("x", path_or_hf_repo=str(path))
    assert hooks.recorder.call.model == "whisper-other-other"
    assert "alice" not in repr(hooks.recorder.call.facts)
    with pytest.raises(FileNotFoundError):
        mlx_whisper.transcribe("x", path_or_hf_repo=str(tmp_path / "nothing"))
    failed = hooks.recorder.calls[1]
    assert failed.error is not None
    assert "alice" not in repr(hooks.recorder.loads)


def test_hooks_go_again(packages, instrumented_mlx):
    names = [
        ("mlx_vlm", "generate"), ("mlx_vlm", "stream_generate"), ("mlx_vlm", "load"),
        ("mlx_embeddings", "generate"), ("mlx_embeddings.utils", "prepare_inputs"),
        ("mlx_whisper", "transcribe"), ("mlx_whisper.transcribe", "load_model"),
    ]  # fmt: skip
    hooks = instrumented_mlx()
    for name in PACKAGES:
        importlib.import_module(name)
    functions = [getattr(sys.modules[module], name) for module, name in names]
    assert all(hasattr(function, guard._MARK) for function in functions)
    hooks.remove()
    functions = [getattr(sys.modules[module], name) for module, name in names]
    assert not any(hasattr(function, guard._MARK) for function in functions)


@pytest.mark.parametrize("odd", [None, 7, {}, {"segments": 7}, {"segments": [{}]}])
def test_results_of_another_shape_are_the_apps_all_the_same(hooks, monkeypatch, odd):
    import mlx_whisper

    monkeypatch.setattr(guard, "failures", guard.Counter())
    module = sys.modules["mlx_whisper.transcribe"]
    original = module.transcribe.__wrapped__
    wrapped = mlx_others._transcribe(
        mlx.Runtime("mlx", hooks.recorder, hooks.hooks), module, lambda *_, **__: odd
    )
    assert wrapped("x", path_or_hf_repo=odd) is odd
    assert hooks.recorder.call.outcome == "completed"
    assert current_call.get() is None
    assert original is not module.transcribe
    assert mlx_whisper.transcribe is module.transcribe
