"""How busy the NVIDIA GPUs of this machine are, through `nvidia-ml-py` where it is installed.

All that the driver shows are taken together, without name, number or identity of any. What
failed once, a missing driver say, is not tried again in this process. Nothing here raises.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import failed

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST: Final = 64
"""Devices that are asked at most."""


@dataclass(frozen=True)
class Gpus:
    """What the GPUs do now; a figure that no device gives is None.

    Attributes:
        utilization: mean share of time in which kernels ran, of the last second or less: 0..1.
        memory_used: bytes, over all devices.
        memory_utilization: share of all their memory that is used: 0..1.
    """

    utilization: float | None
    memory_used: int | None
    memory_utilization: float | None


class _Driver:
    """`pynvml`, begun once a process and by a thread of its own: that can take seconds.

    Attributes:
        broken: it failed, or there is none; whoever sees this asks no more.
    """

    def __init__(self) -> None:
        self._begun: tuple[Any, tuple[Any, ...]] | None = None
        self._process = 0
        self._thread: threading.Thread | None = None
        self.broken = False

    def begun(self) -> tuple[Any, tuple[Any, ...]] | None:
        """The library and its handles; None as long as they are not there. May raise."""
        if self._process != os.getpid():
            # A child of a fork begins anew.
            self._begun = None
            if "pynvml" not in sys.modules and find_spec("pynvml") is None:
                self.broken = True
                return None
            thread = threading.Thread(target=self._begin, name="sottovoce-gpu", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # No thread can be had, as at the process's end.
                return None
            self._thread, self._process = thread, os.getpid()
        return self._begun

    def wait(self, seconds: float) -> None:
        """Let the thread come to its end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _begin(self) -> None:
        try:
            library = _imported()
            library.nvmlInit()
            count = min(int(library.nvmlDeviceGetCount()), _MOST)
            handles = (_asked(library.nvmlDeviceGetHandleByIndex, n) for n in range(count))
            self._begun = library, tuple(each for each in handles if each is not None)
        except Exception as error:  # noqa: BLE001 - a driver can fail in any way
            _blame(error)
            self.broken = True


_driver: Final = _Driver()


def read() -> Gpus | None:
    """What the GPUs do now; None without any, without a way to ask them, and until one is begun."""
    if _driver.broken:
        return None
    try:
        begun = _driver.begun()
        if begun is None:
            return None
        found = _summed(*begun)
    except Exception as error:  # noqa: BLE001 - see `_Driver`
        _blame(error)
        found = None
    if found is None:
        _driver.broken = True
    return found


def wait(seconds: float) -> None:
    """Begin to ask the driver, and wait until it can be asked. Never raises."""
    read()
    _driver.wait(seconds)


def _blame(error: Exception) -> None:
    """Count what is being handled, unless it says that there is nothing to ask."""
    if not isinstance(error, ImportError) and type(error).__name__ not in _NO_DRIVER:
        failed("hardware.gpu")


_NO_DRIVER: Final = frozenset({"NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded"})
"""Exceptions of `nvidia-ml-py` (seen in 13.615) that say there is nothing to ask."""


def _imported() -> Any:
    # An older package of the same name says so. For good, because `catch_warnings` would change
    # meanwhile, and mix up, what the app's own threads are warned of.
    warnings.filterwarnings("ignore", "The pynvml package is deprecated", FutureWarning)
    import pynvml  # noqa: PLC0415 - an extra, and slow to load

    return pynvml


def _summed(library: Any, devices: tuple[Any, ...]) -> Gpus | None:
    # A device that is split, or one without a figure, raises.
    rates = [_asked(library.nvmlDeviceGetUtilizationRates, device) for device in devices]
    sizes = [_asked(library.nvmlDeviceGetMemoryInfo, device) for device in devices]
    busy = [_share(rate.gpu, 100) for rate in rates if rate is not None]
    held = [size for size in sizes if size is not None]
    if not busy and not held:
        return None
    used, total = sum(int(size.used) for size in held), sum(int(size.total) for size in held)
    return Gpus(
        utilization=sum(busy) / len(busy) if busy else None,
        memory_used=used if held else None,
        memory_utilization=_share(used, total) if total > 0 else None,
    )


def _asked(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:  # noqa: BLE001 - see `read`
        if type(error).__name__ != "NVMLError_NotSupported":
            failed("hardware.gpu")
        return None


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, 0.0), 1.0)
