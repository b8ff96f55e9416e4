"""What other systems lack, taken away: every module is imported, and a process starts and ends.

No such system is at hand; what is here besides, such as the SDK's own modules, is loaded before.
"""

import subprocess
import sys

import pytest

ELSEWHERE = """
import importlib, os, pkgutil, signal, socket, sys
from pathlib import Path

def every():
    import sottovoce
    found = pkgutil.walk_packages(sottovoce.__path__, "sottovoce.")
    return [importlib.import_module(each.name) for each in found if each.name != "sottovoce.__main__"]

count = len(every())
assert count > 100, count
for name in [name for name in sys.modules if name.partition(".")[0] == "sottovoce"]:
    del sys.modules[name]

sys.platform = system = sys.argv[1]
LACKING = {
    "win32": {
        os: ["fork", "register_at_fork", "uname", "sysconf", "getuid", "geteuid", "getppid", "O_NONBLOCK"],
        signal: ["SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "setitimer"],
        socket: ["AF_UNIX"],
    },
    "darwin": {os: ["sched_getaffinity"]},
}
for owner, names in LACKING[system].items():
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
MODULES = {"win32": ["fcntl", "resource", "pwd", "grp", "termios", "tty", "psutil"], "darwin": ["psutil"]}
for name in MODULES[system]:
    sys.modules[name] = None

assert len(every()) == count

import sottovoce
from sottovoce import guard
from sottovoce.hardware import machine, readings
from sottovoce.settings import state_dir

kept = state_dir()
assert kept and Path(kept).is_relative_to(sys.argv[2]), kept
handle = sottovoce.start(traces_exporter=("console",), metrics_exporter=("none",))
assert handle.active, handle.reason
with sottovoce.tool("bash"):
    pass
assert (Path(kept) / "key").exists()
profile = machine.profile()
assert profile.os_type == {"win32": "windows", "darwin": "darwin"}[system], profile
readings.now()
assert handle.shutdown(20)
assert not guard.failures, guard.failures
"""


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_elsewhere(system, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, system, str(tmp_path)],
        env={"HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    assert ran.returncode == 0
    assert '"execute_tool' in ran.stdout
