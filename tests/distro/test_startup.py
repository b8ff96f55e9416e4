"""What starting loads and reads: no more than the process needs, whoever starts."""

import json
from importlib.metadata import distribution

import pytest

from delivery.launcher import run

pytestmark = pytest.mark.e2e

REQUIREMENTS = """
import json
from opentelemetry.util._importlib_metadata import entry_points
ours = [e for e in entry_points(group="opentelemetry_instrumentor") if e.name.startswith("sottovoce_")]
dist = ours[0].dist
print(json.dumps({
    "ours": len(ours),
    "distributions": len({id(e.dist) for e in ours}),
    "requires": [dist.requires, dist.requires],
    "read_again": dist.requires is not dist.requires,
    "version": dist.version,
    "name": dist.name,
    "entry_points": len(dist.entry_points),
    "loads": ours[0].load().__name__,
    "files": str(dist.locate_file("sottovoce")) != "",
}))
"""


def test_the_launcher_reads_our_metadata_once_for_all_entry_points():
    ran = run(REQUIREMENTS)
    assert ran.err == ""
    seen = json.loads(ran.out)
    ours = distribution("sottovoce")
    assert seen["ours"] > 20
    assert seen["distributions"] == 1
    assert not seen["read_again"]
    assert seen["requires"] == [ours.requires, ours.requires]
    assert (seen["name"], seen["version"]) == (ours.name, ours.version)
    assert seen["entry_points"] == len(ours.entry_points)
    assert seen["loads"].endswith("Instrumentor")
    assert seen["files"]
