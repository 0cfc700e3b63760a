"""How often questions, statements and hypotheses about images are answered rightly, beside what needs no image."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ReasoningBatch, Skipped, Words
from pixlex.config.data import SQUARE, Cut
from pixlex.config.reasoning import ReasoningTask
from pixlex.data.reasoning import ReasoningSource
from pixlex.eval.intervals import wilson_interval
from pixlex.eval.passes import evaluating, progress_bar
from pixlex.eval.vqa_score import soft_accuracy
from pixlex.models.reasoner import Reasoner

# Answers of an item that are kept.
_KEPT = 5
# What the classifier on texts alone learns from, and how many answers it knows.
_LEARNED, _CLASSES = 20_000, 500
_MEASURED: Mapping[ReasoningTask, str] = {
    "vqa": "soft accuracy of VQA v2 (exact match where one person answered)",
    "nlvr2": "accuracy of true and false",
    "entailment": "accuracy of three classes, the image in place of the text premise",
    "assignment": "accuracy of three classes: the first image's caption, the second's, neither's",
}


@dataclass(frozen=True)
class Answered:
    """One item with what the model says.

    Attributes:
        item: its position in the source.
        answers: the likeliest, the best first.
        probabilities: of those, among all that were ranked.
        credit: of the first, in [0, 1]; None where no answer is known.
    """

    item: int
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]
    credit: float | None


@dataclass(frozen=True)
class TextAlone:
    """What is reached without looking at an image.

    Attributes:
        majority: mean credit of the answer that is most frequent in training.
        answer: that answer.
        words: mean credit of a linear classifier on the words of the text alone; None without scikit-learn.
    """

    majority: float
    answer: str
    words: float | None


@dataclass(frozen=True, kw_only=True)
class ReasoningResult:
    """What an evaluation found.

    Attributes:
        task: the task.
        mode: "rank" (answers out of the list) or "generate" (written freely).
        shortlist: answers of the list that were ranked by their whole likelihood.
        image_size: side of the images in pixels.
        cut: how images became square.
        answered: each item, in order.
        accuracy: mean credit of the items whose answer is known, in [0, 1]; for vqa the soft accuracy. None where
            none is known.
        interval: its 95 % interval.
        consistency: share of sentences all of whose items are right (NLVR2); None where sentences are unknown.
        by_kind: accuracy of each kind of question.
        text_alone: the same items without images; None where no training items were given.
        skipped: images that could not be read; their items are left out.
        examples: images of the first items, one row of them for each.
    """

    task: ReasoningTask
    mode: Literal["rank", "generate"]
    shortlist: int
    image_size: int
    cut: Cut
    answered: tuple[Answered, ...]
    accuracy: float | None
    interval: tuple[float, float] | None
    consistency: float | None
    by_kind: Mapping[str, float]
    text_alone: TextAlone | None
    skipped: tuple[Skipped, ...]
    examples: Float[Tensor, "E n 3 H W"] = field(repr=False)

    @property
    def protocol(self) -> str:
        """What the numbers mean, in a line."""
        how = _MEASURED[self.task]
        answers = ""
        if self.task == "vqa":
            ranked = f"answers ranked by likelihood among the {self.shortlist} of likeliest first words"
            answers = f"; {ranked if self.mode == 'rank' else 'answers written freely, word by word'}"
        return f"{len(self.answered)} items, {how}{answers}; {self.image_size} px, {SQUARE[self.cut]}"

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by their names in the log."""
        found: dict[str, float] = {"num_items": float(len(self.answered))}
        if self.accuracy is not None:
            found["accuracy"] = self.accuracy
        if self.consistency is not None:
            found["consistency"] = self.consistency
        if self.text_alone is not None:
            found["majority_accuracy"] = self.text_alone.majority
            if self.text_alone.words is not None:
                found["text_alone_accuracy"] = self.text_alone.words
        return {f"eval/{name}": value for name, value in found.items()}


