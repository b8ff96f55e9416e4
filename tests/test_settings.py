"""Every setting: what it does by default, what becomes of a value that cannot be used."""

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from sottovoce import settings
from sottovoce.settings import Settings, read
from sottovoce.tightening import tightened

VARIABLES = [entry.variable for entry in settings.SETTINGS.values()]


def chosen(**environ):
    made, warnings = read(environ)
    assert warnings == []
    return made


def test_an_empty_environment_is_the_defaults_and_no_destination():
    made = chosen()
    assert made == Settings()
    assert made.profile == "standard"
    assert made.remote_model_ids == "hash"
    assert made.propagation == "own"
    assert made.exit_timeout == 1.0
    assert made.permitted
    assert not made.has_destination
    assert [made.exporters(signal) for signal in settings.SIGNALS] == [(), (), ()]


HTTP, GRPC = ("otlp_proto_http",), ("otlp_proto_grpc",)
ANYWHERE = "http://127.0.0.1:4318"
DESTINATIONS = [
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": ANYWHERE}, HTTP, HTTP, ()),
    ({"SOTTOVOCE_LOCAL": "1"}, HTTP, HTTP, ()),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ANYWHERE}, HTTP, (), ()),
    ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": ANYWHERE}, (), HTTP, ()),
    ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": ANYWHERE}, (), (), HTTP),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": ANYWHERE, "OTEL_LOGS_EXPORTER": "otlp"}, HTTP, HTTP, HTTP),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": ANYWHERE, "OTEL_METRICS_EXPORTER": "none"}, HTTP, (), ()),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": ANYWHERE, "OTEL_METRICS_EXPORTER": ""}, HTTP, HTTP, ()),
    ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ("console", "otlp_proto_http"), (), ()),
    (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        GRPC,
        GRPC,
        (),
    ),
    (
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": ANYWHERE,
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc",
        },
        HTTP,
        GRPC,
        (),
    ),
]


@pytest.mark.parametrize(("environ", "traces", "metrics", "logs"), DESTINATIONS)
def test_a_signal_is_exported_where_it_has_a_destination(environ, traces, metrics, logs):
    made = chosen(**environ)
    assert made.has_destination
    assert made.exporters("traces") == traces
    assert made.exporters("metrics") == metrics
    assert made.exporters("logs") == logs


def test_a_configuration_file_is_a_destination():
    assert chosen(OTEL_CONFIG_FILE="otel.yaml").has_destination


