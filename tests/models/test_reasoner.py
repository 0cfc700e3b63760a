"""The heads on top of CB-ViLA: the decoder sees nothing that is to come, ranking is the likelihood written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_cbvila, tiny_reasoner

from pixlex.config.cbvila import ReasonerConfig, ReasoningTask
from pixlex.models import checkpoint
from pixlex.models.finetuned import AnswerDecoder, Reasoner, resized, started
from pixlex.nn.bert import Context, Words


def _questions(model: Reasoner, *texts: str) -> Words:
    return model.tokenize_texts(texts, 12)


def _images(model: Reasoner, count: int) -> torch.Tensor:
    return torch.rand(count, 3, model.config.image_size, model.config.image_size)


def test_the_decoder_sees_no_word_that_is_to_come() -> None:
    """A changed word changes what is written from its own place on, and nothing before it."""
    torch.manual_seed(0)
    decoder = AnswerDecoder(32, 2, 4).eval()
    context = decoder.project(torch.randn(2, 5, 32))
    words = torch.randn(2, 6, 32)
    changed = words.clone()
    changed[:, 3] += 1
    before, after = decoder(words, context), decoder(changed, context)
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=1e-6)
    assert ((before - after)[:, 3:].abs().amax(-1) > 1e-4).all()


def test_ranking_is_the_likelihood_of_whole_answers(language: Path) -> None:
    """Against each answer alone, word by word; the end counts, padding does not."""
    model = tiny_reasoner(language)
    words = _questions(model, "about the class", "and any other class also")
    images = _images(model, 2)
    ranked = model.rank(images, words)
    assert ranked.numbers.sort(1).values.tolist() == [[0, 1, 2, 3, 4]] * 2
    for row in range(2):
        one = Words(words.word_ids[row : row + 1], words.key_padding[row : row + 1])
        context = model.look_at_question(images[row : row + 1], one)
        for number, found in zip(ranked.numbers[row].tolist(), ranked.log_likelihoods[row], strict=True):
            ids = model.tokenizer.encode([model.config.answers[number]], 10).word_ids[0]
            expected = sum(_log_probability(model, context, ids, place) for place in range(1, len(ids)))
            assert float(found) == pytest.approx(expected, abs=1e-4)
        assert (ranked.log_likelihoods[row].diff() <= 0).all()
    torch.testing.assert_close(ranked.probabilities.sum(1), torch.ones(2))


def _log_probability(model: Reasoner, context: Context, ids: torch.Tensor, place: int) -> float:
    logits = model.word_logits(model.write(ids[None, :place], context)[0, -1])
    return logits.log_softmax(-1)[ids[place]].item()


def test_a_shortlist_holds_the_likeliest_first_words(language: Path) -> None:
    """Answers with the same first word come or go together; ALBEF's double count adds just that word's."""
    model = tiny_reasoner(language)
    words, images = _questions(model, "about the class"), _images(model, 1)
    short = model.rank(images, words, shortlist=2)
    assert short.numbers.shape == (1, 2)
    whole = model.rank(images, words)
    twice = model.rank(images, words, first_token_twice=True)
    context = model.look_at_question(images, words)
    for number, found in zip(twice.numbers[0].tolist(), twice.log_likelihoods[0].tolist(), strict=True):
        once = float(whole.log_likelihoods[0][whole.numbers[0] == number])
        ids = model.tokenizer.encode([model.config.answers[number]], 10).word_ids[0]
        assert found == pytest.approx(once + _log_probability(model, context, ids, 1), abs=1e-4)
    with pytest.raises(ValueError, match="shortlist must be 1 or more, got 0"):
        model.rank(images, words, shortlist=0)


def test_rows_do_not_depend_on_their_neighbors(language: Path) -> None:
    """Whatever stands beside a question, however long: its answers stay."""
    model = tiny_reasoner(language)
    images = _images(model, 3)
    texts = ("about", "class and any other class", "the")
    together = model.rank(images, _questions(model, *texts))
    for row, text in enumerate(texts):
        alone = model.rank(images[row : row + 1], _questions(model, text))
        assert alone.numbers[0].tolist() == together.numbers[row].tolist()
        torch.testing.assert_close(alone.log_likelihoods[0], together.log_likelihoods[row], rtol=0, atol=1e-4)


def test_two_images_are_told_apart_and_each_counts(language: Path) -> None:
    """The pair head reads both: changing or exchanging them changes the logits."""
    model = tiny_reasoner(language, "nlvr2")
    words = _questions(model, "about the class", "and any other")
    images = _images(model, 4)
    found = model.class_logits(model.fuse(images, words))
    assert found.shape == (2, 2)
    exchanged = model.class_logits(model.fuse(images[[1, 0, 2, 3]], words))
    assert not torch.allclose(found[0], exchanged[0])
    torch.testing.assert_close(found[1], exchanged[1], rtol=0, atol=1e-5)
    ranked = model.rank(images, words)
    assert ranked.probabilities.shape == (2, 2)
    assert ranked.numbers[:, 0].tolist() == found.argmax(1).tolist()


def test_written_answers_end_or_are_cut(language: Path) -> None:
    """Free writing agrees with the likeliest word at every place."""
    model = tiny_reasoner(language, max_answer_words=5)
    words, images = _questions(model, "about the class", "other"), _images(model, 2)
    written = model.generate(images, words)
    assert len(written) == 2
    context = model.look_at_question(images[:1], Words(words.word_ids[:1], words.key_padding[:1]))
    ids = [model.tokenizer.start_id]
    while len(ids) < 5 and model.tokenizer.end_id not in ids:
        ids.append(int(model.word_logits(model.write(torch.tensor([ids]), context)[0, -1]).argmax()))
    assert written[0] == model.tokenizer.text(torch.tensor(ids))


@pytest.mark.parametrize("task", ["vqa", "entailment"])
def test_a_saved_model_answers_as_before(task: ReasoningTask, language: Path, tmp_path: Path) -> None:
    model = tiny_reasoner(language, task)
    checkpoint.save(model, tmp_path)
    again = checkpoint.load_any(str(tmp_path))
    assert isinstance(again, Reasoner)
    assert again.config.answers == model.config.answers
    words, images = _questions(model, "about the class"), _images(model, 1)
    torch.testing.assert_close(
        again.rank(images, words).log_likelihoods, model.rank(images, words).log_likelihoods
    )
    with pytest.raises(ValueError, match="family reasoning, which writes no codes"):
        checkpoint.load(str(tmp_path))


def test_a_resized_model_is_the_same_but_for_its_positions(language: Path) -> None:
    """At its own size bit-equal; at another one the class token's position stays, the others are resampled."""
    model = tiny_cbvila(language, num_codewords=16, dim=32)
    images = torch.rand(2, 3, model.config.image_size, model.config.image_size)
    same = resized(model, model.config.image_size)
    assert torch.equal(same.encode_image(images), model.eval().encode_image(images))
    twice = resized(model, 2 * model.config.image_size)
    assert twice.grid == 2 * model.grid
    before, after = model.image_encoder.positions, twice.image_encoder.positions
    assert torch.equal(after[:, 0], before[:, 0])
    on_grid = after[0, 1:].view(model.grid, 2, model.grid, 2, -1).mean((1, 3)).flatten(0, 1)
    assert (on_grid - before[0, 1:]).abs().mean() < 0.5 * before[0, 1:].abs().mean()
    assert twice.encode_image(torch.rand(1, 3, *[2 * model.config.image_size] * 2)).isfinite().all()
    tuned = tiny_reasoner(language, "nlvr2")
    squashed = resized(tuned, 2 * model.config.image_size, "squash")
    assert (squashed.config.image_size, squashed.config.resize_mode) == (
        2 * model.config.image_size,
        "squash",
    )
    for name, weights in tuned.state_dict().items():
        if "positions" not in name:
            assert torch.equal(squashed.state_dict()[name], weights), name
    with pytest.raises(ValueError, match="must be a multiple of the patch size 8, got 33"):
        resized(model, model.config.image_size + 1)


def test_a_start_of_another_shape_is_refused(language: Path) -> None:
    small, other = (tiny_cbvila(language, num_codewords=count, dim=32) for count in (16, 8))
    with pytest.raises(ValueError, match="the model to start from is of another shape: codebook"):
        started(small.config, other)
    with pytest.raises(ValueError, match="expected answers for the task vqa, got none"):
        Reasoner(ReasonerConfig(body=small.config), small.tokenizer)
