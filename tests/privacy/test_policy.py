import enum
import sys
import threading
import types

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource

from sottovoce.privacy import policy as policy_module
from sottovoce.privacy.compiled import SIGNALS
from sottovoce.privacy.policy import Policy
from sottovoce.registry import ATTRIBUTES
from sottovoce.settings import Settings, read

KEY = "a secret of the tests"


class Word(str, enum.Enum):
    CHAT = "chat"
    SECRET = "acme"


class Number(enum.IntEnum):
    ONE = 1
    PHONE = 491701234567


CASES = [
    # attribute, given, what leaves (None: nothing), what it is counted under
    ("acme.key", "x", None, "unknown"),
    ("gen_ai.input.messages", '[{"content": "x"}]', None, "drop"),
    ("gen_ai.input.messages", ({"content": "x"},), None, "drop"),
    ("gen_ai.tool.name", "web_search", "web_search", None),
    ("gen_ai.tool.name", "x" * 129, None, "length"),
    ("gen_ai.operation.name", "chat", "chat", None),
    ("gen_ai.operation.name", Word.CHAT, "chat", None),
    ("gen_ai.operation.name", Word.SECRET, "_OTHER", "enum"),
    ("gen_ai.operation.name", "talk about acme", "_OTHER", "enum"),
    ("gen_ai.operation.name", 1, None, "type"),
    ("gen_ai.operation.name", b"chat", None, "type"),
    ("gen_ai.provider.name", "acme", "custom", "enum"),
    ("gen_ai.usage.input_tokens", 12, 12, None),
    ("gen_ai.usage.input_tokens", Number.ONE, 1, None),
    ("gen_ai.usage.input_tokens", -1, None, "type"),
    ("gen_ai.usage.input_tokens", 10**9 - 1, 10**9 - 1, None),
    ("gen_ai.usage.input_tokens", 491701234567, None, "range"),
    ("gen_ai.usage.input_tokens", Number.PHONE, None, "range"),
    ("gen_ai.usage.input_tokens", 1 << 63, None, "range"),
    ("gen_ai.request.temperature", 0.491701234567, 0.491701, None),
    ("gen_ai.request.temperature", 491701234567.0, None, "range"),
    ("gen_ai.request.temperature", 491701234567, None, "range"),
    ("gen_ai.usage.input_tokens", True, None, "type"),
    ("gen_ai.usage.input_tokens", 1.0, None, "type"),
    ("gen_ai.usage.input_tokens", "12", None, "type"),
    ("gen_ai.request.temperature", 0.5, 0.5, None),
    ("gen_ai.request.temperature", 1, 1.0, None),
    ("gen_ai.request.presence_penalty", -0.5, -0.5, None),
    ("gen_ai.request.temperature", float("nan"), None, "type"),
    ("gen_ai.request.temperature", float("inf"), None, "type"),
    ("gen_ai.request.temperature", True, None, "type"),
    ("gen_ai.request.stream", True, True, None),
    ("gen_ai.request.stream", 1, None, "type"),
    ("gen_ai.response.finish_reasons", ("stop", "acme"), ("stop", "_OTHER"), "enum"),
    ("gen_ai.response.finish_reasons", ["stop"], ("stop",), None),
    ("gen_ai.response.finish_reasons", "stop", None, "type"),
    ("gen_ai.response.finish_reasons", ["stop", 1], None, "type"),
    ("gen_ai.response.finish_reasons", ["stop"] * 65, None, "length"),
    ("gen_ai.request.model", 1, None, "type"),
    ("http.route", "/users/{id}/items", "/users/{id}/items", None),
    ("http.route", "/v1/chat/completions", "/v1/chat/completions", None),
    ("http.route", "/users/<int:id>", "/users/<int:id>", None),
    ("http.route", "/healthz", "/healthz", None),
    ("http.route", "/", "/", None),
    ("http.route", "/patients/anna", None, "route"),
    ("http.route", "/v1/anna", None, "route"),
    ("http.route", "/patients/{id", None, "route"),
    ("http.route", "/patients/{anna smith}", None, "route"),
    ("http.route", "/patients/{}", None, "route"),
    ("http.route", "/patients/:anna", None, "route"),
    ("http.route", "/patients/{anna_4711}", None, "route"),
    ("http.route", "/patients/{a}{b}", None, "route"),
    ("http.route", "/{id}/", "/{id}/", None),
    ("http.route", "/////", None, "route"),
    ("http.route", "/{id}//", None, "route"),
    ("http.route", "//{id}", None, "route"),
    ("http.route", "/files/{path:path}", "/files/{path:path}", None),
    ("http.route", "/patients/anna/{4711}", None, "route"),
    ("http.route", "/v\u0661/{id}", None, "route"),
    ("url.template", "/patients/anna", None, "route"),
    ("http.route", "/users/bob@example.org", None, "route"),
    ("http.route", "/users/4711", None, "route"),
    ("http.route", "/a?token=x", None, "route"),
    ("http.route", "/" + "a" * 128, None, "length"),
    ("server.address", "api.openai.com", "api.openai.com", None),
    ("server.address", "localhost", "localhost", None),
    ("server.address", "127.0.0.1", "127.0.0.1", None),
    ("server.address", "127.49.170.12", "127.0.0.1", "host"),
    ("server.address", "acme.openai.azure.com", "openai.azure.com", "host"),
    ("error.type", "429", "429", None),
    ("error.type", "ValueError", "ValueError", None),
    ("error.type", "asyncio.exceptions.CancelledError", "asyncio.exceptions.CancelledError", None),
    ("error.type", "asyncio.AcmeSecret", "_OTHER", "error"),
    ("error.type", "acme.SecretError", "_OTHER", "error"),
    ("error.type", "no such patient: Bob", "_OTHER", "error"),
]