NOWHERE = [
    {"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": ANYWHERE},
    {"SOTTOVOCE_PROFILE": "off", "OTEL_CONFIG_FILE": "otel.yaml"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
    {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "None"},
    {
        "OTEL_EXPORTER_OTLP_ENDPOINT": ANYWHERE,
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
    },
]


@pytest.mark.parametrize("environ", NOWHERE)
def test_what_sends_nothing_anywhere_is_no_destination(environ):
    assert not chosen(**environ).has_destination


UNUSABLE = [
    ("SOTTOVOCE_PROFILE", "loud", "profile", "off", "off, aggregate, strict, standard, content"),
    ("SOTTOVOCE_CONTENT_ACK", "maybe", "content_ack", False, "true or false"),
    ("SOTTOVOCE_SEMCONV", "v1", "semconv", "v1.41", "v1.41, latest, both"),
    ("SOTTOVOCE_REMOTE_MODEL_IDS", "raw", "remote_model_ids", "hash", "hash, catalogue"),
    ("SOTTOVOCE_PROPAGATION", "everyone", "propagation", "own", "own, all"),
    ("SOTTOVOCE_EXIT_TIMEOUT", "-1", "exit_timeout", 1.0, "0 to 60"),
    ("SOTTOVOCE_EXIT_TIMEOUT", "nan", "exit_timeout", 1.0, "0 to 60"),
    ("SOTTOVOCE_EXIT_TIMEOUT", "soon", "exit_timeout", 1.0, "0 to 60"),
    ("SOTTOVOCE_LOCAL", "maybe", "local", False, "true or false"),
    ("SOTTOVOCE_ALLOW", "everything", "allow", (), "span:NAME"),
    ("OTEL_SDK_DISABLED", "1", "disabled", False, "true or false"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier", "protocol", "http/protobuf", "http/protobuf, grpc"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://host", "endpoint", None, "http://127.0.0.1:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "host", "endpoint", None, "http://127.0.0.1:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "host:4318", "endpoint", None, "http:// or https://"),
]


@pytest.mark.parametrize(("variable", "value", "name", "safe", "words"), UNUSABLE)
def test_an_unusable_value_becomes_the_safe_choice_and_a_warning(
    variable, value, name, safe, words
):
    made, [warning] = read({variable: value})
    assert getattr(made, name) == safe
    assert variable in warning
    assert repr(value) in warning
    assert words in warning


def test_a_variable_of_ours_that_does_not_exist_is_named():
    _, [warning] = read({"SOTTOVOCE_PROFILES": "off"})
    assert warning == "SOTTOVOCE_PROFILES is not a setting of this version and does nothing."


def test_a_warning_never_shows_a_password():
    _, [warning] = read({"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://user:hush@host"})
    assert "hush" not in warning
    _, [warning] = tightened(Settings(endpoint="http://one"), endpoint="http://user:hush@two")
    assert "hush" not in warning
    for address in (
        "user:hush@host:4318",
        "ftp://host/?key=hush",
        "ftp://host/\n#hush",
        "h#\nhush",
    ):
        _, [warning] = read({"OTEL_EXPORTER_OTLP_ENDPOINT": address})
        assert "hush" not in warning and "OTEL_EXPORTER_OTLP_ENDPOINT" in warning


def test_the_key_shows_in_no_message_and_no_repr():
    made, _ = read({"SOTTOVOCE_KEY": "hush"})
    assert made.key == "hush"
    assert "hush" not in repr(made)


def test_an_override_that_is_no_setting_is_refused():
    with pytest.raises(TypeError, match="no such setting: prfile"):
        read({}, prfile="off")
    with pytest.raises(TypeError, match="no such setting: prfile"):
        tightened(Settings(), prfile="off")


TIGHTER = [
    ("profile", "off"),
    ("profile", "aggregate"),
    ("profile", "strict"),
    ("remote_model_ids", "hash"),
    ("propagation", "own"),
    ("own_hosts", ["a.example"]),
    ("own_hosts", None),
    ("endpoints", ["c.example=vllm:remote"]),
    ("endpoints", "c.example:8000/v1=vllm"),
    ("allow", []),
    ("stack_frames", ["shop"]),
    ("stack_frames", []),
    ("coarse_span_times", True),
    ("disabled", True),
    ("exit_timeout", 0.2),
    ("exit_timeout", "0.2"),
    ("semconv", "latest"),
    ("local", True),
    ("endpoint", ANYWHERE),
    ("key", "a secret of at least 16 bytes"),
]
OPEN = Settings(
    remote_model_ids="catalogue",
    propagation="all",
    own_hosts=("a.example", "b.example"),
    allow=("span:mine",),
    stack_frames=("shop", "depot"),
)


@pytest.mark.parametrize(("name", "value"), TIGHTER)
def test_code_may_tighten(name, value):
    made, warnings = tightened(OPEN, **{name: value})
    assert warnings == []
    assert made != OPEN


LOOSER = [
    (Settings(profile="off"), "profile", "standard"),
    (Settings(profile="off"), "profile", "aggregate"),
    (Settings(profile="aggregate"), "profile", "strict"),
    (Settings(profile="strict"), "profile", "standard"),
    (Settings(), "profile", "content"),
    (Settings(), "content_ack", True),
    (Settings(), "remote_model_ids", "catalogue"),
    (Settings(), "model_catalogue", "/tmp/ids"),
    (Settings(), "propagation", "all"),
    (Settings(own_hosts=("a.example",)), "own_hosts", ["a.example", "b.example"]),
    (Settings(), "endpoints", ["a.example=vllm:local"]),
    (Settings(endpoints=("localhost=litellm:remote",)), "endpoints", []),
    (Settings(endpoints=("localhost=litellm:remote",)), "endpoints", ["localhost=litellm"]),
    (
        Settings(endpoints=("localhost=litellm:remote",)),
        "endpoints",
        ["localhost:8000=vllm", "localhost=litellm:remote"],
    ),
    (Settings(), "allow", ["span:mine"]),
    (Settings(), "stack_frames", ["shop"]),
    (Settings(stack_frames=("shop.orders",)), "stack_frames", ["shop"]),
    (Settings(coarse_span_times=True), "coarse_span_times", False),
    (Settings(disabled=True), "disabled", False),
    (Settings(), "logging_handler", True),
    (Settings(endpoint=ANYWHERE), "endpoint", "http://elsewhere"),
    (Settings(traces_exporter=()), "traces_exporter", ["console"]),
]


@pytest.mark.parametrize(("base", "name", "value"), LOOSER)
def test_code_may_not_loosen(base, name, value):
    made, [warning] = tightened(base, **{name: value})
    assert made == base
    assert settings.variable_of(name) in warning


def test_a_profile_that_there_is_not_is_none_that_lets_anything_leave():
    made, [warning] = tightened(Settings(), profile="strickt")
    assert made.profile == "off"
    assert "Using 'off'" in warning


@pytest.mark.parametrize("profile", settings.PROFILES[:-1])
def test_every_profile_can_be_chosen(profile):
    made, warnings = read({"SOTTOVOCE_PROFILE": f" {profile.upper()} "})
    assert (made.profile, warnings) == (profile, [])


def test_content_needs_a_second_key():
    made, [warning] = read({"SOTTOVOCE_PROFILE": "content"})
    assert made.profile == "standard"
    assert "SOTTOVOCE_CONTENT_ACK" in warning
    for key in ("1", "true"):
        made, warnings = read({"SOTTOVOCE_PROFILE": "content", "SOTTOVOCE_CONTENT_ACK": key})
        assert (made.profile, warnings) == ("content", [])
    without, _ = tightened(made, content_ack=False)
    assert without.profile == "standard"


def test_the_second_key_alone_is_nothing():
    made, warnings = read({"SOTTOVOCE_CONTENT_ACK": "1"})
    assert (made.profile, warnings) == ("standard", [])


@pytest.mark.parametrize("profile", ["aggregate", "strict"])
def test_an_allow_list_that_a_profile_does_not_heed_is_reported(profile):
    _, [warning] = read({"SOTTOVOCE_PROFILE": profile, "SOTTOVOCE_ALLOW": "metric:mine"})
    assert warning == f"SOTTOVOCE_ALLOW does nothing with SOTTOVOCE_PROFILE={profile}."


def test_an_unusable_change_keeps_what_was():
    made, [warning] = tightened(Settings(exit_timeout=2.0), exit_timeout="later")
    assert made.exit_timeout == 2.0
    assert "'later'" in warning


@given(
    st.dictionaries(
        st.sampled_from([*VARIABLES, "SOTTOVOCE_UNKNOWN", "OTHER"]),
        st.text(max_size=40) | st.sampled_from(["", "none", "off", "true", "http://h:1", "grpc"]),
    )
)
@limits(max_examples=200, deadline=None)
def test_no_environment_raises_and_what_is_unsafe_is_never_the_outcome_of_a_mistake(environ):
    made, warnings = read(environ)
    assert made.profile in {"off", "standard", environ.get("SOTTOVOCE_PROFILE", "").strip().lower()}
    assert made.remote_model_ids == "hash" or "catalogue" in environ["SOTTOVOCE_REMOTE_MODEL_IDS"]
    assert 0 <= made.exit_timeout <= 60
    for signal in settings.SIGNALS:
        assert all(isinstance(name, str) and name for name in made.exporters(signal))
    assert all(isinstance(warning, str) for warning in warnings)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "profile": st.sampled_from([*settings.PROFILES, "loud"]),
            "remote_model_ids": st.sampled_from(["hash", "catalogue"]),
            "propagation": st.sampled_from(["own", "all"]),
            "own_hosts": st.lists(st.sampled_from(["a.example", "b.example"])),
            "allow": st.lists(st.sampled_from(["span:mine", "metric:theirs"])),
            "exit_timeout": st.none() | st.floats() | st.text(max_size=5),
        },
    )
)
@limits(max_examples=200, deadline=None)
def test_no_change_by_code_loosens(changes):
    strict = Settings(own_hosts=("a.example",))
    made, _ = tightened(strict, **changes)
    assert made.profile != "content"
    assert made.remote_model_ids == "hash"
    assert made.propagation == "own"
    assert set(made.own_hosts) <= {"a.example"}
    assert made.allow == ()
    assert 0 <= made.exit_timeout <= 60


