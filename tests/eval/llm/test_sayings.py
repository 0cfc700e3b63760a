"""What an endpoint may say in place of an answer: what it means, and that the key is never repeated."""

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.eval.llm.server import Endpoint, ask, serving
from tests.eval.llm.server import generate as generate_all
from tests.eval.llm.slow import SlowModel

from pixlex.eval.llm import LLMOptions, connect
from pixlex.eval.llm.client import Completion
from pixlex.eval.llm.endpoint import EndpointClient
from pixlex.eval.llm.quoting import Quoter

pytest.importorskip("openai")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PROMPTS = [f"This is image number {number}. This is a" for number in range(12)]
SECRET = "sk-proj/Ab+9-0123456789xyzKLMNOP"
WRITABLE = frozenset({"completions"})
CHAT = frozenset({"chat"})


def generate(client: EndpointClient, prompts: list[str] = PROMPTS) -> dict[int, Completion]:
    return generate_all(client, prompts)


def chat(content: Any, finish: str = "stop", **rest: Any) -> bytes:
    message = {"role": "assistant", "content": content, **rest}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).encode()


def error(code: Any, message: str = "told") -> bytes:
    return json.dumps({"error": {"message": message, "code": code}}).encode()


# The key, one prompt, the list of models.


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", [error("moderation"), b"<html>blocked</html>"])
def test_a_refused_prompt_is_one_failed_answer(gpt2: SlowModel, status: int, body: bytes) -> None:
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        endpoint.fault = lambda text, times: (status, body) if text in PROMPTS[3:6] else None
        found = generate(ask(endpoint))
        assert sorted(number for number, one in found.items() if one.finish == "failed") == [3, 4, 5]
        assert found[4].reason.startswith("refused: ")
        assert all(endpoint.count(prompt) == 1 for prompt in PROMPTS[3:6])


def test_a_refused_first_prompt_of_a_run_that_goes_on_is_one_too(gpt2: SlowModel, tmp_path: Path) -> None:
    """Nothing was answered yet that shows that the key works; what it can do is remembered."""
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        ask(endpoint, tmp_path)
        endpoint.fault = lambda text, times: (403, error("moderation")) if text == PROMPTS[0] else None
        assert generate(ask(endpoint, tmp_path))[0].finish == "failed"


