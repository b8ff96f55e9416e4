"""Hooks wait for the app's own import, come before every name that is bound, and go again."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

RECORDER = """
import sys
from sottovoce import guard
class Recorder:
    calls, open = [], 0
    def opened(self, call): self.open += 1
    def ended(self, call): self.calls.append(call)
    def enter(self, call): return None
    def leave(self, token): pass
recorder, hooks, patches = Recorder(), guard.ImportHooks(), guard.Patches()
"""


def run(code, *args):
    environment = {
        **os.environ,
        "MLX_DISABLE_COMPILE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", RECORDER + textwrap.dedent(code), *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_installing_imports_no_runtime():
    run("""
        from sottovoce.runtimes import llama_cpp, mlx
        mlx.install(recorder, hooks, patches)
        llama_cpp.install(recorder, hooks, patches)
        runtimes = {"mlx", "mlx_lm", "llama_cpp", "numpy", "transformers"}
        assert not runtimes & set(sys.modules), runtimes & set(sys.modules)
    """)


@pytest.mark.mlx
def test_every_name_that_mlx_lm_binds_is_ours_and_is_put_back(tmp_path):
    pytest.importorskip("mlx_lm")
    run(
        """
        from sottovoce.runtimes import mlx
        mlx.install(recorder, hooks, patches)
        import tiny_mlx
        from mlx_lm import generate, load, stream_generate
        import mlx_lm, mlx_lm.server
        bound = [
            generate, load, stream_generate,
            mlx_lm.generate, mlx_lm.load, mlx_lm.stream_generate,
            mlx_lm.batch_generate, mlx_lm.server.make_sampler,
            mlx_lm.server.load, mlx_lm.server.stream_generate,
            sys.modules["mlx_lm.generate"].load, sys.modules["mlx_lm.utils"].load_model,
        ]
        assert all(hasattr(function, guard._MARK) for function in bound)
        model = load(str(tiny_mlx.make(sys.argv[1])))
        assert generate(*model, "x", max_tokens=2)
        (call,) = recorder.calls
        assert call.facts["output_tokens"] == 2
        hooks.stop()
        patches.undo()
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("mlx_lm"):
                left = [name for name, value in vars(module).items() if hasattr(value, guard._MARK)]
                assert not left, (module, left)
        """,
        tmp_path,
    )


@pytest.mark.mlx
def test_a_hook_that_was_removed_before_the_import_does_nothing():
    pytest.importorskip("mlx_lm")
    run("""
        from sottovoce.runtimes import mlx
        mlx.install(recorder, hooks, patches)
        hooks.stop()
        patches.undo()
        import mlx_lm
        assert not hasattr(mlx_lm.stream_generate, guard._MARK)
    """)


@pytest.mark.mlx
def test_a_stream_survives_a_fork(tmp_path):
    pytest.importorskip("mlx_lm")
    run(
        """
        import os, warnings
        from sottovoce.runtimes import mlx
        mlx.install(recorder, hooks, patches)
        import tiny_mlx, mlx_lm
        model = mlx_lm.load(str(tiny_mlx.make(sys.argv[1])))
        stream = mlx_lm.stream_generate(*model, "x", max_tokens=5)
        next(stream)
        batch = sys.modules["mlx_lm.generate"].BatchGenerator(model[0], max_tokens=4)
        batch.insert([[7, 8, 9]])
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside MLX's threads
        child = os.fork()
        if child == 0:
            # The engine's threads are not in the child: only our own state is looked at.
            batch.close()
            os._exit(0 if recorder.open == 2 and not recorder.calls else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        list(stream)
        while recorder.calls[1:] == []:
            batch.next()
        told = [(call.outcome, call.facts["output_tokens"]) for call in recorder.calls]
        assert told == [("completed", 5), ("completed", 4)]
        """,
        tmp_path,
    )


@pytest.mark.llama_cpp
def test_a_class_imported_by_name_is_served(tmp_path):
    pytest.importorskip("llama_cpp")
    run(
        """
        from sottovoce.runtimes import llama_cpp
        import tiny_gguf
        from llama_cpp import Llama
        llama_cpp.install(recorder, hooks, patches)
        llama = Llama(str(tiny_gguf.make(sys.argv[1])), n_ctx=64, n_threads=1, verbose=False)
        llama("x", max_tokens=2)
        (call,) = recorder.calls
        assert (call.model, call.facts["output_tokens"]) == ("llama-lt_1M-f32", 2)
        """,
        tmp_path / "x.gguf",
    )


AT_EXIT = """
import atexit
# Before the runtimes register theirs, so that it comes after them.
atexit.register(
    lambda: [print(c.outcome, c.facts.get("input_tokens"), c.facts.get("output_tokens"))
             for c in recorder.calls]
)
"""


@pytest.mark.mlx
def test_streams_that_are_open_at_exit_have_exact_counts_of_mlx(tmp_path):
    pytest.importorskip("mlx_lm")
    out = run(
        AT_EXIT
        + textwrap.dedent("""
        from sottovoce.runtimes import mlx
        mlx.install(recorder, hooks, patches)
        import tiny_mlx
        from mlx_lm import load, stream_generate
        model = load(str(tiny_mlx.make(sys.argv[1])))
        left = stream_generate(*model, "hello", max_tokens=9)
        next(left), next(left)
        complete = stream_generate(*model, "hello", max_tokens=1)
        next(complete)
        """),
        tmp_path,
    )
    assert sorted(out.splitlines()) == ["abandoned 5 2", "completed 5 1"]


@pytest.mark.llama_cpp
def test_streams_that_are_open_at_exit_have_exact_counts_of_llama_cpp(tmp_path):
    pytest.importorskip("llama_cpp")
    out = run(
        AT_EXIT
        + textwrap.dedent("""
        from sottovoce.runtimes import llama_cpp
        llama_cpp.install(recorder, hooks, patches)
        import tiny_gguf
        from llama_cpp import Llama
        llama = Llama(str(tiny_gguf.make(sys.argv[1])), n_ctx=64, n_threads=1, verbose=False)
        left = llama("hello", max_tokens=9, stream=True)
        next(left), next(left)
        """),
        tmp_path / "tiny.gguf",
    )
    assert out.splitlines() == ["abandoned 6 2"]
