"""Names that somebody gave, and ids of sessions and users, as they leave."""

import re

import pytest

from sottovoce.privacy.pseudonyms import Pseudonyms
from sottovoce.registry import ATTRIBUTES

IDS = [key for key, row in ATTRIBUTES.items() if row.rule == "hash_rot"]
USERS = [key for key, row in ATTRIBUTES.items() if row.rule == "hash_user"]
NAMES = [key for key, row in ATTRIBUTES.items() if row.rule == "allow12" and row.type == "string"]
TEXTS = ["c-1", "joe@acme.example", "0123456789abcdef", "0123456789ab", "h:0123456789ab", "ü"]


def left(policy, key, value, signal="span"):
    return policy.attributes({key: value}, signal).get(key)


def test_which_they_are():
    assert {"gen_ai.conversation.id", "session.id", "mcp.session.id"} <= set(IDS)
    assert USERS == ["enduser.pseudo.id", "user.id"] or set(USERS) == {
        "user.id",
        "enduser.pseudo.id",
    }
    assert {"gen_ai.tool.name", "gen_ai.agent.name", "gen_ai.workflow.name"} <= set(NAMES)


@pytest.mark.parametrize("key", IDS)
def test_an_id_of_a_session_leaves_as_sixteen_digits(make_policy, key):
    policy = make_policy()
    for text in TEXTS:
        shown = left(policy, key, text)
        assert shown != text
        assert re.fullmatch("[0-9a-f]{16}", shown)
        # The same at every gate, the same in every process with the secret.
        assert left(policy, key, shown) == shown
        assert left(make_policy(), key, text) == shown
        assert left(make_policy(key="another secret of the tests"), key, text) != shown
    assert policy.dropped == {("span", "hash_rot"): len(TEXTS)}
    assert left(policy, key, "x" * 129) is None
    assert left(policy, key, 17) is None
    for profile in ("aggregate", "strict"):
        assert left(make_policy(profile=profile), key, "c-1") is None


@pytest.mark.parametrize("key", [*IDS, *USERS])
def test_no_point_of_a_metric_and_no_resource_has_an_id(make_policy, key):
    policy = make_policy(user_ids="hash")
    assert left(policy, key, "c-1", "metric") is None
    assert left(policy, key, "c-1", "resource") is None


@pytest.mark.parametrize("key", USERS)
def test_an_id_of_a_user_leaves_only_when_asked_for(make_policy, key):
    assert left(make_policy(), key, "u-1") is None
    shown = left(make_policy(user_ids="hash"), key, "u-1")
    assert re.fullmatch("[0-9a-f]{16}", shown)
    assert shown != left(make_policy(), "session.id", "u-1")
    for profile in ("aggregate", "strict"):
        assert left(make_policy(user_ids="hash", profile=profile), key, "u-1") is None


def test_an_id_changes_every_week_while_the_process_runs(policy, monkeypatch):
    now = [2900.0 * 7 * 24 * 3600]
    monkeypatch.setattr(policy._pseudonyms, "_clock", lambda: now[0])
    first = left(policy, "session.id", "s-1")
    now[0] += 7 * 24 * 3600 - 1
    assert left(policy, "session.id", "s-1") == first
    now[0] += 1
    assert left(policy, "session.id", "s-1") != first
    # What left last week is somebody's text now.
    assert left(policy, "session.id", first) != first


@pytest.mark.parametrize("key", NAMES)
def test_a_name_leaves_as_twelve_digits(make_policy, key):
    policy = make_policy()
    for text in TEXTS:
        shown = left(policy, key, text)
        assert shown != text
        assert re.fullmatch("[0-9a-f]{12}", shown)
        assert shown == Pseudonyms(b"a secret of the tests").name(text)
        assert left(policy, key, shown) == shown
    assert left(policy, key, "x" * 129) is None


def test_each_name_of_a_list_is_judged_alone(make_policy):
    key, names = "sottovoce.response.tool_calls.names", ("bash", "find_anna", "find_books")
    policy = make_policy(allow=("tool:find_books",))
    shown = left(policy, key, names)
    assert (shown[0], shown[2]) == ("bash", "find_books")
    assert re.fullmatch("[0-9a-f]{12}", shown[1])
    assert left(policy, key, shown) == shown
    assert left(make_policy(profile="strict"), key, names) == ("bash", "_OTHER", "_OTHER")
    assert left(make_policy(profile="aggregate"), key, names) is None
    for wrong in (("bash", 7), "bash find_anna", ("x" * 129,), 7):
        assert left(policy, key, wrong) is None


@pytest.mark.parametrize(
    ("allowed", "key"),
    [
        ("tool:find_books", "gen_ai.tool.name"),
        ("tool:find_*", "gen_ai.tool.name"),
        ("agent:find_books", "gen_ai.agent.name"),
        ("name:find_books", "gen_ai.workflow.name"),
        ("name:find_books", "gen_ai.prompt.name"),
        ("name:find_books", "db.collection.name"),
        ("name:find_books", "messaging.destination.name"),
    ],
)
def test_a_name_that_the_operator_allows_leaves(make_policy, allowed, key):
    policy = make_policy(allow=(allowed,))
    assert left(policy, key, "find_books") == "find_books"
    assert left(policy, key, "of_joe") == Pseudonyms(b"a secret of the tests").name("of_joe")
    for other in {"gen_ai.tool.name", "gen_ai.agent.name", "graph.node.name"} - {key}:
        if not (allowed.startswith("name:") and other == "graph.node.name"):
            assert left(policy, other, "find_books") != "find_books"
    strict = make_policy(allow=(allowed,), profile="strict")
    assert left(strict, key, "find_books") in (None, "_OTHER")


def test_a_beginning_that_is_allowed_lets_no_address_leave(make_policy):
    policy = make_policy(allow=("tool:mail*",))
    assert left(policy, "gen_ai.tool.name", "mail joe@acme.example") is None
    assert policy.dropped == {("span", "tripwire"): 1}
