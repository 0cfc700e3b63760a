"""The endpoint client against a real server with a real model: same answers as the local client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.eval.llm.server import (
    ALL,
    KEY,
    Endpoint,
    ask,
    choose,
    generate,
    prompts_of,
    score,
    serving,
    with_names,
)
from tests.eval.llm.slow import SlowModel

from pixlex.eval.llm import LLMOptions, connect
from pixlex.eval.llm.endpoint import EndpointClient
from pixlex.eval.llm.local import LocalClient
from pixlex.eval.llm.sending import SpendingCapReached

pytest.importorskip("openai")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PROMPTS = [
    "This is a",
    "The words of the first image are: module import name. This is a",
    "Input: < object class type >\nOutput:",
    "trailing space ",
]
CANDIDATES = [
    [" dax", " blicket"],
    [" name", " a name", " dax"],
    [" class", " object class"],
    ["dax", "value", " value"],
]
WAYS: list[tuple[frozenset[str], str, str | None]] = [
    (ALL, "completions", "structured_outputs"),
    (ALL - {"structured_outputs"}, "completions", "guided_choice"),
    (frozenset({"completions", "echo"}), "completions", "scores"),
    (frozenset({"completions"}), "completions", None),
    (frozenset({"chat", "json_schema"}), "chat/completions", "json_schema"),
    (frozenset({"chat"}), "chat/completions", None),
]


@pytest.fixture(scope="module")
def local(gpt2: SlowModel) -> LocalClient:
    return LocalClient(gpt2.model, gpt2.tokenizer, LLMOptions(model="tiny"))


@pytest.mark.parametrize(("abilities", "path", "choice"), WAYS)
def test_answers_are_those_of_the_local_client(
    gpt2: SlowModel, local: LocalClient, abilities: frozenset[str], path: str, choice: str | None
) -> None:
    with serving(Endpoint(gpt2, abilities=abilities, overlooks=frozenset({"guided_choice"}))) as endpoint:
        client = ask(endpoint)
        assert (client.facts.path, client.facts.choice) == (path, choice)
        stop = ["e"]
        found = generate(client, PROMPTS, 12, stop)
        assert found == generate(local, PROMPTS, 12, stop)
        assert {answer.finish for answer in found.values()} == {"stop", "length"}
        # In a chat an answer begins with no space: candidates are shown without.
        chat = path.startswith("chat")
        names = [list(dict.fromkeys(n.strip() for n in row)) for row in CANDIDATES] if chat else CANDIDATES
        if choice is None:
            assert "choose" not in client.abilities
            with pytest.raises(ValueError, match="cannot choose with 'tiny'; it can generate"):
                choose(client, PROMPTS, names)
        else:
            assert choose(client, PROMPTS, names) == choose(local, PROMPTS, names)
        if "echo" not in abilities:
            assert "score" not in client.abilities
            with pytest.raises(ValueError, match="cannot score"):
                score(client, PROMPTS, CANDIDATES)
            return
        scores, expected = score(client, PROMPTS, CANDIDATES), score(local, PROMPTS, CANDIDATES)
        assert sorted(scores) == sorted(expected)
        for number, row in scores.items():
            assert row.num_tokens == expected[number].num_tokens
            assert row.log_probabilities == pytest.approx(expected[number].log_probabilities, abs=1e-4)


def test_a_start_token_that_the_server_shows(causal: Path, slow: SlowModel) -> None:
    with serving(Endpoint(slow, shows_start=True)) as endpoint:
        scores = score(ask(endpoint), PROMPTS, CANDIDATES)
        assert not any("<start>" in request for request in endpoint.received)
        for number, expected in score(connect(LLMOptions(model=str(causal))), PROMPTS, CANDIDATES).items():
            assert scores[number].num_tokens == expected.num_tokens
            assert scores[number].log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-4)


def test_no_limit_is_no_way_to_score(gpt2: SlowModel, local: LocalClient) -> None:
    """To llama.cpp's server a limit of 0 tokens is none: one is asked for."""

    class Unlimited(Endpoint):
        def _echo(self, text: str, limit: int) -> dict[str, Any]:
            return super()._echo(text, limit or 50)

    with serving(Unlimited(gpt2, abilities=frozenset({"completions", "echo"}))) as endpoint:
        client = ask(endpoint)
        assert client.facts.echo_tokens == 1
        for number, expected in score(local, PROMPTS, CANDIDATES).items():
            found = score(client, PROMPTS, CANDIDATES)[number]
            assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-4)


def test_what_the_user_says_counts(gpt2: SlowModel) -> None:
    """Where to ask, the size of the context, how tokens are counted."""
    with serving(Endpoint(gpt2, context=199)) as endpoint:
        assert ask(endpoint, mode="chat").facts.path == "chat/completions"
        client = ask(endpoint, mode="completions")
        assert client.facts.path == "completions"
        assert client.context_size == 199
        exact = [gpt2.count(prompt) for prompt in PROMPTS]
        assert all(bound >= count for bound, count in zip(client.count_tokens(PROMPTS), exact, strict=True))
        client = ask(endpoint, context_size=64, tokenizer=gpt2.tokenizer.name_or_path)
        assert client.context_size == 64
        assert client.count_tokens(PROMPTS) == exact


