"""Measures of word sequences against slow references; planted faults lower the round-trip rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from pixlex.eval import words
from pixlex.eval.words import WordScores, score_words, survives_text, survives_tokenizer, word_folds
from pixlex.models.lqae import LQAE
from pixlex.nn.language import LanguageModel
from pixlex.nn.vocabulary import Vocabulary


@pytest.fixture
def word_ids(language: LanguageModel) -> torch.Tensor:
    """Three sequences of ten words."""
    return torch.randint(3, language.vocab_size, (3, 10), generator=torch.Generator().manual_seed(0))


def reference(language: LanguageModel, word_ids: torch.Tensor, folds: torch.Tensor) -> WordScores:
    """Each sequence and fold on its own, by ids instead of embeddings."""
    log_probability, correct = 0.0, 0
    for sequence, of_fold in zip(word_ids, folds, strict=True):
        for fold in set(of_fold.tolist()):
            shown = torch.where(of_fold == fold, language.mask_id, sequence)
            with torch.no_grad():
                hidden = language(language.word_embedding[shown][None]).last[0]
                scores = language.logits(hidden).log_softmax(-1)
            for place in (of_fold == fold).nonzero().flatten().tolist():
                log_probability += scores[place, sequence[place]].item()
                correct += int(scores[place].argmax() == sequence[place])
    return WordScores(log_probability, correct, word_ids.numel())


def test_every_word_is_in_one_fold_and_folds_are_even() -> None:
    folds = word_folds([5, 0, 7], 10, 4, seed=1)
    for row in folds.numpy():
        assert sorted(np.bincount(row).tolist()) == [2, 2, 3, 3]


def test_folds_depend_on_image_and_seed_alone() -> None:
    together = word_folds([5, 0, 7], 10, 4, seed=1)
    assert torch.equal(word_folds([7], 10, 4, seed=1)[0], together[2])
    assert not torch.equal(word_folds([7], 10, 4, seed=2)[0], together[2])
    assert not torch.equal(together[0], together[2])


@pytest.mark.parametrize("num_folds", [0, 11])
def test_folds_out_of_range_are_refused(num_folds: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 10 folds of 10 words, got {num_folds}"):
        word_folds([0], 10, num_folds, seed=0)


@pytest.mark.parametrize("num_folds", [1, 3, 10])
def test_scores_equal_a_slow_reference(
    language: LanguageModel, word_ids: torch.Tensor, num_folds: int
) -> None:
    """With as many folds as words this is pseudo-perplexity proper."""
    folds = word_folds([0, 1, 2], 10, num_folds, seed=0)
    scores, expected = score_words(language, word_ids, folds), reference(language, word_ids, folds)
    assert scores.log_probability == pytest.approx(expected.log_probability, rel=1e-5)
    assert (scores.correct, scores.count) == (expected.correct, 30)


def test_scores_do_not_depend_on_how_many_logits_are_held(
    language: LanguageModel, word_ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = word_folds([0, 1, 2], 10, 2, seed=0)
    expected = score_words(language, word_ids, folds)
    monkeypatch.setattr(words, "_ROWS_OF_LOGITS", 4)
    scores = score_words(language, word_ids, folds)
    assert scores.log_probability == pytest.approx(expected.log_probability, rel=1e-6)
    assert scores.correct == expected.correct


def test_a_model_that_knows_nothing_is_as_perplexed_as_the_vocabulary_is_large(
    language: LanguageModel, word_ids: torch.Tensor
) -> None:
    with torch.no_grad():
        language.output.weight.zero_()
        language.output.bias.zero_()
    scores = score_words(language, word_ids, word_folds([0, 1, 2], 10, 5, seed=0))
    assert scores.pseudo_perplexity == pytest.approx(language.vocab_size, rel=1e-5)


def test_a_model_that_always_says_one_word(language: LanguageModel, word_ids: torch.Tensor) -> None:
    with torch.no_grad():
        language.output.weight.zero_()
        language.output.bias.zero_()
        language.output.bias[word_ids[0, 0]] = 50.0
    scores = score_words(language, word_ids, word_folds([0, 1, 2], 10, 5, seed=0))
    assert scores.accuracy == (word_ids == word_ids[0, 0]).double().mean().item()
    assert scores.pseudo_perplexity > 1e6


def test_an_impossible_word_leaves_a_number_that_json_can_hold() -> None:
    assert np.isfinite(WordScores(-1e6, 0, 1).pseudo_perplexity)


def test_whole_words_survive_text_and_tokenizer(lqae: LQAE) -> None:
    codes = torch.randint(0, lqae.num_codewords, (20, 16), generator=torch.Generator().manual_seed(1))
    assert survives_text(lqae.vocabulary, codes).all()
    assert survives_tokenizer(lqae.language, lqae.vocabulary, codes).all()


def test_a_word_with_a_space_does_not_survive_text() -> None:
    vocabulary = Vocabulary("all", torch.arange(4), ("ant", "bat", "ant bat", "cat"))
    codes = torch.tensor([[0, 1, 3], [3, 2, 0], [1, 1, 1]])
    assert survives_text(vocabulary, codes).tolist() == [True, False, True]


def test_an_unreadable_word_does_not_survive_text() -> None:
    vocabulary = Vocabulary("all", torch.arange(3), ("ant", "bat", "sea cow"))
    assert survives_text(vocabulary, torch.tensor([[0, 1], [2, 1]])).tolist() == [True, False]


def test_words_that_the_tokenizer_splits_or_does_not_know_do_not_survive_it(language: LanguageModel) -> None:
    known = language.tokenizer.convert_ids_to_tokens([7, 8])
    vocabulary = Vocabulary("all", torch.tensor([7, 8, 9, 10]), (*known, "qzqzq", f"{known[0]}-{known[1]}"))
    codes = torch.tensor([[0, 1], [0, 2], [3, 1]])
    assert survives_text(vocabulary, codes).tolist() == [True, True, True]
    assert survives_tokenizer(language, vocabulary, codes).tolist() == [True, False, False]


def test_the_first_word_is_read_like_the_others_where_words_carry_their_space(
    language: LanguageModel,
) -> None:
    """As in RoBERTa: a word at the start of a text is another word than one after a space."""
    pieces = Tokenizer(models.WordLevel({"[UNK]": 0, "ant": 1, "Ġant": 2, "Ġbat": 3}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    language.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")
    vocabulary = Vocabulary("whole-words", torch.tensor([2, 3]), ("ant", "bat"))
    codes = torch.tensor([[0, 1], [0, 0], [1, 0]])
    assert survives_tokenizer(language, vocabulary, codes).all()
