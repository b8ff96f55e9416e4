"""Memory and GPUs as they are read: from the real system, and from drivers of every kind."""

import json
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import psutil
import pytest

from sottovoce import guard, hardware
from sottovoce.hardware import memory, readings

SHOWN = """
import json, sys, warnings
from dataclasses import asdict
from sottovoce import guard, hardware
from sottovoce.hardware import gpu, readings

def show():
    gpu.wait(60)
    found = asdict(readings.now())
    told = found["gpus"], hardware.gpu_utilization(), dict(guard.failures), gpu._driver.broken
    print(json.dumps(told), flush=True)
"""

DRIVER = """
    class NVMLError(Exception): pass
    class NVMLError_LibraryNotFound(NVMLError): pass
    class NVMLError_NotSupported(NVMLError): pass
    class Rates:
        def __init__(self, gpu): self.gpu, self.memory = gpu, 3
    class Memory:
        def __init__(self, used, total): self.used, self.total, self.free = used, total, total - used
    calls = []
    def nvmlInit(): calls.append("init")
    def nvmlDeviceGetCount(): return 2
    def nvmlDeviceGetHandleByIndex(number): return number
    def nvmlDeviceGetUtilizationRates(handle): calls.append("rates"); return Rates((90, 30)[handle])
    def nvmlDeviceGetMemoryInfo(handle): return Memory((6 << 30, 2 << 30)[handle], 16 << 30)
"""


def run(driver, program, folder):
    """What `show()` printed in a process where `driver` is the library."""
    (folder / "pynvml.py").write_text(textwrap.dedent(driver))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHOWN + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


class TestMemory:
    def test_it_is_what_psutil_says(self):
        assert memory.total() == psutil.virtual_memory().total
        assert memory.of_process() == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)
        near = pytest.approx(psutil.virtual_memory().available, rel=0.5)
        assert memory.available() == near
        assert hardware.available_memory_gb() * 2**30 == near

    def test_the_peak_is_what_was_there_for_a_moment(self):
        ballast = b"x" * (64 << 20)
        held = memory.of_process()
        del ballast
        # The system counts in batches of pages.
        assert memory.peak_of_process() > held - (8 << 20)

    def test_the_peak_of_other_systems(self, monkeypatch):
        before = dict(guard.failures)
        monkeypatch.setattr(memory, "_broken", set())
        monkeypatch.setattr(sys, "platform", "darwin")
        assert memory.peak_of_process() > 0
        monkeypatch.setattr(memory, "_broken", set())
        monkeypatch.setattr(sys, "platform", "freebsd14")
        assert memory.peak_of_process() is None
        # As psutil has it on Windows.
        told = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7 << 30))
        monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: told))
        monkeypatch.setattr(memory, "_broken", set())
        monkeypatch.setattr(sys, "platform", "win32")
        assert memory.peak_of_process() == 7 << 30
        assert dict(guard.failures) == before

    @pytest.mark.parametrize("platform", ["darwin", "freebsd14"])
    def test_other_systems_are_asked_through_psutil(self, monkeypatch, platform):
        monkeypatch.setattr(memory, "_broken", set())
        monkeypatch.setattr(sys, "platform", platform)
        assert memory.of_process() == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)
        assert memory.available() == pytest.approx(psutil.virtual_memory().available, rel=0.5)

    def test_without_psutil_they_say_nothing_and_nothing_has_failed(self, monkeypatch):
        monkeypatch.setattr(memory, "_broken", set())
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setitem(sys.modules, "psutil", None)
        before = dict(guard.failures)
        assert memory.of_process() is None
        assert memory.available() is None
        assert dict(guard.failures) == before

    def test_a_source_that_fails_is_counted_and_not_asked_again(self, monkeypatch):
        def linux_resident():
            raise PermissionError("/proc/self/statm")

        monkeypatch.setattr(memory, "_broken", set())
        before = guard.failures["hardware.linux_resident"]
        assert memory._first((linux_resident,)) is None
        assert memory._first((linux_resident,)) is None
        assert guard.failures["hardware.linux_resident"] == before + 1

    @pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "no table at all"])
    @pytest.mark.parametrize("read", [memory._linux_available, memory._linux_peak])
    def test_a_system_without_the_figure_has_none(self, tmp_path, text, read):
        file = tmp_path / "meminfo"
        file.write_text(text)
        with pytest.raises(memory.Missing):
            read(file)

    def test_windows_is_asked_for_both_figures_at_once(self, monkeypatch):
        import ctypes

        class Kernel:
            def GlobalMemoryStatusEx(self, status):
                status = status._obj
                assert status.length == ctypes.sizeof(status) == 64
                status.total, status.available = 32 << 30, 5 << 30
                return 1

        class Libraries:
            kernel32 = Kernel()

        monkeypatch.setattr(ctypes, "windll", Libraries, raising=False)
        monkeypatch.setattr(memory, "_broken", {memory._pages, memory._linux_available})
        assert memory.total() == 32 << 30
        assert memory.available() == 5 << 30


