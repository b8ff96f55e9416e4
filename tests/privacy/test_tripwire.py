"""What the last look at surviving strings finds, and what it leaves in peace."""

import re
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sottovoce.privacy import catalogue, rules, tripwire
from sottovoce.privacy.pseudonyms import Pseudonyms
from sottovoce.registry import ATTRIBUTES, EVENTS, METRICS, SCOPES
from sottovoce.registry import SPANS as OPERATIONS

KEY = "Zb3kQ9xV7mN1pL5tR8wY2cD6"
SEARCHES = [tripwire.compiled(re)]
try:
    import re2
except ImportError:
    pass
else:
    SEARCHES.append(tripwire.compiled(re2))

HITS = [
    "joe@acme.example",
    "write to joe.doe+x@mail.acme.co.uk, please",
    "joe%40acme.example",
    "jörg@müller.рф",
    "+49 170 1234567",
    "+1-202-555-0123",
    "call +4917012345678 now",
    "0049 170 1234567",
    "(202) 555-0123",
    "202.555.0123",
    "0170 1234567",
    "123-45-6789",
    "ssn=123-45-6789.",
    "QQ 12 34 56 C",
    "046-454-286",
    "529.982.247-25",
    "2345 6789 0123",
    "1 84 12 76 451 089",
    "12345678-Z",
    "RSSMRA85T10A562S",
    "DE89 3704 0044 0532 0130 00",
    "KZ86 125K ZT50 0410 0100",
    "4111111111111111",
    "4111 1111 1111 1111",
    "card:4111-1111-1111-1111!",
    "12 4111 1111 1111 1111",
    "378282246310005",
    "3782 822463 10005",
    "5555555555554444",
    "2223003122003222",
    "6011111111111117",
    "3530111333300000",
    "30569309025904",
    f"sk-{KEY}",
    f"sk-proj-{KEY}",
    f"sk-ant-api03-{KEY}",
    f"sk-or-v1-{KEY}",
    f"pk-lf-{KEY}",
    f"sk_live_{KEY}",
    f"AIza{KEY}{KEY}",
    f"ya29.{KEY}",
    f"gsk_{KEY}",
    f"hf_{KEY}",
    f"xai-{KEY}",
    f"r8_{KEY}",
    f"pplx-{KEY}",
    f"csk-{KEY}",
    f"fw_{KEY}",
    f"nvapi-{KEY}",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    f"ghp_{KEY}",
    f"github_pat_{KEY}",
    f"glpat-{KEY}",
    "xoxb-123456789012-abc",
    "xoxa-2-abcdefghijkl",
    "xoxp-123456789012-abc",
    f"pypi-{KEY}{KEY}",
    f"SG.{KEY}",
    f"key={KEY[:2]},sk-{KEY}",
    f"Bearer {KEY}",
    f"authorization: bearer {KEY}",
    "Basic dXNlcjpwYXNz",
    "-----BEGIN RSA PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x",
    "postgres://joe:secret@db/x",
    "/home/joe",
    "file:///home/joe/.cache",
    "/Users/joe/models",
    "%2Fhome%2Fjoe",
    "C:\\Users\\joe",
    "C:/Users/joe",
    "c:\\\\Users\\\\joe",
    f"in /{'root'}/.ssh",
    "~/models",
    "~joe/models",
    "8.8.8.8",
    "at 10.1.2.3:8080",
    "192.168.0.17.",
    "http://203.0.113.9/x",
    "2001:db8:0:0:0:0:2:1",
    "[2001:db8::1]:443",
    "fe80::1ff:fe23:4567:890a",
    "00:1a:2b:3c:4d:5e",
]


def vocabularies():
    words = {*catalogue.ids(), *SCOPES, *EVENTS, *METRICS, *OPERATIONS, *ATTRIBUTES}
    words.update(*rules.WORDS_OF.values())
    return sorted(words.union(*(row.values or () for row in ATTRIBUTES.values())))


PEACE = [
    "",
    "1732188170123456789",
    "1732188170123",
    "1732188170.123456",
    "0af7651916cd43dd8448eb211c80319c",
    "12345678901234567890123456789012",
    "b7ad6b7169203331",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "0.4111111111111111",
    "-3.14159265358979",
    "1e-05",
    "4.111111111111111e15",
    "d41d8cd98f00b204e9800998ecf8427e",
    "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "123e4567-e89b-42d3-a456-426614174000",
    "2026-11-21",
    "2026-11-21T11:29:13Z",
    "2026-11-21T11:29:13.123456+02:00",
    "2026-11-21 11:29:13",
    "20261121",
    "1.2.3",
    "3.12.0rc1",
    "v10.0.19041",
    "2.0.0+cu121",
    "1.0+20261121",
    "10.0.19041.1288",
    "claude-3-5-sonnet@20240620",
    "pkg@1.2.3",
    "localhost",
    "localhost:8080",
    "127.0.0.1",
    "127.0.0.1:11434",
    "::1",
    "[::1]:8080",
    "0.0.0.0",
    "api.openai.com",
    "/v1/chat/completions",
    "/users/{id}",
    "/home",
    "application/json",
    "std::vector",
    "task-runner_of_the_evening",
    "risk-assessment-of-the-portfolio",
    "10% .. 90%",
    "~5 s",
]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("text", HITS)
def test_is_found_wherever_it_stands(text, search):
    for whole in (text, f"x {text}", f"({text})", f'{{"k": "{text}"}}'):
        assert tripwire.trips(whole, search), whole


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("text", PEACE)
def test_is_left_in_peace(text, search):
    assert not tripwire.trips(text, search)


