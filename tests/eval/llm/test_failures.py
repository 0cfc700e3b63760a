"""An endpoint that misbehaves: nothing is lost or paid twice, what fails says why, the key is never repeated."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.eval.llm.server import KEY, Endpoint, ask, generate, prompts_of, score, serving
from tests.eval.llm.slow import SlowModel

from pixlex.eval.llm import LLMOptions, connect
from pixlex.eval.llm.client import Reply
from pixlex.eval.llm.sending import Quoter

pytest.importorskip("openai")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PROMPTS = [f"This is image number {number}. This is a" for number in range(24)]
FEW = PROMPTS[:12]
SECRET = "sk-proj/Ab+9-0123456789xyzKLMNOP"


def image(text: str) -> int | None:
    """The number of the prompt in a request; None for a probe's."""
    return PROMPTS.index(text) if text in PROMPTS else None


def failed(found: dict[int, Reply]) -> list[int]:
    return sorted(number for number, answer in found.items() if answer.finish == "failed")


def check_complete(found: dict[int, Reply], model: SlowModel, failures: list[int]) -> None:
    """Every prompt has one answer, the model's own, or has failed."""
    assert sorted(found) == list(range(len(PROMPTS)))
    assert failed(found) == failures
    for number, answer in found.items():
        if number in failures:
            assert answer.reason
        else:
            assert answer.text == model.written(PROMPTS[number], 4, ())[0]


def chat(content: Any, finish: str = "stop", **rest: Any) -> bytes:
    message = {"role": "assistant", "content": content, **rest}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).encode()


def error(code: Any, message: str = "told") -> bytes:
    return json.dumps({"error": {"message": message, "code": code}}).encode()


# What passes, what fails alone, what ends the run.


def test_what_passes_is_sent_again(texts: Endpoint, gpt2: SlowModel, tmp_path: Path) -> None:
    kinds = ["429", "later", "500", "503", "cut", "malformed", "empty", "408"]

    def fault(text: str, times: int) -> str | None:
        number = image(text)
        return (
            kinds[number // 2 % len(kinds)] if number is not None and number % 2 == 0 and times < 2 else None
        )

    texts.fault = fault
    found = generate(ask(texts, tmp_path), PROMPTS)
    check_complete(found, gpt2, [])
    assert [texts.count(prompt) for prompt in PROMPTS] == [3, 1] * 12
    sent = len(texts.received)
    assert generate(ask(texts, tmp_path), PROMPTS) == found
    assert len(texts.received) == sent


def test_what_does_not_pass_fails_alone_and_is_not_kept(
    texts: Endpoint, gpt2: SlowModel, tmp_path: Path
) -> None:
    kinds = {3: "500", 7: "malformed", 11: "cut", 15: "empty", 19: "400", 22: "filtered"}
    texts.fault = lambda text, times: kinds.get(image(text) or 0)
    found = generate(ask(texts, tmp_path), PROMPTS)
    check_complete(found, gpt2, list(kinds))
    assert "given up after 4 attempts" in found[3].reason
    assert "told to say 400" in found[19].reason
    assert found[22].reason == "refused: content filter"
    assert [texts.count(PROMPTS[number]) for number in kinds] == [4, 4, 4, 4, 1, 1]
    # When the endpoint has recovered, what failed is asked again; a refusal was an answer, and paid.
    texts.fault = lambda text, times: None
    sent = len(texts.received)
    check_complete(generate(ask(texts, tmp_path), PROMPTS), gpt2, [22])
    assert len(texts.received) == sent + len(kinds) - 1


def test_a_request_that_hangs_is_sent_again(texts: Endpoint, gpt2: SlowModel) -> None:
    texts.gate.clear()
    texts.fault = lambda text, times: "hold" if image(text) == 2 and times == 0 else None
    for prompt in PROMPTS:  # what the server has worked out it says at once
        texts.generate(prompt, 4, ())
    client = ask(texts, timeout=2.0)
    check_complete(generate(client, PROMPTS), gpt2, [])
    assert texts.count(PROMPTS[2]) == 2
    # The one that got no answer may have been worked on, and is counted as if it was.
    assert client.budget.spent.total > sum(gpt2.count(prompt) + 4 for prompt in PROMPTS)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no money", "no quota left for the key of PIXLEX_TEST_KEY: .*quota exceeded"),
        ("much later", "asks to wait 86400 s"),
        ("much later by date", r"asks to wait 86\d\d\d(\.\d+)? s"),
        ("404", "does not know 'tiny'"),
    ],
)
def test_what_fails_them_all_ends_the_run_and_loses_nothing(
    texts: Endpoint,
    gpt2: SlowModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    message: str,
) -> None:
    monkeypatch.setenv("PIXLEX_TEST_KEY", KEY)
    settings = {"key_variable": "PIXLEX_TEST_KEY", "concurrency": 2}
    texts.key = KEY
    texts.fault = lambda text, times: fault if image(text) == 10 else None
    answered: dict[int, Reply] = {}
    with pytest.raises(ValueError, match=message):
        answered.update(ask(texts, tmp_path, **settings).ask("generate", prompts_of(PROMPTS), 4))
    assert set(answered) >= set(range(10))
    assert 10 not in answered
    assert len(answered) < len(PROMPTS) - 1
    texts.fault = lambda text, times: None
    check_complete(generate(ask(texts, tmp_path, **settings), PROMPTS), gpt2, [])
    assert len(texts.answered) == len(set(texts.answered))


