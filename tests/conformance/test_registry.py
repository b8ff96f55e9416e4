"""The registry: generated without drift, complete, in agreement with upstream and with our code."""

import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource

from sottovoce import call, record, registry, settings
from sottovoce.privacy import tripwire
from sottovoce.privacy.policy import Policy
from sottovoce.protocols import hosts
from sottovoce.runtimes import identity

ROOT = Path(__file__).resolve().parents[2]
SEMCONV = ROOT / "semconv"
NOTHING_AT_ALL = {"drop", "seal", "count", "hash_user"}
NOTHING_LEAVES = NOTHING_AT_ALL | {"hash_rot", "allow12"}

# Not of v1.41, but recorded beside it by everyone who records tools and agents at all.
BESIDE = {"gen_ai.execute_tool.duration", "gen_ai.invoke_agent.duration"}

# Let through though no pinned table has them: what other dialects write, and what the SDK does.
DIALECTS = ("llm.", "embedding.", "ai.")
OF_THE_SDK = {"otel.metric.overflow", "telemetry.auto.version"}
# In the conventions as deprecated names, which the Python constants no longer say all of.
DEPRECATED = {"http.method"}


GENERATED = (
    "src/sottovoce/registry/_dialects.py",
    "src/sottovoce/registry/_tables.py",
    "src/sottovoce/registry/texts.json",
    "docs/TELEMETRY.md",
    "collector-config/allow.yaml",
)