def test_a_key_that_is_withdrawn_ends_the_run(
    gpt2: SlowModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXLEX_TEST_KEY", SECRET)
    settings = {"key_variable": "PIXLEX_TEST_KEY"}
    with serving(Endpoint(gpt2, abilities=WRITABLE, key=SECRET)) as endpoint:
        generate(ask(endpoint, tmp_path, **settings), PROMPTS[:4])
        endpoint.key = "another"
        with pytest.raises(ValueError, match="the key of PIXLEX_TEST_KEY is refused"):
            generate(ask(endpoint, tmp_path, **settings))
        endpoint.key = SECRET
        assert len(generate(ask(endpoint, tmp_path, **settings))) == len(PROMPTS)
        assert all(endpoint.count(prompt) == 1 for prompt in PROMPTS)


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_list_of_models_that_is_refused_is_no_refused_key(gpt2: SlowModel, status: int) -> None:
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        endpoint.models_status = status
        client = ask(endpoint)
        assert client.context_size is None
        assert {one.finish for one in generate(client).values()} <= {"stop", "length"}


def test_no_key_where_one_is_asked_for(gpt2: SlowModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with (
        serving(Endpoint(gpt2, key=SECRET)) as endpoint,
        pytest.raises(ValueError, match=r"asks for a key: expected one in .* OPENAI_API_KEY"),
    ):
        ask(endpoint)


# No answer at all.


@pytest.mark.parametrize(
    "said",
    [
        error("unsupported"),
        b'{"error": "Unexpected endpoint or method"}',
        b"<html>welcome</html>",
        b"[1, 2]",
        b"{}",
        (405, b"no"),
        (501, b"no"),
        (404, b"<html>nothing here</html>"),
        (403, error("completions are not for this key")),
    ],
)
def test_what_is_no_completion_is_tried_as_a_chat_at_once(gpt2: SlowModel, said: Any) -> None:
    with serving(Endpoint(gpt2)) as endpoint:
        # A chat's prompt is a message; the fault is told the text alone.
        endpoint.fault = lambda text, times: None if '"messages"' in endpoint.received[-1] else said
        client = ask(endpoint, retries=6, concurrency=1)
        assert client.facts.path == "chat/completions"
        assert endpoint.count("The words of an image are: red boat sea. This is a") < 6


def test_an_endpoint_without_either_names_the_option(gpt2: SlowModel) -> None:
    with serving(Endpoint(gpt2)) as endpoint:
        endpoint.fault = lambda text, times: b"<html>welcome</html>"
        with pytest.raises(ValueError, match=r"does not continue texts .*welcome.*--llm-mode chat") as found:
            ask(endpoint)
        assert len(f"{found.value}") < 700


def test_an_error_with_status_200_means_what_its_code_means(gpt2: SlowModel) -> None:
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        said = {
            PROMPTS[1]: error(429),
            PROMPTS[2]: error(403, "moderated"),
            PROMPTS[3]: error("server_error"),
        }
        endpoint.fault = lambda text, times: said.get(text) if text != PROMPTS[1] or times == 0 else None
        found = generate(ask(endpoint))
        assert [number for number in range(12) if found[number].finish == "failed"] == [2, 3]
        assert endpoint.count(PROMPTS[1]) == 2
        endpoint.fault = lambda text, times: error(402) if text == PROMPTS[0] else None
        with pytest.raises(ValueError, match="no quota left"):
            generate(ask(endpoint))


# Answers without text, and with too much of it.


@pytest.mark.parametrize("content", [None, "", " \n", []])
def test_an_answer_without_text_fails_and_is_asked_again(
    gpt2: SlowModel, tmp_path: Path, content: Any
) -> None:
    with serving(Endpoint(gpt2, abilities=CHAT)) as endpoint:
        ask(endpoint, tmp_path)
        endpoint.fault = lambda text, times: chat(content) if text in PROMPTS[::4] else None
        found = generate(ask(endpoint, tmp_path, retries=1))
        assert [number for number in range(12) if found[number].finish == "failed"] == [0, 4, 8]
        assert "no text" in found[0].reason
        assert endpoint.count(PROMPTS[0]) == 2  # once more at once
        endpoint.fault = lambda text, times: None
        assert "failed" not in {one.finish for one in generate(ask(endpoint, tmp_path)).values()}
        assert endpoint.count(PROMPTS[0]) == 3


def test_an_empty_answer_that_an_earlier_version_kept_is_asked_again(gpt2: SlowModel, tmp_path: Path) -> None:
    with serving(Endpoint(gpt2, abilities=CHAT)) as endpoint:
        client = ask(endpoint, tmp_path)
        body = json.loads(endpoint.received[-1])
        generate(client, PROMPTS[:1])
        body = json.loads(endpoint.received[-1])
        kept = {"endpoint": endpoint.url, "path": "chat/completions", "body": body}
        client.cache.put(kept, json.loads(chat(None)))
        assert client.estimate("generate", PROMPTS[:1], max_new_tokens=4).cached == 0
        assert generate(ask(endpoint, tmp_path), PROMPTS[:1])[0].text
        assert endpoint.count(PROMPTS[0]) == 2


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (chat(None, "length", reasoning_content="hm, red"), None),
        (chat("<think>\nhm, red", "length"), None),
        (chat("<think>\n", "stop"), None),  # our own stop ended it
        (chat("<think>\nhm\n</think>\n\na boat"), "a boat"),
        (chat("hm\n</think>\na boat"), "a boat"),
        (chat([{"type": "thinking", "thinking": []}, {"type": "text", "text": "a boat"}]), "a boat"),
    ],
)
def test_thoughts_are_no_answer(gpt2: SlowModel, said: bytes, text: str | None) -> None:
    with serving(Endpoint(gpt2, abilities=CHAT)) as endpoint:
        client = ask(endpoint)
        endpoint.fault = lambda text, times: said
        (answer,) = generate(client, PROMPTS[:1]).values()
        assert answer.text == (text or "")
        assert (answer.finish == "failed") == (text is None)
        assert answer.reason.startswith("no text" if text is None else "")
        assert endpoint.count(PROMPTS[0]) == 1  # it would think as long again


def test_far_more_than_was_asked_for_is_cut_or_refused(gpt2: SlowModel) -> None:
    with serving(Endpoint(gpt2, abilities=CHAT)) as endpoint:
        client = ask(endpoint)
        long = {PROMPTS[0]: chat("boat " * 10_000), PROMPTS[1]: chat("boat " * 4_000_000)}
        endpoint.fault = lambda text, times: long.get(text)
        found = generate(client, PROMPTS[:3])
        assert found[0].finish == "length"
        assert len(found[0].text) < 1_000
        assert found[1].finish == "failed"
        assert "bytes, far beyond the limit asked for" in found[1].reason
        assert endpoint.count(PROMPTS[1]) == 1
        assert found[2].finish != "failed"