def test_nobody_there_goes_down_or_breaks_for_good(gpt2: SlowModel, tmp_path: Path) -> None:
    with serving(Endpoint(gpt2, abilities=frozenset({"completions"}))) as endpoint:
        client = ask(endpoint, tmp_path)
        generate(client, PROMPTS[:5])
        endpoint.fault = lambda text, times: "500"
        with pytest.raises(ValueError, match=r"left 1\d requests in a row unanswered, the last one: .*500"):
            generate(client, PROMPTS)
    with pytest.raises(ValueError, match="is down, after 4 attempts"):
        generate(client, PROMPTS)
    assert len(generate(ask(endpoint, tmp_path), PROMPTS[:5])) == 5
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"http://127.0.0.1:\d+/v1 cannot be reached"):
        ask(endpoint, retries=9)
    assert time.monotonic() - start < 10  # no repeats


def test_a_busy_endpoint_is_not_taken_for_an_unable_one(gpt2: SlowModel, tmp_path: Path) -> None:
    with serving(Endpoint(gpt2)) as endpoint:
        endpoint.fault = lambda text, times: "503" if len(endpoint.received) > 1 else None
        with pytest.raises(ValueError, match="did not show what it can do"):
            ask(endpoint, tmp_path)
        endpoint.fault = lambda text, times: None
        assert ask(endpoint, tmp_path).abilities == {"generate", "score", "choose"}


def test_who_stops_listening_stops_the_sending(texts: Endpoint) -> None:
    answers = ask(texts).ask("generate", prompts_of(PROMPTS), 4)
    next(answers)
    answers.close()  # type: ignore[attr-defined]  # it is a generator
    assert sum(texts.count(prompt) for prompt in PROMPTS) <= 2 * 4


PROGRAM = """
import sys
from pathlib import Path
from pixlex.eval.llm import LLMOptions, connect
from pixlex.eval.llm.client import Prompt

options = LLMOptions(model="tiny", base_url=sys.argv[1], cache=Path(sys.argv[2]), concurrency=2, retries=0)
prompts = [Prompt(text=text) for text in sys.stdin.read().split("|")]
for number, answer in connect(options).ask("generate", prompts, 4):
    print(number, flush=True)
"""


def test_killed_in_the_middle_nothing_is_sent_twice(texts: Endpoint, gpt2: SlowModel, tmp_path: Path) -> None:
    texts.gate.clear()
    texts.fault = lambda text, times: "hold" if (image(text) or 0) >= 9 and times == 0 else None
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, texts.url, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write("|".join(PROMPTS))
    process.stdin.close()
    # Both of its workers wait for an answer: all before is answered, and nothing more comes.
    deadline = time.monotonic() + 120
    while texts.held < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    answered = set(texts.answered)
    assert len(answered) > 9  # nine prompts, and the probe
    texts.gate.set()
    texts.fault = lambda text, times: None
    check_complete(generate(ask(texts, tmp_path), PROMPTS), gpt2, [])
    assert all(texts.received.count(request) == 1 for request in answered)
    assert len(texts.answered) == len(set(texts.answered))
    assert sum(texts.count(prompt) for prompt in PROMPTS) == len(PROMPTS) + 2


# The key, one prompt, the model, the list of models.


