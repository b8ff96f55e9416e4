"""What kind of machine this is: one of `cells`, and nothing that tells it from others like it.

Found without a runtime or a driver's library, by what the operating system shows to everyone:
the amount of memory, and which files a driver has put where. Some 0.1 ms, once a process.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sottovoce.guard import never_raise
from sottovoce.hardware import memory, tiers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NONE: Final = "none"
OTHER: Final = tiers.OTHER

_PLACEHOLDER: Final = "_OTHER"
"""What the conventions' vocabularies of systems and processors have for all others."""

_SYSTEMS: Final[Mapping[str, str]] = {"darwin": "darwin", "linux": "linux", "win32": "windows"}
"""`sys.platform` → `os.type`."""

_ARCHITECTURES: Final[Mapping[str, str]] = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "x64": "amd64",
    "arm64": "arm64",
    "aarch64": "arm64",
}
"""What systems call their processor, in lower case → `host.arch`."""

_ANY: Final = (NONE, "nvidia", "amd", "intel", OTHER)
_ACCELERATORS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    # Every Mac with this processor has the same family's GPU; of the others no runtime that we
    # know makes good use, so what they have is not asked.
    ("darwin", "arm64"): ("apple",),
    ("darwin", "amd64"): (OTHER,),
    ("darwin", OTHER): (OTHER,),
    ("linux", "amd64"): _ANY,
    ("linux", "arm64"): _ANY,
    ("linux", OTHER): (NONE, OTHER),
    ("windows", "amd64"): _ANY,
    ("windows", "arm64"): _ANY,
    ("windows", OTHER): (NONE, OTHER),
    (OTHER, "amd64"): (OTHER,),
    (OTHER, "arm64"): (OTHER,),
    (OTHER, OTHER): (OTHER,),
}
"""System and processor → families of accelerators that are told apart there."""

_FILES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "linux": (
        ("/dev/nvidiactl", "nvidia"),
        ("/proc/driver/nvidia/version", "nvidia"),
        ("/usr/lib/wsl/lib/libnvidia-ml.so.1", "nvidia"),
        ("/dev/nvhost-gpu", "nvidia"),
        ("/dev/kfd", "amd"),
    ),
    "windows": (
        (r"C:\Windows\System32\nvcuda.dll", "nvidia"),
        (r"C:\Windows\System32\amdhip64_7.dll", "amd"),
        (r"C:\Windows\System32\amdhip64_6.dll", "amd"),
        (r"C:\Windows\System32\amdhip64.dll", "amd"),
        (r"C:\Windows\System32\atiadlxx.dll", "amd"),
        (r"C:\Windows\System32\ze_intel_gpu64.dll", "intel"),
        (r"C:\Windows\System32\igdrcl64.dll", "intel"),
    ),
}
"""System → files that a family's driver puts there, the most capable family first."""

_DRM: Final = "/sys/class/drm"
_VENDORS: Final[Mapping[str, str]] = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
"""Linux: numbers of vendors on the PCI bus, for a GPU that only the system's own driver serves."""
_MOST_NODES: Final = 16


class Profile(NamedTuple):
    """A kind of machine.

    Attributes:
        os_type: ``darwin``, ``linux``, ``windows`` or ``other``.
        architecture: of the processor, as this process sees it: ``amd64``, ``arm64``, ``other``.
        memory: tier of the memory built in, in GiB (`tiers.BUILT_IN`), or ``other``.
        accelerator: ``none``, ``apple``, ``nvidia``, ``amd``, ``intel`` or ``other``.
    """

    os_type: str
    architecture: str
    memory: str
    accelerator: str

    def attributes(self) -> dict[str, str]:
        """Give it as resource attributes."""
        shown = {
            "os.type": self.os_type,
            "host.arch": self.architecture,
            "sottovoce.total_memory_gb": self.memory,
        }
        named = {key: _PLACEHOLDER if word == OTHER else word for key, word in shown.items()}
        return {**named, "sottovoce.accelerator.family": self.accelerator}


def cells() -> tuple[Profile, ...]:
    """Every profile that there can be."""
    return tuple(
        Profile(os_type, architecture, memory_, accelerator)
        for (os_type, architecture), accelerators in _ACCELERATORS.items()
        for accelerator in accelerators
        for memory_ in (*tiers.BUILT_IN, OTHER)
    )


def cell(
    system: str | None,
    processor: str | None,
    memory_gib: float | None,
    accelerator: str | None,
) -> Profile:
    """The one of `cells` for a machine; what is in no list becomes ``other``. Never raises.

    Args:
        system: as `sys.platform` says it.
        processor: as `platform.machine` says it.
        memory_gib: memory built in.
        accelerator: its family.
    """
    os_type = _SYSTEMS.get(system or "", OTHER)
    architecture = _ARCHITECTURES.get((processor or "").lower(), OTHER)
    families = _ACCELERATORS[os_type, architecture]
    family = accelerator if accelerator in families else families[-1]
    return Profile(os_type, architecture, tiers.built_in(memory_gib), family)


@lru_cache(maxsize=1)
def profile() -> Profile:
    """The profile of this machine, found once. Never raises."""
    size = memory.total()
    return cell(
        sys.platform,
        _processor(),
        None if size is None else size / tiers.GIB,
        accelerator(_SYSTEMS.get(sys.platform, OTHER)),
    )


@never_raise("hardware.processor")
def _processor() -> str:
    if hasattr(os, "uname"):
        return os.uname().machine
    import platform  # noqa: PLC0415 - slow to load, and only Windows needs it

    return platform.machine()


@never_raise("hardware.accelerator")
def accelerator(
    os_type: str, exists: Callable[[str], bool] = os.path.exists, drm: str = _DRM
) -> str:
    """The family of the most capable accelerator that a driver serves, ``none`` without any.

    Args:
        os_type: of the profile.
        exists: whether there is a file; never opened.
        drm: where Linux lists its graphics devices.
    """
    for path, family in _FILES.get(os_type, ()):
        if exists(path):
            return family
    if os_type != "linux":
        return NONE
    found = set(_vendors(drm)) if exists(drm) else set()
    return next((family for family in (*_VENDORS.values(), OTHER) if family in found), NONE)


def _vendors(drm: str) -> Iterator[str]:
    """Whose the devices are that Linux can compute graphics with."""
    nodes = [node for node in Path(drm).iterdir() if node.name.startswith("renderD")]
    for node in nodes[:_MOST_NODES]:
        vendor = node / "device" / "vendor"
        # One that is not on the PCI bus has no such file.
        number = vendor.read_text(encoding="ascii") if vendor.exists() else ""
        yield _VENDORS.get(number.strip(), OTHER)
