"""Other instrumentations of what ours record: skipped by the launcher, unless told otherwise."""

import textwrap

import pytest

from delivery.launcher import run
from delivery.sink import Sink
from sottovoce.rivals import RIVALS

pytestmark = pytest.mark.e2e

PACKAGE = """
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

    class OpenAIInstrumentor(BaseInstrumentor):
        def instrumentation_dependencies(self):
            return ()

        def _instrument(self, **_):
            print("theirs is applied")

        def _uninstrument(self, **_):
            pass
"""
ENTRY_POINTS = """
    [opentelemetry_instrumentor]
    openai = openinference.instrumentation.openai:OpenAIInstrumentor
    tables = openinference.instrumentation.tables:OpenAIInstrumentor
"""
OURS = "import sottovoce; print('ours', sottovoce.OpenAIInstrumentor().is_instrumented_by_opentelemetry)"


@pytest.fixture
def theirs(tmp_path):
    """A package that instruments openai, and one that nobody of ours covers."""
    folder = tmp_path / "openinference" / "instrumentation"
    folder.mkdir(parents=True)
    (folder / "openai.py").write_text(textwrap.dedent(PACKAGE))
    (folder / "tables.py").write_text(textwrap.dedent(PACKAGE).replace("theirs", "another"))
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(ENTRY_POINTS))
    return tmp_path


def launched(theirs, **variables):
    with Sink() as sink:
        return run(OURS, path=[theirs], OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **variables)


def test_a_rival_is_skipped_with_one_line_that_says_what_to_do(theirs):
    ran = launched(theirs)
    assert ran.out.split("\n")[:-1] == ["another is applied", "ours True"]
    [line] = ran.err.splitlines()
    assert "openinference.instrumentation.openai is not applied: sottovoce_openai" in line
    assert "SOTTOVOCE_RIVALS=run" in line
    assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=sottovoce_openai" in line


def test_what_a_process_said_of_a_rival_its_children_do_not_say_again(theirs):
    program = f"""
import subprocess, sys
{OURS}
for _ in range(2):
    subprocess.run([sys.executable, "-c", {OURS!r}], check=True)
"""
    with Sink() as sink:
        ran = run(program, path=[theirs], OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert ran.out.splitlines().count("ours True") == 3
    assert "theirs is applied" not in ran.out
    [line] = ran.err.splitlines()
    assert "openinference.instrumentation.openai is not applied" in line


def test_a_rival_runs_beside_ours_when_told(theirs):
    ran = launched(theirs, SOTTOVOCE_RIVALS="run")
    assert sorted(ran.out.splitlines()) == ["another is applied", "ours True", "theirs is applied"]
    assert ran.err == ""


def test_a_rival_runs_instead_of_ours_when_ours_is_disabled(theirs):
    ran = launched(theirs, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="sottovoce_openai")
    assert sorted(ran.out.splitlines()) == ["another is applied", "ours False", "theirs is applied"]
    assert ran.err == ""


def test_without_a_destination_others_are_none_of_our_business(theirs):
    ran = run(OURS, path=[theirs])
    assert sorted(ran.out.splitlines()) == ["another is applied", "ours False", "theirs is applied"]


def test_the_names_are_entry_points_of_ours():
    from importlib.metadata import entry_points

    ours = {entry.name for entry in entry_points(group="opentelemetry_instrumentor")}
    assert set(RIVALS.values()) <= ours