class TestGpus:
    def test_all_are_taken_together(self, tmp_path):
        [(gpus, utilization, failures, _)] = run(DRIVER, "show()", tmp_path)
        assert gpus == {
            "utilization": pytest.approx(0.6),
            "memory_used": 8 << 30,
            "memory_utilization": 0.25,
        }
        assert utilization == pytest.approx(0.6)
        assert failures == {}

    def test_what_the_app_is_warned_of_is_not_touched(self, tmp_path):
        deprecated = """
            import warnings
            filters = id(warnings.filters)
            warnings.warn("The pynvml package is deprecated. Install another.", FutureWarning)
        """
        program = """
            before = id(warnings.filters)
            show()
            import pynvml
            print(json.dumps(pynvml.filters == before))
        """
        driver = textwrap.dedent(deprecated) + textwrap.dedent(DRIVER)
        [(gpus, *_), untouched] = run(driver, program, tmp_path)
        assert gpus["utilization"] == 0.6 and untouched

    def test_they_are_read_every_ten_seconds_at_most(self, tmp_path):
        program = """
            import pynvml
            clock = [1000.0]
            readings.monotonic = lambda: clock[0]
            counts = []
            gpu._driver.begun()
            gpu._driver.wait(60)
            for step in (0, 1, 8.9, 1, 5):
                clock[0] += step
                readings.now()
                counts.append(pynvml.calls.count("rates"))
            print(json.dumps([counts, pynvml.calls.count("init")]))
        """
        assert run(DRIVER, program, tmp_path) == [[[2, 2, 2, 4, 4], 1]]

    def test_a_child_of_a_fork_begins_anew(self, tmp_path):
        program = """
            import os, pynvml
            show()
            readings._last.lock.acquire()  # another thread was reading
            pid = os.fork()
            if pid == 0:
                pynvml.calls.clear()
                show()
                print(json.dumps(pynvml.calls), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
        """
        parent, child, calls = run(DRIVER, program, tmp_path)
        assert child == parent
        assert calls.count("init") == 1
        assert calls[:2] == ["init", "rates"]

    @pytest.mark.parametrize(
        ("change", "gpus"),
        [
            (
                "def nvmlDeviceGetUtilizationRates(handle): raise NVMLError_NotSupported",
                {"utilization": None, "memory_used": 8 << 30, "memory_utilization": 0.25},
            ),
            (
                "def nvmlDeviceGetMemoryInfo(handle): raise NVMLError_NotSupported",
                {"utilization": 0.6, "memory_used": None, "memory_utilization": None},
            ),
            (
                "def nvmlDeviceGetMemoryInfo(handle): return Memory(0, 0)",
                {"utilization": 0.6, "memory_used": 0, "memory_utilization": None},
            ),
            (
                "def nvmlDeviceGetUtilizationRates(handle): return Rates(250)",
                {"utilization": 1.0, "memory_used": 8 << 30, "memory_utilization": 0.25},
            ),
            ("def nvmlDeviceGetCount(): return 0", None),
            ("def nvmlInit(): raise NVMLError_LibraryNotFound", None),
            ("raise ImportError('no such library')", None),
        ],
    )
    def test_what_a_driver_does_not_have_is_left_out_and_is_no_failure(
        self, tmp_path, change, gpus
    ):
        [(found, _, failures, broken)] = run(DRIVER + f"    {change}\n", "show()", tmp_path)
        assert found == (None if gpus is None else pytest.approx(gpus))
        assert failures == {}
        assert broken is (gpus is None)

    @pytest.mark.parametrize(
        "change",
        [
            "def nvmlInit(): raise NVMLError('Insufficient Permissions at /home/alice')",
            "def nvmlInit(): calls.append('init'); raise OSError('cannot load')",
            "del nvmlDeviceGetCount",
            "def nvmlDeviceGetCount(): return 'many'",
            "raise RuntimeError('broken at import')",
            "nvmlDeviceGetUtilizationRates = nvmlDeviceGetMemoryInfo = lambda handle: object()",
        ],
    )
    def test_a_broken_driver_is_counted_once_and_left_alone(self, tmp_path, change):
        program = """
            clock = [1000.0]
            readings.monotonic = lambda: clock[0]
            show()
            clock[0] += 60
            show()
        """
        first, second = run(DRIVER + f"    {change}\n", program, tmp_path)
        assert first == second == [None, None, {"hardware.gpu": 1}, True]

    def test_a_driver_that_hangs_keeps_nobody_waiting(self, tmp_path):
        driver = DRIVER + "    def nvmlInit(): import threading; threading.Event().wait()\n"
        program = """
            before = readings.now().process_memory
            print(json.dumps([before > 0, readings.now().gpus, hardware.gpu_utilization()]))
        """
        assert run(driver, program, tmp_path) == [[True, None, None]]

    def test_without_a_thread_to_be_had_it_is_tried_again(self, tmp_path):
        program = """
            import threading
            start = threading.Thread.start
            def full(self): raise RuntimeError("can't start new thread")
            threading.Thread.start = full
            show()
            threading.Thread.start = start
            readings._last.at = 0.0
            show()
        """
        first, second = run(DRIVER, program, tmp_path)
        assert first == [None, None, {}, False]
        assert second[1:] == [pytest.approx(0.6), {}, False]

    def test_the_real_library_says_nothing_without_a_driver(self):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SHOWN + "show()"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stderr == ""
        gpus, _, failures, broken = json.loads(done.stdout)
        assert failures == {}
        assert broken is (gpus is None)
        if hardware.profile().accelerator != "nvidia":
            assert gpus is None