@pytest.mark.parametrize(
    ("text", "endpoints", "own_hosts"),
    [
        ("LOCALHOST:8000=vllm", ("localhost:8000=vllm",), ()),
        (" a.example/V1=jan , b.example=vllm ", ("a.example/V1=jan", "b.example=vllm"), ()),
        ("a.example:8000/v1=vllm:local", ("a.example:8000/v1=vllm:local",), ("a.example",)),
        ("*.corp.test=vllm:local", ("*.corp.test=vllm:local",), ("*.corp.test",)),
        ("[fe80::1]:80=vllm:local", ("[fe80::1]:80=vllm:local",), ("fe80::1",)),
        ("localhost:4000=litellm:remote", ("localhost:4000=litellm:remote",), ()),
    ],
)
def test_endpoints_are_named_and_local_ones_are_the_operators_own(text, endpoints, own_hosts):
    made, warnings = read({"SOTTOVOCE_ENDPOINTS": text})
    assert warnings == []
    assert (made.endpoints, made.own_hosts) == (endpoints, own_hosts)


@pytest.mark.parametrize(
    "text",
    ["vllm", "localhost=", "=vllm", "http://a.example=vllm", "a.example=VLLM", "a b=vllm"],
)
def test_endpoints_of_another_form_are_refused(text):
    made, warnings = read({"SOTTOVOCE_ENDPOINTS": text})
    assert (made.endpoints, made.own_hosts) == ((), ())
    assert "SOTTOVOCE_ENDPOINTS" in warnings[0]


