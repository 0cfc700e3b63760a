"""The families: what is opened, built, minimized, read and measured for each; nobody else asks which one it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pixlex.batch import ImageBatch
from pixlex.config.cbvila import CBViLAConfig, CBViLARun, ReasoningRun, ReasoningTask
from pixlex.config.lqae import FrozenRun, LQAERun, MAERun, VQVAERun
from pixlex.config.run import Run
from pixlex.data.captions import assignment_items, open_pairs
from pixlex.data.given import Dataset
from pixlex.data.images import open_source
from pixlex.data.loader import Images, Loader, loading
from pixlex.data.questions import open_items as open_listed
from pixlex.data.records import Pairs, Questions, Records
from pixlex.data.sources import ImageSource
from pixlex.data.text import CLASSES, build_answers
from pixlex.distributed import pick_device
from pixlex.eval.evaluate import Evaluation, Pass
from pixlex.eval.pretraining import (
    evaluate_captions,
    evaluate_masked_patches,
    evaluate_pretraining,
    evaluate_reconstruction,
)
from pixlex.eval.retrieval import evaluate_retrieval, gallery
from pixlex.eval.vqa import evaluate_reasoning
from pixlex.models import checkpoint
from pixlex.models.baselines import MAE, VQVAE, Frozen
from pixlex.models.cbvila import CBViLA
from pixlex.models.finetuned import Reasoner, started
from pixlex.models.initialization import initialize_encoder
from pixlex.models.lqae import LQAE
from pixlex.nn.vocabulary import is_fit_to_print, naming_words
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.objectives.finetune import ReasoningObjective
from pixlex.objectives.lqae import (
    FrozenObjective,
    LQAEObjective,
    MAEObjective,
    VQVAEObjective,
    WordsObjective,
)
from pixlex.objectives.phase import Objective
from pixlex.report import progress
from pixlex.training.parallel import pick_precision

# Images, images with captions, or items with questions and answers; what one family reads, none of the others do.
Source = Any
# Images, evenly spaced, whose captions are searched for words: a second of work.
_MOST_CAPTIONED = 100_000


@dataclass(frozen=True)
class Validation:
    """One evaluation of a network in training.

    Attributes:
        run: the configuration.
        objective: with the network.
        source: what is measured on.
        training: what is trained on; the baselines without images learn from it. None before the last step.
        previous_codes: codes of the evaluation before, to see how many change; None where there are none.
    """

    run: Any
    objective: Any
    source: Source
    training: Source | None = None
    previous_codes: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the run computes."""
        return pick_device(self.run.train.device)

    @property
    def model(self) -> Any:
        """The network, where the run computes."""
        return self.objective.model.to(self.device)

    @property
    def how(self) -> Pass:
        """How the data are gone through."""
        config, count = self.run.eval, len(self.source)
        picked = pick_precision(self.run.train.precision, self.device)
        precision = "fp32" if picked == "fp16" else picked  # as other commands can repeat it
        return Pass(
            precision=precision, total=min(count, config.limit or count), save_examples=config.examples
        )

    def batches(self) -> Iterator[Any]:
        """Return this process's part of what is measured, each once."""
        run = self.run
        rows = FAMILIES[run.family].rows(run, self.objective.model, self.source, False)
        settings = loading(run.model, run.eval.batch_size, workers=run.data.workers)
        return Loader(rows, settings).evaluation(run.eval.limit or None)


@dataclass(frozen=True)
class Family:
    """What differs between families.

    Attributes:
        open: run and description, or data set of Python -> what is read.
        start: run -> the network as training begins.
        objective: network and run -> what is minimized.
        rows: run, network, source and whether it is trained on -> the rows of its batches.
        evaluate: one evaluation -> what it found.
        show: one evaluation and what it found -> pictures in the run folder, and the fields of its page.
        resolve: run, training and validation data -> the run with what its data decide.
        continues: families of the models that a run may start from.
        tunes: whether it always starts from a model, or from its shape, and adds a head to it.
    """

    run: type[Run]
    model: type[checkpoint.Model]
    open: Callable[[Any, Any], Source]
    start: Callable[[Any], Any]
    objective: Callable[[Any, Any], Objective]
    rows: Callable[[Any, Any, Source, bool], Any]
    evaluate: Callable[[Validation], Evaluation]
    show: Callable[[progress.Evaluated, Any], dict[str, Any]]
    resolve: Callable[[Any, Source, Source | None], Any] = lambda run, source, validation: run
    continues: tuple[str, ...] = ()
    tunes: bool = False