@torch.no_grad()
def evaluate_reasoning(
    model: Reasoner,
    source: ReasoningSource,
    batches: Iterable[ReasoningBatch],
    *,
    mode: Literal["rank", "generate"] = "rank",
    shortlist: int = 128,
    first_token_twice: bool = False,
    training: ReasoningSource | None = None,
    precision: Literal["bf16", "fp32"] = "fp32",
    total: int | None = None,
    save_examples: int = 8,
    progress: bool = True,
) -> ReasoningResult:
    """Answer each item and compare with what people answered.

    Several processes share the batches and all return the result of the whole.

    Args:
        model: the network, where it is.
        source: the items.
        batches: the same, as the model reads them (see `evaluation_items`); of several processes each brings its
            own.
        mode: how answers of `vqa` are found; classes are always ranked.
        shortlist: see `Reasoner.rank`.
        first_token_twice: see `Reasoner.rank`.
        training: items that the baselines without images learn from.
        precision: bf16 computes networks under autocast.
        total: how many items are expected, for the time left on the progress bar.
        save_examples: how many items to return the images of.
        progress: show a bar.

    Raises:
        ValueError: no item could be read, or `generate` with classes.
    """
    task = model.config.task
    if mode == "generate" and task != "vqa":
        raise ValueError(f"answers are written freely for the task vqa alone, this model's is {task}")
    place = next(model.parameters()).device
    found: list[_Found] = []
    room = save_examples
    bar = progress_bar(total, "items", "answer", shown=progress)
    with evaluating(model), bar, torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in batches:
            answers = []
            if batch.texts:
                answers = _answer(
                    model, batch.to(place), mode, shortlist, first_token_twice=first_token_twice
                )
            examples = _images_of_items(batch, model.config.num_images, room) if batch.texts and room else ()
            found.append(_Found(_credited(task, batch, answers), batch.skipped, examples))
            room -= len(examples)
            bar.update(len(batch.texts))
    everyone = distributed.in_turn(found)
    answered = [one for batch in everyone for one in batch.answered]
    skipped = [one for batch in everyone for one in batch.skipped]
    shown = [one for batch in everyone for one in batch.examples][:save_examples]
    if not answered:
        raise ValueError(f"{source.name}: no item to evaluate ({len(skipped)} images could not be read)")
    known = [one for one in answered if one.credit is not None]
    accuracy = _mean([one.credit for one in known if one.credit is not None]) if known else None
    alone = None
    if training is not None and known:
        measured = source.take([one.item for one in known])
        alone = distributed.from_first(lambda: text_alone(task, training, measured))
    return ReasoningResult(
        task=task,
        mode=mode,
        shortlist=min(shortlist, len(model.config.answers)),
        image_size=model.config.image_size,
        cut=model.config.cut,
        answered=tuple(answered),
        accuracy=accuracy,
        interval=None if accuracy is None else wilson_interval(accuracy, len(known)),
        consistency=_consistency(source, known),
        by_kind=_by_kind(source, known),
        text_alone=alone,
        skipped=tuple(skipped),
        examples=torch.stack(shown),
    )


@dataclass(frozen=True)
class _Found:
    """What was found in a batch: its items with answers, and the images of some of them."""

    answered: tuple[Answered, ...]
    skipped: tuple[Skipped, ...]
    examples: tuple[Tensor, ...]


def _credited(
    task: ReasoningTask, batch: ReasoningBatch, found: Sequence[tuple[tuple[str, ...], tuple[float, ...]]]
) -> tuple[Answered, ...]:
    """Return the items of a batch with what the model says and what that is worth."""
    rows = zip(batch.items.tolist(), found, batch.answers, strict=True)
    return tuple(
        Answered(item, answers, shares, credit_of(task, answers[0], given) if given else None)
        for item, (answers, shares), given in rows
    )