@pytest.mark.parametrize(
    ("variable", "name", "text", "kept", "wrong"),
    [
        ("SOTTOVOCE_OWN_HOSTS", "own_hosts", "a.example, http://b/, [::1]", ("a.example", "[::1]"), ["'http://b/'"]),
        ("SOTTOVOCE_ALLOW", "allow", "span:mine,thing:b,metric:c,:", ("span:mine", "metric:c"), ["'thing:b'", "':'"]),
        ("SOTTOVOCE_STACK_FRAMES", "stack_frames", "shop, a-b,shop.x", ("shop", "shop.x"), ["'a-b'"]),
        ("SOTTOVOCE_ENDPOINTS", "endpoints", "a.example=vllm,vllm", ("a.example=vllm",), ["'vllm'"]),
    ],
)  # fmt: skip
def test_one_wrong_entry_spoils_no_list(variable, name, text, kept, wrong):
    made, [warning] = read({variable: text})
    assert getattr(made, name) == kept
    assert warning.startswith(f"{variable}: {', '.join(wrong)} cannot be used; list ")
    assert warning.endswith(f"Using {kept!r}.")


def test_a_warning_names_a_few_of_many_wrong_entries():
    _, [warning] = read({"SOTTOVOCE_OWN_HOSTS": ",".join(f"http://{n}/" for n in range(9))})
    assert [f"http://{n}/" in warning for n in range(9)] == [True] * 3 + [False] * 6


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        # One that may have said `:remote` says so.
        ("a.example=vllm:remot", ("a.example=vllm:remote",)),
        ("localhost:8000/v1=vllm:x,b.example=jan", ("localhost:8000/v1=vllm:remote", "b.example=jan")),
        # One that may have been an exception from those after it leaves none of them one's own.
        ("api.corp.test:80x=vllm:remote,*.corp.test=vllm:local", ("*.corp.test=vllm",)),
        ("*.corp.test=vllm:local,api.corp.test:80x=vllm", ("*.corp.test=vllm:local",)),
    ],
)  # fmt: skip
def test_a_wrong_endpoint_makes_nothing_ones_own(text, endpoints):
    made, [warning] = read({"SOTTOVOCE_ENDPOINTS": text})
    assert made.endpoints == endpoints
    assert set(made.own_hosts) == {
        each.partition("=")[0] for each in endpoints if each.endswith(":local")
    }
    assert "SOTTOVOCE_ENDPOINTS" in warning


