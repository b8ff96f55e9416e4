import hmac
import io
import logging
import multiprocessing
import os
import pathlib
import pickle
import re
import stat
import sys
import threading
import traceback

import pytest

from sottovoce.privacy.policy import Policy
from sottovoce.privacy.pseudonyms import Pseudonyms, from_settings, hkdf
from sottovoce.settings import Settings, state_dir

posix = pytest.mark.skipif(os.name != "posix", reason="file modes and fork are POSIX's")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "state"))
    return tmp_path


def key_path():
    return pathlib.Path(state_dir()) / "key"


def kept():
    return [path.name for path in pathlib.Path(state_dir()).iterdir()]


@pytest.mark.parametrize(
    ("secret", "salt", "info", "length", "derived"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            82,
            (
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
                "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
            ),
        ),
        (
            "0b" * 22,
            "",
            "",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_hkdf_gives_the_answers_of_rfc_5869(secret, salt, info, length, derived):
    out = hkdf(
        bytes.fromhex(secret), salt=bytes.fromhex(salt), info=bytes.fromhex(info), length=length
    )
    assert out.hex() == derived


def test_a_pseudonym_is_twelve_hex_characters_that_only_the_secret_decides():
    one, same, other = Pseudonyms(b"a" * 16), Pseudonyms(b"a" * 16), Pseudonyms(b"b" * 16)
    shown = one.model("ft:gpt-4o:acme")
    assert shown == same.model("ft:gpt-4o:acme") != other.model("ft:gpt-4o:acme")
    assert re.fullmatch(r"h:[0-9a-f]{12}", shown)
    assert one.host("x", "private")[-12:] != one.model("x")[2:], "the keys are separated by purpose"
    assert one.model("\ud800") != one.model("?")


def test_a_key_id_tells_secrets_apart_and_is_no_part_of_a_key():
    secret = b"a" * 16
    one, same, other = Pseudonyms(secret), Pseudonyms(secret), Pseudonyms(b"b" * 16)
    assert one.key_id == same.key_id != other.key_id
    assert one.key_id == "be143a51"
    salt = b"sottovoce pseudonyms v1"
    for purpose in (b"model", b"host"):
        assert one.key_id not in hkdf(secret, salt=salt, info=purpose, length=32).hex()


def test_the_secret_is_in_no_repr_pickle_log_or_traceback(caplog):
    secret = "correct horse battery staple"
    pseudonyms = from_settings(Settings(key=secret))
    policy = Policy(Settings(key=secret))
    for thing in (pseudonyms, policy, Settings(key=secret)):
        assert secret not in repr(thing)
    with pytest.raises(TypeError):
        pickle.dumps(pseudonyms)
    with caplog.at_level(logging.DEBUG):
        try:
            pseudonyms.model(object())
        except AttributeError:
            out = io.StringIO()
            traceback.print_exc(file=out)
    assert secret not in out.getvalue() + caplog.text


def test_a_secret_is_made_once_and_kept_for_this_user_alone(home):
    one, other = from_settings(Settings()), from_settings(Settings())
    assert one.model("x") == other.model("x")
    assert kept() == ["key"], "no draft stays behind"
    if os.name == "posix":
        assert stat.S_IMODE(key_path().stat().st_mode) == 0o600


def test_with_telemetry_off_no_secret_is_kept(home):
    Policy(Settings(profile="off"))
    assert not pathlib.Path(state_dir()).exists()


def test_where_there_are_no_links_the_secret_is_kept_all_the_same(home, monkeypatch):
    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    one = from_settings(Settings())
    assert one.model("x") == from_settings(Settings()).model("x")
    assert kept() == ["key"]


def _pseudonym(barrier, results):
    barrier.wait()
    results.put(from_settings(Settings()).model("x"))


def test_processes_that_start_at_once_agree(home):
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_pseudonym, args=(barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    seen = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(30)
    assert len(seen) == 1


def test_the_operators_secret_comes_first_then_his_file(home, tmp_path, caplog):
    file = tmp_path / "secret"
    file.write_text("the secret of a file\n")
    given = from_settings(Settings(key="the secret given", key_file=str(file))).model("x")
    filed = from_settings(Settings(key_file=str(file))).model("x")
    assert given == Pseudonyms(b"the secret given").model("x")
    assert filed == Pseudonyms(b"the secret of a file").model("x")
    assert not caplog.records


@pytest.mark.parametrize("given", [{"key": "too short"}, {"key_file": "/nowhere/at/all"}])
def test_an_unusable_secret_is_warned_about_and_not_used(home, caplog, given):
    shown = from_settings(Settings(**given)).model("x")
    assert shown == from_settings(Settings()).model("x")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "too short" not in caplog.text and "/nowhere" not in caplog.text


def test_without_a_writable_home_the_secret_is_the_processs_own_with_one_warning(
    home, tmp_path, monkeypatch, caplog
):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(file))
    monkeypatch.setenv("LOCALAPPDATA", str(file))
    one, other = from_settings(Settings()), from_settings(Settings())
    assert one.model("x") != other.model("x")
    assert not one.is_kept and from_settings(Settings(key="a secret of the tests")).is_kept
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_a_damaged_secret_is_neither_used_nor_replaced(home, caplog):
    from_settings(Settings())
    key_path().write_text("damaged")
    from_settings(Settings())
    assert key_path().read_text() == "damaged"
    assert len(caplog.records) == 1


@posix
def test_a_forked_child_has_the_same_secret(home):
    policy = Policy(Settings())
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, policy.model("acme", local=False).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 64).decode() == policy.model("acme", local=False)


@pytest.mark.parametrize(
    ("platform", "environ", "ending"),
    [
        ("linux", {"XDG_STATE_HOME": "/state"}, "/state/sottovoce"),
        ("linux", {"XDG_STATE_HOME": "relative"}, "/.local/state/sottovoce"),
        ("linux", {}, "/.local/state/sottovoce"),
        ("darwin", {"XDG_STATE_HOME": "/state"}, "/Library/Application Support/sottovoce"),
        ("win32", {}, None),
    ],
)
@posix
def test_the_state_directory_is_the_platforms(monkeypatch, home, platform, environ, ending):
    monkeypatch.setattr(sys, "platform", platform)
    found = state_dir(environ)
    assert (found is None) if ending is None else found.endswith(ending)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("where", ["key_file", "state"])
def test_a_pipe_in_the_place_of_a_key_is_not_waited_for(home, tmp_path, caplog, where):
    pipe = tmp_path / "pipe" if where == "key_file" else key_path()
    pipe.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(pipe)
    given = Settings(key_file=str(pipe)) if where == "key_file" else Settings()
    asked = threading.Thread(target=from_settings, args=(given,), daemon=True)
    asked.start()
    asked.join(60)
    assert not asked.is_alive()
    assert "secret" in caplog.text


def test_a_key_file_that_no_file_system_can_name_is_warned_about(home, caplog):
    from_settings(Settings(key_file="a\0b"))
    assert "SOTTOVOCE_KEY" in caplog.text


WEEK = 7 * 24 * 3600


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def expected_weekly(secret, purpose, number, raw):
    key = hkdf(
        secret, salt=b"sottovoce pseudonyms v1", info=f"{purpose} {number}".encode(), length=32
    )
    return hmac.digest(key, raw.encode(), "sha256").hex()[:16]


def test_known_answers_of_a_week():
    made = Pseudonyms(b"a secret of the tests", clock=Clock(2900 * WEEK))
    assert made.session("s-1") == expected_weekly(b"a secret of the tests", "session", 2900, "s-1")
    assert made.user("s-1") == expected_weekly(b"a secret of the tests", "user", 2900, "s-1")
    assert made.session("s-1") == "a397cebd13467047"
    assert made.name("look_up") == "aa6acbc1cdda"


def test_ids_change_at_the_end_of_a_week_and_names_do_not():
    clock = Clock(2900 * WEEK)
    made = Pseudonyms(b"a secret of the tests", clock=clock)
    first = made.session("s-1"), made.user("u-1")
    name, model = made.name("look_up"), made.model("a model")
    clock.now = 2901 * WEEK - 0.001
    assert (made.session("s-1"), made.user("u-1")) == first
    clock.now = 2901 * WEEK
    second = made.session("s-1"), made.user("u-1")
    assert not set(first) & set(second)
    assert (made.name("look_up"), made.model("a model")) == (name, model)
    # A clock that is set back is in the week that it says.
    clock.now -= 1
    assert (made.session("s-1"), made.user("u-1")) == first


def test_purposes_have_keys_of_their_own():
    made = Pseudonyms(b"a secret of the tests")
    model, host = made.model("x")[2:], made.host("x", "private")[-12:]
    shown = [model, host, made.name("x"), made.session("x")[:12], made.user("x")[:12]]
    assert len(set(shown)) == len(shown)


def test_public_mode_is_about_models_alone(home, caplog, monkeypatch):
    monkeypatch.setattr("sottovoce.privacy.pseudonyms._warned", [])
    with caplog.at_level(logging.WARNING, "sottovoce"):
        one, other = (
            from_settings(Settings(key=f"a secret of the tests {n}", hash_mode="public"))
            for n in range(2)
        )
    assert one.model("gpt-4o") == other.model("gpt-4o") == "h:a6da71eadb04"
    for make in ("name", "session", "user"):
        assert getattr(one, make)("x") != getattr(other, make)("x")
    assert one.host("x", "private") != other.host("x", "private")
    assert len([text for text in caplog.messages if "SOTTOVOCE_HASH_MODE is public" in text]) == 1


def test_no_key_of_a_week_is_shown_or_pickled():
    made = Pseudonyms(b"a secret of the tests", clock=Clock(2900 * WEEK))
    made.session("s-1")
    key = hkdf(
        b"a secret of the tests", salt=b"sottovoce pseudonyms v1", info=b"session 2900", length=32
    )
    for shown in (repr(made), repr(made._epoch), repr(made._root)):
        assert key.hex() not in shown and "a secret" not in shown
    for held in (made, made._epoch):
        with pytest.raises((TypeError, AttributeError)):
            pickle.dumps(held)
