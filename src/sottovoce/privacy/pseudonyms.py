"""Keyed pseudonyms that stand for identifiers, and the secret that they are made with.

A pseudonym is HMAC-SHA256 under a key of its own purpose; the purposes' keys come by HKDF
(RFC 5869) from one master secret, so that a model's pseudonym tells nothing about a host's.
Ids of sessions and users have a key for each week (`EPOCH`), so that nothing links one week
of a person with the next. In public mode the secret of models alone is a known constant.
The secret is the operator's (`SOTTOVOCE_KEY`, `SOTTOVOCE_KEY_FILE`) or one made at first use
and kept in the state directory, where every process of the same user finds it.

No key is kept as bytes: only HMAC states are, which neither print nor pickle.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NoReturn

from sottovoce import guard
from sottovoce.settings import state_dir

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.settings import Settings

log = logging.getLogger("sottovoce")

SHORTEST: Final = 16
"""Bytes that an operator's secret has at least."""

EPOCH: Final = 7 * 24 * 3600
"""Seconds that a session's or a user's pseudonym stays the same, counted from 1970."""

PUBLIC: Final = b"sottovoce: models hash alike everywhere"
"""The secret of model ids in public mode: anyone can list what the public ids hash to."""

_FILE: Final = "key"
_HEX_LENGTH: Final = 64
_SALT: Final = b"sottovoce pseudonyms v1"

_MOST: Final = 1 << 16
_made: set[str] = set()
"""The pseudonyms of this process. What merely looks like one is somebody's text."""
_warned: list[str] = []
"""What was warned of already: once a process is enough."""


