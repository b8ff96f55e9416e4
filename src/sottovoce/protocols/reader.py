"""Bytes of an answer → chunks and facts of a call: splits streams, collects JSON bodies.

A reader is fed what the app is fed, chunk by chunk, content encoding already undone. An
event that cannot hold a fact is counted and timed and never parsed; memory is bounded
whatever the length of the stream, of one event or of a body.

A stream is server-sent events, JSON objects a line each, one JSON array (`elements.py`) or
Amazon's binary frames (`eventstream.py`). Server-sent events follow https://html.spec.whatwg.org/multipage/server-sent-events.html, except
that an event which the end of the stream breaks off still counts when it is complete JSON
or the last event: servers leave out the final blank line.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce.protocols import usual
from sottovoce.protocols.bodies import parsed
from sottovoce.protocols.checks import checked
from sottovoce.protocols.clip import HEAD, TAIL, Clip
from sottovoce.protocols.protocol import Seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.call import Call
    from sottovoce.protocols.bodies import Reason
    from sottovoce.protocols.elements import Elements
    from sottovoce.protocols.eventstream import Frames
    from sottovoce.protocols.protocol import Protocol

MAX_EVENT: Final = 1 << 20
"""Bytes of an event up to which it is parsed."""

_CUT: Final = "http.client.IncompleteRead"
"""The error of a stream that was cut off where HTTP itself cannot tell."""

_FRAMES: Final = "application/vnd.amazon.eventstream"

_FIRST_EVENTS = 4
_SHORT = 32
_BOM = b"\xef\xbb\xbf"
_NEWLINE = 10
_BLANK = [b""]

_LINES = frozenset(
    {
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/stream+json",  # Cohere's first version
    }
)
"""Content types of streams with an event on each line."""


# Loaded by the first answer that is made of them: most apps get none.
def _frames() -> Frames:
    from sottovoce.protocols.eventstream import Frames  # noqa: PLC0415

    return Frames(MAX_EVENT)


def _elements() -> Elements:
    from sottovoce.protocols.elements import Elements  # noqa: PLC0415

    return Elements(MAX_EVENT)


class Reader:
    """Reads one answer for a call. No method ever raises.

    A stream's last event ends the call, an error event fails it, both now; so does
    `finish` end a streamed call. The call of a whole answer is left open: its client or
    transport knows the status. Facts of either go to ``call.facts``.

    Args:
        call: what the facts and chunks are for.
        protocol: the answer's wire format.
        content_type: the answer's header; decides how it is read. Other than an event
            stream or JSON, nothing is.
        on_malformed: is told a `Reason` for bytes that cannot be understood.

    Attributes:
        done: the last event, or an error event, has been seen.
        cut: the stream ended before.
        error: the code of the error that the answer is (see `Protocol.error`), else None.
        json: the answer is JSON.
        streaming: the answer is a stream of events.
    """

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_beginning",
        "_call",
        "_clean",
        "_data",
        "_first",
        "_frames",
        "_gate",
        "_held",
        "_lines",
        "_on_malformed",
        "_protocol",
        "_seen",
        "_usual",
        "_usual_lines",
        "_usual_size",
        "cut",
        "done",
        "error",
        "json",
        "streaming",
    )

    def __init__(
        self,
        call: Call,
        protocol: Protocol,
        content_type: str | None = None,
        on_malformed: Callable[[str], None] | None = None,
    ) -> None:
        kind = (content_type or "").partition(";")[0].strip().lower()
        self._call = call
        self._protocol = protocol
        self._on_malformed = on_malformed
        self._gate = protocol.may_hold_fact.search
        self._lines = kind in _LINES
        self.json = kind == "application/json" or (kind.endswith("+json") and not self._lines)
        self._frames: Frames | Elements | None = None
        if kind == _FRAMES:
            self._frames = _frames()
        elif self.json and protocol.array and call.stream:
            self._frames = _elements()
            self.json = False
        self.streaming = self._lines or kind == "text/event-stream" or self._frames is not None
        self.done = self.cut = False
        self.error: str | None = None
        self._seen = Seen()
        # How many more may be parsed for the model's name: an event in a frame says what it is.
        self._first = 0 if kind == _FRAMES else _FIRST_EVENTS
        # Nothing is held of an event that has not ended; a frame may look like anything.
        self._clean = self._frames is None
        self._at_start = True
        self._after_cr = False
        self._data: bytes | Clip | None = None
        # How events without facts begin; asked of the next chunk while nothing is held.
        self._beginning = b""
        self._usual: bytes | tuple[()] = ()
        self._usual_size = self._usual_lines = 0
        # The line, or the body, that comes in pieces.
        self._held = Clip(MAX_EVENT if self.streaming else protocol.parse_up_to)
        if self.streaming:
            call.stream = True

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            if (
                chunk.startswith(self._usual)
                and chunk.splitlines()[self._usual_lines :] == _BLANK
                and self._gate(chunk, self._usual_size) is None
                and len(chunk) <= MAX_EVENT
            ):
                # Nearly every chunk of a stream: one whole event without a fact. This is
                # `call.chunk`, written out: a call less for every chunk of every stream.
                call, now = self._call, perf_counter_ns()
                gap = now - call.last_chunk_ns
                call.last_chunk_ns = now
                call.chunks += 1
                if not call.shortest <= gap <= call.longest:
                    call.other_gap(gap)
                return
            self._usual = ()
            self._feed(chunk)
            if self._clean and self._beginning and not self.done:
                self._usual = self._beginning
        except Exception:  # noqa: BLE001 - the promise of this class
            self._broken()

    def _learn_usual(self, event: bytes) -> None:
        """Learn from a whole event without a fact how the next ones begin."""
        known = self._beginning
        if not known or not event.startswith(known):
            self._beginning = known = usual.beginning(event, known)
            self._usual_size = len(known)
            self._usual_lines = known.count(b"\n") + 1

    def _feed(self, chunk: bytes) -> None:
        if not self.streaming:
            if self.json:
                self._held.add(chunk)
            return
        if self.done or not chunk:
            return
        # Nearly always a network chunk is one event: "data: {…}" and a blank line,
        # sometimes with an "event: …" line before.
        if self._clean:
            size = len(chunk)
            newline = chunk.find(b"\n")
            if self._lines and newline == size - 1:
                self._event(chunk, 0)
                return
            start = 5 if chunk[:5] == b"data:" else 0
            if not start and chunk[:6] == b"event:" and chunk.startswith(b"data:", newline + 1):
                start = newline + 6
                newline = chunk.find(b"\n", start)
            if start and (
                (newline == size - 2 and chunk[newline + 1] == _NEWLINE and b"\r" not in chunk)
                or (
                    newline == size - 3
                    and chunk[newline:] == b"\n\r\n"
                    and chunk.find(b"\r") == newline - 1
                )
            ):
                self._event(chunk, start)
                return
        self._split(chunk)

    def finish(self, *, by_closing: bool = False) -> None:
        """The body is complete: read what is still held, and end the call if it is streamed.

        Args:
            by_closing: it ended when the server closed the connection, as it also does when
                the server dies: a stream whose last event has not come has failed then.
        """
        try:
            if self.streaming and not self.done:
                self._flush()
            elif self.json and self._held.size:
                self._whole(self._held)
        except Exception:  # noqa: BLE001 - the promise of this class
            self._broken()
        self.close()
        if self.streaming:
            if self.cut and by_closing:
                self._call.fail(_CUT)
            self._call.end()  # does nothing where the last event has ended it

    def close(self) -> None:
        """Nobody reads on: let go of what is held. The call is left as it is."""
        if self._held.size:
            self._held = Clip(self._held.limit)
        self._data = None
        self._clean = True

    def whole(self, body: bytes) -> None:
        """Read a complete JSON body, whatever the content type says."""
        try:
            if self._protocol.array and body[:_SHORT].lstrip()[:1] == b"[":
                self._split_frames(_elements(), body)
                return
            if len(body) <= self._protocol.parse_up_to:
                self._answer(parsed(self._protocol, body, self._on_malformed))
                return
            held = Clip(self._protocol.parse_up_to)
            held.add(body)
            self._whole(held)
        except Exception:  # noqa: BLE001 - the promise of this class
            self._broken()

    def _split_frames(self, frames: Frames | Elements, chunk: bytes) -> None:
        """Take the events of a stream of frames or of an array."""
        for data in frames.feed(chunk):
            self._event(data, 0)
            if self.done:
                return
        if frames.broken:
            self.done = True  # what follows cannot be told apart
            self._tell("sse")
        if frames.oversized:
            frames.oversized = False
            self._tell("size")

    # Event streams: lines, then events.

    def _split(self, chunk: bytes) -> None:
        """Take lines that end in any of the three ways, wherever the chunks were cut."""
        if self._frames is not None and not self._is_lines(chunk):
            self._split_frames(self._frames, chunk)
            return
        if self._after_cr:
            self._after_cr = False
            if chunk[0] == _NEWLINE:
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._after_cr = chunk[-1:] == b"\r"
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        rest = lines.pop()
        for line in lines:
            if self._held.size:
                self._held.add(line)
                self._end_held()
            else:
                self._take(line)
            if self.done:
                return
        if self._frames is not None:
            self._split_frames(self._frames, rest)
            return
        if rest:
            self._held.add(rest)
        self._clean = not (self._held.size or self._after_cr or self._data is not None)

    def _is_lines(self, chunk: bytes) -> bool:
        """Whether lines come where frames were told of: cohere's SDK makes some of them."""
        first, self._at_start = self._at_start, False
        # A frame begins with its length.
        if first and self._frames is not None and self._frames.counted and chunk[:1] == b"{":
            self._frames, self._lines = None, True
        return self._lines

    def _end_held(self) -> None:
        """The line that came in pieces is complete."""
        line, self._held = self._held, Clip(MAX_EVENT)
        head, rest = line.edges()
        if not line.clipped:
            self._take(rest)
            return
        skip = len(_BOM) if self._at_start and head.startswith(_BOM) else 0
        self._at_start = False
        if self._lines:
            self._large(head, rest)
            return
        if head.startswith(b"data:", skip):
            self._as_clip().absorb(line, skip + 5)

    def _take(self, line: bytes) -> None:
        """Take one line: a blank one ends an event; only data matters of the others."""
        if self._protocol.array and self._bare(line):
            return
        if self._lines:
            if line.strip():
                self._event(line, 0)
            return
        if not line:
            if self._data is not None:
                self._dispatch()
            return
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if line[:5] == b"data:":
            line = line[5:]
        elif line == b"data":
            line = b""
        else:
            return
        if self._data is None:
            self._data = line
        else:
            self._as_clip().add(b"\n" + line)

    def _bare(self, line: bytes) -> bool:
        """Take a line of JSON between events: Google writes an error so, over several lines."""
        if self._frames is None and line[:1] == b"{":
            self._frames, self._clean = _elements(), False
        if self._frames is None:
            return False
        self._split_frames(self._frames, line)
        return True

    def _as_clip(self) -> Clip:
        """Give the data of the current event as something that can be added to."""
        if not isinstance(self._data, Clip):
            clip = Clip(MAX_EVENT)
            clip.add(self._data or b"")
            self._data = clip
        return self._data

    def _dispatch(self) -> None:
        data, self._data = self._data, None
        if isinstance(data, Clip):
            head, rest = data.edges()
            if data.clipped:
                self._large(head, rest)
            else:
                self._event(rest, 0)
        elif data is not None:
            self._event(data, 0)

    def _event(self, data: bytes, start: int) -> None:
        """Take one event, whose data begins at `start`."""
        size = len(data)
        if size < _SHORT and data[start:].lstrip().startswith(self._protocol.last_data):
            self.done = True
            self._call.end()
        elif size > MAX_EVENT:
            self._large(data[start : start + HEAD], data[-TAIL:])
        elif self._first or self._gate(data) is not None:
            body = parsed(self._protocol, data[start:], self._on_malformed)
            if body is None:
                self._call.chunk()
            else:
                self._learn(body)
        else:
            self._call.chunk()
            if start:
                self._learn_usual(data)

    def _large(self, head: bytes, tail: bytes) -> None:
        self._tell("size")
        self._learn(self._shape(head, tail))

    def _learn(self, body: dict[str, Any]) -> None:
        """Take the facts of an event that was parsed."""
        self._at_start = False
        facts = self._call.facts
        error = self._protocol.error(body)
        facts.update(checked(self._protocol.event(body, self._seen), self._on_malformed))
        if self._first:
            self._first = 0 if "response_model" in facts else self._first - 1
        if error is not None:
            self.error = error
            self.done = True
            self._call.fail(error)
        elif self._is_last(body):
            self.done = True
            self._call.end()
        else:
            self._call.chunk()

    def _is_last(self, body: dict[str, Any]) -> bool:
        kind = body.get("type")
        if isinstance(kind, str) and kind in self._protocol.last_types:
            return True
        return self._protocol.last is not None and self._protocol.last(body)

    def _flush(self) -> None:
        """The stream ended: take what lacks its line ends, unless it breaks off."""
        self.cut = True
        if self._frames is not None and not self._frames.whole:
            self._tell("sse")
            return
        if self._held.size:
            self._end_held()
        if self._data is not None:
            text = self._data.edges()[1] if isinstance(self._data, Clip) else self._data
            text = text.strip()
            if not text.endswith(b"}") and not text.startswith(self._protocol.last_data):
                self._data = None
                self._tell("sse")
                return
        self._dispatch()
        self.cut = not self.done and "finish_reasons" not in self._call.facts
        if self.cut:
            self._tell("sse")

    # JSON bodies.

    def _whole(self, held: Clip) -> None:
        head, rest = held.edges()
        body = (
            self._shape(head, rest)
            if held.clipped
            else parsed(self._protocol, rest, self._on_malformed)
        )
        wanted = self._protocol.tail_keys if held.clipped else ()
        if wanted and body is not None and body.keys().isdisjoint(wanted):
            self._tell("size")
        self._answer(body)

    def _answer(self, body: dict[str, Any] | None) -> None:
        if body is not None:
            self.error = self._protocol.error(body)
            self._call.facts.update(self._protocol.response(body, self._on_malformed))

    def _shape(self, head: bytes, tail: bytes) -> dict[str, Any]:
        from sottovoce.protocols.edges import shape  # noqa: PLC0415 - for what is very long

        several = "request_choice_count" in self._call.facts
        return shape(self._protocol, head, tail, several=several)

    def _tell(self, reason: Reason) -> None:
        if self._on_malformed is not None:
            self._on_malformed(reason)

    def _broken(self) -> None:
        """A fault of ours: go on with the next event."""
        self._clean = self._frames is None
        self._data = None
        self._held = Clip(self._held.limit)
        self._tell("reader")