def generate(*arguments):
    return subprocess.run(
        [sys.executable, SEMCONV / "generate.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def definition():
    sys.path.insert(0, str(SEMCONV))
    try:
        yield importlib.import_module("definition")
    finally:
        sys.path.remove(str(SEMCONV))


@pytest.fixture(scope="module")
def declared(definition):
    return definition.load()


@pytest.fixture(scope="module")
def upstream(declared):
    return declared.upstream


@pytest.fixture
def copy(tmp_path):
    """A copy of the registry, to break."""
    for room in ("model", "upstream"):
        shutil.copytree(SEMCONV / room, tmp_path / room)
    for file in ("contracts.yaml", "dialects.yaml", "reviews.yaml", "registry.lock"):
        shutil.copy(SEMCONV / file, tmp_path / file)
    return tmp_path


class TestGenerator:
    def test_regenerating_changes_nothing(self):
        done = generate("--check")
        assert done.returncode == 0, done.stdout + done.stderr

    def test_two_runs_write_the_same_bytes(self, tmp_path):
        assert generate("--root", tmp_path).returncode == 0
        for name in GENERATED:
            assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()

    def test_check_shows_a_difference_and_writes_nothing(self, tmp_path):
        generate("--root", tmp_path)
        page = tmp_path / "docs/TELEMETRY.md"
        page.write_text(page.read_text().replace("Default deny", "Default allow"))
        done = generate("--check", "--root", tmp_path)
        assert done.returncode == 1
        assert "docs/TELEMETRY.md is out of date" in done.stdout
        assert "Default allow" in done.stdout
        assert "Default allow" in page.read_text()

    def test_a_change_of_the_registry_is_a_difference(self, copy):
        edit(copy, "model/gen_ai.yaml", "standard: cat12", "standard: keep")
        done = generate("--check", "--registry", copy)
        assert done.returncode == 1
        assert "_tables.py is out of date" in done.stdout
        assert "attribute gen_ai.request.model: changed without a review" in done.stdout

    def test_mistakes_are_told_and_nothing_is_written(self, copy, tmp_path):
        edit(copy, "model/gen_ai.yaml", "sensitivity: public", "sensitivity: none")
        done = generate("--registry", copy, "--root", tmp_path / "out")
        assert done.returncode == 1
        assert "model/gen_ai.yaml, attribute gen_ai.operation.name: `sensitivity`" in done.stderr
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def policy():
    return Policy(settings.Settings(key="a key of the tests, long enough"))


def edit(directory, name, old, new):
    path = directory / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


ATTRIBUTE, METRIC, RESOURCE = "model/gen_ai.yaml", "model/metrics.yaml", "model/resource.yaml"


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        (ATTRIBUTE, "definition/2", "definition/1", "does not begin with `file_format"),
        (ATTRIBUTE, "attributes:", "attributes: [", "is not YAML"),
        (ATTRIBUTE, "attributes:", "groups:", "`groups` is not known here"),
        (ATTRIBUTE, "content: cat12}", "}", "`rules.content` is None"),
        (ATTRIBUTE, "standard: cat12", "standard: hash", "`rules.standard` is 'hash'"),
        (ATTRIBUTE, "signals: [metric]", "signals: [metrics]", "`signals` is 'metrics'"),
        (ATTRIBUTE, "signals: [metric]", "signals: []", "`signals` is missing"),
        (RESOURCE, "contract: uuid", "contract: guid", "`contract` is 'guid'"),
        (RESOURCE, "        contract: uuid\n", "", "`contract` is missing: say what"),
        (
            ATTRIBUTE,
            "standard: cat12, content: cat12}",
            "standard: cat12, content: cat12}\n        contract: text",
            "`contract` is not needed: model_id follows",
        ),
        ("contracts.yaml", "  uuid:", "  guid:", "contract guid: no attribute names it"),
        ("contracts.yaml", "[0-9a-f]{16}", "[0-9a-f", "is no regular expression"),
        ("contracts.yaml", "  model_id:", "  model:", "contract model_id is missing"),
        ("contracts.yaml", 'meaning: "true', 'says: "true', "contract boolean: `meaning` is"),
        (ATTRIBUTE, 'reason: "Separates', 'because: "Separates', "`reason` is missing"),
        (ATTRIBUTE, "type: boolean", "type: bool", "`type` is 'bool'"),
        (ATTRIBUTE, 'value: "embeddings"', 'value: "chat"', "a value is listed twice"),
        (ATTRIBUTE, 'id: "embeddings"', 'id: "chat"', "two members have the same `id`"),
        (ATTRIBUTE, 'value: "embeddings"', "value: 7", "the value 7 is not a string"),
        (ATTRIBUTE, "stability: development", "stability: new", "`stability` is 'new'"),
        (ATTRIBUTE, "gen_ai.system", "url.full", "is declared in model/gen_ai.yaml too"),
        (ATTRIBUTE, "standard: keep", "standard: enum", "need a list of values"),
        ("model/withheld.yaml", "standard: drop", "standard: keep", "cannot be checked"),
        ("model/withheld.yaml", "standard: drop", "standard: keep", "variable end"),
        (METRIC, "boundaries: [0.01, 0.02", "boundaries: [0.02, 0.01", "`boundaries` must grow"),
        (METRIC, "instrument: counter", "instrument: sum", "`instrument` is 'sum'"),
        (METRIC, "instrument: counter", "instrument: histogram", "and nothing else, has"),
        (METRIC, "vocabulary: []", "vocabulary: [old]", "`vocabulary` is 'old'"),
        (METRIC, "- ref: error.type", "- ref: error.kind", "refers to error.kind"),
        (METRIC, "metric_attributes.gen_ai\n    v", "other\n    v", "no attribute group"),
        (METRIC, "requirement_level: required", "requirement_level: must", "'must'"),
        ("model/spans.yaml", "kind: client", "kind: server", "`kind` is not among `kinds`"),
        ("model/spans.yaml", "operations: [embeddings]", "operations: []", "`operations` is"),
        ("model/events.yaml", "- name: exception", "- title: exception", "`title` is not known"),
        ("model/manifest.yaml", "schema_url:", "url:", "`schema_url` is missing"),
        ("upstream/core-v1.41.0.yaml", "version:", "commit:", "`version` is missing"),
        ("upstream/core-v1.41.0.yaml", "vocabulary: v1.41", "vocabulary: v1", "is 'v1'"),
    ],
)
def test_each_mistake_is_named_with_its_file(definition, copy, file, old, new, told):
    edit(copy, file, old, new)
    with pytest.raises(definition.Invalid) as caught:
        definition.load(copy)
    assert any(told in one for one in caught.value.args), caught.value.args
    assert any(one.startswith(("model/", file)) for one in caught.value.args)