def _images_of_items(batch: ReasoningBatch, num_images: int, most: int) -> tuple[Tensor, ...]:
    """Return the images of the first items of a batch, on the CPU."""
    groups = batch.images.unflatten(0, (-1, num_images))  # type: ignore[no-untyped-call]
    return tuple((groups if batch.looks_at is None else groups[batch.looks_at])[:most].cpu())


def credit_of(task: ReasoningTask, answer: str, given: Sequence[str]) -> float:
    """Return what an answer is worth beside those that people gave, in [0, 1]."""
    return soft_accuracy(answer, given) if task == "vqa" else float(answer == given[0])


def text_alone(task: ReasoningTask, training: ReasoningSource, items: ReasoningSource) -> TextAlone:
    """Return what is reached from the texts alone: by the most frequent answer, and by words and pairs of words.

    Args:
        task: decides what an answer is worth.
        training: items to learn from, each with an answer.
        items: those that are measured, each with an answer.
    """
    answers = [Counter(given).most_common(1)[0][0] for given in training.answers]
    majority = Counter(answers).most_common(1)[0][0]

    def mean_credit(guesses: Sequence[str]) -> float:
        pairs = zip(guesses, items.answers, strict=True)
        return _mean([credit_of(task, guess, given) for guess, given in pairs])

    guesses = _guessed_from_words(training.texts, answers, items.texts)
    return TextAlone(
        mean_credit([majority] * len(items)), majority, None if guesses is None else mean_credit(guesses)
    )


def _guessed_from_words(
    texts: Sequence[str], answers: Sequence[str], others: Sequence[str]
) -> Sequence[str] | None:
    """Return what a linear classifier on words and pairs of words answers; None without scikit-learn.

    It learns the most frequent answers from some of the items, evenly spaced: all of VQA v2 would take it hours.
    """
    frequent = {answer for answer, _ in Counter(answers).most_common(_CLASSES)}
    rows = [row for row, answer in enumerate(answers) if answer in frequent]
    rows = (
        [rows[number * len(rows) // _LEARNED] for number in range(_LEARNED)] if len(rows) > _LEARNED else rows
    )
    texts, answers = [texts[row] for row in rows], [answers[row] for row in rows]
    if len(set(answers)) == 1:
        return [answers[0]] * len(others)
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return None
    words = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", binary=True)
    classifier = make_pipeline(words, LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        # Of few texts most answers are given once, and a baseline need not converge to the last digit.
        warnings.simplefilter("ignore")
        classifier.fit(texts, answers)
    return [str(guess) for guess in classifier.predict(others)]


def _answer(
    model: Reasoner, batch: ReasoningBatch, mode: str, shortlist: int, *, first_token_twice: bool
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    words = Words(batch.word_ids, batch.key_padding)
    if mode == "generate":
        return [((text,), ()) for text in model.generate(batch.images, words, batch.looks_at)]
    ranked = model.rank(
        batch.images,
        words,
        looks_at=batch.looks_at,
        shortlist=shortlist,
        first_token_twice=first_token_twice,
    )
    numbers, shares = ranked.numbers[:, :_KEPT].tolist(), ranked.probabilities[:, :_KEPT].tolist()
    return [
        (tuple(model.config.answers[number] for number in row), tuple(share))
        for row, share in zip(numbers, shares, strict=True)
    ]


def _consistency(source: ReasoningSource, known: Sequence[Answered]) -> float | None:
    if not source.sentences or not known:
        return None
    right: dict[str, bool] = defaultdict(lambda: True)
    for one in known:
        right[source.sentences[one.item]] &= one.credit == 1
    return _mean([float(one) for one in right.values()])


def _by_kind(source: ReasoningSource, known: Sequence[Answered]) -> dict[str, float]:
    credits: dict[str, list[float]] = defaultdict(list)
    for one in known:
        if source.kinds and one.credit is not None:
            credits[source.kinds[one.item]].append(one.credit)
    return {kind: _mean(found) for kind, found in sorted(credits.items())}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
