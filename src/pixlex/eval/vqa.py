"""How often questions, statements and hypotheses about images are answered rightly, beside what needs no image."""

from __future__ import annotations

import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixlex import distributed
from pixlex.batch import ReasoningBatch
from pixlex.config.cbvila import ReasoningTask
from pixlex.config.fields import SQUARE
from pixlex.data.records import Records
from pixlex.data.sources import evenly_spaced
from pixlex.data.text import agreement, normalize_answer
from pixlex.eval.evaluate import DEFAULT_PASS, Evaluation, Measured, Pass, evaluate, wilson_interval
from pixlex.files import write_text
from pixlex.models.finetuned import Reasoner
from pixlex.nn.bert import Words

# Likeliest answers of an item that are stored.
_ANSWERS = 5
# What the classifier on texts alone learns from, and how many answers it knows.
_LEARNED, _CLASSES = 20_000, 500
_METRICS: Mapping[ReasoningTask, str] = {
    "vqa": "soft accuracy of VQA v2 (exact match where one person answered)",
    "nlvr2": "accuracy of true and false",
    "entailment": "accuracy of three classes, the image in place of the text premise",
    "assignment": "accuracy of three classes: the first image's caption, the second's, neither's",
}


@dataclass(frozen=True)
class Answered:
    """One item of the source with the likeliest answers of the model, the best first.

    The probabilities are among all that were ranked; the credit of the first is in [0, 1], None where no answer is
    known.
    """

    item: int
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]
    credit: float | None


@dataclass(frozen=True, kw_only=True)
class ReasoningResult(Evaluation):
    """Accuracy and what needs no image; the images of the first items are the examples `images`.

    `accuracy` is the mean credit of the items whose answer is known, in [0, 1], for vqa the soft accuracy, with
    its 95 % interval and for each kind of question; `consistency` the fraction of sentences all of whose items are
    right (NLVR2). Where training items were given, `majority_accuracy` is the mean credit of their most frequent
    answer, `text_alone_accuracy` that of a linear classifier on the words of the text alone (with scikit-learn).
    """

    task: ReasoningTask
    answered: tuple[Answered, ...]
    interval: tuple[float, float] | None
    by_kind: Mapping[str, float]
    majority_answer: str | None


def evaluate_reasoning(
    model: Reasoner,
    source: Records,
    batches: Iterable[ReasoningBatch],
    how: Pass = DEFAULT_PASS,
    *,
    mode: Literal["rank", "generate"] = "rank",
    shortlist: int = 128,
    first_token_twice: bool = False,
    training: Records | None = None,
) -> ReasoningResult:
    """Answer each item and compare with what people answered.

    Args:
        batches: The items of the source as the model is given them; of several processes each brings its own.
        mode: How answers of `vqa` are found: "rank" takes them from the list, "generate" writes them freely.
            Classes are always ranked.
        shortlist, first_token_twice: See `Reasoner.rank`.
        training: Items that the baselines without images learn from.
    """
    task, num_images = model.config.task, model.config.num_images
    if mode == "generate" and task != "vqa":
        raise ValueError(f"answers are written freely for the task vqa alone, this model's is {task}")

    def measure(batch: ReasoningBatch, room: int) -> Measured:
        words = Words(batch.word_ids, batch.key_padding)
        if mode == "generate":
            found = [((text,), ()) for text in model.generate(batch.images, words, batch.image_index)]
        else:
            ranked = model.rank(
                batch.images, words, image_index=batch.image_index, shortlist=shortlist,
                first_token_twice=first_token_twice,
            )  # fmt: skip
            best = [
                tuple(model.config.answers[number] for number in row[:_ANSWERS])
                for row in ranked.numbers.tolist()
            ]
            found = list(zip(best, map(tuple, ranked.probabilities[:, :_ANSWERS].tolist()), strict=True))
        answered = tuple(
            Answered(item, said, likely, credit_of(task, said[0], given) if given else None)
            for item, (said, likely), given in zip(batch.items.tolist(), found, batch.answers, strict=True)
        )
        examples = {}
        if room > 0:
            groups = batch.images.unflatten(0, (-1, num_images))  # type: ignore[no-untyped-call]
            images = groups if batch.image_index is None else groups[batch.image_index]
            examples = {"images": images[:room].cpu()}
        return Measured(rows={"answered": answered}, examples=examples)

    found = evaluate(model, batches, measure, how, unit="items", description="answer")
    answered: tuple[Answered, ...] = found.rows["answered"]
    known = [(one.item, one.credit) for one in answered if one.credit is not None]
    values, interval, majority = dict(found.values), None, None
    if known:
        values["accuracy"] = _mean([credit for _, credit in known])
        interval = wilson_interval(values["accuracy"], len(known))
        if source.sentences:
            sentences = _grouped(source.sentences, known).values()
            values["consistency"] = _mean([float(min(some) == 1) for some in sentences])
    if training is not None and known:
        items = source.take([item for item, _ in known])
        baselines, majority = distributed.from_first(lambda: text_alone(task, training, items))
        values |= baselines
    answers = "; answers written freely, word by word" if mode == "generate" else ""
    if task == "vqa" and mode == "rank":
        count = min(shortlist, len(model.config.answers))
        answers = f"; answers ranked by likelihood among the {count} of likeliest first words"
    return ReasoningResult(
        values=values,
        skipped=found.skipped,
        examples=found.examples,
        protocol=f"{len(answered)} items, {_METRICS[task]}{answers}; {model.config.image_size} px, "
        f"{SQUARE[model.config.resize_mode]}",
        task=task,
        answered=answered,
        interval=interval,
        by_kind={kind: _mean(some) for kind, some in sorted(_grouped(source.kinds, known).items())},
        majority_answer=majority,
    )


