"""mlx-vlm's batches and its server by contract: signatures and results as 0.7.10 has them.

As in `test_mlx_others.py`; the server's engine is a thread of its own and its app one of Starlette.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib
import textwrap
import types

import pytest

pytest.importorskip("mlx_lm")
starlette = pytest.importorskip("starlette.applications")

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode
from starlette.routing import Mount

from conformance.conformance import violations
from runtimes import test_mlx_others as others
from runtimes.test_hooks_fuzz import FUZZ, Partial, odd
from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.instrumentors import MLXInstrumentor
from sottovoce.record import SpanRecorder
from sottovoce.runtimes import mlx_vlm_server
from sottovoce.runtimes.engine import Runtime

pytestmark = pytest.mark.mlx

PROMPTS = ["a planted sentence", "another", "and the third"]
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

AR = """
from dataclasses import dataclass
from typing import Any, List, Optional

@dataclass
class BatchStats:
    prompt_tokens: int = 0
    prompt_tps: float = 0
    prompt_time: float = 0
    generation_tokens: int = 0
    generation_tps: float = 0
    generation_time: float = 0
    peak_memory: float = 0

@dataclass
class BatchResponse:
    texts: List[str]
    stats: BatchStats
    image_sizes: Optional[list] = None

@dataclass
class Response:
    uid: int
    token: int
    token_logprob: float
    finish_reason: Optional[str]

class BatchGenerator:
    def __init__(self, model, processor):
        self.left = {}

    def insert(self, prompts, max_tokens):
        self.left = {uid: limit for uid, limit in enumerate(max_tokens)}
        return list(self.left)

    def next(self, **kwargs):
        responses = []
        for uid in list(self.left):
            self.left[uid] -= 1
            if self.left[uid] < 0:
                raise ZeroDivisionError("a planted failure")
            ends = "length" if uid else "stop"
            responses.append(Response(uid, 7, 0.0, None if self.left[uid] else ends))
            if not self.left[uid]:
                del self.left[uid]
        return [], responses

def batch_generate(
    model, processor, images=None, audios=None, prompts=None, max_tokens=128, verbose=False,
    group_by_shape=True, track_image_sizes=True, videos=None, **kwargs,
):
    tokens = 0
    # A group with pictures of one shape, and what has none.
    for group in (prompts[:2], prompts[2:]):
        generator = BatchGenerator(model, processor)
        generator.insert(group, [max_tokens] * len(group))
        while generator.left:
            tokens += len(generator.next()[1])
    read = sum(map(len, prompts))
    stats = BatchStats(read, 40.0, read / 40, tokens, 20.0, tokens / 20, 1.5)
    return BatchResponse(["x"] * len(prompts), stats)
"""

ENGINE = """
import threading
from dataclasses import dataclass
from queue import Queue
from typing import Any, Optional

import mlx_vlm
from mlx_vlm import utils

@dataclass
class GenerationArguments:
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: Optional[float] = None
    frequency_penalty: Optional[float] = None

@dataclass
class GenerationContext:
    uid: int
    prompt_tokens: int

@dataclass
class StreamingToken:
    text: str
    token: int
    logprobs: float
    finish_reason: Optional[str]
    draft_n_accepted: Optional[int] = None
    draft_n: Optional[int] = None
    cached_tokens: int = 0
    token_count: int = 1

class _TokenIterator:
    def __init__(self, rqueue):
        self._rqueue, self._ended = rqueue, False

    def __iter__(self):
        return self

    def __next__(self):
        if self._ended:
            raise StopIteration
        item = self._rqueue.get(timeout=30)
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        if item.finish_reason:
            self._ended = True
        return item

    def close(self):
        self._ended = True

    def __del__(self):
        self.close()

class HTTPException(Exception):
    pass

