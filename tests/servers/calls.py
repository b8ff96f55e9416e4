"""A recorder for tests of the hooks: it collects calls and checks how it is used."""

import threading

from sottovoce.call import current_call


class Calls:
    """Implements `call.Recorder`; `ended_calls` are the calls that ended, in that order."""

    def __init__(self):
        self.opened_calls = []
        self.ended_calls = []
        self.entered = 0
        self.suppressed = False
        self._changed = threading.Condition()

    def enabled(self):
        return not self.suppressed

    def opened(self, call):
        self.opened_calls.append(call)

    def enter(self, call):
        self.entered += 1
        return current_call.get()

    def leave(self, token):
        self.entered -= 1

    def ended(self, call):
        with self._changed:
            self.ended_calls.append(call)
            self._changed.notify_all()

    def wait(self, count=1, seconds=60):
        """Wait until `count` calls ended; a dropped one is ended by another thread."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ended_calls) >= count, seconds)
        return self.ended_calls[count - 1]

    @property
    def only(self):
        """The one call that was opened, ended and left."""
        assert len(self.opened_calls) == 1
        assert self.ended_calls == self.opened_calls
        assert self.entered == 0
        assert current_call.get() is None
        return self.ended_calls[0]


class Locking(Calls):
    """A recorder with a lock, as every exporter and every metric has one."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def ended(self, call):
        assert self.lock.acquire(timeout=20)
        super().ended(call)
        self.lock.release()
