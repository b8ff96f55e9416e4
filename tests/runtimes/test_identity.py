"""Identities: only public ids and closed vocabularies, whatever a model is called."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce import loaded
from sottovoce.hardware import tiers
from sottovoce.privacy import catalogue
from sottovoce.registry import ATTRIBUTES
from sottovoce.runtimes import identity, llama_models, mlx_models

HUB = "/home/alice/.cache/huggingface/hub"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("mlx-community/Llama-3.2-3B-Instruct-4bit", "mlx-community/Llama-3.2-3B-Instruct-4bit"),
        (f"{HUB}/models--org--Name-4bit/snapshots/0a1b2c", "org/Name-4bit"),
        (f"{HUB}/models--org--Name-4bit/snapshots/0a1b2c/x.gguf", "org/Name-4bit"),
        ("C:\\hub\\models--org--Name\\snapshots\\0a\\x.gguf", "org/Name"),
        (Path(f"{HUB}/models--org--Name/snapshots/0a"), "org/Name"),
        ("/Users/alice/models/secret", None),
        ("~/models", None),
        ("./here/there", None),
        ("../models/x", None),
        ("a/b/c", None),
        ("models\\alice", None),
        ("model.gguf", None),
        ("C:/alice", None),
        ("org/name with words", None),
        ("org/näme", None),
        ("", None),
        (None, None),
        (b"org/name", None),
        (7, None),
    ],
)
def test_public_ids(asked, expected):
    assert identity.hub_id(asked) == expected


def test_what_exists_here_is_no_public_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert identity.hub_id("org/name") == "org/name"
    monkeypatch.chdir(tmp_path)
    assert identity.hub_id("org/name") is None


def test_a_path_that_fails_to_be_one_is_no_id():
    class Strange(os.PathLike):
        def __fspath__(self):
            raise RuntimeError("planted")

    from sottovoce import guard

    before = guard.failures["identity.hub_id"]
    assert identity.hub_id(Strange()) is None
    assert guard.failures.pop("identity.hub_id") == before + 1


@given(
    public_id=st.none(),
    architecture=st.one_of(st.none(), st.text(), st.sampled_from(["llama", "qwen3"])),
    quantization=st.one_of(st.none(), st.text(), st.sampled_from(["4bit", "q4_k_m"])),
    parameters=st.one_of(st.none(), st.integers()),
)
def test_a_descriptor_is_made_of_closed_vocabularies(
    public_id, architecture, quantization, parameters
):
    known = identity.describe(public_id, architecture, quantization, parameters)
    name = known.name
    for fact, attribute in (
        ("model_architecture", "sottovoce.model.architecture"),
        ("model_parameters", "sottovoce.model.parameters"),
        ("model_quantization", "sottovoce.model.quantization"),
    ):
        value = known.facts.get(fact, identity.OTHER)
        assert value == identity.OTHER or value in ATTRIBUTES[attribute].values
        assert name.startswith(value)
        name = name[len(value) + 1 :]
    assert not name


def test_the_gate_lets_descriptors_through():
    known = identity.describe(None, "qwen3_moe", "4bit", 30_500_000_000)
    assert known.name == "qwen3_moe-32B-4bit"
    assert catalogue.is_descriptor(known.name)


@pytest.mark.parametrize(
    ("parameters", "bucket"),
    [
        (1, "lt_1M"),
        (999_999, "lt_1M"),
        (1_000_000, "1M"),
        (22_700_000, "10M"),
        (135_000_000, "100M"),
        (494_000_000, "500M"),
        (1_240_000_000, "1B"),
        (1_720_000_000, "1B"),
        (3_210_000_000, "3B"),
        (4_020_000_000, "3B"),
        (7_620_000_000, "8B"),
        (9_240_000_000, "8B"),
        (12_200_000_000, "14B"),
        (14_800_000_000, "14B"),
        (23_600_000_000, "32B"),
        (32_800_000_000, "32B"),
        (72_700_000_000, "70B"),
        (117_000_000_000, "gt_70B"),
        (10**40, "gt_70B"),
    ],
)
def test_sizes_fall_into_the_bucket_that_they_are_published_as(parameters, bucket):
    assert identity.size_bucket(parameters) == bucket


def test_what_is_known_besides_are_closed_words_and_a_flag():
    known = identity.describe(
        None, "llama", "f16", 10, size=5 << 30, adapted=False, offload="partial"
    )
    assert known.name == "llama-lt_1M-f16"
    assert known.facts["model_size"] == "4_8GiB"
    assert known.facts["model_adapter"] is False
    assert known.facts["model_offload"] == "partial"
    unknown = identity.describe(None, "llama", "f16", 10, size=0, offload="/home/alice")
    assert unknown.facts.keys() == {"model_architecture", "model_quantization", "model_parameters"}


def test_every_word_that_we_use_is_in_the_registry():
    for attribute in ("sottovoce.model.size", "sottovoce.memory.peak"):
        assert ATTRIBUTES[attribute].values == set(tiers.IN_USE)
    buckets = {bucket.name for bucket in identity.SIZE_BUCKETS} | {identity.OTHER}
    assert buckets == ATTRIBUTES["sottovoce.model.parameters"].values
    words = {*llama_models.FILE_TYPES.values(), *mlx_models._FLOATS.values()}
    words |= {f"{bits}bit" for bits in (2, 3, 4, 5, 6, 8)} | {"mxfp4", "mxfp8", "nvfp4"}
    assert words <= ATTRIBUTES["sottovoce.model.quantization"].values


def test_the_file_types_are_those_of_gguf():
    gguf = pytest.importorskip("gguf")
    ours = llama_models.FILE_TYPES
    for kind in gguf.LlamaFileType:
        name = kind.name.removeprefix("ALL_").removeprefix("MOSTLY_").lower()
        if name != "guessed":
            assert ours.get(kind.value) == name


class Unhashable(dict):
    """Like `mlx.nn.Module`: a dict that can be weakly referenced."""


def test_identities_are_forgotten_with_their_model():
    known = identity.Identities()
    model = Unhashable()
    first = identity.describe(None, "llama", "4bit", 10)
    second = identity.describe("org/name", "llama", "4bit", 10)
    known.put(model, first)
    known.put(model, second)
    assert known.get(model) is second
    del model
    gc.collect()
    assert len(known) == 0


def test_a_model_that_two_threads_meet_at_once_is_one(monkeypatch):
    known = identity.Identities("mlx")
    model = Unhashable()
    described = identity.describe(None, "llama", "4bit", 10)
    finalize = identity.weakref.finalize

    def meanwhile(*args):
        monkeypatch.undo()
        known.put(args[0], described)
        return finalize(*args)

    before = sum(loaded.counted().values())
    monkeypatch.setattr(identity.weakref, "finalize", meanwhile)
    known.put(model, described)
    assert sum(loaded.counted().values()) == before + 1
    del model
    gc.collect()
    assert sum(loaded.counted().values()) == before