@pytest.mark.parametrize(("name", "value", "leaves", "counted"), CASES)
def test_an_attribute_leaves_as_its_rule_says(policy, name, value, leaves, counted):
    kept = policy.attributes({name: value}, "span")
    assert kept == ({} if leaves is None else {name: leaves})
    assert type(kept.get(name)) is type(leaves)
    assert dict(policy.dropped) == ({} if counted is None else {("span", counted): 1})


@pytest.mark.parametrize(
    ("value", "counted"),
    [
        ("x" * 129, "length"),
        ("a\nb", "control"),
        ("a\u202eb", "control"),
        ("a\x00", "control"),
        ("bob@example.org", "tripwire"),
        ("sk-proj-abcdefghijklmnop", "tripwire"),
        ("https://bob:secret@host", "tripwire"),
        ("/home/bob/app", "tripwire"),
        ("C:\\Users\\bob", "tripwire"),
        ("call 0170123456789", "tripwire"),
    ],
)
def test_a_kept_string_is_short_printable_and_holds_no_secret(policy, value, counted):
    assert policy.attributes({"service.name": value}, "resource") == {}
    assert dict(policy.dropped) == {("resource", counted): 1}


def test_ordinary_strings_are_kept(policy):
    kept = {
        "service.name": "unknown_service:python",
        "service.version": "1.2.3+build",
        "service.instance.id": Resource.create().attributes["service.instance.id"],
        "telemetry.sdk.version": "1.45.2",
        "process.runtime.name": "cpython",
    }
    assert policy.attributes(kept, "resource") == kept
    assert policy.attributes({"service.instance.id": "bobs-laptop"}, "resource") == {}


def test_a_count_stands_for_the_values(policy):
    kept = policy.attributes({"gen_ai.request.stop_sequences": ["Bob", "Alice"]}, "span")
    assert kept == {"sottovoce.request.stop_sequences.count": 2}
    assert policy.dropped == {("span", "count"): 1}


def test_an_attribute_of_another_signal_does_not_leave(policy):
    assert policy.attributes({"service.name": "app"}, "span") == {}
    assert policy.attributes({"gen_ai.usage.input_tokens": 1}, "metric") == {}


LOCAL = {"gen_ai.provider.name": "mlx"}


@pytest.mark.parametrize(
    ("model", "around", "leaves"),
    [
        ("llama3.2:3b", LOCAL, "llama3.2:3b"),
        ("llama3.2:3b", {"server.address": "localhost"}, "llama3.2:3b"),
        ("llama3.2:3b", {"server.address": "llm.example.org"}, "llama3.2:3b"),
        ("llama3.2:3b", {"server.address": "gpu.corp.example.org"}, "llama3.2:3b"),
        ("llama3.2:3b", {"server.address": "api.example.com"}, None),
        ("llama3.2:3b", {"server.address": "evilexample.org"}, None),
        ("llama3.2:3b", {"gen_ai.provider.name": "openai"}, None),
        ("llama3.2:3b", {**LOCAL, "server.address": "api.example.com"}, None),
        ("llama3.2:3b", {}, None),
        ("/home/bob/llama3.gguf", LOCAL, None),
        ("gpt-4o", {"server.address": "api.openai.com"}, None),
        ("llama-lt_1M-4bit", LOCAL, "llama-lt_1M-4bit"),
        ("llama-lt_1M-4bit", {"server.address": "api.example.com"}, None),
        ("h:0123456789ab", {}, None),
        ("h:491701234567", LOCAL, None),
        ("h:0123456789abc", LOCAL, None),
        ("h:0123456789ab\n", LOCAL, None),
    ],
)
def test_a_model_is_named_only_when_public_and_local(make_policy, model, around, leaves):
    policy = make_policy(own_hosts=("llm.example.org", "*.corp.example.org"))
    shown = policy.attributes({**around, "gen_ai.request.model": model}, "span")[
        "gen_ai.request.model"
    ]
    if leaves is None:
        assert shown != model and len(shown) == 14
        assert policy.model(shown, local=False) == shown, "a pseudonym's pseudonym is itself"
    else:
        assert shown == leaves


