"""Frozen prompted with images and words in turn: against sequences put together by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.eval.llm.tiny_causal import tiny_causal
from tests.tiny import evaluation_batches, tiny_frozen

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.prompted import FrozenClassifier
from pixlex.eval.few_shot.prompts import Episode, Setting, Shown
from pixlex.models.baselines import Frozen

SETTING = Setting(ways=2, shots=1, repeats=1)


def _episode(number: int = 0, *, names: tuple[str, ...] = ("dax", "blicket"), query: int = 2) -> Episode:
    support = (Shown(image=0, name=0), Shown(image=1, name=1))
    return Episode(number=number, names=names, support=support, query=query, answer=1)


def _by_hand(model: Frozen, source: ImageSource, query: int = 2) -> torch.Tensor:
    """The prompt's embeddings, one text and image after the other."""
    language = model.language
    (batch,) = evaluation_batches(source, image_size=32, batch_size=16)
    prefix = model.prefix(batch.images)

    def text(words: str) -> torch.Tensor:
        return language.embed(torch.tensor(language.tokenizer(words, add_special_tokens=False).input_ids))

    shown = [prefix[0], text("\nThis is a dax.\n"), prefix[1], text("\nThis is a blicket.\n")]
    question = [prefix[query], text("\nQ: What is this?\nA: This is a")]
    start = language.embed(torch.tensor(language.start_ids, dtype=torch.long))
    return torch.cat([start, text("Answer with dax or blicket.\n"), *shown, *shown, *question]).unsqueeze(0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_likelier_name_is_chosen(tmp_path: Path, source: ImageSource, family: str) -> None:
    """Each name scored word by word behind the sequence made by hand, for several queries."""
    model = tiny_frozen(tiny_causal(tmp_path, family=family))
    language = model.language
    answerer = FrozenClassifier(model, scorer="likelihood")
    episodes = [_episode(query, query=query) for query in (2, 3, 4)]
    answers = {one.episode: one for one in answerer.answer(SETTING, episodes, source)}
    for query in (2, 3, 4):
        prompt = _by_hand(model, source, query)
        scores = []
        for name in (" dax", " blicket"):
            ids = torch.tensor(language.tokenizer(name, add_special_tokens=False).input_ids)
            read = torch.cat([prompt, language.embed(ids).unsqueeze(0)], dim=1)
            logits = language.body(inputs_embeds=read).logits[0, prompt.shape[1] - 1 : -1]
            scores.append(float(logits.detach().log_softmax(-1)[torch.arange(len(ids)), ids].sum()))
        right = scores[1] > scores[0]
        assert (answers[query].credit, answers[query].text) == (float(right), "blicket" if right else "dax")


def test_the_greedy_text_must_be_exactly_the_name(
    causal_language: Path, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a line, a period or the end; longer, other or unfinished text is wrong."""
    model = tiny_frozen(causal_language)
    language = model.language
    answerer = FrozenClassifier(model, scorer="strict")
    read: list[torch.Tensor] = []
    for text, ends, credit, detail in (
        (" blicket", True, 1.0, ""),
        (" blicket.\nThis is a dax", False, 1.0, ""),
        (" blicket", False, 0.0, "it did not end"),
        (" blickets", True, 0.0, ""),
        (" dax", True, 0.0, ""),
    ):
        row = [*language.word_ids(text), *([language.end_id] if ends else [])]

        def write(embeddings: torch.Tensor, limit: int, row: list[int] = row) -> list[list[int]]:
            read.append(embeddings)
            return [row]

        monkeypatch.setattr(language, "write", write)
        (answer,) = answerer.answer(SETTING, [_episode()], source)
        assert (answer.credit, answer.detail) == (credit, detail), text
    torch.testing.assert_close(read[0], _by_hand(model, source), atol=1e-4, rtol=1e-4)
    monkeypatch.undo()
    (answer,) = answerer.answer(SETTING, [_episode()], source)
    written = language.write(_by_hand(model, source), 99)[0]
    assert language.tokenizer.decode(written).startswith(answer.text)


def test_a_broken_image_fails_its_episode_alone(causal_language: Path, source: ImageSource) -> None:
    answerer = FrozenClassifier(tiny_frozen(causal_language), scorer="likelihood")
    answers = list(answerer.answer(SETTING, [_episode(0, query=8), _episode(1)], source))
    assert [answer.credit is None for answer in answers] == [True, False]
    assert answers[0].detail == "an image cannot be read"


def test_a_prompt_that_does_not_fit_is_told_before_anything_runs(
    causal_language: Path, source: ImageSource
) -> None:
    """With the numbers."""
    answerer = FrozenClassifier(tiny_frozen(causal_language), scorer="strict")
    long = Setting(ways=2, shots=1, repeats=30)
    length = _by_hand(answerer.model, source).shape[1]
    assert answerer.check(SETTING, [_episode()], source) == ""
    assert length < 256
    said = answerer.check(long, [_episode()], source)
    assert re.match(r"does not fit: 2-way, 1 shot, 30 repeats, real names: .* tokens, but .* reads 256", said)


def test_the_identity_is_of_weights_scorer_and_language_model(tmp_path: Path, causal_language: Path) -> None:
    models = [
        tiny_frozen(causal_language),
        tiny_frozen(causal_language, seed=1),
        tiny_frozen(tiny_causal(tmp_path, seed=1)),
    ]
    answerers = [FrozenClassifier(model, scorer="strict") for model in models]
    answerers.append(FrozenClassifier(models[0], scorer="likelihood"))
    assert len({answerer.identity for answerer in answerers}) == 4
