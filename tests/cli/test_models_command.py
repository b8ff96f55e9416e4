"""`sottovoce models`, as a process and beside the policy whose pseudonyms it explains."""

import json
import os
import re
import subprocess
import sys

import pytest

from sottovoce.privacy import catalogue
from sottovoce.privacy.policy import Policy
from sottovoce.privacy.pseudonyms import Pseudonyms
from sottovoce.settings import Settings

SOTTOVOCE = [sys.executable, "-c", "import sys; from sottovoce.cli import main; sys.exit(main())"]
SECRET = "a secret of the tests"


def models(*arguments, **environment):
    return subprocess.run(
        [*SOTTOVOCE, "models", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SOTTOVOCE_KEY": SECRET, **environment},
    )


def test_the_table_tells_what_telemetry_with_the_same_key_means():
    done = models("--search", "gpt-4o")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    shown = dict(line.split() for line in lines)
    assert shown[Policy(Settings(key=SECRET)).model("gpt-4o", local=False)] == "gpt-4o"
    assert all("gpt-4o" in model for model in shown.values())
    key_id = Pseudonyms(SECRET.encode()).key_id
    assert first == f"key {key_id}, catalogue {catalogue.VERSION}, {len(lines)} ids"


def test_a_pseudonym_can_be_looked_up():
    pseudonym = Pseudonyms(SECRET.encode()).model("claude-sonnet-4-5")
    _, line = models("--search", pseudonym.upper()).stdout.splitlines()
    assert line.split() == [pseudonym, "claude-sonnet-4-5"]


def test_a_public_id_that_is_not_listed_is_found_when_asked_for_and_a_private_one_is_not():
    asked = "gpt-4o-2027-02-03"
    assert asked not in catalogue.ids()
    assert models("--search", asked).stdout.split()[-1] == asked
    assert len(models("--search", "gpt-4o:acme").stdout.splitlines()) == 1


def test_json_is_all_there_is_on_stdout():
    done = models("--format", "json")
    made = json.loads(done.stdout)
    assert made["key_id"] == Pseudonyms(SECRET.encode()).key_id in done.stderr
    assert made["catalogue"] == catalogue.VERSION
    assert sorted(made["models"].values()) == list(catalogue.ids())
    assert all(re.fullmatch(r"h:[0-9a-f]{12}", pseudonym) for pseudonym in made["models"])


def test_grafana_gets_a_value_mapping_for_a_panel():
    [mapping] = json.loads(models("--format", "grafana", "--search", "text-embedding-3").stdout)
    assert mapping["type"] == "value"
    options = mapping["options"]
    assert options[Pseudonyms(SECRET.encode()).model("text-embedding-3-small")]["text"] == (
        "text-embedding-3-small"
    )
    assert sorted(option["index"] for option in options.values()) == [*range(len(options))]


@pytest.mark.parametrize("form", ["table", "json", "grafana"])
def test_the_secret_is_nowhere(form):
    done = models("--format", form)
    assert done.returncode == 0
    assert SECRET not in done.stdout + done.stderr
    assert SECRET.encode().hex() not in done.stdout + done.stderr


@pytest.fixture
def no_home(tmp_path):
    """An environment in which no secret can be kept."""
    file = tmp_path / "file"
    file.write_text("")
    return {
        "SOTTOVOCE_KEY": "",
        **dict.fromkeys(["XDG_STATE_HOME", "LOCALAPPDATA", "HOME"], str(file)),
    }


def test_with_a_secret_of_this_process_alone_there_is_nothing_to_tell(no_home):
    done = models(**no_home)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "SOTTOVOCE_KEY" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_the_operators_ids_are_listed_too(tmp_path):
    file = tmp_path / "ids"
    file.write_text("acme/rocket-7b\n")
    done = models("--search", "rocket", SOTTOVOCE_MODEL_CATALOGUE=str(file))
    assert done.stdout.split()[-1] == "acme/rocket-7b"
    assert "+file" in done.stdout


def test_in_public_mode_no_secret_is_needed(no_home):
    table = models("--search", "gpt-4o", SOTTOVOCE_HASH_MODE="public", **no_home)
    assert table.returncode == 0
    first, *lines = table.stdout.splitlines()
    assert first == f"key public, catalogue {catalogue.VERSION}, {len(lines)} ids"
    shown = dict(line.split() for line in lines)
    elsewhere = Policy(Settings(key=SECRET, hash_mode="public"))
    assert shown[elsewhere.model("gpt-4o", local=False)] == "gpt-4o"
    made = json.loads(models("--format", "json", SOTTOVOCE_HASH_MODE="public", **no_home).stdout)
    assert made["key_id"] is None
    assert made["models"].items() >= shown.items()
