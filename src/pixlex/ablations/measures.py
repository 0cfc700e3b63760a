"""What an ablation measures on every row's model besides the run's own numbers: probe, few-shot, retrieval."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from pixlex.ablations.rows import Measure, Measured
from pixlex.config.ablation import AblationRow
from pixlex.data.records import PairSource
from pixlex.data.sources import ImageSource
from pixlex.distributed import pick_device
from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.few_shot.classifiers import Classifier, embedded_encoder, word_classifiers
from pixlex.eval.few_shot.episodes import EpisodeSet, digest
from pixlex.eval.few_shot.prompted import PromptedClassifier, Scorer
from pixlex.eval.few_shot.prompts import Template
from pixlex.eval.few_shot.readers import model_reader
from pixlex.eval.few_shot.run import run_few_shot
from pixlex.eval.linear_probe import probe_rows
from pixlex.eval.llm import LanguageClient
from pixlex.eval.probe_features import probe_features
from pixlex.eval.probe_sets import ProbeSets
from pixlex.eval.published import TABLE_TOP_K, benchmark_of
from pixlex.eval.retrieval import evaluate_retrieval, gallery
from pixlex.models import checkpoint
from pixlex.models.checkpoint import Tokenizer


def probe_measure(sets: ProbeSets, cache: Path, *, device: str = "auto") -> Measure:
    """Return the linear probe on all layers of the language model; rows without one have none.

    Args:
        sets: the images.
        cache: where features are kept.
        device: where to compute.
    """

    def measure(folder: Path, row: AblationRow) -> Mapping[str, Measured]:
        model = _load(folder, device)
        if not row.trains or model.vocabulary is None:
            return {}
        (found,) = probe_rows(probe_features(row.name, model, sets, cache), ["layers"])
        low, high = found.result.top1_interval
        return {"top-1": Measured(value=found.result.top1, low=low, high=high)}

    parts = [one.contents for one in sets.parts.values()]
    return Measure(name="linear_probe", identity=digest(*parts), of=measure)


def few_shot_measure(
    images: ImageSource,
    episode_sets: Sequence[EpisodeSet],
    cache: Path,
    *,
    clients: Sequence[LanguageClient] = (),
    template: Template = "frozen",
    scorer: Scorer = "likelihood",
    device: str = "auto",
) -> Measure:
    """Return few-shot classification by a sentence encoder and by language models (row H: one column each).

    Args:
        images: what the episodes are about.
        episode_sets: the episodes.
        cache: where words and answers are kept.
        clients: language models that are prompted.
        template: the prompt.
        scorer: how their answers are judged.
        device: where to compute.
    """

    def measure(folder: Path, row: AblationRow) -> Mapping[str, Measured]:
        model = _load(folder, device)
        place = next(model.parameters()).device
        words = _words_of_base(folder) if model.vocabulary is None else None
        reader = model_reader(
            model, row.name, words=words, keep_ratio=row.keep_share, cache=cache / "words", device=place
        )
        classifiers: dict[str, Classifier] = {}
        for classifier in word_classifiers(reader, ["sentence"], encoder=embedded_encoder(), device=place):
            classifiers["sentence encoder"] = classifier
        for client in clients:
            classifiers[f"{client.name}, {scorer}"] = PromptedClassifier(
                reader, client, template=template, scorer=scorer
            )
        cells = run_few_shot(list(classifiers.values()), episode_sets, images, cache / "answers" / row.name)
        for cell in cells:
            if cell.does_not_fit:
                warnings.warn(f"row {row.name}: {cell.does_not_fit}", stacklevel=2)
        titles = [name for name in classifiers for _ in episode_sets]
        return {
            f"{title}, {cell.setting.ways}-way {cell.setting.column}": Measured(
                value=cell.accuracy,
                low=cell.low,
                high=cell.high,
                episodes=cell.num_episodes - cell.num_failed,
            )
            for title, cell in zip(titles, cells, strict=True)
            if cell.accuracy is not None
        }

    asked = [f"{one.identity} {template} {scorer}" for one in clients]
    # Numbers of versions that did not count their episodes are measured again; the answers are there.
    parts = ["counted", *(one.identity for one in episode_sets), *asked]
    return Measure(name="few_shot", identity=digest(*parts), of=measure)


def retrieval_measure(
    pairs: PairSource, *, max_words: int, limit: int | None, device: str = "auto"
) -> Measure:
    """Return zero-shot retrieval, both directions re-ranked by matching (CB-ViLA, Table IV).

    Args:
        pairs: images with captions that no row is trained on, as they are to be read.
        max_words: longest caption in words (tokens).
        limit: most images; None for all.
        device: where to compute.
    """
    top_k = TABLE_TOP_K[benchmark_of(pairs.name) or "flickr30k"]

    def measure(folder: Path, row: AblationRow) -> Mapping[str, Measured]:
        model = checkpoint.load_cbvila(str(folder)).to(pick_device(device))
        items = gallery(model, pairs, max_words=max_words, limit=limit)
        # Without contrast similarities mean nothing: all pairs are matched.
        result = evaluate_retrieval(model, items, top_k=top_k if model.compares else len(items.image_of))
        found = {}
        for name, value in result.values.items():
            if "recall_at" in name:
                count = result.num_images if "text_recall" in name else result.num_captions
                low, high = wilson_interval(value, count)
                found[name] = Measured(value=value, low=low, high=high)
        return found

    asked = f"top {top_k}, {max_words} words, limit {limit}"
    return Measure(name="retrieval", identity=digest(pairs.identity, asked), of=measure)


def _load(folder: Path, device: str) -> Tokenizer:
    return checkpoint.load(str(folder)).to(pick_device(device))


def _words_of_base(folder: Path) -> tuple[str, ...]:
    """Return the words of the unchanged recipe, which lies beside the row whose codes they stand for."""
    base = checkpoint.load(str(folder.parents[1] / "base" / "model"))
    assert base.vocabulary is not None
    return base.vocabulary.words