def hkdf(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """Derive `length` bytes from `secret` (RFC 5869 with SHA-256; `length` up to 8160)."""
    pseudorandom = hmac.digest(salt or b"\0" * 32, secret, "sha256")
    block = derived = b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(pseudorandom, block + info + bytes((counter,)), "sha256")
        derived += block
    return derived[:length]


class Pseudonyms:
    """Makes pseudonyms with one secret. Thread-safe, the same after fork."""

    __slots__ = ("_clock", "_epoch", "_host", "_model", "_name", "_root", "is_kept", "key_id")

    def __init__(
        self,
        secret: bytes,
        *,
        is_kept: bool = True,
        public: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._model = _state(PUBLIC if public else secret, b"model")
        self._host = _state(secret, b"host")
        self._name = _state(secret, b"name")
        # Tells secrets apart and nothing else of them; derived for this purpose alone.
        self.key_id = hkdf(secret, salt=_SALT, info=b"key id", length=4).hex()
        # Whether other processes and other days have the same secret.
        self.is_kept = is_kept
        # The half of HKDF that all epochs share; the other half is a block for each.
        self._root = hmac.new(hmac.digest(_SALT, secret, "sha256"), digestmod=hashlib.sha256)
        self._clock = clock
        self._epoch = _Epoch(self._root, int(clock() // EPOCH))

    def __repr__(self) -> str:
        return "Pseudonyms(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")

    def model(self, raw: str) -> str:
        """``h:`` and 12 hex characters for a model id."""
        return _remembered(f"h:{_digest(self._model, raw)}")

    def host(self, raw: str, kind: str) -> str:
        """`kind`, a dash and 12 hex characters for a host name."""
        return _remembered(f"{kind}-{_digest(self._host, raw)}")

    def name(self, raw: str) -> str:
        """12 hex characters for a name that somebody gave: a tool's, a table's."""
        return _remembered(_digest(self._name, raw))

    def session(self, raw: str) -> str:
        """16 hex characters for the id of a session or conversation, others every week."""
        return self._now().session(raw)

    def user(self, raw: str) -> str:
        """16 hex characters for the id of a user, others every week."""
        return self._now().user(raw)

    def _now(self) -> _Epoch:
        number = int(self._clock() // EPOCH)
        epoch = self._epoch
        if epoch.number != number:
            # Two threads at once make the same one.
            epoch = self._epoch = _Epoch(self._root, number)
        return epoch

    @staticmethod
    def has_made(text: str) -> bool:
        """Whether `text` is a pseudonym that this process made."""
        return text in _made


class _Epoch:
    """The pseudonyms of one week."""

    __slots__ = ("made", "number", "session", "user")

    def __init__(self, root: hmac.HMAC, number: int) -> None:
        self.number = number
        self.made: set[str] = set()
        self.session = _weekly(root, b"session", number, self.made)
        self.user = _weekly(root, b"user", number, self.made)


def _weekly(root: hmac.HMAC, purpose: bytes, number: int, made: set[str]) -> Callable[[str], str]:
    # The first block of HKDF: `hkdf(secret, salt=_SALT, info=b"session 2900", length=32)`.
    block = root.copy()
    block.update(b"%s %d\x01" % (purpose, number))
    state = hmac.new(block.digest(), digestmod=hashlib.sha256)

    def pseudonym(raw: str) -> str:
        if raw in made:
            # It has passed a gate before.
            return raw
        shown = _digest(state, raw, 16)
        if len(made) < _MOST:
            made.add(shown)
        return shown

    return lru_cache(maxsize=1024)(pseudonym)


def from_settings(settings: Settings) -> Pseudonyms:
    """The pseudonyms of this deployment. Never raises; every fallback is a warning.

    In this order: the secret of the settings, the file that they name, the secret of the
    state directory (made now if there is none), a secret of this process alone.
    """
    public = settings.hash_mode == "public"
    if public and not _warned:
        _warned.append("public")
        log.warning(
            "SOTTOVOCE_HASH_MODE is public: pseudonyms of models are the same everywhere, and "
            "anyone can find out which known model id stands behind one."
        )
    for source, secret in (
        ("SOTTOVOCE_KEY", _given(settings)),
        ("SOTTOVOCE_KEY_FILE", _file(settings)),
    ):
        if secret is None:
            continue
        if len(secret) >= SHORTEST:
            return Pseudonyms(secret, public=public)
        log.warning(
            "sottovoce: %s: %s; using this machine's own secret instead.",
            source,
            f"a secret needs at least {SHORTEST} bytes" if secret else "there is none",
        )
    directory = state_dir()
    try:
        if directory is not None:
            return Pseudonyms(_kept(directory), public=public)
    except (OSError, ValueError):
        log.debug("sottovoce: the state directory's secret cannot be used (%s)", guard.handled())
    log.warning(
        "sottovoce: no secret could be kept in the state directory; pseudonyms of this process "
        "will not match those of any other. Set SOTTOVOCE_KEY or SOTTOVOCE_KEY_FILE."
    )
    return Pseudonyms(os.urandom(32), is_kept=False, public=public)


def _state(secret: bytes, purpose: bytes) -> hmac.HMAC:
    return hmac.new(hkdf(secret, salt=_SALT, info=purpose, length=32), digestmod=hashlib.sha256)


def _digest(state: hmac.HMAC, raw: str, length: int = 12) -> str:
    keyed = state.copy()
    # A lone surrogate is possible in a file name and must not be an error here.
    keyed.update(raw.encode("utf-8", "surrogatepass"))
    return keyed.hexdigest()[:length]


def _remembered(pseudonym: str) -> str:
    # Of an app with more models than this, a pseudonym may be given one of its own: stable, too.
    if len(_made) < _MOST:
        _made.add(pseudonym)
    return pseudonym


def _given(settings: Settings) -> bytes | None:
    return None if settings.key is None else settings.key.encode("utf-8", "surrogatepass")


def _file(settings: Settings) -> bytes | None:
    if settings.key_file is None:
        return None
    try:
        return _bytes(settings.key_file)
    except (OSError, ValueError):
        log.debug("sottovoce: the key file cannot be read (%s)", guard.handled())
        return b""


def _bytes(path: str) -> bytes:
    """The beginning of a file; a pipe in its place gives what it holds and is not waited for."""

    def open_now(path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=open_now) as file:
        return (file.read(4096) or b"").strip()


def _kept(directory: str) -> bytes:
    """The secret in `directory`, made when there is none; two processes at once agree.

    Raises:
        OSError: nothing can be read or written there.
        ValueError: what is there is no secret of ours.
    """
    path = os.path.join(directory, _FILE)  # noqa: PTH118 - as above
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    os.makedirs(directory, mode=0o700, exist_ok=True)  # noqa: PTH103 - as above
    # The file appears under its name only when complete, and only for the first who links it.
    # (`tempfile` and `secrets` would do the same, and cost the start of every app milliseconds.)
    draft = os.path.join(directory, f".key-{os.urandom(8).hex()}")  # noqa: PTH118 - as above
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(os.urandom(_HEX_LENGTH // 2).hex())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError:
            _create(draft, path)
    finally:
        os.unlink(draft)  # noqa: PTH108 - as above
    return _read(path)


def _create(draft: str, path: str) -> None:
    """Where the file system has no links: the first who creates the file writes it."""
    with open(draft, "rb") as file:  # noqa: PTH123 - as above
        text = file.read()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(handle, "wb") as out:
        out.write(text)


def _read(path: str) -> bytes:
    for _ in range(20):
        text = _bytes(path)
        if len(text) == _HEX_LENGTH:
            return bytes.fromhex(text.decode("ascii"))
        # Another process may be between creating and writing it.
        time.sleep(0.005)
    raise ValueError("not a secret of ours")