def test_no_word_of_the_registry_and_no_public_model_is_taken_for_a_secret():
    words = vocabularies()
    assert len(words) > 1000
    assert [word for word in words if tripwire.hit(word)] == []


@pytest.mark.parametrize("what", dict(tripwire.PATTERNS))
def test_each_pattern_finds_something_that_no_other_does(what):
    others = "|".join(pattern for name, pattern in tripwire.PATTERNS if name != what)
    without = re.compile(others, re.ASCII).search
    assert [text for text in HITS if not tripwire.trips(text, without)]


@given(st.binary(min_size=1, max_size=40), st.text(max_size=40))
def test_pseudonyms_are_left_in_peace(secret, raw):
    made = Pseudonyms(secret)
    for shown in (made.model(raw), made.host(raw, "private"), made.key_id):
        assert not tripwire.hit(shown)


@given(st.uuids(), st.integers(0, (1 << 128) - 1), st.integers(1_500_000_000, 2_200_000_000))
@example(uuid.UUID(int=0), 0, 1_732_188_170)
def test_ids_and_times_are_left_in_peace(given_uuid, number, seconds):
    for text in (str(given_uuid), f"{number:032x}", f"{seconds}", f"{seconds * 10**9}"):
        assert not tripwire.hit(text), text


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(0.4111111111111111)
def test_floats_are_left_in_peace(number):
    assert not tripwire.hit(repr(number)) or abs(number) >= 1e12


pieces = st.one_of(
    st.sampled_from([*HITS, *PEACE]),
    st.text(max_size=12),
    st.text("0123456789abcdefABCDEF+-.:/ @~sk_", max_size=24),
)


@given(st.lists(pieces, max_size=6).map("".join))
@example("\ud800@a.bc")
def test_both_engines_agree_on_everything(text):
    assert len({tripwire.trips(text, search) for search in SEARCHES}) == 1
    assert tripwire.hit(text) is tripwire.trips(text, SEARCHES[0])


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("service.name", "shop for 10.1.2.3"),
        ("service.name", f"app gsk_{KEY}"),
        ("service.namespace", "+49 170 1234567"),
        ("http.route", "/home/joe/{id}"),
        ("process.runtime.version", "10.1.2.3"),
        ("telemetry.sdk.version", "10.1.2.3-rc1"),
    ],
)
def test_a_value_that_its_rule_keeps_is_dropped_and_counted(policy, key, text):
    signal = "span" if key == "http.route" else "resource"
    assert policy.attributes({key: text}, signal) == {}
    assert policy.dropped == {(signal, "tripwire"): 1}


def test_what_the_operator_let_leave_is_looked_at_too(make_policy):
    policy = make_policy(allow=("resource:team", "span:*", "span:find *"))
    assert policy.attributes({"team": "joe@acme.example"}, "resource") == {}
    assert policy.attributes({"team": "shop"}, "resource") == {"team": "shop"}
    assert policy.dropped == {("resource", "tripwire"): 1}
    assert policy.allows("span", "find books")
    assert not policy.allows("span", "find joe@acme.example")


@pytest.mark.parametrize("version", ["3.12.0", "1.45.2", "0.66b2", "v4.57.1.dev0", "3.14.0rc2"])
def test_versions_are_left_in_peace(policy, version):
    said = {"process.runtime.version": version}
    assert policy.attributes(said, "resource") == said


@given(st.sampled_from([pattern for _, pattern in tripwire.PATTERNS]).flatmap(
    lambda pattern: st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
))  # fmt: skip
def test_no_text_is_too_short_to_be_looked_at(text):
    assert tripwire.hit(text)


@pytest.mark.parametrize("text", ["1.1.1.1", "-----BEGIN", "+12345678", "020 45678", "a@b.de"])
def test_nor_is_the_shortest(text):
    assert tripwire.hit(text)


@pytest.mark.parametrize("text", ["chat", "stop", "1.45.2", "completed", "343b208e", "gpt-4o"])
def test_words_need_no_look(text):
    assert tripwire.is_harmless(text)