class TestCompleteness:
    def test_every_attribute_says_why_how_sensitive_and_what_each_profile_does(self, declared):
        for attribute in declared.attributes.values():
            assert attribute.sensitivity and attribute.reason and attribute.brief
            assert set(attribute.rules) == set(registry.PROFILES)

    def test_what_was_said_secrets_and_persons_never_leave(self, declared):
        for attribute in declared.attributes.values():
            if attribute.sensitivity in {"content", "secret", "personal"}:
                assert set(attribute.rules.values()) <= NOTHING_LEAVES, attribute.key

    def test_a_tighter_profile_never_lets_more_through(self, declared):
        for attribute in declared.attributes.values():
            rules = [attribute.rules[profile] for profile in ("standard", "strict", "aggregate")]
            for loose, tight in zip(rules, rules[1:], strict=False):
                if loose in {"drop", "seal"}:
                    assert tight == "drop", attribute.key

    def test_content_sends_no_more_than_standard(self, declared):
        for attribute in declared.attributes.values():
            content, standard = attribute.rules["content"], attribute.rules["standard"]
            assert content == standard or (content, standard) == ("seal", "drop"), attribute.key

    def test_the_page_names_everything(self, declared):
        page = (ROOT / "docs/TELEMETRY.md").read_text()
        for group in (declared.attributes, declared.metrics, declared.events):
            for name in group:
                assert f"`{name}`" in page or f"`{name}.<key>`" in page, name

    def test_what_a_span_or_metric_may_carry_may_be_on_it(self):
        for span in registry.SPANS.values():
            assert span.required <= span.attributes
            for key in span.attributes:
                assert "span" in registry.ATTRIBUTES[key].signals, key
                assert registry.ATTRIBUTES[key].rule not in NOTHING_AT_ALL, key
        for name, metric in registry.METRICS.items():
            assert metric.required <= metric.attributes
            for key in metric.attributes:
                assert "metric" in registry.ATTRIBUTES[key].signals, (name, key)
                assert registry.ATTRIBUTES[key].rule not in NOTHING_AT_ALL, (name, key)


