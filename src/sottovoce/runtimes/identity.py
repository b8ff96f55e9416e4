"""Who a loaded model is, in words that no user typed: hub id, architecture, size, quantisation.

A path, a file name and a model's own title are user-typed text and never become part of an
identity. What is left is the public id under which the model was asked for, or else a
descriptor ``{architecture}-{size bucket}-{quantisation}`` of closed vocabularies.
"""

from __future__ import annotations

import os
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from sottovoce.call import Facts

OTHER: Final = "other"
"""Stands in a descriptor for what is unknown or in no vocabulary."""

ARCHITECTURES: Final = frozenset(
    """
afm7 afmoe apertus arcee arctic arwkv7 baichuan baichuan_m1 bailing_hybrid bailing_moe
bailing_moe_linear bailing_moe_v3 bailingmoe bailingmoe2 bert bitnet bloom chameleon chatglm
codeshell cogvlm cohere cohere2 command-r dbrx deci deepseek deepseek2 deepseek2-ocr
deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v41 dots1 dream ernie4_5 ernie4_5-moe
ernie4_5_moe eurobert exaone exaone-moe exaone4 exaone_moe falcon falcon-h1 falcon_h1
falcon_mamba gemma gemma-embedding gemma2 gemma3 gemma3_text gemma3n gemma4 gemma4_text
gemma4_unified glm glm-dsa glm4 glm4_moe glm4_moe_lite glm4moe glm_moe_dsa gpt-oss gpt2
gpt_bigcode gpt_neox gpt_oss gptj gptneox granite granitehybrid granitemoe granitemoehybrid
grok grovemoe helium hunyuan hunyuan-dense hunyuan-moe hunyuan_v1_dense hunyuan_vl internlm2
internlm3 iquestcoder iquestloopcoder jais jais2 jamba jina-bert-v2 jina-bert-v3
joyai_llm_flash kimi-linear kimi_k2 kimi_k25 kimi_k3 kimi_linear kimi_vl klear laguna lfm2
lfm2-vl lfm2_moe lfm2moe lille-130m llada llada-moe llama llama-embed llama4 llama4_text
llava longcat_flash longcat_flash_ngram maincoder mamba mamba2 mellum mimo mimo2
mimo_v2_flash minicpm minicpm3 minimax minimax-m2 minimax_m2 minimax_m3_vl ministral3
mistral mistral3 mistral4 mixtral modern-bert mpt muse_glimmer muse_spark nanbeige nanochat
nemotron nemotron-nas nemotron_h nemotron_h_moe neo-bert nomic-bert nomic-bert-moe olmo
olmo2 olmo3 olmo_hybrid olmoe openelm orion paddleocr pangu-embedded phi phi-msft phi2 phi3
phi3small phimoe phixtral pixtral plamo plamo2 plamo3 plm prism_hadamard_qwen35 qwen qwen2
qwen2_5_vl qwen2_moe qwen2_vl qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3_5 qwen3_5_moe
qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe qwen3moe qwen3next qwen3vl qwen3vlmoe
recurrent_gemma refact rnd1 rwkv6 rwkv6qwen2 rwkv7 seed_oss smallthinker smollm3 solar_open
spark2_5 stablelm starcoder starcoder2 step35 step3p5 t5 t5encoder talkie telechat3 xverse
youtu_llm
    """.split()  # noqa: SIM905 - words read better than 200 quoted strings
)
"""Model types of mlx-lm 0.32 and architectures of GGUF (gguf 0.19)."""

QUANTIZATIONS: Final = frozenset(
    """
2bit 3bit 4bit 5bit 6bit 8bit mxfp4 mxfp8 nvfp4 f64 f32 f16 bf16 q1_0 q2_0 q4_0 q4_1 q5_0 q5_1
q8_0 q2_k q2_k_s q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m q6_k iq1_s iq1_m iq2_xxs iq2_xs
iq2_s iq2_m iq3_xxs iq3_xs iq3_s iq3_m iq4_nl iq4_xs tq1_0 tq2_0 mxfp4_moe
    """.split()  # noqa: SIM905 - words read better than 200 quoted strings
)
"""MLX: bits of a weight, a microscaling mode, or a float type. GGUF: its file types."""


