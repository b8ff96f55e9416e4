"""The machine, so coarsely that it is like many others: its profile, and how busy it is.

Nothing here names a device: no model, serial number, host name or address is ever read.
"""

from __future__ import annotations

from sottovoce.hardware.machine import Profile, cells, profile

__all__ = ["Profile", "available_memory_gb", "cells", "gpu_utilization", "profile"]


def available_memory_gb() -> float | None:
    """Memory in GiB that the system could still give to programs; None where it cannot be told.

    Read at most every ten seconds, in less than a millisecond. Never raises.
    """
    from sottovoce.hardware import readings, tiers  # noqa: PLC0415 - of no use at start

    size = readings.now().available_memory
    return None if size is None else size / tiers.GIB


def gpu_utilization() -> float | None:
    """Mean share of time, 0..1, in which the GPUs were at work; None where it cannot be told.

    Read at most every ten seconds. The driver is begun when it is first asked for, beside the
    caller; until then there is none. Never raises.
    """
    from sottovoce.hardware import readings  # noqa: PLC0415 - of no use at start

    gpus = readings.now().gpus
    return None if gpus is None else gpus.utilization