class TestTogether:
    def test_a_thread_that_reads_keeps_no_other_waiting(self):
        readings.now()
        last = readings._last
        with last.lock:
            at, last.at = last.at, 0.0
            try:
                assert readings.now() is last.readings
            finally:
                last.at = at

    def test_what_is_read_names_nothing(self):
        found = readings.now()
        for value in (found.process_memory, found.process_peak, found.available_memory):
            assert type(value) is int

    @pytest.mark.mlx
    def test_of_mlx_what_is_loaded_is_read(self):
        core = pytest.importorskip("mlx.core")
        array = core.zeros((1 << 20,), dtype=core.float32)
        core.eval(array)
        found = readings._engine_memory()
        assert found["active"] >= 4 << 20
        assert found["peak"] >= found["active"]
        assert found["cache"] >= 0

    def test_mlx_is_never_imported(self):
        program = "print(readings.now().engine_memory, 'mlx' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", SHOWN + program],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "{} False"

    @pytest.mark.parametrize("module", [object(), type("Half", (), {})])
    def test_an_mlx_that_is_being_imported_says_nothing_yet(self, monkeypatch, module):
        monkeypatch.setitem(sys.modules, "mlx.core", module)
        assert readings._engine_memory() == {}

    def test_metal_is_not_touched_in_a_child_of_a_fork(self, monkeypatch):
        class Metal:
            def get_active_memory():
                return 1 << 20

        monkeypatch.setitem(sys.modules, "mlx.core", Metal)
        monkeypatch.setattr(sys, "platform", "darwin")
        assert readings._engine_memory() == {"active": 1 << 20}
        monkeypatch.setattr(readings, "_began_in", os.getpid() + 1)
        assert readings._engine_memory() == {}