class _Bucket(NamedTuple):
    below: float
    name: str


SIZE_BUCKETS: Final = (
    _Bucket(1e6, "lt_1M"),
    _Bucket(5e6, "1M"),
    _Bucket(50e6, "10M"),
    _Bucket(300e6, "100M"),
    _Bucket(800e6, "500M"),
    _Bucket(2.2e9, "1B"),
    _Bucket(5.5e9, "3B"),
    _Bucket(11e9, "8B"),
    _Bucket(20e9, "14B"),
    _Bucket(50e9, "32B"),
    _Bucket(80e9, "70B"),
    _Bucket(float("inf"), "gt_70B"),
)
"""Parameter counts, each bucket up to but without its `below`: edges lie between the sizes
that models are published in (1.7B is 1B, 4B is 3B, 7B and 9B are 8B, 12B is 14B, 27B is 32B)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,63}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_SNAPSHOT = re.compile(
    r"(?:^|[\\/])models--([A-Za-z0-9][\w.-]*?)--([A-Za-z0-9][\w.-]*)[\\/]snapshots[\\/]", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A loaded model: the id that a call's `model` gets, and the facts of every call to it."""

    name: str
    facts: Facts


def describe(
    public_id: str | None,
    architecture: object,
    quantization: str | None,
    parameters: int | None,
) -> Identity:
    """Make an identity of what is known; anything outside a vocabulary becomes ``other``.

    Args:
        public_id: what `hub_id` or `snapshot_id` gave.
        architecture: the model type that the model's own configuration names.
        quantization: a value of `QUANTIZATIONS`.
        parameters: number of weights.
    """
    facts: Facts = {}
    known = architecture.lower() if isinstance(architecture, str) else None
    if known is not None:
        facts["model_architecture"] = known = known if known in ARCHITECTURES else OTHER
    if quantization is not None:
        quantization = quantization if quantization in QUANTIZATIONS else OTHER
        facts["model_quantization"] = quantization
    size = None
    if isinstance(parameters, int) and parameters > 0:
        facts["model_parameters"] = size = size_bucket(parameters)
    descriptor = f"{known or OTHER}-{size or OTHER}-{quantization or OTHER}"
    return Identity(public_id or descriptor, facts)


def size_bucket(parameters: float) -> str:
    """Name the bucket of `SIZE_BUCKETS` that a number of weights falls into."""
    return next(bucket.name for bucket in SIZE_BUCKETS if parameters < bucket.below)


def hub_id(asked: object) -> str | None:
    """Return the public id under which a model is asked for, ``org/name``, or None.

    None for whatever exists on this machine, unless it lies in a hub cache, whose
    directories carry the id.
    """
    if not isinstance(asked, (str, os.PathLike)):
        return None
    text = os.fspath(asked)
    if not isinstance(text, str):
        return None
    if _HUB_ID.fullmatch(text) and ".." not in text and not Path(text).exists():
        return text
    return snapshot_id(text)


def snapshot_id(path: object) -> str | None:
    """Return the ``org/name`` of a path inside a hub cache, else None."""
    found = _SNAPSHOT.search(path) if isinstance(path, str) else None
    return f"{found[1]}/{found[2]}" if found else None


class Identities:
    """Identities of living models that cannot be keys: by `id`, forgotten when a model dies.

    `mlx.nn.Module` is a dict, hence unhashable, so a `WeakKeyDictionary` cannot hold it.
    """

    def __init__(self) -> None:
        self._known: dict[int, Identity] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, model: Any) -> Identity | None:
        """Return what is known of `model`."""
        return self._known.get(id(model))

    def put(self, model: Any, identity: Identity) -> None:
        """Remember `identity` for as long as `model` lives.

        Raises:
            TypeError: for an object that cannot be weakly referenced.
        """
        key = id(model)
        if key not in self._known:
            weakref.finalize(model, self._known.pop, key, None).atexit = False
        self._known[key] = identity