@pytest.mark.parametrize(
    "told",
    [
        None,
        {},
        {"tokens": [1, 2], "token_logprobs": [None, -1.0], "text_offset": [0, 1]},
        {"tokens": ["a", "b"], "token_logprobs": [None, "-1"], "text_offset": [0, 1]},
        {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "text_offset": ["0", None]},
        {"tokens": {"a": 1}, "token_logprobs": {"a": 1}, "text_offset": {"a": 1}},
    ],
)
def test_scores_that_are_none_fail_alone(gpt2: SlowModel, told: Any) -> None:
    with serving(Endpoint(gpt2, abilities=frozenset({"completions", "echo"}))) as endpoint:
        client = ask(endpoint)
        said = json.dumps({"choices": [{"text": PROMPTS[0], "logprobs": told}]}).encode()
        endpoint.fault = lambda text, times: said if text.startswith(PROMPTS[0]) else None
        found = dict(client.score(PROMPTS[:2], [[" dax", " wug"]] * 2))
        assert found[0].log_probabilities == ()
        assert found[0].reason
        assert len(found[1].log_probabilities) == 2


def test_what_would_break_a_report_or_a_budget(gpt2: SlowModel) -> None:
    """Halves of characters, endless nesting, tokens below zero."""
    with serving(Endpoint(gpt2, abilities=CHAT)) as endpoint:
        client = ask(endpoint)
        spent = client.budget.spent.total
        below = {**json.loads(chat("x")), "usage": {"prompt_tokens": -(10**9), "completion_tokens": -1}}
        said = {
            PROMPTS[0]: chat("a \ud800 boat"),
            PROMPTS[1]: b"[" * 100_000 + b"]" * 100_000,
            PROMPTS[2]: json.dumps(below).encode(),
        }
        endpoint.fault = lambda text, times: said.get(text)
        found = generate(client, PROMPTS[:3])
        assert found[0].text == "a ? boat"
        assert found[1].finish == "failed"
        assert client.budget.spent.total > spent


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 4097 tokens, however you requested 5000 tokens"),
        (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096"),
        (400, "the request exceeds the available context size. try increasing the context size"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (400, "The input token count (40000) exceeds the maximum number of tokens allowed (32768)"),
        (400, "Please reduce the length of the messages or completion"),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"),
        (413, "Payload Too Large"),
    ],
)
def test_servers_say_in_their_own_words_what_does_not_fit(gpt2: SlowModel, status: int, message: str) -> None:
    with serving(Endpoint(gpt2, abilities=CHAT)) as endpoint:
        client = ask(endpoint)
        endpoint.fault = lambda text, times: (status, error("bad", message))
        (answer,) = generate(client, PROMPTS[:1]).values()
        assert answer.reason.startswith("does not fit: ")
        for other in ("max_tokens is too large: 5000, at most 4096", "flagged", "unknown parameter 'stop'"):
            endpoint.fault = lambda text, times, other=other: (400, error("bad", other))
            (answer,) = generate(client, [f"{PROMPTS[0]} {other}"]).values()
            assert not answer.reason.startswith("does not fit")


# The key.

FORMS = {
    "plain": SECRET,
    "escaped": "".join(f"\\u{ord(letter):04x}" for letter in SECRET),
    "url": quote(SECRET, safe=""),
    "capitals": SECRET.upper(),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "header": base64.b64encode(f"Bearer {SECRET}.".encode()).decode(),
    "user": base64.urlsafe_b64encode(f"me:{SECRET}".encode()).decode(),
    "hex": SECRET.encode().hex(),
    "part": f"{SECRET[:20]}...",
}


def say(kind: str, secret: str) -> Any:
    """An answer of each kind that repeats the key."""
    return {
        "status": (400, error("bad", f"key {secret}")),
        "html": (400, f"<html>key {secret}".encode()),
        "refused": (403, error("bad", f"key {secret}")),
        "no json": f"key {secret}".encode(),
        "list": json.dumps([f"key {secret}"]).replace("\\\\u", "\\u").encode(),
        "no choice": error("bad", f"key {secret}").replace(b"\\\\u", b"\\u"),
        "empty": json.dumps({"key": secret}).encode(),
        "refusal": chat(None, refusal=f"key {secret}").replace(b"\\\\u", b"\\u"),
        "filter": chat(f"key {secret}", "content_filter").replace(b"\\\\u", b"\\u"),
        "answer": chat(f"key {secret}").replace(b"\\\\u", b"\\u"),
        "no text": chat(None, note=f"key {secret}").replace(b"\\\\u", b"\\u"),
    }[kind]


