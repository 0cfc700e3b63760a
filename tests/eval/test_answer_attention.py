"""Why an answer is given: the score is that of ranking, maps belong to their images, bad input is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_reasoner

from pixlex.config.reasoning import ReasoningTask
from pixlex.eval.answer_attention import explain_answer


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "entailment"])
def test_the_score_is_the_likelihood_that_ranking_finds(task: ReasoningTask, language_folder: Path) -> None:
    """Of the model's own answer, and of another one; two images have one score."""
    model = tiny_reasoner(language_folder, task)
    images = torch.rand(model.config.num_images, 3, model.config.image_size, model.config.image_size)
    ranked = model.rank(images, model.tokenize_texts(["about all and"], 12))
    numbers, scores = ranked.numbers[0].tolist(), ranked.log_likelihoods[0].tolist()
    found = explain_answer(model, images, "about all and")
    assert found.answer == model.config.answers[numbers[0]]
    for number, score in zip(numbers, scores, strict=True):
        one = explain_answer(model, images, "about all and", answer=model.config.answers[number])
        assert one.log_likelihood == pytest.approx(score, abs=1e-5)
        assert len(one.images) == len(images)
        for explained in one.images:
            assert explained.words == ("about", "all", "and")
            assert explained.maps.shape == (3, 4, 4)
            assert explained.maps.max() > 0
    assert all(one.grad is None for one in model.parameters())


def test_the_map_of_an_image_follows_the_image(language_folder: Path) -> None:
    """In a pair, another second image changes its own map; the first one's heat only through the head."""
    model = tiny_reasoner(language_folder, "nlvr2")
    first, second, other = torch.rand(3, 1, 3, model.config.image_size, model.config.image_size)
    one = explain_answer(model, torch.cat([first, second]), "about", answer="true")
    two = explain_answer(model, torch.cat([first, other]), "about", answer="true")
    shapes = [image.whole / image.whole.max() for found in (one, two) for image in found.images]
    moved = [(shapes[number] - shapes[number + 2]).abs().max() for number in (0, 1)]
    assert moved[1] > moved[0]


def test_bad_input_is_refused(language_folder: Path) -> None:
    questions = tiny_reasoner(language_folder, "vqa", max_answer_words=4)
    pairs = tiny_reasoner(language_folder, "nlvr2")
    size = pairs.config.image_size
    image = torch.rand(1, 3, size, size)
    with pytest.raises(ValueError, match="expected 2 images with the text, got 1"):
        explain_answer(pairs, image, "about")
    with pytest.raises(ValueError, match="expected one of false, true as the answer, got 'yes'"):
        explain_answer(pairs, image.repeat(2, 1, 1, 1), "about", answer="yes")
    for answer in ("", "about the class and any other"):
        with pytest.raises(ValueError, match=r"expected an answer of 1 to 2 words \(tokens\), got"):
            explain_answer(questions, image, "about", answer=answer)
    with pytest.raises(ValueError, match="expected images of shape"):
        explain_answer(questions, image[..., 1:], "about")
    with pytest.raises(ValueError, match="expected one word or more"):
        explain_answer(questions, image, " ")
    with pytest.raises(ValueError, match="layer must be one of the fusion encoder's"):
        explain_answer(questions, image, "about", layer=9)