def test_the_operator_may_keep_public_ids_of_remote_models(make_policy):
    policy = make_policy(remote_model_ids="catalogue")
    assert policy.model("gpt-4o", local=False) == "gpt-4o"
    assert policy.model("ft:gpt-4o:acme", local=False).startswith("h:")


def test_a_host_that_a_call_of_ours_named_as_local_stays_local(policy):
    shown = policy.address("gpu.example.org", local=True)
    assert shown.startswith("public_other-") and "gpu" not in shown
    around = {"server.address": shown, "gen_ai.request.model": "llama3.2:3b"}
    assert policy.attributes(around, "span") == around


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("10.1.2.3", "private"),
        ("192.168.0.7", "private"),
        ("172.20.0.1", "private"),
        ("fd12:3456::1", "private"),
        ("bobs-macbook", "private"),
        ("bobs-macbook.local", "private"),
        ("/tmp/bob.sock", "private"),
        ("models.acme.example", "public_other"),
        ("8.8.8.8", "public_other"),
        ("notapi.openai.com.acme.example", "public_other"),
    ],
)
def test_a_host_is_shown_as_its_class_and_a_pseudonym(policy, host, kind):
    shown = policy.address(host, local=False)
    assert shown.startswith(f"{kind}-") and len(shown) == len(kind) + 13
    assert policy.address(shown, local=False) == shown
    assert policy.address(host.upper(), local=False) == shown
    assert policy.address(None, local=True) is None


def test_an_error_is_a_class_of_a_known_module(policy):
    import httpx

    local = type("BobsError", (ValueError,), {})
    assert policy.error(httpx.ConnectError) == "httpx.ConnectError"
    assert policy.error("httpx.ConnectError") == "httpx.ConnectError"
    assert policy.error(KeyError) == "KeyError"
    assert policy.error(local) == policy.error("BobsError") == policy.error(None) == "_OTHER"
    assert policy.error("503") == "503"
    assert policy.error("5030") == "_OTHER"


def test_naming_an_error_imports_nothing(policy, monkeypatch):
    asked = []
    lazy = types.ModuleType("openai")
    lazy.__getattr__ = asked.append
    monkeypatch.setitem(sys.modules, "openai", lazy)
    assert policy.error("openai.SomethingLazy") == "_OTHER"
    assert policy.error("SomethingLazy") == "_OTHER"
    assert not asked


def test_the_operator_may_let_his_own_resource_keys_leave(make_policy):
    policy = make_policy(allow=("resource:acme.team", "resource:acme.x.*"))
    given = {"acme.team": "a", "acme.x.y": 1, "acme.z": "b", "acme.x.long": "x" * 200}
    assert policy.attributes(given, "resource") == {"acme.team": "a", "acme.x.y": 1}
    assert policy.dropped == {("resource", "unknown"): 1, ("resource", "length"): 1}
    assert not policy.allows("span", "acme.team")


@pytest.mark.parametrize("text", ["span", "acme", "host:x", "span:", "span:*", "metric: "])
def test_an_unusable_entry_allows_nothing_and_says_so(text):
    settings, warnings = read({"SOTTOVOCE_ALLOW": f"span:mine,{text}"})
    assert settings.allow == ("span:mine",)
    assert "SOTTOVOCE_ALLOW" in warnings[0] and "span:NAME" in warnings[0]


def test_an_error_inside_a_rule_drops_the_item_alone(policy):
    class Explosive(str):
        __slots__ = ()

        def __len__(self):
            raise RuntimeError("acme")

        __hash__ = __eq__ = None

    class Reasons(list):
        def __iter__(self):
            raise RuntimeError("acme")

    given = {"gen_ai.response.finish_reasons": Reasons(["x"]), "gen_ai.usage.input_tokens": 1}
    assert policy.attributes(given, "span") == {"gen_ai.usage.input_tokens": 1}
    assert policy.dropped == {("span", "rule_error"): 1}
    assert policy.attributes({"gen_ai.operation.name": Explosive("chat")}, "span") == {
        "gen_ai.operation.name": "chat"
    }