def test_of_a_list_that_code_gives_the_good_entries_count_where_they_tighten():
    base = Settings(own_hosts=("a.example", "b.example"))
    made, [warning] = tightened(base, own_hosts=["a.example", "http://b/"])
    assert made.own_hosts == ("a.example",)
    assert "'http://b/'" in warning
    made, warnings = tightened(base, own_hosts=["c.example", "http://b/"])
    assert made.own_hosts == base.own_hosts
    assert len(warnings) == 2
    made, [warning] = tightened(base, own_hosts=["http://b/"])
    assert made.own_hosts == base.own_hosts


@given(st.lists(st.text("ab.*:/=[]0 ,locremt", max_size=20), max_size=6).map(",".join))
@limits(max_examples=300, deadline=None)
def test_of_any_endpoints_only_those_are_ones_own_that_say_so(text):
    made, warnings = read({"SOTTOVOCE_ENDPOINTS": text})
    said = {part.strip().lower() for part in text.split(",") if part.strip().endswith(":local")}
    assert {each.lower() for each in made.endpoints if each.endswith(":local")} <= said
    assert len(warnings) <= 1


@given(st.dictionaries(st.sampled_from(VARIABLES), st.sampled_from(["", "true", "a", "grpc"])))
@limits(max_examples=50, deadline=None)
def test_settings_that_are_equal_have_one_hash(environ):
    made, _ = read(environ)
    spelt_out = Settings(**{name: getattr(made, name) for name in settings.SETTINGS})
    assert (spelt_out, hash(spelt_out)) == (made, hash(made))


def test_an_empty_value_is_an_unset_one():
    made, warnings = read({"SOTTOVOCE_PROFILE": "", "SOTTOVOCE_EXIT_TIMEOUT": " "})
    assert (made, warnings) == (Settings(), [])


@pytest.mark.parametrize("address", ["http://127.0.0.1:4318/v1/traces", "http://x/v1/metrics"])
def test_a_signals_path_in_the_endpoint_of_all_is_pointed_out(address):
    made, (warning,) = read({"OTEL_EXPORTER_OTLP_ENDPOINT": address})
    assert made.endpoint == address
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in warning and "once more" in warning


def test_code_is_told_of_an_endpoint_without_a_scheme_too():
    made, (warning,) = tightened(Settings(), endpoint="localhost:4318")
    assert made.endpoint is None
    assert "http://" in warning


def test_what_the_operator_chose_is_shown_without_secrets_and_addresses():
    chosen, _ = settings.read(
        {
            "SOTTOVOCE_KEY": "a secret of the tests",
            "SOTTOVOCE_PROFILE": "strict",
            "SOTTOVOCE_OWN_HOSTS": "a.example.org,b.example.org",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:secret@collector.example.org/token",
        }
    )
    assert settings.chosen_by_operator(chosen) == {
        "SOTTOVOCE_KEY": "(set)",
        "SOTTOVOCE_PROFILE": "'strict'",
        "SOTTOVOCE_OWN_HOSTS": "'a.example.org, b.example.org'",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "(set)",
    }


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, "grpc on port 4317"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1]:4317/x"}, "grpc on port 4317"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "http/protobuf on port 4318",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, ""),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            "",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector/a:4317"}, ""),
    ],
)
def test_a_port_that_takes_the_other_protocol_is_told_of(environ, told):
    _, warnings = settings.read(environ)
    assert [told in each for each in warnings] == ([True] if told else [])