@pytest.mark.parametrize(("status", "body"), [(401, error("moderation")), (403, b"<html>blocked</html>")])
def test_a_refused_prompt_is_one_failed_answer(
    texts: Endpoint, tmp_path: Path, status: int, body: bytes
) -> None:
    """Also the first of a run that goes on, where nothing was answered yet that shows that the key works."""
    ask(texts, tmp_path)  # what it can do is remembered
    texts.fault = lambda text, times: (status, body) if text in (PROMPTS[0], *PROMPTS[3:6]) else None
    found = generate(ask(texts, tmp_path), FEW)
    assert failed(found) == [0, 3, 4, 5]
    assert found[4].reason.startswith("refused: ")
    assert all(texts.count(prompt) == 1 for prompt in PROMPTS[3:6])


def test_a_key_that_is_wrong_missing_or_withdrawn(
    texts: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("PIXLEX_TEST_KEY", "sk-wrong-key")
    settings = {"key_variable": "PIXLEX_TEST_KEY"}
    texts.key = SECRET  # the server repeats the key that it was given
    with pytest.raises(ValueError, match=r"the key of PIXLEX_TEST_KEY is refused: .*Incorrect") as refused:
        ask(texts, **settings)
    assert "sk-wrong-key" not in f"{refused.value}"
    with pytest.raises(ValueError, match=r"asks for a key: expected one in .* OPENAI_API_KEY"):
        ask(texts)
    assert texts.received == []
    monkeypatch.setenv("PIXLEX_TEST_KEY", SECRET)
    client = ask(texts, tmp_path, **settings)
    generate(client, PROMPTS[:4])
    texts.key = "another"
    with pytest.raises(ValueError, match="the key of PIXLEX_TEST_KEY is refused"):
        generate(client, FEW)
    texts.key = SECRET
    assert failed(generate(ask(texts, tmp_path, **settings), FEW)) == []
    assert all(texts.count(prompt) == 1 for prompt in FEW)


def test_a_list_of_models_that_is_refused_is_no_refused_key(texts: Endpoint) -> None:
    for texts.models_status in (401, 404, 500):
        client = ask(texts)
        assert client.context_size is None
        assert failed(generate(client, FEW[:2])) == []


def test_an_unknown_model_and_a_missing_package(texts: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"does not continue texts with 'tinny': .*does not exist"):
        connect(LLMOptions(model="tinny", base_url=texts.url))
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pixlex\[llm\]'"):
        ask(texts)


# No answer at all.


@pytest.mark.parametrize(
    "said",
    [
        error("unsupported"),
        b'{"error": "Unexpected endpoint or method"}',
        b"<html>welcome</html>",
        b"{}",
        (405, b"no"),
        (404, b"<html>nothing here</html>"),
        (403, error("completions are not for this key")),
    ],
)
def test_what_is_no_completion_is_tried_as_a_chat_at_once(gpt2: SlowModel, said: Any) -> None:
    with serving(Endpoint(gpt2)) as endpoint:
        # A chat's prompt is a message; the fault is told the text alone.
        endpoint.fault = lambda text, times: None if '"messages"' in endpoint.received[-1] else said
        assert ask(endpoint, retries=6, concurrency=1).facts.path == "chat/completions"
        assert endpoint.count("The words of an image are: red boat sea. This is a") < 6


def test_an_endpoint_without_either_names_the_option(texts: Endpoint) -> None:
    texts.fault = lambda text, times: b"<html>welcome</html>"
    with pytest.raises(ValueError, match=r"does not continue texts .*welcome.*--llm-mode chat") as found:
        ask(texts)
    assert len(f"{found.value}") < 700


def test_an_error_with_status_200_means_what_its_code_means(texts: Endpoint) -> None:
    said = {PROMPTS[1]: error(429), PROMPTS[2]: error(403, "moderated"), PROMPTS[3]: error("server_error")}
    texts.fault = lambda text, times: said.get(text) if text != PROMPTS[1] or times == 0 else None
    assert failed(generate(ask(texts), FEW)) == [2, 3]
    assert texts.count(PROMPTS[1]) == 2
    texts.fault = lambda text, times: error(402) if text == PROMPTS[0] else None
    with pytest.raises(ValueError, match="no quota left"):
        generate(ask(texts), FEW)


# Answers without text, and with too much of it.


def test_an_answer_without_text_fails_and_is_asked_again(chats: Endpoint, tmp_path: Path) -> None:
    ask(chats, tmp_path)
    said = dict(zip(FEW[::3], map(chat, (None, "", " \n", [])), strict=True))
    chats.fault = lambda text, times: said.get(text)
    found = generate(ask(chats, tmp_path, retries=1), FEW)
    assert failed(found) == [0, 3, 6, 9]
    assert "no text" in found[0].reason
    assert chats.count(PROMPTS[0]) == 2  # once more at once
    chats.fault = lambda text, times: None
    assert failed(generate(ask(chats, tmp_path), FEW)) == []
    assert chats.count(PROMPTS[0]) == 3


def test_reasoning_is_no_answer(chats: Endpoint) -> None:
    said = {
        PROMPTS[0]: chat(None, "length", reasoning_content="hm, red"),
        PROMPTS[1]: chat("<think>\nhm, red", "length"),
        PROMPTS[2]: chat("<think>\n", "stop"),  # our own stop ended it
        PROMPTS[3]: chat("<think>\nhm\n</think>\n\na boat"),
        PROMPTS[4]: chat("hm\n</think>\na boat"),
        PROMPTS[5]: chat([{"type": "thinking", "thinking": []}, {"type": "text", "text": "a boat"}]),
    }
    client = ask(chats)
    chats.fault = lambda text, times: said.get(text)
    found = generate(client, PROMPTS[:6])
    assert failed(found) == [0, 1, 2]
    assert all(found[number].reason.startswith("no text") for number in range(3))
    assert [found[number].text for number in range(6)] == [""] * 3 + ["a boat"] * 3
    assert all(chats.count(prompt) == 1 for prompt in said)  # it would reason as long again


def test_far_more_than_was_asked_for_is_cut_or_refused(chats: Endpoint) -> None:
    client = ask(chats)
    long = {PROMPTS[0]: chat("boat " * 10_000), PROMPTS[1]: chat("boat " * 4_000_000)}
    chats.fault = lambda text, times: long.get(text)
    found = generate(client, PROMPTS[:3])
    assert found[0].finish == "length"
    assert len(found[0].text) < 1_000
    assert failed(found) == [1]
    assert "bytes, far beyond the limit asked for" in found[1].reason
    assert chats.count(PROMPTS[1]) == 1


def test_scores_that_are_none_fail_alone(gpt2: SlowModel) -> None:
    told = (
        None,
        {"tokens": [1, 2], "token_logprobs": [None, -1.0], "text_offset": [0, 1]},
        {"tokens": ["a", "b"], "token_logprobs": [None, "-1"], "text_offset": [0, 1]},
        {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "text_offset": ["0", None]},
        {"tokens": {"a": 1}, "token_logprobs": {"a": 1}, "text_offset": {"a": 1}},
    )

    def fault(text: str, times: int) -> bytes | None:
        of = [number for number in range(5) if text.startswith(f"{PROMPTS[number]} ")]
        return json.dumps({"choices": [{"text": text, "logprobs": told[of[0]]}]}).encode() if of else None

    with serving(Endpoint(gpt2, abilities=frozenset({"completions", "echo"}))) as endpoint:
        client = ask(endpoint)
        endpoint.fault = fault
        found = score(client, PROMPTS[:6], [[" dax", " wug"]] * 6)
        assert all(found[number].log_probabilities == () and found[number].reason for number in range(5))
        assert len(found[5].log_probabilities) == 2


def test_what_would_break_a_report_or_a_budget(chats: Endpoint) -> None:
    """Halves of characters, endless nesting, tokens below zero."""
    client = ask(chats)
    spent = client.budget.spent.total
    below = {**json.loads(chat("x")), "usage": {"prompt_tokens": -(10**9), "completion_tokens": -1}}
    said = {
        PROMPTS[0]: chat("a \ud800 boat"),
        PROMPTS[1]: b"[" * 100_000 + b"]" * 100_000,
        PROMPTS[2]: json.dumps(below).encode(),
    }
    chats.fault = lambda text, times: said.get(text)
    found = generate(client, PROMPTS[:3])
    assert found[0].text == "a ? boat"
    assert failed(found) == [1]
    assert client.budget.spent.total > spent


def test_servers_say_in_their_own_words_what_does_not_fit(chats: Endpoint) -> None:
    said = [
        (400, "This model's maximum context length is 4097 tokens, however you requested 5000 tokens"),
        (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096"),
        (400, "the request exceeds the available context size. try increasing the context size"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (400, "The input token count (40000) exceeds the maximum number of tokens allowed (32768)"),
        (400, "Please reduce the length of the messages or completion"),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"),
        (413, "Payload Too Large"),
        (400, "max_tokens is too large: 5000, at most 4096"),  # the others mean something else
        (400, "flagged"),
        (400, "unknown parameter 'stop'"),
    ]
    client = ask(chats)
    answers = {text: (status, error("bad", one)) for text, (status, one) in zip(PROMPTS, said, strict=False)}
    chats.fault = lambda text, times: answers.get(text)
    found = generate(client, PROMPTS[: len(said)])
    assert {number for number, one in found.items() if one.reason.startswith("does not fit: ")} == {*range(8)}


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


def unescaped(said: bytes) -> bytes:
    return said.replace(b"\\\\u", b"\\u")


# Answers of each kind that repeat the key.
KINDS: dict[str, Callable[[str], Any]] = {
    "status": lambda secret: (400, error("bad", f"key {secret}")),
    "html": lambda secret: (400, f"<html>key {secret}".encode()),
    "refused": lambda secret: (403, error("bad", f"key {secret}")),
    "no json": lambda secret: f"key {secret}".encode(),
    "list": lambda secret: unescaped(json.dumps([f"key {secret}"]).encode()),
    "no choice": lambda secret: unescaped(error("bad", f"key {secret}")),
    "empty": lambda secret: json.dumps({"key": secret}).encode(),
    "refusal": lambda secret: unescaped(chat(None, refusal=f"key {secret}")),
    "filter": lambda secret: unescaped(chat(f"key {secret}", "content_filter")),
    "answer": lambda secret: unescaped(chat(f"key {secret}")),
    "no text": lambda secret: unescaped(chat(None, note=f"key {secret}")),
}


def raised(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except ValueError as fault:
        return fault
    return None


def leaks(text: str) -> bool:
    """Whether a text holds the key or a good part of it, in any form."""
    forms = [SECRET, SECRET[:10], SECRET[-10:], quote(SECRET, safe=""), SECRET.encode().hex()]
    forms += [FORMS["base64"][:12], FORMS["header"][12:30], FORMS["user"][6:24]]
    return any(form.lower() in text.lower() for form in forms)


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_is_never_repeated(
    chats: Endpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """Neither in what failed, nor in errors and what they carry along, nor on the disk, nor in logs."""
    monkeypatch.setenv("PIXLEX_TEST_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    settings = {"key_variable": "PIXLEX_TEST_KEY", "retries": 0}
    client = ask(chats, tmp_path, **settings)
    said = dict(zip(PROMPTS, FORMS.values(), strict=False))
    chats.fault = lambda text, times: KINDS[kind](said[text]) if text in said else None
    shown = "\n".join(f"{one.text} {one.reason}" for one in generate(client, FEW).values())
    assert not leaks(shown)
    assert "***" in shown or kind in ("filter", "no text", "list", "empty")
    # The first word of an endpoint, too, and the traceback of what it ends in.
    chats.fault = lambda text, times: KINDS[kind](SECRET)
    fault = raised(lambda: ask(chats, **settings))
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
    secret, url = quote(SECRET, safe=""), "http://127.0.0.1:1"
    for settings in (
        {"base_url": f"{url}/{secret}/v1", "key_variable": "PIXLEX_TEST_KEY"},
        {"base_url": f"{url}/v1?key={secret}"},
        {"base_url": f"{url}/v1#{secret}"},
        {"base_url": f"me:{secret}@127.0.0.1:1/v1"},
        {"base_url": f"ftp://me:{secret}@127.0.0.1:1/v1"},
        {"base_url": f"{url}/v1", "key_variable": SECRET},
        {"base_url": f"{url}/v1", "key_variable": "gsk_0123456789abcdefXYZ"},
    ):
        with pytest.raises(ValueError, match=r"key|address") as refused:
            connect(LLMOptions(model="tiny", **settings))
        assert not leaks(f"{refused.value}")
        assert "gsk" not in f"{refused.value}"
    monkeypatch.setenv("PIXLEX_TEST_KEY", f"{SECRET}\n{SECRET}")
    with pytest.raises(ValueError, match="characters that cannot be sent") as refused:
        connect(LLMOptions(model="tiny", base_url=f"{url}/v1", key_variable="PIXLEX_TEST_KEY"))
    assert not leaks(f"{refused.value}")


def test_a_placeholder_of_a_key_hides_no_word() -> None:
    """Servers that want no key are given "none" or "EMPTY": no secret, and perhaps an answer."""
    assert Quoter("dog").hide("a dog") == "a dog"
    assert Quoter("sk-no-key-required").hide("a required parameter") == "a required parameter"
    assert Quoter(SECRET).hide("a" * 2**18 + FORMS["header"]).startswith("aaa")  # in no time
    assert Quoter("").show("a\x1b[2Jb\n" + "c" * 1000).startswith("a [2Jb cc")