def test_a_mapping_that_cannot_be_read_is_dropped_whole(policy):
    class Unreadable(dict):
        def items(self):
            raise RuntimeError("acme")

    assert policy.attributes(Unreadable(a=1), "span") == {}
    assert policy.dropped == {("span", "rule_error"): 1}


def test_with_the_profile_off_nothing_is_let_through(make_policy):
    policy = make_policy(profile="off")
    given = dict.fromkeys(ATTRIBUTES, "x")
    assert all(policy.attributes(given, signal) == {} for signal in SIGNALS)


def test_drops_are_counted_exactly_from_many_threads(policy):
    given = {f"acme.{n}": n for n in range(10)}

    def work():
        for _ in range(500):
            policy.attributes(given, "span")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert policy.dropped == {("span", "unknown"): 20_000}


def test_there_is_one_active_policy_until_another_is_activated(monkeypatch):
    monkeypatch.setattr(policy_module, "_active", [])
    monkeypatch.setenv("SOTTOVOCE_KEY", KEY)
    first = policy_module.active()
    assert policy_module.active() is first
    second = policy_module.activate(Settings(key=KEY))
    assert policy_module.active() is second is not first


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(sorted(ATTRIBUTES)) | st.text(max_size=8), VALUES, max_size=12),
    st.sampled_from(SIGNALS),
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_whatever_is_given_what_leaves_is_declared_and_well_typed(mapping, signal):
    policy = Policy(Settings(key=KEY))
    types_ = {"string": str, "int": int, "double": float, "boolean": bool, "string[]": tuple}
    for name, value in policy.attributes(mapping, signal).items():
        declared = ATTRIBUTES[name]
        assert type(value) is types_[declared.type]
        if declared.rule == "enum" and declared.values:
            words = value if isinstance(value, tuple) else (value,)
            assert set(words) <= declared.values | {"_OTHER", "custom"}
        if isinstance(value, str):
            assert len(value) <= 128 and value.isprintable()


@pytest.mark.parametrize(
    ("detected", "leaves"),
    [
        ("x86_64", "amd64"),
        ("AMD64", "amd64"),
        ("arm64", "arm64"),
        ("aarch64", "arm64"),
        ("vax", "_OTHER"),
    ],
)
def test_the_processor_is_named_in_the_conventions_words(detected, leaves):
    policy = Policy(Settings(key=KEY))
    assert policy.attributes({"host.arch": detected}, "resource") == {"host.arch": leaves}
    assert sum(policy.dropped.values()) == (leaves == "_OTHER")


@pytest.mark.parametrize(
    ("attribute", "fits", "does_not"),
    [
        ("http.response.status_code", 404, 123456789),
        ("http.request.resend_count", 3, 123456789),
        ("server.port", 65535, 65536),
        ("rpc.grpc.status_code", 16, 17),
        ("gen_ai.embeddings.dimension.count", 3072, 123456789),
        ("gen_ai.request.temperature", 2, 999999999.123456),
        ("gen_ai.request.top_p", 0.95, 123456.5),
        ("sottovoce.engine.passes", 3, 123456789),
    ],
)
def test_a_number_leaves_only_in_the_range_that_its_meaning_has(attribute, fits, does_not):
    policy = Policy(Settings(key=KEY))
    assert policy.attributes({attribute: fits}, "span") == {attribute: fits}
    assert policy.attributes({attribute: does_not}, "span") == {}
    assert policy.dropped["span", "range"] == 1


def test_what_left_for_a_local_model_is_not_remembered_for_a_remote_one(make_policy):
    policy = make_policy()
    said = {"gen_ai.request.model": "llama3.2", "server.address": "localhost"}
    for _ in range(2):
        assert policy.attributes(said, "span") == said
        elsewhere = policy.attributes({**said, "server.address": "api.openai.com"}, "span")
        assert elsewhere["gen_ai.request.model"].startswith("h:")


@pytest.mark.parametrize("value", [0.7, 0.1234567, -0.1234564, 99.9999994, 1 / 3, 0.0, -2.0])
def test_a_number_leaves_with_six_decimals(policy, value):
    key = "gen_ai.request.frequency_penalty"
    assert policy.attributes({key: value}, "span") == {key: round(value, 6)}
