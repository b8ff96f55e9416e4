"""What starting loads and reads: no more than the process needs, whoever starts."""

import json
from importlib.metadata import distribution

import pytest

from delivery.launcher import run
from delivery.sink import Sink
from servers.provider import ProviderServer

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


def test_garbage_is_collected_again_when_the_launcher_has_set_up(tmp_path):
    program = "import gc; print(gc.isenabled())"
    for how in (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_CONFIG_FILE": str(tmp_path / "absent.yaml")},
    ):
        assert run(program, **how).out == "True\n"


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


LOADED = "import json, sys; print(json.dumps(sorted(n for n in sys.modules if n.startswith('sottovoce'))))"
# What only a call needs, or a library that the app has not imported.
CALLS = (
    "sottovoce.clients",
    "sottovoce.exchange",
    "sottovoce.gauges",
    "sottovoce.protocols",
    "sottovoce.record_steps",
    "sottovoce.runtimes",
    "sottovoce.scopes",
    "sottovoce.transports.aiohttp",
    "sottovoce.transports.httpx",
    "sottovoce.transports.sending",
    "sottovoce.transports.tap",
    "sottovoce.transports.wire",
)


def loaded(program, **how):
    ran = run(program, **how)
    assert ran.err == ""
    return json.loads(ran.out.splitlines()[-1])


def test_the_launcher_loads_nothing_that_only_a_call_needs():
    names = loaded(LOADED, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert "sottovoce.instrumentors" in names
    assert not [name for name in names if name.startswith((*CALLS, "sottovoce.tightening"))]


def test_without_a_destination_the_launcher_loads_no_policy_and_no_hook():
    names = loaded(LOADED)
    assert not [name for name in names if name.startswith((*CALLS, "sottovoce.privacy"))]
    assert "sottovoce.instrumentors" not in names
    assert "sottovoce.delivery.pipeline" not in names


IN_PROCESS = """
import httpx, openai
from sottovoce import HTTPXInstrumentor, OpenAIInstrumentor
OpenAIInstrumentor().instrument()
HTTPXInstrumentor().instrument()
"""


def test_instrumenting_a_client_loads_its_door_and_no_wire_format():
    names = loaded(IN_PROCESS + LOADED, launcher=False)
    assert {"sottovoce.clients.generated", "sottovoce.transports.httpx"} <= set(names)
    here = {name for name in names if name.startswith("sottovoce.protocols.")}
    assert here == {
        "sottovoce.protocols.hosts",
        "sottovoce.protocols.paths",
        "sottovoce.protocols.routes",
    }
    for absent in ("transports.sending", "transports.wire", "delivery", "runtimes"):
        assert f"sottovoce.{absent}" not in names


FIRST_CALL = """
import httpx
from sottovoce import HTTPXInstrumentor
HTTPXInstrumentor().instrument()
try:
    httpx.post("http://127.0.0.1:9/v1/chat/completions", json={"model": "m", "messages": []})
except httpx.TransportError:
    pass
"""


def test_a_call_loads_the_wire_format_that_it_speaks_alone():
    names = loaded(FIRST_CALL + LOADED, launcher=False)
    assert {"sottovoce.protocols.openai_chat", "sottovoce.protocols.reader"} <= set(names)
    others = ("anthropic_messages", "bedrock_invoke", "cohere", "gemini", "huggingface", "ollama")
    assert not {f"sottovoce.protocols.{other}" for other in others} & set(names)


GATED_CALL = """
import openai, sottovoce
sottovoce.start()
from sottovoce.privacy import tripwire
with openai.OpenAI(api_key="k", base_url=PROVIDER + "/v1") as client:
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
assert not tripwire._search.cache_info().currsize
"""


def test_a_first_call_loads_and_compiles_nothing_that_most_calls_do_without():
    with Sink() as sink, ProviderServer() as server:
        program = GATED_CALL.replace("PROVIDER", repr(server.url)) + LOADED
        remote = {"SOTTOVOCE_ENDPOINTS": "127.0.0.1=openai:remote"}
        endpoint = sink.endpoint
        names = loaded(program, launcher=False, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **remote)
        assert sink.span_names
    seldom = ("privacy.catalogue", "privacy.dialects", "privacy.frames", "privacy.paths", "protocols.edges", "protocols.elements",
              "protocols.eventstream", "protocols.outline", "protocols.skeleton",
              "registry._dialects", "registry._rare", "transports.codings")  # fmt: skip
    assert not {f"sottovoce.{name}" for name in seldom} & set(names)
