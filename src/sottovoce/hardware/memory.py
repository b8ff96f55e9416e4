"""How much memory there is, is free, and is taken by this process: bytes, or None.

Linux and Windows are asked directly, other systems through psutil where it is installed. A
source that failed once is not asked again. Nothing here raises.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_broken: Final[set[Callable[[], int]]] = set()
"""Sources that failed, or that this system does not have."""


class Missing(Exception):
    """This system has no such source, which is no failure."""


def total() -> int | None:
    """Memory built in."""
    return _first((_pages, _windows_total, _psutil_total))


def available() -> int | None:
    """Memory that new programs could have without swapping, as the system estimates it."""
    return _first((_linux_available, _windows_available, _psutil_available))


def of_process() -> int | None:
    """Physical memory that this process takes."""
    return _first((_linux_resident, _psutil_resident))


def peak_of_process() -> int | None:
    """The most physical memory that this process ever took."""
    return _first((_linux_peak, _darwin_peak, _psutil_peak))


def _first(sources: Iterable[Callable[[], int]]) -> int | None:
    """What the first source says that can say anything."""
    for source in sources:
        if source in _broken:
            continue
        try:
            return source()
        except Missing:
            _broken.add(source)
        except Exception:  # noqa: BLE001 - a system can refuse anything
            _broken.add(source)
            failed(f"hardware.{source.__name__.strip('_')}")
    return None


def _pages() -> int:
    if not hasattr(os, "sysconf"):
        raise Missing
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _linux_available(file: Path = Path("/proc/meminfo")) -> int:
    if sys.platform != "linux":
        raise Missing
    for line in file.read_bytes().splitlines():
        name, _, amount = line.partition(b":")
        if name == b"MemAvailable":
            return int(amount.split()[0]) * 1024
    raise Missing


def _linux_resident(file: Path = Path("/proc/self/statm")) -> int:
    if sys.platform != "linux":
        raise Missing
    return int(file.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _linux_peak(file: Path = Path("/proc/self/status")) -> int:
    # Not `getrusage`: on Linux it begins with what the program had that started this one.
    if sys.platform != "linux":
        raise Missing
    for line in file.read_bytes().splitlines():
        name, _, amount = line.partition(b":")
        if name == b"VmHWM":
            return int(amount.split()[0]) * 1024
    raise Missing


def _darwin_peak() -> int:
    if sys.platform != "darwin":
        raise Missing
    import resource  # noqa: PLC0415 - not on Windows

    # In bytes there.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _windows_total() -> int:
    return _windows_status()[0]


def _windows_available() -> int:
    return _windows_status()[1]


def _windows_status() -> tuple[int, int]:
    """Total and available memory, by `GlobalMemoryStatusEx`."""
    import ctypes  # noqa: PLC0415 - only Windows needs it

    libraries = getattr(ctypes, "windll", None)
    if libraries is None:
        raise Missing

    class Status(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *(
                (name, ctypes.c_uint64)
                for name in (
                    "total",
                    "available",
                    "total_page_file",
                    "available_page_file",
                    "total_virtual",
                    "available_virtual",
                    "available_extended_virtual",
                )
            ),
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    if not libraries.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx")
    return status.total, status.available


def _psutil_total() -> int:
    return int(_psutil().virtual_memory().total)


def _psutil_available() -> int:
    return int(_psutil().virtual_memory().available)


def _psutil_resident() -> int:
    return int(_psutil().Process().memory_info().rss)


def _psutil_peak() -> int:
    # Windows alone has it.
    peak = getattr(_psutil().Process().memory_info(), "peak_wset", None)
    if peak is None:
        raise Missing
    return int(peak)


def _psutil() -> Any:
    try:
        import psutil  # noqa: PLC0415 - an extra, and slow to load
    except ImportError:
        raise Missing from None
    return psutil