def credit_of(task: ReasoningTask, answer: str, given: Sequence[str]) -> float:
    """Return what an answer is worth beside those that people gave, in [0, 1]."""
    return soft_accuracy(answer, given) if task == "vqa" else float(answer == given[0])


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return how right an answer is, in [0, 1], as the official script of VQA v2 says.

    The mean of min(1, a / 3) over the sets of all given answers but one, of which a equal the prediction (Agrawal
    et al. 2015). Both sides are normalized, but if all people wrote the very same: then the prediction must be
    what they wrote, up to blanks and line breaks around it ("Yes" is wrong where all wrote "yes", "none" right
    where all wrote "none"; GT-Vision-Lab/VQA #7, #14). LAVIS normalizes predictions always.

    VQA v2 has ten answers a question, to which alone the official script is applied. For fewer we take the same
    mean, so that two that agree are worth 1/3 and three 2/3; for a single one, which agrees with nobody, we take
    equality after normalization.
    """
    if not answers:
        raise ValueError("expected an answer or more to judge by, got none")
    said, *given = (one.replace("\n", " ").replace("\t", " ").strip() for one in (prediction, *answers))
    if len(given) == 1 or len(set(given)) > 1:
        said, *given = map(normalize_answer, (said, *given))
    return agreement(given.count(said), len(given))


def write_vqa_submission(path: Path, results: Iterable[tuple[str, str]]) -> None:
    """Write answers in the form in which EvalAI takes them, {question_id, answer}; the file appears when complete.

    All questions of the test set must be in it, also those that test-dev does not score, each once. Ids that are
    whole numbers become integers.
    """
    rows: dict[str, str] = {}
    for name, answer in results:
        if name in rows:
            raise ValueError(f"expected questions that occur once, got {name} again")
        rows[name] = answer

    def number(name: str) -> int | str:
        return int(name) if name.isascii() and name.isdecimal() and str(int(name)) == name else name

    write_text(path, json.dumps([{"question_id": number(name), "answer": one} for name, one in rows.items()]))


def text_alone(task: ReasoningTask, training: Records, items: Records) -> tuple[dict[str, float], str]:
    """Return what is reached from the texts alone, and the most frequent answer; all items have answers.

    `majority_accuracy` is that answer's and, with scikit-learn, `text_alone_accuracy` that of words and pairs.
    """
    answers = [Counter(given).most_common(1)[0][0] for given in training.answers]
    majority = Counter(answers).most_common(1)[0][0]
    predictions = {
        "majority_accuracy": [majority] * len(items),
        "text_alone_accuracy": _predicted_from_words(training.first_texts, answers, items.first_texts),
    }
    values = {}
    for name, said in predictions.items():
        if said is not None:
            pairs = zip(said, items.answers, strict=True)
            values[name] = _mean([credit_of(task, answer, given) for answer, given in pairs])
    return values, majority


def _predicted_from_words(
    texts: Sequence[str], answers: Sequence[str], others: Sequence[str]
) -> Sequence[str] | None:
    """Return what a linear classifier on words and pairs of words answers; None without scikit-learn.

    It learns the frequent answers from some of the items, evenly spaced: all of VQA v2 would take it hours.
    """
    frequent = {answer for answer, _ in Counter(answers).most_common(_CLASSES)}
    rows = [row for row, answer in enumerate(answers) if answer in frequent]
    rows = [rows[place] for place in evenly_spaced(len(rows), _LEARNED)]
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
    return [str(answer) for answer in classifier.predict(others)]


def _grouped(names: Sequence[str], known: Sequence[tuple[int, float]]) -> dict[str, list[float]]:
    """Return the credits of items by the name of their group; nothing where groups are unknown."""
    credits: dict[str, list[float]] = defaultdict(list)
    for item, credit in known if names else ():
        credits[names[item]].append(credit)
    return credits


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
