"""An OpenAI-compatible endpoint on this machine, with a real model behind it, that fails when it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.eval.llm.slow import SlowModel

from pixlex.eval.llm import LLMOptions, connect
from pixlex.eval.llm.client import Ability, LanguageClient, Prompt, Reply
from pixlex.eval.llm.endpoint import EndpointClient

KEY = "sk-test-0123456789"
ALL = frozenset({"completions", "chat", "echo", "structured_outputs", "guided_choice", "json_schema"})

# What to do instead of answering: None answers, bytes are sent as they are with status 200, a number and bytes
# with that status. Given the text of a request, and how often it came before.
Fault = Callable[[str, int], str | bytes | tuple[int, bytes] | None]


class Endpoint:
    """What the server knows and what it saw.

    Args:
        model: answers.
        abilities: what it can do; what it cannot is refused with 400, or 404 for a whole path.
        overlooks: parameters that it does not know and does not complain about.
        context: tokens that prompt and answer may have.
        key: the key that it takes; None takes any.
    """

    def __init__(
        self,
        model: SlowModel,
        *,
        abilities: frozenset[str] = ALL,
        overlooks: frozenset[str] = frozenset(),
        context: int = 256,
        key: str | None = None,
        shows_start: bool = False,
    ) -> None:
        self.model, self.abilities, self.overlooks = model, abilities, overlooks
        self.context, self.key, self.shows_start = context, key, shows_start
        self.fault: Fault = lambda text, times: None
        self.models_status = 200
        self.received: list[str] = []  # every request, as it came
        self.answered: list[str] = []  # those that were answered with a text
        self.gate = threading.Event()  # what is held waits for this
        self.gate.set()
        self.held = 0
        self.lock = threading.Lock()
        self.generate = model.written
        self.url = ""

    def count(self, text: str) -> int:
        """How many of the requests had this prompt."""
        return sum(_text(json.loads(request)) == text for request in self.received)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer to a request."""
        chat = path.endswith("chat/completions")
        if ("chat" if chat else "completions") not in self.abilities:
            return 404, _error(f"no {path} here", "not_found")
        if body["model"] != "tiny":
            return 404, _error(f"The model {body['model']!r} does not exist", "model_not_found")
        for name in ("echo", "structured_outputs", "guided_choice"):
            if name in body and name not in self.abilities | self.overlooks:
                return 400, _error(f"Unknown parameter: {name!r}", "unknown_parameter")
        if "response_format" in body and "json_schema" not in self.abilities:
            return 400, _error("response_format is not supported", "invalid_request_error")
        text, limit = _text(body), int(body.get("max_tokens", 16))
        num_prompt = self.model.count(text)
        if num_prompt + limit > self.context:
            return 400, _error(f"maximum context length is {self.context} tokens", "context_length_exceeded")
        choice, num_new = self._choice(body, text, limit)
        if chat:
            choice = {**choice, "message": {"role": "assistant", "content": choice.pop("text")}}
        usage = {"prompt_tokens": num_prompt, "completion_tokens": num_new}
        return 200, {"id": "1", "object": "text", "choices": [{"index": 0, **choice}], "usage": usage}

    def _choice(self, body: dict[str, Any], text: str, limit: int) -> tuple[dict[str, Any], int]:
        if body.get("echo"):
            return self._echo(text, limit), limit
        names = body.get("structured_outputs", {}).get("choice") or body.get("guided_choice")
        if names and self.abilities & {"structured_outputs", "guided_choice"}:
            return {"text": self.model.choose(text, names), "finish_reason": "stop"}, 1
        if "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]
            chosen = self.model.choose(text, schema["properties"]["answer"]["enum"])
            return {"text": json.dumps({"answer": chosen}), "finish_reason": "stop"}, 1
        written, finish, num_new = self.generate(text, limit, tuple(body.get("stop", ())))
        return {"text": written, "finish_reason": finish}, num_new

    def _echo(self, text: str, limit: int) -> dict[str, Any]:
        after, finish, _ = self.generate(text, limit, ()) if limit else ("", "length", 0)
        rows = self.model.tokens(text)
        if not self.shows_start:
            rows = [row for row in rows if row[2]]
        starts, place = [], 0
        for shown, *_ in rows:
            starts.append(place)
            place += len(shown)
        told = {
            "tokens": [row[0] for row in rows],
            "token_logprobs": [None, *(row[3] for row in rows[1:])],
            "text_offset": starts,
        }
        if limit:
            told["tokens"].append(after)
            told["token_logprobs"].append(-0.5)
            told["text_offset"].append(place)
        return {"text": text + after, "finish_reason": finish, "logprobs": told}


