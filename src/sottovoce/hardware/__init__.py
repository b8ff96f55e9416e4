"""The machine, so coarsely that it is like many others: its profile, and how busy it is.

Nothing here names a device: no model, serial number, host name or address is ever read.
"""

from __future__ import annotations

from sottovoce.hardware.machine import CELLS, Profile, profile
from sottovoce.hardware.readings import available_memory_gb, gpu_utilization

__all__ = ["CELLS", "Profile", "available_memory_gb", "gpu_utilization", "profile"]