def test_parameters_that_are_refused_are_left_out(gpt2: SlowModel) -> None:
    class Particular(Endpoint):
        def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            said = {
                "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
                "stop": "Unsupported parameter: 'stop'.",
            }
            for name, message in said.items():
                if name in body:
                    return 400, {"error": {"message": message, "param": name, "code": "unsupported"}}
            return super().answer(path, {**body, "max_tokens": body["max_completion_tokens"]})

    with serving(Particular(gpt2, abilities=frozenset({"chat"}))) as endpoint:
        client = ask(endpoint)
        assert client.facts.limit_field == "max_completion_tokens"
        assert (client.facts.temperature, client.facts.stops) == (False, False)
        # The stop cuts the text all the same.
        answer = generate(client, [PROMPTS[0]], 12, ["e"])[0]
        assert answer.text == gpt2.generate(PROMPTS[0], 12, ["e"])[0]


def test_identical_requests_are_sent_once(gpt2: SlowModel) -> None:
    with serving(Endpoint(gpt2)) as endpoint:
        client = ask(endpoint, concurrency=8)
        prompts = [PROMPTS[0]] * 20 + [PROMPTS[1]] * 20
        found = generate(client, prompts, 5)
        assert len(found) == 40
        assert endpoint.count(PROMPTS[0]) == endpoint.count(PROMPTS[1]) == 1


def test_a_cached_run_does_not_connect(gpt2: SlowModel, tmp_path: Path) -> None:
    def everything(client: EndpointClient) -> list[dict[int, Any]]:
        return [
            generate(client, PROMPTS, 5, ["\n"]),
            score(client, PROMPTS, CANDIDATES),
            choose(client, PROMPTS, CANDIDATES),
        ]

    with serving(Endpoint(gpt2, key=KEY)) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXLEX_TEST_KEY", KEY)
        first = ask(endpoint, cache=tmp_path, key_variable="PIXLEX_TEST_KEY")
        answers, sent = everything(first), len(endpoint.received)
        assert everything(first) == answers
        assert len(endpoint.received) == sent
    # No server, no key.
    again = ask(endpoint, cache=tmp_path, key_variable="PIXLEX_TEST_KEY")
    assert everything(again) == answers
    assert (again.identity, again.abilities, again.context_size) == (
        first.identity,
        first.abilities,
        first.context_size,
    )
    assert again.budget.spent.total == 0
    with pytest.raises(ValueError, match=r"expected the endpoint's key in .* PIXLEX_TEST_KEY, got none"):
        generate(again, ["another prompt"], 5)
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_estimate_is_what_is_left_and_holds(gpt2: SlowModel, tmp_path: Path) -> None:
    with serving(Endpoint(gpt2)) as endpoint:
        client = ask(endpoint, cache=tmp_path, input_price=2.0, output_price=10.0)
        generate(client, PROMPTS[:1], 5)
        before = client.budget.spent
        estimate = client.estimate("generate", prompts_of(PROMPTS), 5)
        assert (estimate.requests, estimate.cached) == (3, 1)
        assert estimate.usage.answer == 15
        assert estimate.cost == pytest.approx((estimate.usage.prompt * 2 + 150) / 1e6)
        generate(client, PROMPTS, 5)
        taken = client.budget.spent - before
        assert 0 < taken.prompt <= estimate.usage.prompt
        assert 0 < taken.answer <= 15
        assert taken.prompt == sum(gpt2.count(prompt) for prompt in PROMPTS[1:])
        scores = client.estimate("score", with_names(PROMPTS, CANDIDATES))
        assert scores.requests == sum(len(row) for row in CANDIDATES)


@pytest.mark.parametrize("cap", ["tokens", "money"])
def test_spending_stops_before_the_cap(gpt2: SlowModel, tmp_path: Path, cap: str) -> None:
    prompts = [f"{prompt} {number}" for number in range(10) for prompt in PROMPTS]
    with serving(Endpoint(gpt2)) as endpoint:
        ask(endpoint, cache=tmp_path)  # the probe is paid
        limit = 600
        caps = {"max_tokens": limit} if cap == "tokens" else {"max_cost": limit / 1e6}
        client = ask(endpoint, cache=tmp_path, input_price=1.0, output_price=1.0, **caps)
        answered = {}
        with pytest.raises(SpendingCapReached, match="stopped before the spending cap"):
            answered.update(client.ask("generate", prompts_of(prompts), 6))
        sent = len(endpoint.received)
        assert 0 < len(answered) < len(prompts)
        assert 300 < client.budget.spent.total <= limit
        # What was answered is kept: it is free, and the rest is all that is sent.
        free = ask(endpoint, cache=tmp_path, max_tokens=0)
        assert generate(free, [prompts[n] for n in answered], 6) == dict(enumerate(answered.values()))
        assert len(endpoint.received) == sent
        found = generate(ask(endpoint, cache=tmp_path), prompts, 6)
        assert len(found) == len(prompts)
        assert len(endpoint.received) == sent + len(prompts) - len(answered)
        assert len(set(endpoint.received)) == len(endpoint.received)


def test_bad_input(gpt2: SlowModel, tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_text("no cache " * 1000)
    url = "http://127.0.0.1:1/v1"
    for settings, message in (
        ({"base_url": "localhost:8000"}, "expected an address like"),
        ({"base_url": url, "max_cost": 1.0}, "needs the prices"),
        (
            {"base_url": url, "input_price": 1.0},
            r"both prices or none, got 1\.0 for input and None for output",
        ),
        ({"base_url": url, "concurrency": 0}, "concurrency must be 1 or more, got 0"),
        ({"base_url": url, "cache": tmp_path}, r"answers\.sqlite: expected a folder for answers"),
    ):
        with pytest.raises(ValueError, match=message):
            connect(LLMOptions(model="tiny", **settings))
    with (
        serving(Endpoint(gpt2)) as endpoint,
        pytest.raises(ValueError, match="candidates that are not empty"),
    ):
        choose(ask(endpoint), ["a"], [["x", ""]])