class ResponseGenerator:
    def __init__(self, model_path):
        self.model_path, self.model, self.processor = model_path, None, None
        self.requests, self._ready, self._load_error = Queue(), threading.Event(), None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_until_ready(self):
        assert self._ready.wait(30)
        if self._load_error is not None:
            raise self._load_error

    def _initialize_model(self):
        try:
            self.model, self.processor = utils.load(self.model_path)
        except Exception as error:
            raise HTTPException("a planted message")

    def stop_and_join(self):
        self.requests.put(None)
        self._thread.join()

    def generate(self, prompt, images=None, audio=None, args=None, videos=None):
        args = args or GenerationArguments()
        if len(prompt) > 100:
            raise ValueError(prompt)
        rqueue = Queue()
        self.requests.put((rqueue, prompt, args))
        return rqueue.get(timeout=30), _TokenIterator(rqueue)

    def _run(self):
        try:
            self._initialize_model()
        except Exception as error:
            self._load_error = error
            self._ready.set()
            return
        self._ready.set()
        while (request := self.requests.get()) is not None:
            rqueue, prompt, args = request
            rqueue.put(GenerationContext(0, len(prompt)))
            if "fails" in prompt:
                rqueue.put(ZeroDivisionError(prompt))
                continue
            # Pictures that come out of noise are generated whole, by the library's own function.
            list(mlx_vlm.stream_generate(self.model, self.processor, prompt, max_tokens=2))
            for left in reversed(range(args.max_tokens)):
                told = {} if left else {"draft_n": 8, "draft_n_accepted": 6}
                rqueue.put(
                    StreamingToken("x", 7, 0.0, None if left else "length", cached_tokens=3, **told)
                )
            # Flushed text of no token.
            rqueue.put(None)
"""

APP = """
import asyncio
import json

from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from . import generation

ENGINE, MADE = None, []

async def completions(request):
    asked = await request.json()
    args = generation.GenerationArguments(max_tokens=asked["max_tokens"], temperature=0.5, top_k=4)
    prompt = asked["messages"][0]["content"]
    engine = ENGINE
    if "model" in asked:
        engine = generation.ResponseGenerator(asked["model"])
        engine.wait_until_ready()
        MADE.append(engine)
    if asked["max_tokens"] > 1000:
        return JSONResponse({"detail": prompt}, 400)
    def all_of_it():
        context, tokens = engine.generate(prompt, args=args)
        return sum(token.token_count for token in tokens)
    async def stream():
        context, tokens = await asyncio.to_thread(engine.generate, prompt, None, None, args)
        try:
            for _ in range(asked.get("reads", 1000)):
                token = await asyncio.to_thread(next, tokens, None)
                if token is None:
                    return
                yield f"data: {json.dumps(token.text)}\\n\\n"
        finally:
            tokens.close()
    if asked.get("stream"):
        return StreamingResponse(stream(), media_type="text/event-stream")
    return JSONResponse({"completion_tokens": await asyncio.to_thread(all_of_it)})

app = Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])
"""

FILES = {
    **others.FILES,
    "mlx_vlm/generate/__init__.py": "from .ar import BatchGenerator, batch_generate\n"
    + others.VLM_PACKAGE,
    "mlx_vlm/generate/ar.py": AR,
    "mlx_vlm/__init__.py": "from .generate import batch_generate, generate, stream_generate\n"
    "from .utils import load\n",
    "mlx_vlm/server/__init__.py": "",
    "mlx_vlm/server/generation.py": ENGINE,
    "mlx_vlm/server/app.py": APP,
}
BOUND = ("mlx_vlm", "mlx_vlm.server.generation", "mlx_vlm.server.app")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    others.forget()
    yield
    others.forget()


@pytest.fixture(params=["early", "late"])
def recorded(request, packages, record):
    """Our hooks with a real SDK, before the app imports mlx-vlm and after."""
    if request.param == "late":
        for name in BOUND:
            importlib.import_module(name)
    return record(MLXInstrumentor)


@pytest.fixture
def engine(recorded, mlx_model_path):
    app = importlib.import_module("mlx_vlm.server.app")
    app.ENGINE = app.generation.ResponseGenerator(str(mlx_model_path))
    app.ENGINE.wait_until_ready()
    [load] = recorded.exporter.get_finished_spans()
    assert load.parent is None
    recorded.exporter.clear()
    yield app.ENGINE
    for made in (app.ENGINE, *app.MADE):
        made.stop_and_join()


def ask(**asked):
    """What the app answers to a caller with a trace."""
    app = importlib.import_module("mlx_vlm.server.app").app
    asked = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 5} | asked
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b""}
    headers = [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()), (b"baggage", b"user=alice")]
    sent, body = [], importlib.import_module("json").dumps(asked).encode()

    async def talk():
        came = iter([{"type": "http.request", "body": body, "more_body": False}])
        over = asyncio.Event()

        async def receive():
            for message in came:
                return message
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await app({**scope, "headers": headers}, receive, send)

    asyncio.run(talk())
    return b"".join(message.get("body", b"") for message in sent)


def only(recorded):
    [span] = recorded.exporter.get_finished_spans()
    assert "planted" not in span.to_json()
    assert not violations(span)
    return span


def test_a_batch_is_one_call(recorded, mlx_model):
    import mlx_vlm

    result = mlx_vlm.batch_generate(
        *mlx_model, images=["/alice/secret.png"], prompts=PROMPTS, max_tokens=4
    )
    assert len(result.texts) == 3
    span = only(recorded)
    told = span.attributes
    assert (span.name, span.kind) == ("text_completion llama-lt_1M-f32", SpanKind.INTERNAL)
    assert told["gen_ai.usage.input_tokens"] == sum(map(len, PROMPTS))
    # The first of each group stopped, and its last token is none of the text.
    assert told["gen_ai.usage.output_tokens"] == 3 * 4 - 2
    assert told["gen_ai.request.max_tokens"] == 4
    assert told["sottovoce.request.batch.size"] == 3
    assert told["sottovoce.prefill.throughput"] == 40
    assert told["sottovoce.decode.throughput"] == 20
    assert told["sottovoce.memory.peak"] == "1_2GiB"
    assert "gen_ai.server.time_to_first_token" in recorded.points()
    assert "gen_ai.server.time_per_output_token" not in recorded.points()
    assert "alice" not in span.to_json()


def test_a_batch_that_fails(recorded, mlx_model):
    import mlx_vlm

    with pytest.raises(ZeroDivisionError):
        mlx_vlm.batch_generate(*mlx_model, prompts=PROMPTS, max_tokens=0)
    assert only(recorded).attributes["error.type"] == "ZeroDivisionError"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_span_of_the_callers_trace(recorded, engine, stream):
    answer = ask(stream=stream)
    assert answer.count(b"data:") == 5 if stream else answer == b'{"completion_tokens":5}'
    span = only(recorded)
    assert (span.name, span.kind) == ("chat llama-lt_1M-f32", SpanKind.SERVER)
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    told = span.attributes
    assert told.get("gen_ai.request.stream", False) is stream
    assert told["gen_ai.usage.input_tokens"] == len(PROMPTS[0])
    assert told["gen_ai.usage.cache_read.input_tokens"] == 3
    assert told["gen_ai.usage.output_tokens"] == 5
    assert told["gen_ai.response.finish_reasons"] == ("length",)
    assert (told["gen_ai.request.temperature"], told["gen_ai.request.top_k"]) == (0.5, 4)
    assert told["sottovoce.draft.acceptance_rate"] == 0.75
    assert told["sottovoce.request.queue.wait"] > 0
    assert not {"gen_ai.client.operation.duration"} & recorded.points().keys()


def test_a_request_that_is_left(recorded, engine):
    assert ask(stream=True, reads=2).count(b"data:") == 2
    span = only(recorded)
    assert span.attributes["sottovoce.call.outcome"] == "abandoned"
    assert span.attributes["gen_ai.usage.output_tokens"] == 2


def test_a_request_that_is_closed_where_it_was_not_begun(caplog):
    @types.coroutine
    def waits(*_):
        yield

    served = starlette.Starlette(routes=[Mount("/", app=waits)])
    runtime = Runtime("mlx", SpanRecorder(TracerProvider()), guard.ImportHooks())
    mlx_vlm_server.install(runtime, Partial(app=served), guard.Patches())
    headers = [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())]
    answering = served({"type": "http", "path": "/", "headers": headers}, None, None)
    contextvars.copy_context().run(answering.send, None)
    # As the garbage collector does.
    contextvars.Context().run(answering.close)
    assert not caplog.records


def test_a_request_that_fails(recorded, engine):
    for prompt, error in (("fails", "ZeroDivisionError"), ("x" * 101, "ValueError")):
        with pytest.raises((ZeroDivisionError, ValueError)):
            ask(messages=[{"content": prompt}])
        span = only(recorded)
        assert (span.kind, span.status.status_code) == (SpanKind.SERVER, StatusCode.ERROR)
        assert span.attributes["error.type"] == error
        assert prompt not in span.to_json()
        recorded.exporter.clear()


@pytest.mark.parametrize("limit", [5, 5000])
def test_a_model_that_is_loaded_for_a_request(recorded, engine, mlx_model_4bit_path, limit):
    ask(model=str(mlx_model_4bit_path), max_tokens=limit)
    load, span = recorded.exporter.get_finished_spans()
    assert load.name == "load_model llama-lt_1M-4bit"
    assert (load.parent.span_id, load.context.trace_id) == (span.context.span_id, int(TRACE, 16))
    assert span.kind is SpanKind.SERVER
    assert span.attributes["sottovoce.call.outcome"] == "completed"
    if limit == 5:
        assert span.name == "chat llama-lt_1M-4bit"
        assert span.attributes["gen_ai.usage.output_tokens"] == 5
        assert span.attributes["gen_ai.request.model"] == "llama-lt_1M-4bit"
    else:
        # The server refused it afterwards.
        assert (span.name, "gen_ai.usage.output_tokens" in span.attributes) == ("chat", False)


def test_a_model_that_cannot_be_loaded(recorded, engine, tmp_path):
    with pytest.raises(Exception, match="planted"):
        ask(model=str(tmp_path / "alice-none"))
    load, span = recorded.exporter.get_finished_spans()
    assert (load.parent.span_id, span.name) == (span.context.span_id, "chat")
    assert span.parent.span_id == int(SPAN, 16)
    for each in (load, span):
        assert each.attributes["error.type"] == "model_not_found"
        assert "alice" not in each.to_json() and "planted" not in each.to_json()


def test_the_engine_without_http(recorded, engine):
    context, tokens = engine.generate(PROMPTS[0])
    assert type(tokens).__name__ == "_TokenIterator"
    assert len([next(tokens), next(tokens)]) == 2
    del tokens
    gc.collect()
    span = only(recorded)
    assert (span.name, span.kind) == ("text_completion llama-lt_1M-f32", SpanKind.INTERNAL)
    assert span.attributes["gen_ai.usage.output_tokens"] == 2
    assert span.attributes["sottovoce.call.outcome"] == "abandoned"


def test_uninstrumented_in_mid_answer(recorded, engine):
    _, tokens = engine.generate(PROMPTS[0])
    next(tokens)
    recorded.instrumentor.uninstrument()
    assert len(list(tokens)) == 255
    assert ask() == b'{"completion_tokens":5}'
    del tokens
    # It ends with the process, as far as it was seen.
    assert not recorded.exporter.get_finished_spans()


told = st.one_of(odd, st.just(PROMPTS[0]))
some = st.builds(
    lambda found: Partial(**found),
    st.dictionaries(
        st.sampled_from(["token_count", "cached_tokens", "finish_reason", "draft_n", "text"]), told
    ),
)


@FUZZ
@given(
    tokens=st.lists(st.one_of(odd, some), max_size=3),
    context=st.one_of(odd, st.builds(lambda count: Partial(prompt_tokens=count), told)),
    arguments=st.one_of(
        odd,
        st.builds(lambda value: Partial(temperature=value, top_k=value, max_tokens=value), told),
    ),
    shape=st.sampled_from(["pair", "none", "one"]),
)
def test_whatever_it_is_given_and_gives(instrumented_mlx, tokens, context, arguments, shape):
    class Tokens:
        def __init__(self):
            self.left = iter(tokens)

        def __next__(self):
            return next(self.left)

        def close(self):
            return "closed"

    class Engine:
        model = processor = None

        def _initialize_model(self):
            return "made"

        def generate(self, prompt, args=None):
            return {"pair": (context, Tokens()), "none": None, "one": (context,)}[shape]

        def _run(self):
            return "over"

    hooks, patches = instrumented_mlx(), guard.Patches()
    module = Partial(ResponseGenerator=Engine, _TokenIterator=Tokens)
    runtime = Runtime("mlx", hooks.recorder, hooks.hooks)
    mlx_vlm_server.install(runtime, module, patches)
    got = Engine().generate(PROMPTS[0], args=arguments)
    assert (Engine()._run(), Engine()._initialize_model()) == ("over", "made")
    if shape == "pair":
        seen = [next(got[1]) for _ in tokens]
        assert [*map(id, seen)] == [*map(id, tokens)]
        with pytest.raises(StopIteration):
            next(got[1])
        assert got[1].close() == "closed"
    assert current_call.get() is None
    for call in hooks.recorder.calls:
        facts = {name: value for name, value in call.facts.items() if name != "finish_reasons"}
        assert PROMPTS[0] not in repr((call.model, facts))
    assert not hooks.recorder.open
    patches.undo()
    hooks.recorder.calls.clear()
    guard.failures.clear()
