"""Every model id that an installed SDK lists is public: the SDKs are the list's second source."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from sottovoce.privacy import catalogue

LISTS = {
    "openai": "types/**/*model*.py",
    "anthropic": "types/**/model*.py",
    "groq": "types/**/*.py",
    "mistralai": "**/*.py",
    "cohere": "**/*.py",
    "together": "**/*.py",
    "cerebras": "**/*.py",
    "google.genai": "**/*.py",
}
"""SDK → its files in which a `Literal` may list ids."""

_ID = re.compile(r"(?=.*\d)(?=.*[a-z]{2})[A-Za-z0-9][\w./:@-]*[-.][\w./:@-]*", re.ASCII)
_NO_MODEL = re.compile(
    # Media types, machines, versions of protocols and of prompts, paths.
    r"(?:application|image|audio|text|video)/.*|[abh]\d+-\d+gb(?:-mig)?|oauth2-token|.*\.(?:py|json)"
    r"|(?:detection|export|judge|moderation)-v1|(?:batch|bulk)-.*|.*-input|\d{4}-\d\d-\d\d|[a-z]+-\d{4}-\d\d-\d\d|v\d.*"
)


def ids(sdk):
    """What looks like a model id among the words of the SDK's `Literal` types."""
    spec = importlib.util.find_spec(sdk)
    found = set()
    for path in Path(spec.submodule_search_locations[0]).glob(LISTS[sdk]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
                words = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
                found |= {word for word in words if isinstance(word, str) and _ID.fullmatch(word)}
    return {word for word in found if not _NO_MODEL.fullmatch(word)}


def is_installed(sdk):
    try:
        return importlib.util.find_spec(sdk) is not None
    except ImportError:
        return False


@pytest.mark.parametrize("sdk", [sdk for sdk in LISTS if is_installed(sdk)])
def test_every_id_that_an_sdk_lists_is_public(sdk):
    assert [each for each in sorted(ids(sdk)) if not catalogue.is_public(each)] == []


def test_the_reader_of_the_sdks_finds_ids():
    assert {"gpt-4o", "gpt-4o-2024-08-06", "o3-mini"} <= ids("openai")
    assert {"claude-haiku-4-5", "claude-haiku-4-5-20251001"} <= ids("anthropic")


@pytest.mark.parametrize("model", ["gpt-4o", "claude-sonnet-5-5", "gpt-6.1-sol"])
@pytest.mark.parametrize("end", [":acme", "-acme", "@anna", "/anna", "-2026-13-13", " ", "-fable"])
def test_what_is_added_to_one_is_not(model, end):
    assert not catalogue.is_public(model + end)