def training_batches(run: Run, model: Any, source: Source) -> Callable[[int], Iterator[ImageBatch]]:
    """Return what yields this process's part of each batch, from a step on."""
    train, data = run.train, run.data
    settings = loading(run.model, train.batch_size, workers=data.workers, data=data, seed=train.seed)
    return Loader(FAMILIES[run.family].rows(run, model, source, True), settings).training


def images_of(source: Source) -> ImageSource:
    """Return the images of what is read."""
    images: ImageSource = source.images if hasattr(source, "images") else source
    return images


def build_objective(run: Run, *, resumed: bool = False) -> Objective:
    """Build model and objective of a run on the CPU, untrained, or for weights that a checkpoint brings."""
    family, config = FAMILIES[run.family], run.model
    model = family.model.build(config, initialize=False) if resumed else family.start(run)  # type: ignore[arg-type]
    return family.objective(model, run)


def taken_over(family: str, start: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe of a family takes over from the model that it starts from: the shape of the network.

    Raises:
        ValueError: the recipe does not start from such a model; `start` names it, `before` is its `config.json`.
    """
    named = before.get("family", before.get("model_type"))  # the latter of transformers
    wanted, there = FAMILIES[family], FAMILIES.get(named)
    if there is None or not there.continues:
        raise ValueError(
            f"{start} holds a model of family {named}: fine-tuning starts from one of cbvila, or from "
            "a fine-tuned one"
        )
    if named not in wanted.continues:
        raise ValueError(
            f"{start} was fine-tuned to a task and ranks images and texts no longer: expected the model that it "
            "was made from"
        )
    shape = dict(before["model"].get("body", before["model"]))
    shape.pop("caption_words", None)  # other captions have other words
    return {"body": shape} if wanted.tunes else shape


def gone_on(family: str, start: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run of a family takes over from a model of the same one, its whole network.

    Raises:
        ValueError: the model is of another family; `start` names it, `before` is its `config.json`.
    """
    named = before.get("family", before.get("model_type"))
    if named != family:
        raise ValueError(f"{start} holds a model of family {named}: expected one of {family}, as the recipe")
    model = {name: value for name, value in before["model"].items() if name != "caption_words"}
    return {"start": start, "model": model}


def _start_encoder(run: Any) -> Any:
    """Return a network whose image encoder begins as the configuration says."""
    model: Any = FAMILIES[run.family].model.build(run.model)
    if run.start:
        try:
            model.load_state_dict(checkpoint.load_any(run.start).state_dict())
        except RuntimeError as error:
            raise ValueError(f"{run.start} is a model of another family or shape: {error!s:.300}") from error
    elif not getattr(run.model, "words", 0):
        initialize_encoder(model.encoder, run.model.encoder, model.grid)
    return model


def _body(config: CBViLAConfig, start: str) -> CBViLA:
    return started(config, checkpoint.load_cbvila(start)) if start else CBViLA.start(config)


def _start_reasoner(run: ReasoningRun) -> Reasoner:
    """Return the network with its head; heads of a start go on where they fit."""
    before = checkpoint.load_any(run.start) if run.start else None
    if before is None or not before.fuses or before.task is None:
        return Reasoner.start(run.model, _body(run.model.body, run.start))
    return Reasoner.start(run.model, started(run.model.body, before.body), before)


def _images(run: Run, description: str | Dataset) -> ImageSource:
    return open_source(description)


def _pairs(run: Any, description: str | Dataset) -> Records:
    pairs = open_pairs(description)
    return pairs.cleaned() if getattr(run.data, "clean_captions", False) else pairs


def open_items(
    description: str | Dataset, task: ReasoningTask, *, clean: bool = True, max_words: int = 30
) -> Records:
    """Open items of a task as `pixlex.data.questions` does; those of text assignment are made of captions."""
    if not isinstance(description, str):
        raise ValueError(f"items with questions are described by a file, got a {type(description).__name__}")
    if task != "assignment":
        return open_listed(description, task, clean=clean, max_words=max_words)
    pairs = open_pairs(description)
    return assignment_items(pairs.cleaned(max_words) if clean else pairs)


def _items(run: ReasoningRun, description: str | Dataset) -> Records:
    return open_items(description, run.model.task, clean=run.data.clean_captions).answered()


def _stepped(kind: Callable[[Any, Any, int], Objective]) -> Callable[[Any, Any], Objective]:
    return lambda model, run: kind(model, run.objective, run.train.steps)


def _lqae_objective(model: LQAE, run: LQAERun) -> Objective:
    kind = WordsObjective if run.model.words else LQAEObjective
    return kind(model, run.objective, run.train.steps)


def _resolve_answers(run: ReasoningRun, source: Records, validation: Records | None) -> ReasoningRun:
    """Return a run with what its data decide: the answers, and how many images an item has."""
    if validation is not None and validation.num_images != source.num_images:
        raise ValueError(
            f"{validation.name} has {validation.num_images} images with each text, {source.name}, which is "
            f"trained on, has {source.num_images}"
        )
    config = run.model
    answers = config.answers or CLASSES.get(config.task) or build_answers(source, run.data.min_answer_count)
    model = dataclasses.replace(config, answers=answers, num_images=source.num_images)
    return dataclasses.replace(run, model=model)


def _resolve_words(run: CBViLARun, source: Records, validation: Records | None) -> CBViLARun:
    """Return a run whose model names images by the words of its captions, where it learns to compare them."""
    words = run.model.caption_words
    if not words and run.objective.image_text_contrastive_weight:
        step = -(-len(source) // _MOST_CAPTIONED)
        words = tuple(
            one for one in naming_words(source.texts[::step]) if all(map(is_fit_to_print, one.split()))
        )
    return dataclasses.replace(run, model=dataclasses.replace(run.model, caption_words=words))


def _image_rows(run: Run, model: Any, source: ImageSource, training: bool) -> Images:
    return Images(source)


def _pair_rows(run: Any, model: Any, source: Records, training: bool) -> Pairs:
    data = run.data
    encode = partial(model.tokenize_texts, max_words=data.max_words)
    return Pairs(source, encode, data.first_caption_rate, data.caption_stretch, data.caption_templates)


def _question_rows(run: ReasoningRun, model: Reasoner, source: Records, training: bool) -> Questions:
    together = run.data.texts_per_image if training else 1
    return Questions(source, partial(model.tokenize_texts, max_words=run.data.max_words), together)


def _evaluate_codes(one: Validation) -> Evaluation:
    folds = one.run.eval.word_folds
    return evaluate_reconstruction(one.model, one.batches(), one.how, num_folds=folds)


def _evaluate_patches(one: Validation) -> Evaluation:
    normalize = one.run.objective.normalize_targets
    return evaluate_masked_patches(one.model, one.batches(), one.how, normalize=normalize)


def _evaluate_pretraining(one: Validation) -> Evaluation:
    objective, run, how = one.objective.to(one.device), one.run, one.how
    result = evaluate_pretraining(objective, one.batches(), how, previous_codes=one.previous_codes)
    if not run.objective.image_text_contrastive_weight:  # nothing trains the vectors that are compared
        return result
    items = gallery(
        objective.model, one.source, Pass(precision=how.precision), max_words=run.data.max_words,
        batch_size=run.eval.batch_size, workers=run.data.workers, limit=run.eval.limit or None, states=False,
    )  # fmt: skip
    retrieval = evaluate_retrieval(objective.model, items, score="contrastive")
    return dataclasses.replace(result, values={**result.values, **retrieval.values})


def _evaluate_answers(one: Validation) -> Evaluation:
    return evaluate_reasoning(one.model, one.source, one.batches(), one.how, training=one.training)


FAMILIES: Mapping[str, Family] = {
    "lqae": Family(
        LQAERun, LQAE, _images, _start_encoder, _lqae_objective, _image_rows, _evaluate_codes,
        progress.show_codes,
    ),
    "vqvae": Family(
        VQVAERun, VQVAE, _images, _start_encoder, _stepped(VQVAEObjective), _image_rows, _evaluate_codes,
        progress.show_codes,
    ),
    "mae": Family(
        MAERun, MAE, _images, _start_encoder, _stepped(MAEObjective), _image_rows, _evaluate_patches,
        progress.show_patches,
    ),
    "frozen": Family(
        FrozenRun, Frozen, _pairs, _start_encoder,
        lambda model, run: FrozenObjective(model, run.train.steps), _pair_rows,
        lambda one: evaluate_captions(one.model, one.batches(), one.how), progress.show_captions,
    ),
    "cbvila": Family(
        CBViLARun, CBViLA, _pairs, lambda run: _body(run.model, run.start),
        lambda model, run: CBViLAObjective(model, run.objective, run.train.steps, run.data.max_words), _pair_rows,
        _evaluate_pretraining, progress.show_pretraining, _resolve_words, continues=("cbvila",),
    ),
    "reasoning": Family(
        ReasoningRun, Reasoner, _items, _start_reasoner, _stepped(ReasoningObjective), _question_rows,
        _evaluate_answers, progress.show_answers, _resolve_answers, continues=("cbvila", "reasoning"), tunes=True,
    ),
}  # fmt: skip
