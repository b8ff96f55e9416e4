"""tools/collector.py: which Collector is used, and what is said when there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

TOOL = Path(__file__).resolve().parents[2] / "tools" / "collector.py"


def run(tmp_path, *arguments, path=(), **environ):
    """Run the tool where only the programs in `path` and no build exist."""
    return subprocess.run(
        [sys.executable, TOOL, *arguments],
        env={
            "PATH": os.pathsep.join(map(str, (*path, tmp_path / "nothing"))),
            "HOME": str(tmp_path),
            **environ,
        },
        capture_output=True,
        text=True,
    )


def program(folder, name, script):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_named_program_wins(tmp_path, otelcol):
    other = program(tmp_path / "other", "otelcol", "exit 0")
    done = run(tmp_path, "--path", path=[other.parent], OTELCOL=str(otelcol))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{otelcol}\n", "")


def test_named_program_that_is_not_there_is_an_error(tmp_path):
    done = run(tmp_path, "--path", "--optional", OTELCOL=str(tmp_path / "gone"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "OTELCOL=" in done.stderr


@pytest.mark.parametrize("name", ["otelcol-sottovoce", "otelcol-contrib", "otelcol"])
def test_program_on_path_is_used(tmp_path, otelcol, name):
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(otelcol, folder / name)
    done = run(tmp_path, "--path", path=[folder])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder / name}\n", "")


def test_program_on_path_that_lacks_a_component_is_not_used(tmp_path):
    old = program(tmp_path / "bin", "otelcol", "echo 'Error: no such component' >&2; exit 1")
    done = run(tmp_path, "--path", path=[old.parent])
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{old} is not used" in done.stderr
    assert "no such component" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "ci", "status"),
    [([], "", 3), (["--optional"], "", 0), (["--optional"], "true", 3), (["--optional"], "1", 3)],
)
def test_without_go_it_says_what_that_costs(tmp_path, arguments, ci, status):
    done = run(tmp_path, *arguments, CI=ci)
    assert (done.returncode, done.stdout) == (status, "")
    assert "the end-to-end tests" in done.stderr
    assert "go.dev/dl" in done.stderr


def test_failed_build_shows_why_and_leaves_nothing(tmp_path):
    go = program(tmp_path / "go", "go", "echo 'proxy says no'; exit 1")
    done = run(tmp_path, path=[go.parent], OTELCOL_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "proxy says no" in done.stderr
    (room,) = (tmp_path / "cache").iterdir()
    assert [each.name for each in room.iterdir()] == ["lock"]


def test_build_is_kept_and_needs_no_go_the_second_time(tmp_path):
    # Stands for Go: "builds" a program where it is told to, once.
    script = 'echo "$1" >> "$HOME/steps"; [ "$1" = build ] && echo made > otelcol-sottovoce; exit 0'
    go = program(tmp_path / "go", "go", script)
    first = run(tmp_path, "--path", path=[go.parent], XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "steps").read_text().split() == ["run", "mod", "get", "build"]
    assert "[4/4] compiling" in first.stderr
    built = Path(first.stdout.strip())
    assert built.is_relative_to(tmp_path / "cache" / "sottovoce" / "collector")
    second = run(tmp_path, "--path", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
