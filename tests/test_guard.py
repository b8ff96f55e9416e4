import gc
import importlib
import logging
import signal
import sys
import types
import weakref

import pytest

from sottovoce import guard
from sottovoce.guard import ImportHooks, Patches


@pytest.fixture
def module():
    name = "guard_test_module"
    made = types.ModuleType(name)
    exec("def hello():\n    return 'hello'\n", made.__dict__)
    sys.modules[name] = made
    yield made
    sys.modules.pop(name, None)


def shout(original):
    def loud():
        return original().upper()

    return loud


def test_never_raise_counts_logs_once_and_returns_none(caplog):
    guard.failures.pop("here", None)

    @guard.never_raise("here")
    def broken():
        raise RuntimeError("inside")

    with caplog.at_level(logging.DEBUG, logger="sottovoce"):
        assert broken() is None
        assert broken() is None
    assert guard.failures["here"] == 2
    assert len(caplog.records) == 1
    guard.failures.pop("here")


def test_never_raise_lets_the_apps_own_exits_through():
    @guard.never_raise("here")
    def leaving():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leaving()


def test_a_patch_is_applied_once_and_undone(module):
    original = module.hello
    patches, again = Patches(), Patches()
    assert patches.wrap(module, "hello", shout)
    assert not again.wrap(module, "hello", shout)
    assert module.hello() == "HELLO"
    patches.undo()
    assert module.hello is original


def test_undo_leaves_alone_what_someone_else_put_there_since(module):
    patches = Patches()
    patches.wrap(module, "hello", shout)
    module.hello = lambda: "theirs"
    patches.undo()
    assert module.hello() == "theirs"


def test_a_missing_attribute_is_left_alone(module):
    assert not Patches().wrap(module, "goodbye", shout)


def test_names_bound_before_and_after_are_rebound_and_restored(module):
    original = module.hello
    user = types.ModuleType("guard_test_user")
    user.early = module.hello
    sys.modules["guard_test_user"] = user
    try:
        patches = Patches()
        patches.wrap(module, "hello", shout)
        assert user.early() == "hello"
        assert patches.rebind() == 1
        assert user.early() == "HELLO"
        user.late = module.hello
        patches.undo()
        assert user.early is user.late is module.hello is original
    finally:
        sys.modules.pop("guard_test_user")


def test_methods_keep_their_kind_and_inherited_ones_go_away_again():
    class Base:
        def greet(self):
            return "hello"

        @classmethod
        def make(cls):
            return cls()

        @staticmethod
        def add(a, b):
            return a + b

    class Child(Base):
        pass

    def same(original):
        def call(*args, **kwargs):
            return original(*args, **kwargs)

        return call

    patches = Patches()
    patches.wrap(Child, "greet", same)
    patches.wrap(Base, "add", same)
    assert Child().greet() == "hello"
    assert Base.add(1, 2) == Base().add(1, 2) == 3
    patches.undo()
    assert "greet" not in vars(Child)
    assert isinstance(vars(Base)["add"], staticmethod)


def test_a_classmethod_still_gets_the_class_it_is_called_on():
    class Base:
        @classmethod
        def make(cls):
            return cls

    class Child(Base):
        pass

    def same(original):
        def call(cls, *args, **kwargs):
            return original(*args, **kwargs) if cls is None else original.__func__(cls)

        return call

    patches = Patches()
    patches.wrap(Base, "make", same)
    assert Child.make() is Child
    patches.undo()
    assert Child.make() is Child


def test_import_hooks_run_after_the_import_or_at_once_and_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("guard_hook_a", "guard_hook_b"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    seen = []
    hooks = ImportHooks()
    hooks.when_imported("guard_hook_a", lambda module, late: seen.append((module.x, late)))
    hooks.when_imported("guard_hook_b", lambda module, late: seen.append((module.x, late)))
    assert not seen
    import guard_hook_a  # noqa: F401

    assert seen == [(1, False)]
    hooks.when_imported("guard_hook_a", lambda module, late: seen.append(("again", late)))
    assert seen[-1] == ("again", True)
    hooks.stop()
    import guard_hook_b  # noqa: F401

    assert len(seen) == 2


def test_a_hook_that_is_set_while_a_module_runs_gets_all_of_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "guard_hook_d.py").write_text("import guard_hook_e\nx = 1\n")
    (tmp_path / "guard_hook_e.py").write_text("")
    seen = []
    hooks, later = ImportHooks(), ImportHooks()

    def inner(module, late):
        later.when_imported("guard_hook_d", lambda module, late: seen.append((module.x, late)))
        assert not seen

    hooks.when_imported("guard_hook_d", lambda module, late: seen.append("own"))
    hooks.when_imported("guard_hook_e", inner)
    import guard_hook_d  # noqa: F401

    assert seen == ["own", (1, True)]
    later.when_imported("guard_hook_d", lambda module, late: seen.append("at once"))
    assert seen[-1] == "at once"


def test_nothing_is_kept_of_hooks_that_were_stopped(tmp_path, monkeypatch):
    (tmp_path / "guard_hook_f.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    def install():
        hooks = ImportHooks()
        hooks.when_imported("guard_hook_f", lambda module, late: seen.append(hooks))
        return hooks

    gone = [weakref.ref(install())]
    for _ in range(3):
        hooks = install()
        hooks.stop()
        gone.append(weakref.ref(hooks))
    del hooks
    last = install()
    gc.collect()
    # The first was never stopped.
    assert [ref() is None for ref in gone] == [False, True, True, True]
    importlib.import_module("guard_hook_f")
    assert seen == [gone[0](), last]


def test_an_import_hook_that_fails_does_not_break_the_import(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "guard_hook_c.py").write_text("x = 1\n")

    def broken(module, late):
        raise RuntimeError

    ImportHooks().when_imported("guard_hook_c", broken)
    import guard_hook_c

    assert guard_hook_c.x == 1
    assert guard.failures["import hook of guard_hook_c"] == 1


def test_what_the_apps_handler_of_a_signal_raises_in_our_code_is_the_apps():
    class TimeLimit(Exception):
        def __init__(self, *_):
            pass

        def raised(self, *_):
            raise self

    def late(*_):
        raise TimeLimit

    @guard.never_raise("signalled")
    def interrupted():
        signal.raise_signal(signal.SIGUSR1)

    @guard.never_raise("signalled")
    def broken():
        raise TimeLimit

    before = signal.getsignal(signal.SIGUSR1)
    try:
        for handler in (late, TimeLimit().raised):
            signal.signal(signal.SIGUSR1, handler)
            with pytest.raises(TimeLimit):
                interrupted()
            assert "signalled" not in guard.failures
        # Not by the handler.
        assert broken() is None
        assert guard.failures.pop("signalled") == 1
    finally:
        signal.signal(signal.SIGUSR1, before)
