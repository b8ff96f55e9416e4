"""A machine is one of few kinds, all of them published, and nothing else is said of it."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce import guard, hardware
from sottovoce.hardware import machine, tiers
from sottovoce.privacy.policy import Policy
from sottovoce.settings import Settings

ROOT = Path(__file__).parents[2]
CELLS = hardware.cells()
WORDS = {
    "os.type": {"darwin", "linux", "windows", "_OTHER"},
    "host.arch": {"amd64", "arm64", "_OTHER"},
    "sottovoce.total_memory_gb": {*tiers.BUILT_IN, "_OTHER"},
    "sottovoce.accelerator.family": {"none", "apple", "nvidia", "amd", "intel", "other"},
}


class TestCells:
    def test_there_are_few_and_no_two_are_equal(self):
        assert len(CELLS) == len(set(CELLS)) <= 500

    def test_none_holds_anything_but_listed_words(self):
        for cell in CELLS:
            attributes = cell.attributes()
            assert attributes.keys() == WORDS.keys()
            for key, word in attributes.items():
                assert word in WORDS[key]

    def test_the_page_lists_each(self):
        done = subprocess.run(
            [sys.executable, ROOT / "tools/hardware_page.py", "--check"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        page = (ROOT / "docs/HARDWARE.md").read_text(encoding="utf-8")
        assert f"there are {len(CELLS)} kinds" in page
        rows = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \| ([\w+, ]+) \|$", page, re.MULTILINE)
        listed = {
            hardware.Profile(os_type, architecture, memory, family)
            for os_type, architecture, family, tiers_ in rows
            for memory in tiers_.split(", ")
        }
        assert listed == set(CELLS)

    @pytest.mark.parametrize("profile", ["aggregate", "strict", "standard", "content"])
    def test_each_leaves_as_it_is_in_every_profile(self, profile):
        policy = Policy(Settings(profile=profile, key="a key of the tests, long enough"))
        for cell in CELLS:
            assert policy.attributes(cell.attributes(), "resource") == cell.attributes()
        assert policy.dropped == {}


WORD = st.one_of(
    st.none(),
    st.text(),
    st.sampled_from(["linux", "darwin", "win32", "x86_64", "AMD64", "aarch64", "nvidia", "apple"]),
)


@given(WORD, WORD, st.one_of(st.none(), st.floats(), st.integers(), st.text()), WORD)
def test_whatever_a_machine_says_it_is_one_of_the_cells(system, processor, memory, accelerator):
    assert machine.cell(system, processor, memory, accelerator) in CELLS


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (("darwin", "arm64", 36, "none"), ("darwin", "arm64", "36", "apple")),
        (("darwin", "x86_64", 16, "none"), ("darwin", "amd64", "16", "other")),
        (("linux", "x86_64", 62.7, "nvidia"), ("linux", "amd64", "64", "nvidia")),
        (("linux", "aarch64", 503, "nvidia"), ("linux", "arm64", "128+", "nvidia")),
        (("linux", "riscv64", 15.6, "none"), ("linux", "other", "16", "none")),
        (("linux", "ppc64le", 15.6, "nvidia"), ("linux", "other", "16", "other")),
        (("win32", "AMD64", 31.9, "intel"), ("windows", "amd64", "32", "intel")),
        (("freebsd14", "amd64", 31.9, "nvidia"), ("other", "amd64", "32", "other")),
        ((None, None, None, None), ("other", "other", "other", "other")),
    ],
)
def test_machines(said, kind):
    assert machine.cell(*said) == kind


class TestHere:
    def test_this_machine_has_a_profile_and_keeps_it(self):
        profile = hardware.profile()
        assert profile in CELLS
        assert hardware.profile() is profile
        assert profile.architecture == {"x86_64": "amd64", "aarch64": "arm64"}.get(
            platform.machine(), profile.architecture
        )
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert profile.memory == tiers.built_in(pages / 2**30)

    def test_no_word_of_this_machines_own_is_in_it(self):
        said = set(hardware.profile().attributes().values())
        uname = os.uname()
        assert not said & {uname.nodename, uname.release, uname.version, platform.processor()}

    def test_neither_a_runtime_nor_a_drivers_library_is_loaded_for_it(self):
        program = (
            "import sys; from sottovoce import hardware; hardware.profile();"
            "print([m for m in ('mlx', 'llama_cpp', 'psutil', 'pynvml', 'ctypes', 'torch',"
            " 'opentelemetry') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"


class TestAccelerator:
    @pytest.mark.parametrize(
        ("os_type", "files", "family"),
        [
            ("linux", [], "none"),
            ("linux", ["/dev/nvidiactl"], "nvidia"),
            ("linux", ["/dev/kfd"], "amd"),
            ("linux", ["/dev/kfd", "/dev/nvidiactl"], "nvidia"),
            ("linux", ["/usr/lib/wsl/lib/libnvidia-ml.so.1"], "nvidia"),
            ("linux", [r"C:\Windows\System32\nvcuda.dll"], "none"),
            ("windows", [], "none"),
            ("windows", [r"C:\Windows\System32\nvcuda.dll"], "nvidia"),
            ("windows", [r"C:\Windows\System32\amdhip64_6.dll"], "amd"),
            ("windows", [r"C:\Windows\System32\igdrcl64.dll"], "intel"),
            ("darwin", ["/dev/nvidiactl"], "none"),
            ("other", ["/dev/nvidiactl"], "none"),
        ],
    )
    def test_a_drivers_files_tell_it(self, os_type, files, family):
        assert machine.accelerator(os_type, set(files).__contains__) == family

    @pytest.mark.parametrize(
        ("vendors", "family"),
        [
            ([], "none"),
            (["0x8086"], "intel"),
            (["0x8086", "0x1002"], "amd"),
            (["0x1002", "0x10de"], "nvidia"),
            (["0x1af4"], "other"),
            ([None], "other"),
            (["my own graphics card"], "other"),
        ],
    )
    def test_without_a_driver_of_its_own_the_bus_tells_it(self, tmp_path, vendors, family):
        (tmp_path / "version").write_text("drm 1.1.0")
        (tmp_path / "card0").mkdir()
        for number, vendor in enumerate(vendors):
            device = tmp_path / f"renderD{128 + number}" / "device"
            device.mkdir(parents=True)
            if vendor is not None:
                (device / "vendor").write_text(vendor + "\n")
        exists = str(tmp_path).__eq__
        assert machine.accelerator("linux", exists, drm=str(tmp_path)) == family

    def test_what_may_not_be_looked_at_is_counted_and_other(self, tmp_path):
        def denied(path):
            raise PermissionError(path)

        before = guard.failures["hardware.accelerator"]
        family = machine.accelerator("linux", denied)
        assert guard.failures["hardware.accelerator"] == before + 1
        assert machine.cell("linux", "x86_64", 16, family).accelerator == "other"
