"""The official soft accuracy of VQA v2, and the file in which answers are handed in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixlex.data.answers import agreement, agreement_targets, normalize_answer
from pixlex.eval.intervals import wilson_interval
from pixlex.files import write_atomically

__all__ = [
    "KindScore",
    "VQAScore",
    "agreement_targets",
    "normalize_answer",
    "score_answers",
    "soft_accuracy",
    "vqa_submission",
    "write_vqa_submission",
]


@dataclass(frozen=True)
class KindScore:
    """How right the answers to some questions are.

    Attributes:
        accuracy: mean soft accuracy, in [0, 1].
        interval: its 95 % interval, see `wilson_interval`.
        num_questions: questions that were scored.
    """

    accuracy: float
    interval: tuple[float, float]
    num_questions: int


@dataclass(frozen=True)
class VQAScore:
    """How right the answers to a set of questions are.

    Attributes:
        overall: of all questions.
        by_kind: kind of question -> its score, the most frequent first; empty if kinds are unknown.
        num_unknown: questions without an answer by people, which are not scored.
    """

    overall: KindScore
    by_kind: Mapping[str, KindScore]
    num_unknown: int


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return how right an answer is, as the official script of VQA v2 says.

    The mean of min(1, a / 3) over the sets of all given answers but one, of which a equal the prediction
    (Agrawal et al. 2015). Both sides are normalized, but if all people wrote the very same: then the prediction
    must be what they wrote, up to blanks and line breaks around it ("Yes" is wrong where all wrote "yes", "none"
    right where all wrote "none"; GT-Vision-Lab/VQA #7, #14). LAVIS normalizes predictions always.

    VQA v2 has ten answers a question, to which alone the official script is applied. For fewer we take the same
    mean, so that two that agree are worth 1/3 and three 2/3; for a single one, which agrees with nobody, we
    take equality after normalization.

    Args:
        prediction: the answer to be judged.
        answers: what people answered, repeats included; one or more.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("expected an answer or more to judge by, got none")
    said, given = _plain(prediction), [_plain(answer) for answer in answers]
    if len(given) == 1 or len(set(given)) > 1:
        said, given = normalize_answer(said), [normalize_answer(answer) for answer in given]
    return agreement(given.count(said), len(given))


def score_answers(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], kinds: Sequence[str] = ()
) -> VQAScore:
    """Return the soft accuracy of a set of questions and of each kind of them.

    Args:
        predictions: the answer to each question.
        answers: what people answered to each; questions without answers are not scored.
        kinds: the kind of each question, such as `ReasoningSource.kinds`; may be empty.

    Raises:
        ValueError: the lengths differ, or no question has an answer.
    """
    for what, values in (("answers", answers), ("kinds", kinds)):
        if len(values) != len(predictions) and (values or what == "answers"):
            raise ValueError(f"expected {what} for each of {len(predictions)} predictions, got {len(values)}")
    accuracies: list[float] = []
    of_kind: dict[str, list[float]] = {}
    for row, (prediction, given) in enumerate(zip(predictions, answers, strict=True)):
        if not given:
            continue
        accuracies.append(soft_accuracy(prediction, given))
        if kinds:
            of_kind.setdefault(kinds[row], []).append(accuracies[-1])
    if not accuracies:
        raise ValueError(f"none of {len(answers)} questions has an answer to judge by")
    most_first = sorted(of_kind.items(), key=lambda found: -len(found[1]))
    by_kind = {kind: _score(values) for kind, values in most_first}
    return VQAScore(_score(accuracies), by_kind, len(answers) - len(accuracies))


def vqa_submission(results: Iterable[tuple[str, str]]) -> list[dict[str, int | str]]:
    """Return answers in the form in which EvalAI takes them: {question_id, answer}.

    All questions of the test set must be in it, also those that test-dev does not score.

    Args:
        results: id of each question and its answer. Ids that are whole numbers become integers.

    Raises:
        ValueError: a question occurs twice.
    """
    rows: dict[str, str] = {}
    for name, answer in results:
        if name in rows:
            raise ValueError(f"expected questions that occur once, got {name} again")
        rows[name] = answer
    return [{"question_id": _number(name), "answer": answer} for name, answer in rows.items()]


def write_vqa_submission(path: Path, results: Iterable[tuple[str, str]]) -> None:
    """Write `vqa_submission` as JSON; the file appears when it is complete."""
    text = json.dumps(vqa_submission(results))
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _plain(answer: str) -> str:
    """Return an answer as it is compared where nothing is normalized."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _number(name: str) -> int | str:
    """Return the whole number that a text is, else the text."""
    return int(name) if name.isascii() and name.isdecimal() and str(int(name)) == name else name


def _score(accuracies: Sequence[float]) -> KindScore:
    accuracy = sum(accuracies) / len(accuracies)
    return KindScore(accuracy, wilson_interval(accuracy, len(accuracies)), len(accuracies))
