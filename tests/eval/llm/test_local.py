"""The local client against the same model asked the slow way."""

from __future__ import annotations

import copy
import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.eval.llm.server import choose, generate, score
from tests.eval.llm.slow import SlowModel
from tests.eval.llm.tiny_causal import CONTEXT, END, byte_tokenizer

from pixlex.eval.llm import LLMOptions, connect
from pixlex.eval.llm.client import Prompt
from pixlex.eval.llm.local import Encoded, LocalClient
from pixlex.eval.llm.protocol import ScoredToken, choose_by_scores

PROMPTS = [
    "This is a",
    "The words of the first image are: module import name. This is a",
    "Input: < object class type >\nOutput:",
    "a",
    "trailing space ",
    "The value of a statement is " * 6,
]
CANDIDATES = [
    [" dax", " blicket"],
    [" name", " names", " a name", " dax"],
    [" class", " classes"],
    [" type object", " type error", " type"],
    ["dax", "value", " value"],
    [" über", " naïve café", " dax"],
]


@pytest.fixture(scope="module")
def client(causal: Path) -> LocalClient:
    local = connect(LLMOptions(model=str(causal), batch_size=4))
    assert isinstance(local, LocalClient)
    return local


def test_writing_is_that_of_the_slow_way(client: LocalClient, slow: SlowModel) -> None:
    stop = ["e", "\n"]
    found = generate(client, PROMPTS, 12, stop)
    assert sorted(found) == list(range(len(PROMPTS)))
    for number, prompt in enumerate(PROMPTS):
        text, finish, _ = slow.generate(prompt, 12, stop)
        assert (found[number].text, found[number].finish) == (text, finish)
    # The stops were met by some and not by others: else this test would see half of it.
    assert {answer.finish for answer in found.values()} == {"stop", "length"}


