"""An endpoint that misbehaves: nothing is lost, nothing is counted twice, and what fails says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.eval.llm.server import KEY, Endpoint, ask, generate, serving
from tests.eval.llm.slow import SlowModel

from pixlex.eval.llm import LLMOptions, connect
from pixlex.eval.llm.client import Completion

pytest.importorskip("openai")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PROMPTS = [f"This is image number {number}. This is a" for number in range(24)]
WRITABLE = frozenset({"completions"})


def image(text: str) -> int | None:
    """The number of the prompt in a request; None for a probe's."""
    return PROMPTS.index(text) if text in PROMPTS else None


def check_complete(found: dict[int, Completion], model: SlowModel, failed: set[int]) -> None:
    """Every prompt has one answer, the model's own, or has failed."""
    assert sorted(found) == list(range(len(PROMPTS)))
    for number, answer in found.items():
        if number in failed:
            assert answer.finish == "failed"
            assert answer.reason
        else:
            assert answer.text == model.generate(PROMPTS[number], 4, ())[0]


def test_what_passes_is_sent_again(gpt2: SlowModel, tmp_path: Path) -> None:
    kinds = ["429", "later", "500", "503", "cut", "malformed", "empty", "408"]

    def fault(text: str, times: int) -> str | None:
        number = image(text)
        if number is None or number % 2:
            return None
        kind = kinds[number // 2 % len(kinds)]
        return kind if times < 2 else None

    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        endpoint.fault = fault
        found = generate(ask(endpoint, tmp_path), PROMPTS)
        check_complete(found, gpt2, set())
        assert [endpoint.count(prompt) for prompt in PROMPTS] == [3, 1] * 12
        sent = len(endpoint.received)
        assert generate(ask(endpoint, tmp_path), PROMPTS) == found
        assert len(endpoint.received) == sent


def test_what_does_not_pass_fails_alone_and_is_not_kept(gpt2: SlowModel, tmp_path: Path) -> None:
    kinds = {3: "500", 7: "malformed", 11: "cut", 15: "empty", 19: "400", 22: "filtered"}
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        endpoint.fault = lambda text, times: kinds.get(image(text) or 0)
        found = generate(ask(endpoint, tmp_path), PROMPTS)
        check_complete(found, gpt2, set(kinds))
        reasons = {number: answer.reason for number, answer in found.items()}
        assert "given up after 4 attempts" in reasons[3]
        assert "told to say 400" in reasons[19]
        assert reasons[22] == "refused: content filter"
        assert [endpoint.count(PROMPTS[number]) for number in kinds] == [4, 4, 4, 4, 1, 1]
        # When the endpoint has recovered, what failed is asked again; a refusal was an answer, and paid.
        endpoint.fault = lambda text, times: None
        sent = len(endpoint.received)
        check_complete(generate(ask(endpoint, tmp_path), PROMPTS), gpt2, {22})
        assert len(endpoint.received) == sent + len(kinds) - 1


def test_a_request_that_hangs_is_sent_again(gpt2: SlowModel) -> None:
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        endpoint.gate.clear()
        endpoint.fault = lambda text, times: "hold" if image(text) == 2 and times == 0 else None
        for prompt in PROMPTS:  # what the server has worked out it says at once
            endpoint.generate(prompt, 4, ())
        client = ask(endpoint, timeout=4.0)
        check_complete(generate(client, PROMPTS), gpt2, set())
        assert endpoint.count(PROMPTS[2]) == 2
        # The one that got no answer may have been worked on, and is counted as if it was.
        answered = sum(gpt2.count(prompt) + 4 for prompt in PROMPTS)
        assert client.budget.spent.total > answered


def test_retry_after_is_kept(gpt2: SlowModel) -> None:
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        endpoint.fault = lambda text, times: "later" if image(text) == 0 and times == 0 else None
        client, begun = ask(endpoint), time.monotonic()
        generate(client, PROMPTS[:1])
        assert time.monotonic() - begun >= 0.2


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
    gpt2: SlowModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setenv("PIXLEX_TEST_KEY", KEY)
    settings = {"key_variable": "PIXLEX_TEST_KEY", "concurrency": 2}
    with serving(Endpoint(gpt2, abilities=WRITABLE, key=KEY)) as endpoint:
        endpoint.fault = lambda text, times: fault if image(text) == 10 else None
        client, answered = ask(endpoint, tmp_path, **settings), {}
        with pytest.raises(ValueError, match=message):
            answered.update(client.generate(PROMPTS, max_new_tokens=4, stop=()))
        assert set(answered) >= set(range(10))
        assert 10 not in answered
        assert len(answered) < len(PROMPTS) - 1
        endpoint.fault = lambda text, times: None
        found = generate(ask(endpoint, tmp_path, **settings), PROMPTS)
        check_complete(found, gpt2, set())
        assert len(endpoint.answered) == len(set(endpoint.answered))


def test_a_wrong_key_is_not_shown(gpt2: SlowModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXLEX_TEST_KEY", "sk-wrong-key")
    with serving(Endpoint(gpt2, key=KEY)) as endpoint:  # the server repeats the key that it was given
        with pytest.raises(
            ValueError, match=r"the key of PIXLEX_TEST_KEY is refused: .*Incorrect"
        ) as refused:
            ask(endpoint, key_variable="PIXLEX_TEST_KEY")
        assert "sk-wrong-key" not in f"{refused.value}"
        assert endpoint.received == []


def test_an_unknown_model(gpt2: SlowModel) -> None:
    message = r"does not continue texts with 'tinny': .*does not exist"
    with serving(Endpoint(gpt2)) as endpoint, pytest.raises(ValueError, match=message):
        connect(LLMOptions(model="tinny", base_url=endpoint.url))


def test_without_the_openai_client(gpt2: SlowModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with (
        serving(Endpoint(gpt2)) as endpoint,
        pytest.raises(ModuleNotFoundError, match=r"pip install 'pixlex\[llm\]'"),
    ):
        ask(endpoint)


def test_a_context_that_is_too_small_fails_alone(gpt2: SlowModel) -> None:
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        found = dict(ask(endpoint).generate([PROMPTS[0], "a statement " * 200], max_new_tokens=4, stop=()))
        assert found[0].finish == "length"
        assert found[1].reason.startswith("does not fit: ")
        assert "maximum context length is 256" in found[1].reason


def test_nobody_there(gpt2: SlowModel) -> None:
    with serving(Endpoint(gpt2)) as endpoint:
        pass  # its port is free again
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"http://127.0.0.1:\d+/v1 cannot be reached"):
        connect(LLMOptions(model="tiny", base_url=endpoint.url))
    assert time.monotonic() - begun < 30  # no repeats, which would take a minute


def test_an_endpoint_that_goes_down_or_breaks_for_good(gpt2: SlowModel, tmp_path: Path) -> None:
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        client = ask(endpoint, tmp_path)
        generate(client, PROMPTS[:5])
        endpoint.fault = lambda text, times: "500"
        with pytest.raises(ValueError, match=r"left 1\d requests in a row unanswered, the last one: .*500"):
            generate(client, PROMPTS)
    with pytest.raises(ValueError, match="is down, after 4 attempts"):
        generate(client, PROMPTS)
    assert len(generate(ask(endpoint, tmp_path), PROMPTS[:5])) == 5


def test_a_busy_endpoint_is_not_taken_for_an_unable_one(gpt2: SlowModel, tmp_path: Path) -> None:
    with serving(Endpoint(gpt2)) as endpoint:
        probes = {"count": 0}

        def fault(text: str, times: int) -> str | None:
            probes["count"] += 1
            return "503" if probes["count"] > 1 else None

        endpoint.fault = fault
        with pytest.raises(ValueError, match="did not show what it can do"):
            ask(endpoint, tmp_path)
        endpoint.fault = lambda text, times: None
        assert ask(endpoint, tmp_path).abilities == {"generate", "score", "choose"}


def test_who_stops_listening_stops_the_sending(gpt2: SlowModel) -> None:
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        client = ask(endpoint)
        answers = client.generate(PROMPTS, max_new_tokens=4, stop=())
        next(answers)
        answers.close()  # type: ignore[attr-defined]  # it is a generator
        assert sum(endpoint.count(prompt) for prompt in PROMPTS) <= 2 * 4


PROGRAM = """
import sys
from pathlib import Path
from pixlex.eval.llm import LLMOptions, connect

options = LLMOptions(model="tiny", base_url=sys.argv[1], cache=Path(sys.argv[2]), concurrency=2, retries=0)
client = connect(options)
prompts = sys.stdin.read().split("|")
for number, answer in client.generate(prompts, max_new_tokens=4, stop=()):
    print(number, flush=True)
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_in_the_middle_nothing_is_sent_twice(gpt2: SlowModel, tmp_path: Path) -> None:
    with serving(Endpoint(gpt2, abilities=WRITABLE)) as endpoint:
        endpoint.gate.clear()
        endpoint.fault = lambda text, times: "hold" if (image(text) or 0) >= 9 and times == 0 else None
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, endpoint.url, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write("|".join(PROMPTS))
        process.stdin.close()
        # Both of its workers wait for an answer: all before is answered, and nothing more comes.
        until(lambda: endpoint.held == 2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert process.stdout is not None
        process.stdout.close()
        answered = set(endpoint.answered)
        assert len(answered) > 9  # nine prompts, and the probe
        endpoint.gate.set()
        endpoint.fault = lambda text, times: None

        found = generate(ask(endpoint, tmp_path), PROMPTS)
        check_complete(found, gpt2, set())
        assert all(endpoint.received.count(request) == 1 for request in answered)
        assert len(endpoint.answered) == len(set(endpoint.answered))
        assert sum(endpoint.count(prompt) for prompt in PROMPTS) == len(PROMPTS) + 2
    assert generate(ask(endpoint, tmp_path), PROMPTS) == found  # with the endpoint switched off