KINDS = (
    "status",
    "html",
    "refused",
    "no json",
    "list",
    "no choice",
    "empty",
    "refusal",
    "filter",
    "answer",
    "no text",
)


def raised(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except ValueError as fault:
        return fault
    return None


def leaks(text: str) -> bool:
    """Whether a text holds the key or a good part of it, in any form."""
    forms = [
        SECRET,
        quote(SECRET, safe=""),
        SECRET.encode().hex(),
        FORMS["base64"][:12],
        FORMS["header"][12:30],
    ]
    lowered = text.lower()
    return any(form.lower() in lowered for form in (*forms, SECRET[:10], SECRET[-10:], FORMS["user"][6:24]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_is_never_repeated(
    gpt2: SlowModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """Neither in what failed, nor in errors and what they carry along, nor on the disk, nor in logs."""
    monkeypatch.setenv("PIXLEX_TEST_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    settings = {"key_variable": "PIXLEX_TEST_KEY", "retries": 0}
    with serving(Endpoint(gpt2, abilities=CHAT)) as endpoint:
        client = ask(endpoint, tmp_path, **settings)
        said = dict(zip(PROMPTS, FORMS.values(), strict=False))
        endpoint.fault = lambda text, times: say(kind, said[text]) if text in said else None
        found = generate(client)
        shown = "\n".join(f"{one.text} {one.reason}" for one in found.values())
        assert not leaks(shown)
        assert "***" in shown or kind in ("filter", "no text", "list", "empty")
        # The first word of an endpoint, too, and the traceback of what it ends in.
        endpoint.fault = lambda text, times: say(kind, SECRET)
        fault = raised(lambda: ask(endpoint, **settings))
        assert (fault is None) == (kind in ("refusal", "filter", "answer"))
        assert not leaks("".join(traceback.format_exception(fault)))
        while fault is not None:  # what tools other than Python's own would show
            assert not leaks(repr(fault))
            fault = fault.__context__
        assert not leaks(caplog.text)
    assert not any(leaks(path.read_bytes().decode(errors="replace")) for path in tmp_path.iterdir())


def test_a_key_in_the_wrong_place_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXLEX_TEST_KEY", SECRET)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    secret = quote(SECRET, safe="")
    for settings in (
        {"base_url": f"http://127.0.0.1:1/{secret}/v1", "key_variable": "PIXLEX_TEST_KEY"},
        {"base_url": f"http://127.0.0.1:1/v1?key={secret}"},
        {"base_url": f"http://127.0.0.1:1/v1#{secret}"},
        {"base_url": f"me:{secret}@127.0.0.1:1/v1"},
        {"base_url": f"ftp://me:{secret}@127.0.0.1:1/v1"},
        {"base_url": "http://127.0.0.1:1/v1", "key_variable": SECRET},
        {"base_url": "http://127.0.0.1:1/v1", "key_variable": "gsk_0123456789abcdefXYZ"},
    ):
        with pytest.raises(ValueError, match=r"key|address") as refused:
            connect(LLMOptions(model="tiny", **settings))
        assert not leaks(f"{refused.value}")
        assert "gsk" not in f"{refused.value}"
    monkeypatch.setenv("PIXLEX_TEST_KEY", f"{SECRET}\n{SECRET}")
    with pytest.raises(ValueError, match="characters that cannot be sent") as refused:
        connect(LLMOptions(model="tiny", base_url="http://127.0.0.1:1/v1", key_variable="PIXLEX_TEST_KEY"))
    assert not leaks(f"{refused.value}")


def test_a_placeholder_of_a_key_hides_no_word() -> None:
    """Servers that want no key are given "none" or "EMPTY": no secret, and perhaps an answer."""
    assert Quoter("dog").hide("a dog") == "a dog"
    assert Quoter("sk-no-key-required").hide("a required parameter") == "a required parameter"
    assert Quoter(SECRET).hide("a" * 2**18 + FORMS["header"]).startswith("aaa")  # in no time
    assert Quoter(None).show("a\x1b[2Jb\n" + "c" * 1000).startswith("a [2Jb cc")