def test_the_end_of_the_text_ends_the_writing(client: LocalClient, slow: SlowModel) -> None:
    # Make the token that is written third the end of the text.
    ids = slow.tokenizer(PROMPTS[1])["input_ids"]
    text, _, _ = slow.generate(PROMPTS[1], 3, ())
    tokens = list(ids)
    for _ in range(3):
        tokens.append(int(slow.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    assert len(set(tokens[-3:])) == 3
    model = copy.deepcopy(slow.model)
    model.generation_config.eos_token_id = [tokens[-1]]
    ending = LocalClient(model, slow.tokenizer, LLMOptions(model="tiny"))
    answer = generate(ending, [PROMPTS[1]], 9)[0]
    assert answer.finish == "stop"
    assert answer.text == slow.generate(PROMPTS[1], 2, ())[0]
    assert answer.text != text


def test_scores_are_those_of_the_slow_way(client: LocalClient, slow: SlowModel) -> None:
    found = score(client, PROMPTS, CANDIDATES)
    assert sorted(found) == list(range(len(PROMPTS)))
    for number, prompt in enumerate(PROMPTS):
        expected = [slow.score(prompt, candidate) for candidate in CANDIDATES[number]]
        assert found[number].num_tokens == tuple(count for _, count in expected)
        assert found[number].log_probabilities == pytest.approx(
            [score for score, _ in expected], rel=1e-4, abs=1e-4
        )


def test_what_prompts_share_is_read_once(client: LocalClient, slow: SlowModel) -> None:
    """Variants of one prompt, as calibration asks them, between others; names of one token and of more."""
    shared = "module import name -> class\nobject type error -> value\n"
    texts = ["This is a", *(f"{shared}{words} ->" for words in ("name import", "N/A", "[MASK]", "")), "a"]
    names = [[" class", " value", " a statement"]] * len(texts)
    read: list[int] = []
    forward = client._forward
    client._forward = lambda tokens, *rest, **more: (  # type: ignore[method-assign]
        read.append(tokens.numel()) or forward(tokens, *rest, **more)
    )
    try:
        found = score(client, texts, names)
    finally:
        del client._forward
    for number, text in enumerate(texts):
        expected = [slow.score(text, name) for name in names[number]]
        assert found[number].log_probabilities == pytest.approx(
            [one for one, _ in expected], rel=1e-4, abs=1e-4
        )
        assert found[number].num_tokens == tuple(count for _, count in expected)
    assert sum(read) < sum(slow.count(text) for text in texts) + 12 * slow.count(" a statement") * 9


def test_choices_are_those_of_the_slow_way(client: LocalClient, slow: SlowModel) -> None:
    found = choose(client, PROMPTS, CANDIDATES)
    expected = [slow.choose(prompt, names) for prompt, names in zip(PROMPTS, CANDIDATES, strict=True)]
    assert [found[number].text for number in range(len(PROMPTS))] == expected


def test_mixtures_are_those_of_the_slow_way(client: LocalClient, slow: SlowModel) -> None:
    """At each place the likeliest token that any candidate has there, whatever was written before."""
    found = choose(client, PROMPTS, CANDIDATES, "mix")
    for number, (prompt, names) in enumerate(zip(PROMPTS, CANDIDATES, strict=True)):
        texts = [slow.tokenizer(prompt + name)["input_ids"] for name in names]
        written: list[int] = []
        while rows := [row for row in texts if len(row) > len(written)]:
            allowed = sorted({row[len(written)] for row in rows})
            logits = slow._logits(written)[-1] if len(allowed) > 1 else None
            written.append(allowed[0] if logits is None else allowed[int(logits[allowed].argmax())])
        assert f"{prompt}{found[number].text}" == slow._text(written)


def test_a_candidate_that_grows_together_with_the_prompt() -> None:
    tokenizer = byte_tokenizer()
    prompt, candidate = "the stat", "ement"
    alone, together = (len(tokenizer(text)["input_ids"]) for text in (prompt, prompt + candidate))
    apart = alone + len(tokenizer(candidate)["input_ids"])
    assert together < apart, "this prompt and candidate must share a token for the test to say anything"

    def tokenize(text: str) -> Any:
        return tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)

    encoded = Encoded.of(tokenize, [(prompt, Prompt(text=prompt, candidates=(candidate, "us")))])
    for rest, text in zip(encoded.rests, (candidate, "us"), strict=True):
        assert [*encoded.prefix, *rest] == tokenizer(prompt + text)["input_ids"]


def _short_of_memory(model: Any, room: int) -> tuple[Any, list[int]]:
    """A model on a device with memory for a batch of so many, and the sizes of the batches that it was given."""
    short, sizes = copy.deepcopy(model), []
    forward = short.forward

    @functools.wraps(forward)
    def limited(input_ids: torch.Tensor, **rest: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > room:
            raise torch.OutOfMemoryError("no memory left")
        return forward(input_ids=input_ids, **rest)

    short.forward = limited
    return short, sizes


def test_half_the_batch_where_memory_is_short(client: LocalClient, slow: SlowModel) -> None:
    model, sizes = _short_of_memory(slow.model, room=2)
    short = LocalClient(model, slow.tokenizer, LLMOptions(model="tiny", batch_size=6))
    found = generate(short, PROMPTS, 4)
    assert found == generate(client, PROMPTS, 4)
    assert sizes[:2] == [6, 3]
    assert max(sizes[2:]) <= 2
    short = LocalClient(_short_of_memory(slow.model, room=0)[0], slow.tokenizer, LLMOptions(model="tiny"))
    with pytest.raises(ValueError, match="out of memory with one prompt"):
        generate(short, PROMPTS, 4)


def test_what_does_not_fit_fails_alone(client: LocalClient) -> None:
    assert client.context_size == CONTEXT
    long = "a statement " * CONTEXT
    found = generate(client, ["This is a", long], 4)
    assert found[0].finish != "failed"
    assert found[1].finish == "failed"
    assert f"{client.count_tokens([long])[0]} tokens" in found[1].reason
    assert f"{CONTEXT} tokens" in found[1].reason
    scores = score(client, ["This is a", long], [[" dax"], [" dax"]])
    assert scores[0].log_probabilities
    assert not scores[1].log_probabilities
    assert "exceed the context" in scores[1].reason


def test_bf16_finds_nearly_the_same(causal: Path, client: LocalClient) -> None:
    rounded = connect(LLMOptions(model=str(causal), precision="bf16"))
    assert rounded.identity != client.identity
    exact = score(client, PROMPTS, CANDIDATES)
    for number, scores in score(rounded, PROMPTS, CANDIDATES).items():
        assert scores.log_probabilities == pytest.approx(exact[number].log_probabilities, rel=0.1, abs=0.5)
        assert scores.log_probabilities != exact[number].log_probabilities


def test_a_chat_template_frames_the_prompt(slow: SlowModel) -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match="no chat template"):
        LocalClient(slow.model, tokenizer, LLMOptions(model="tiny", mode="chat"))
    tokenizer.chat_template = "[{{ messages[0]['content'] }}] answer:"
    framed = LocalClient(slow.model, tokenizer, LLMOptions(model="tiny", mode="chat"))
    plain = LocalClient(slow.model, byte_tokenizer(), LLMOptions(model="tiny"))
    assert generate(framed, ["dax"], 6) == generate(plain, ["[dax] answer:"], 6)


def test_choice_by_scores_is_greedy_not_the_likeliest_whole() -> None:
    def choose(tokens: list[str], *scores: list[float]) -> int:
        return choose_by_scores(
            [
                [ScoredToken(text, 0, 0, score) for text, score in zip(row, values, strict=True)]
                for row, values in zip(tokens, scores, strict=True)
            ]
        )

    # "a" leads by its first token, though "b 2" is likelier as a whole.
    assert choose(["xa1", "xb1", "xb2"], [-1.0, -0.6, -5.0], [-1.0, -0.8, -3.0], [-1.0, -0.8, -0.1]) == 0
    assert choose(["xa1", "xb1", "xb2"], [-1.0, -0.9, -5.0], [-1.0, -0.8, -3.0], [-1.0, -0.8, -0.1]) == 2
    assert choose(["xa", "xab"], [0.0, -1.0], [0.0, -1.0, -0.5]) == 1
    assert choose(["xa", "xab"], [0.0, -1.0], [0.0, -1.0, -0.9]) == 0


def test_bad_input(
    causal: Path, client: LocalClient, gpt2: SlowModel, language: Path, tmp_path: Path
) -> None:
    for settings, message in (
        ({"model": str(tmp_path / "nothing")}, "cannot be loaded"),
        ({"model": str(language)}, r"expected a causal language model .* a 'bert' model"),
        ({"model": str(causal), "batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            connect(LLMOptions(**settings))
    with pytest.raises(ValueError, match="candidates that are not empty"):
        score(client, ["This is a"], [[]])
    with pytest.raises(ValueError, match="the limit of new tokens must be 1 or more, got 0"):
        generate(client, ["This is a"], 0)
    # Nothing comes before the candidates of an empty prompt.
    plain = LocalClient(gpt2.model, gpt2.tokenizer, LLMOptions(model="tiny"))
    with pytest.raises(ValueError, match="no token to come before"):
        score(plain, [""], [["x"]])
    answer = generate(plain, [""], 1)[0]
    assert "nothing to continue" in answer.reason


def test_weights_that_would_run_code_are_not_read(causal: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(causal, folder)
    weights = SlowModel(folder).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        connect(LLMOptions(model=str(folder)))
    assert END in (folder / "tokenizer.json").read_text(encoding="utf-8")