class TestUpstream:
    def newest(self, upstream):
        """Every pinned attribute; where two versions differ in type, the newer one's."""
        return {
            key: entry
            for table in ("core", "core-general", "genai")
            for key, entry in upstream[table]["attributes"].items()
        }

    def test_types_and_vocabularies_agree(self, declared, upstream):
        for key, pinned in self.newest(upstream).items():
            ours = declared.attributes[key]
            assert ours.type == pinned["type"], key
            if ours.values and "values" in pinned:
                assert set(pinned["values"]) <= set(ours.values), key

    def test_what_is_let_through_has_a_name_in_the_conventions(self, declared, upstream):
        known = set(self.newest(upstream)) | OF_THE_SDK | DEPRECATED
        for key, attribute in declared.attributes.items():
            if attribute.rules["standard"] not in NOTHING_LEAVES:
                ours = key.startswith("sottovoce.") or key.startswith(DIALECTS)
                assert ours or key in known, key

    def test_metrics_agree(self, upstream):
        for table in upstream.values():
            for name, pinned in table["metrics"].items():
                ours = registry.METRICS[name]
                assert ours.instrument == pinned["instrument"], name
                assert ours.unit == pinned["unit"], name
                assert ours.description == pinned["brief"], name
                wanted = pinned.get("boundaries")
                assert ours.boundaries == (tuple(map(float, wanted)) if wanted else None), name
                assert set(pinned["required"]) <= ours.required, name

    def test_each_vocabulary_holds_metrics_of_its_own_version(self, upstream):
        tables = {t["vocabulary"]: t for t in upstream.values() if "vocabulary" in t}
        for name, metric in registry.METRICS.items():
            for vocabulary in metric.vocabulary if name.startswith("gen_ai.") else ():
                if name in BESIDE:
                    continue
                assert name in tables[vocabulary]["metrics"], (name, vocabulary)

    def test_the_pinned_core_tables_agree_with_the_published_constants(self, upstream):
        names, enums = published()
        for table in (upstream["core"], upstream["core-general"]):
            assert set(table["attributes"]) <= names
            for key, entry in table["attributes"].items():
                if "values" in entry:
                    assert set(entry["values"]) in enums, key

    def test_the_pinned_genai_metrics_of_v1_41_agree_with_the_published_ones(self, upstream):
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.semconv._incubating.metrics import gen_ai_metrics as constants

        meter = MeterProvider().get_meter("test")
        for name, pinned in upstream["core"]["metrics"].items():
            create = getattr(constants, "create_" + name.replace(".", "_"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                instrument = create(meter)
            assert (instrument.name, instrument.unit) == (name, pinned["unit"])
            assert instrument.description == pinned["brief"]


def published():
    """Names of attributes, and sets of values, in opentelemetry-semantic-conventions."""
    names, enums = set(), []
    for package in (
        "opentelemetry.semconv.attributes",
        "opentelemetry.semconv._incubating.attributes",
    ):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                found = vars(importlib.import_module(f"{package}.{module.name}"))
            for name, value in found.items():
                if name.isupper() and isinstance(value, str):
                    names.add(value)
                elif name.endswith("Values"):
                    enums.append({member.value for member in value})
    return names, enums


class TestTables:
    def test_importing_them_needs_nothing_but_the_standard_library(self):
        program = (
            "import sys, sottovoce.registry as r; assert r.ATTRIBUTES;"
            "print([m for m in ('yaml', 'opentelemetry', 'json') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"

    def test_they_hold_no_text_that_nothing_reads(self, declared):
        source = (ROOT / "src/sottovoce/registry/_tables.py").read_text()
        for attribute in declared.attributes.values():
            assert attribute.reason not in source

    def test_they_say_what_the_registry_says(self, declared):
        assert set(registry.ATTRIBUTES) | set(registry.PREFIXES) == set(declared.attributes)
        for key, attribute in registry.ATTRIBUTES.items():
            assert attribute.rule == registry.rules("standard")[key]
            assert attribute.type == declared.attributes[key].type
        assert set(registry.METRICS) == set(declared.metrics)
        assert registry.EVENTS == set(declared.events)
        assert "sottovoce" in registry.SCOPES

    def test_the_versions_are_named(self):
        assert registry.SCHEMA_URLS == {
            "v1.41": "https://opentelemetry.io/schemas/1.41.0",
            "latest": "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev",
        }
        assert registry.UPSTREAM["core"] == "v1.41.0"
        assert registry.UPSTREAM["genai"].startswith("024a4f9")


class TestOurCode:
    def test_every_fact_has_a_declared_attribute(self):
        assert set(record.ATTRIBUTE_OF.values()) <= set(registry.ATTRIBUTES)
        chat = registry.SPANS["chat"].attributes | registry.SPANS["embeddings"].attributes
        assert set(record.ATTRIBUTE_OF.values()) <= chat

    def test_every_provider_that_a_host_can_have_is_in_the_vocabulary(self):
        named = {*hosts.HOSTS.values(), *hosts.LOCAL_PORTS.values(), hosts.UNKNOWN}
        named |= {row[-1] for row in (*hosts.DOMAINS, *hosts.PATHS)}
        assert named <= registry.ATTRIBUTES["gen_ai.provider.name"].values
        assert {"mlx", "llama_cpp", "custom"} <= registry.ATTRIBUTES["gen_ai.provider.name"].values

    def test_every_size_bucket_is_in_the_vocabulary(self):
        values = registry.ATTRIBUTES["sottovoce.model.parameters"].values
        assert {bucket.name for bucket in identity.SIZE_BUCKETS} | {identity.OTHER} == values

    def test_gaps_between_chunks_fall_into_the_buckets_of_their_metrics(self):
        for name in (
            "gen_ai.client.operation.time_per_output_chunk",
            "gen_ai.client.inference.time_per_output_chunk",
        ):
            assert registry.METRICS[name].boundaries == call.CHUNK_BOUNDS_S

    def test_the_page_explains_every_name_that_a_drop_is_counted_under(self):
        page = (ROOT / "docs/TELEMETRY.md").read_text()
        counted = set()
        for path in (ROOT / "src/sottovoce/privacy").glob("*.py"):
            source = path.read_text()
            counted |= set(re.findall(r'count\((?:[\w.]+|"\w+"), "(\w+)"', source))
            counted |= set(re.findall(r'Drop\("(\w+)"\)', source))
            counted |= set(re.findall(r'Changed\(.+, "(\w+)"\)', source))
        assert {"drop", "enum", "cat12", "unknown", "body", "trace_state"} <= counted
        assert [name for name in counted if f"| `{name}` |" not in page] == []

    def test_every_outcome_is_in_the_vocabulary(self):
        values = registry.ATTRIBUTES["sottovoce.call.outcome"].values
        assert values == set(call.Outcome.__args__)

    @pytest.mark.mlx
    def test_every_architecture_of_mlx_lm_is_in_the_vocabulary(self):
        models = pytest.importorskip("mlx_lm.models")
        known = registry.ATTRIBUTES["sottovoce.model.architecture"].values
        parts = {"activations", "base", "bitlinear_layers", "cache", "gated_delta", "gear", "mla"}
        parts |= {"pipeline", "prism_hadamard_qwen35", "rope_utils", "ssm", "switch_layers"}
        names = {module.name for module in pkgutil.iter_modules(models.__path__)}
        assert names - parts <= known


class TestContracts:
    def test_patterns_are_those_that_attributes_name(self, declared):
        named = {
            key: declared.contracts[row.contract].pattern
            for key, row in declared.attributes.items()
            if row.contract in {"uuid", "version", "version_of_service", "version_of_os"}
        }
        assert named.items() <= registry.SHAPES.items()
        assert "service.name" not in registry.SHAPES

    @pytest.mark.parametrize("key", registry.SHAPES)
    @given(data=st.data())
    @hypothesis.settings(max_examples=25, suppress_health_check=list(hypothesis.HealthCheck))
    def test_the_policy_keeps_what_matches_and_nothing_else(self, policy, key, data):
        shape = re.compile(registry.SHAPES[key], re.ASCII)
        value = data.draw(st.from_regex(shape, fullmatch=True))
        # Four numbers are a version, and may be an address.
        expected = {} if tripwire.hit(value) else {key: value}
        if key == "service.instance.id":
            # What looks like one may be a machine's.
            expected = {key: Resource.create().attributes[key]}
        assert policy.attributes({key: value}, "resource") == expected
        place = data.draw(st.integers(0, len(value)))
        near = value[:place] + data.draw(st.sampled_from(" @é/٣\n")) + value[place:]
        assert not shape.fullmatch(near)
        assert policy.attributes({key: near}, "resource") == {}

    def test_every_contract_is_explained_on_the_page(self, declared):
        page = (ROOT / "docs/TELEMETRY.md").read_text()
        for name, contract in declared.contracts.items():
            assert f"| `{name}` | {contract.meaning} |" in page

    def test_every_row_of_the_page_has_contract_and_review(self, declared):
        page = (ROOT / "docs/TELEMETRY.md").read_text()
        rows = {
            line.split(" | ")[0][3:-1]: line.strip("| ").split(" | ")
            for line in page.splitlines()
            if line.startswith("| `") and line.count(" | ") == 10
        }
        shown = [row for row in declared.attributes.values() if not row.file.endswith("ld.yaml")]
        assert len(shown) > 100
        for attribute in shown:
            cells = rows[attribute.key]
            assert cells[2] == attribute.contract
            assert cells[6:10] == list(attribute.rules.values())
            assert cells[10].startswith("[")


def test_the_yaml_is_in_weavers_format():
    for path in sorted((SEMCONV / "model").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        assert content.get("file_format") == "definition/2" or path.name == "manifest.yaml"
        for attribute in content.get("attributes", ()):
            assert {"key", "type", "brief", "stability"} <= set(attribute), attribute