def _text(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    return text


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": code, "code": code, "param": None}}


def ask(endpoint: Endpoint, cache: Path | None = None, **settings: Any) -> EndpointClient:
    """Return a client of the endpoint."""
    options = {"concurrency": 4, "retries": 3, **settings}
    client = connect(LLMOptions(model="tiny", base_url=endpoint.url, cache=cache, **options))
    assert isinstance(client, EndpointClient)
    return client


def prompts_of(texts: Sequence[str], stop: Sequence[str] = ()) -> list[Prompt]:
    return [Prompt(text=text, stops=tuple(stop)) for text in texts]


def generate(
    client: LanguageClient, texts: Sequence[str], limit: int = 4, stop: Sequence[str] = ()
) -> dict[int, Reply]:
    """Continue texts."""
    found = list(client.ask("generate", prompts_of(texts, stop), limit))
    assert len(dict(found)) == len(found)
    return dict(found)


def with_names(texts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[Prompt]:
    return [Prompt(text=text, candidates=tuple(names)) for text, names in zip(texts, candidates, strict=True)]


def score(
    client: LanguageClient, texts: Sequence[str], candidates: Sequence[Sequence[str]]
) -> dict[int, Reply]:
    return dict(client.ask("score", with_names(texts, candidates)))


def choose(
    client: LanguageClient, texts: Sequence[str], candidates: Sequence[Sequence[str]], how: Ability = "choose"
) -> dict[int, Reply]:
    return dict(client.ask(how, with_names(texts, candidates)))


_ANSWERS: dict[str, dict[str, Any]] = {
    "empty": {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 0}},
    "filtered": {"choices": [{"index": 0, "text": "", "finish_reason": "content_filter"}]},
}
_WAITS: dict[str, Callable[[], str]] = {
    "later": lambda: "0.2",
    "much later": lambda: "86400",
    "much later by date": lambda: format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True),
}


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve on a free port of the loopback while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(endpoint))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        endpoint.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            if self._refused():
                return
            if endpoint.models_status != 200:
                self._reply(endpoint.models_status, _error("not for this key", "forbidden"))
                return
            model = {"id": "tiny", "object": "model", "max_model_len": endpoint.context}
            self._reply(200, {"object": "list", "data": [model]})

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"])).decode()
            if self._refused():
                return
            body = json.loads(data)
            with endpoint.lock:
                times = endpoint.received.count(data)
                endpoint.received.append(data)
            fault = endpoint.fault(_text(body), times)
            if fault == "hold":
                with endpoint.lock:
                    endpoint.held += 1
                endpoint.gate.wait(60)
                self.close_connection = True
                return
            if fault is not None:
                self._fail(fault)
                return
            status, answer = endpoint.answer(self.path, body)
            if status == 200:
                with endpoint.lock:
                    endpoint.answered.append(data)
            self._reply(status, answer)

        def _refused(self) -> bool:
            given = self.headers.get("authorization", "")
            if endpoint.key is None or given == f"Bearer {endpoint.key}":
                return False
            self._reply(401, _error(f"Incorrect API key: {given}", "invalid_api_key"))
            return True

        def _fail(self, fault: str | bytes | tuple[int, bytes]) -> None:
            if not isinstance(fault, str):
                status, data = fault if isinstance(fault, tuple) else (200, fault)
                with suppress(ConnectionError):  # who has read enough hangs up
                    self._send(status, data)
            elif fault == "cut":
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [{"te')
                self.close_connection = True
            elif fault == "malformed":
                self._send(200, b'{"choices": [{"text": ')
            elif fault in _ANSWERS:
                self._reply(200, _ANSWERS[fault])
            elif fault in _WAITS:
                self._reply(429, _error("slow down", "rate_limit"), {"retry-after": _WAITS[fault]()})
            elif fault == "no money":
                self._reply(429, _error("quota exceeded", "insufficient_quota"))
            else:
                self._reply(int(fault), _error(f"told to say {fault}", "told"))

        def _reply(self, status: int, answer: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            self._send(status, json.dumps(answer).encode(), headers)

        def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"content-type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
