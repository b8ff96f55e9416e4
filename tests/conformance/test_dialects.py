"""The list of dialects: checked against the registry, in the page, and under review."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sottovoce import registry

ROOT = Path(__file__).resolve().parents[2]
SEMCONV = ROOT / "semconv"


@pytest.fixture(scope="module")
def definition():
    sys.path.insert(0, str(SEMCONV))
    try:
        yield importlib.import_module("definition")
    finally:
        sys.path.remove(str(SEMCONV))


@pytest.fixture
def copy(tmp_path):
    """A copy of the registry, to break."""
    ignored = shutil.ignore_patterns("*.py", "__pycache__")
    return Path(shutil.copytree(SEMCONV, tmp_path / "semconv", ignore=ignored))


def edit(directory, old, new):
    path = directory / "dialects.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("llm.provider: {as: gen_ai.provider.name}", "llm.provider: {as: gen_ai.provider}",
         "llm.provider: is said to be gen_ai.provider, which is not declared"),
        ("how: usage}", "how: used}", "`how` is 'used'; choose one of same, word"),
        ("how: ms}", "how: ms, why: slow}", "`why` is not known here"),
        ("{error: _OTHER}", "{ERROR: _OTHER}", "'ERROR' is not in small letters"),
        ("{error: _OTHER}", "{error: Bad}", "'Bad' is not in the vocabulary of error.type"),
        ("{as: gen_ai.request.stream}", "{as: gen_ai.request.stream, how: word}", "has `words`"),
        ("  gen_ai.output.type:", "  gen_ai.request.model:", "gen_ai.request.model has no vocab"),
        ("      llm.vendor:", "      llm.system:", "llm.system: is listed twice"),
        ("      llm.vendor:", "      server.address:", "leaves under its own name too"),
        ("input: gen_ai.usage.input_tokens", "input: server.address", "is no count that"),
        ('token: "{token}"', 'token: "{word}"', "{word} is the unit of no metric"),
    ],
)  # fmt: skip
def test_each_mistake_is_named(definition, copy, old, new, told):
    edit(copy, old, new)
    with pytest.raises(definition.Invalid) as caught:
        definition.load(copy)
    assert any(told in one for one in caught.value.args), caught.value.args


@pytest.mark.parametrize(
    ("old", "new", "entry"),
    [
        ("llm.vendor: {as: gen_ai.provider.name}", "llm.vendor: {as: error.type}",
         "dialect llm.vendor: changed"),
        ("      llm.vendor:", "      llm.seller:", "dialect llm.seller: added"),
        ("{error: _OTHER}", "{error: _OTHER, warning: _OTHER}",
         "dialect langfuse.observation.level: changed"),
        ("    grok: x_ai", "    grok: custom", "words gen_ai.provider.name: changed"),
        ("  input: gen_ai", "  asked: gen_ai", "dialect usage: changed"),
    ],
)  # fmt: skip
def test_a_change_needs_a_review(copy, old, new, entry):
    edit(copy, old, new)
    done = subprocess.run(
        [sys.executable, SEMCONV / "generate.py", "--check", "--registry", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{entry} without a review" in done.stdout


def test_what_a_dialect_says_is_never_a_foreign_key_itself(definition):
    declared = definition.load()
    for key, foreign in declared.dialects.keys.items():
        assert foreign.name not in declared.dialects.keys
        assert registry.DIALECTS[key] == (foreign.name, foreign.how)
        attribute = declared.attributes.get(key)
        assert attribute is None or set(attribute.rules.values()) == {"drop"}, key


def test_no_foreign_key_says_what_may_not_leave(definition):
    declared = definition.load()
    for key, foreign in declared.dialects.keys.items():
        ours = declared.attributes[foreign.name]
        assert ours.sensitivity not in {"content", "secret"}, key
        assert ours.rules["standard"] not in {"drop", "seal"}, key


def test_the_page_lists_every_foreign_key():
    page = (ROOT / "docs/TELEMETRY.md").read_text()
    section = page.partition("\n## Dialects\n")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", section, re.MULTILINE))
    assert listed == {key: ours for key, (ours, _) in registry.DIALECTS.items()}
