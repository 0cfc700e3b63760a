"""`explain`, `ask` and `gallery`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pixlex.cli.models import batches_of, finish, place
from pixlex.cli.options import (
    DATA,
    AnswerOptions,
    BatchOptions,
    Count,
    LimitOption,
    MachineOptions,
    ModelOptions,
    Picture,
    Positive,
    SizeOptions,
    answer,
    option,
    positional,
    remark,
    table,
)
from pixlex.messages import quoted

if TYPE_CHECKING:
    from torch import Tensor

    from pixlex.eval.gradcam import Explanation
    from pixlex.models.finetuned import Reasoner

# Cleaning is not to cut: what is too long is said in words that the model counts.
_ENDLESS = 100_000


class ExplainOptions(MachineOptions, SizeOptions, ModelOptions):
    paths: tuple[Path, ...] = positional("IMAGE", "an image file; two where the model reads two")
    text: str = positional("TEXT", "what is said or asked of it, in quotes")
    answer: str | None = option(None, "of a fine-tuned model: the answer to explain; default its own", "TEXT")
    out: Picture = option(text="the picture", metavar="FILE.png")
    score: Literal["matching", "masked_language"] | None = option(
        None,
        "what is explained of a pretrained model: that text and image belong together (the default), or that "
        "each word, hidden, is predicted from the image and the other words; of a fine-tuned one it is the answer",
    )
    layer: Positive | None = option(
        None,
        "of the fusion encoder, counted from 1; default the third, or the last but one of fewer than four",
        "N",
    )
    raw_text: bool = option(False, "the text as it is, not cleaned")


class AskOptions(MachineOptions, AnswerOptions, ModelOptions):
    paths: tuple[str, ...] = positional("IMAGE", "an image file; two where the model reads two")
    text: str = positional("QUESTION", "the question, or the sentence to judge")
    top: Positive = option(5, "most answers shown; default %(default)s")


class GalleryOptions(MachineOptions, BatchOptions, LimitOption, ModelOptions):
    data: str = option(text=DATA, metavar="DATA")
    out: Picture = option(text="the picture", metavar="FILE.png")
    codewords: Positive = option(12, "rows; default %(default)s")
    seed: Count = option(0, "of the draw; default %(default)s")


def explain(options: ExplainOptions) -> None:
    """Draw where each word of a text finds itself in an image, or what speaks for an answer."""
    import torch

    from pixlex.data.decoding import evaluation_transform, load_image
    from pixlex.data.sources import read_file
    from pixlex.data.text import clean_caption, plain_text
    from pixlex.distributed import pick_device
    from pixlex.eval import gradcam
    from pixlex.models import checkpoint

    pictures = [load_image(read_file(path, path.as_posix()), path.as_posix()) for path in options.paths]
    model = checkpoint.load_any(options.model, **options.versions)
    if not model.fuses:
        raise ValueError(
            f"{options.model} holds a model of family {model.family}, expected one of cbvila or a "
            "fine-tuned one"
        )
    model = place(model, options)
    size, cut = model.config.image_size, model.config.cut
    images = torch.stack([evaluation_transform(picture, size, cut) for picture in pictures])
    if model.task is not None:
        _explain_answer(options, model, images)
        return
    if options.answer is not None:
        raise ValueError(f"{options.model} gives no answers: expected a fine-tuned model with --answer")
    if len(images) != 1:
        raise ValueError(f"{options.model} reads one image with each text, got {len(images)}")
    text = plain_text(options.text) if options.raw_text else clean_caption(options.text, _ENDLESS)
    if not text.strip():
        raise ValueError(f"expected a text of one word or more, got {quoted(options.text)}")
    with torch.autocast(
        pick_device(options.device).type, torch.bfloat16, enabled=options.precision == "bf16"
    ):
        found = gradcam.explain(model, images, text, score=options.score or "matching", layer=options.layer)
    said = f"{len(found.words)} words, logit of belonging {found.score:.3f}"
    if found.explained != "matching":
        mean = found.score / len(found.words)
        said = f"{len(found.words)} words, each foretold with {mean:.3f} nats of log-probability on average"
    advice = (
        "behind the last layer matching reads the first vector alone, so choose a lower --layer where there is "
        "one, or --score masked_language"
    )
    _finish(options, images, [found], said, advice, model.config.text.positions)


def ask(options: AskOptions) -> None:
    """Answer a question about an image, with probabilities."""
    from pixlex import api

    reasoner = api.load_reasoner(options.model, **options.loading)
    values: dict[str, Any] = {"images": options.paths, "text": options.text, "task": reasoner.task}
    if options.generate:
        written = reasoner.write(options.paths, options.text)[0]
        answer(options, {**values, "answer": written}, written)
        return
    (found,) = reasoner.answer(options.paths, options.text, top_k=options.top, shortlist=options.shortlist)
    values["answers"] = [{"answer": one.text, "probability": one.probability} for one in found]
    answer(options, values, table([(f"{one.probability:6.1%}", one.text) for one in found]))


def gallery(options: GalleryOptions) -> None:
    """Draw codewords with patches that they stand for."""
    import torch

    from pixlex import distributed
    from pixlex.batch import TooManyBroken
    from pixlex.data.images import open_source
    from pixlex.data.loader import Images
    from pixlex.eval.evaluate import labeled
    from pixlex.eval.pretraining import codeword_purity
    from pixlex.models import checkpoint, compute_rows
    from pixlex.report.figures import drawn
    from pixlex.report.progress import codeword_gallery

    source = open_source(options.data)
    device = distributed.pick_device(options.device)
    model = checkpoint.load(options.model, **options.versions).to(device)
    own = []
    for batch in batches_of(Images(source), model.config, options.batch_size, options.limit):
        codes = torch.empty(0, model.grid**2, dtype=torch.long)
        if len(batch.images):
            codes = compute_rows(
                batch.images, model.tokenize, grid=model.grid,
                device=device, precision=options.precision, batch_size=options.batch_size,
            )  # fmt: skip
        own.append((codes, batch.indices, batch.labels, batch.skipped))
    everyone = distributed.in_turn(own)
    if not distributed.is_first():
        return
    found, indices, classes = (torch.cat([part[column] for part in everyone]) for column in range(3))
    skipped = [one for part in everyone for one in part[3]]
    if not len(found):
        raise TooManyBroken(f"{source.name}: none of {len(skipped)} images can be read")
    values: dict[str, Any] = {"path": str(options.out), "num_images": len(found)}
    lines = [f"{options.out}: {options.codewords} codewords of {len(found)} images"]
    if (classes >= 0).any():
        purity = codeword_purity(found, classes, options.seed)
        values |= purity
        lines.append(table(labeled(purity)))
    else:
        remark(options, "the images have no classes, so no purity is measured")
    finish(options, values, "\n".join(lines), skipped)
    drawn(
        options.out,
        lambda path: codeword_gallery(
            source, indices, found, image_size=model.config.image_size, cut=model.config.cut,
            num_codewords=options.codewords, seed=options.seed, path=path,
        ),
    )  # fmt: skip


def _explain_answer(options: ExplainOptions, model: Reasoner, images: Tensor) -> None:
    """Draw what speaks for the model's answer, or for one that is named."""
    from pixlex.api import ImageReasoner
    from pixlex.distributed import pick_device

    for name, given in (("score", options.score), ("raw-text", options.raw_text)):
        if given:
            raise ValueError(f"{options.model} was fine-tuned to answer: --{name} is for a pretrained model")
    reasoner = ImageReasoner(model, device=pick_device(options.device), precision=options.precision)
    found = reasoner.explain(images, options.text, answer=options.answer, layer=options.layer)
    said = f"answer {found.answer!r}, log-likelihood {found.log_likelihood:.3f} nats"
    advice = "choose a lower --layer where there is one"
    positions = model.config.body.text.positions
    _finish(options, images, found.images, said, advice, positions, found.answer)


def _finish(
    options: ExplainOptions,
    images: Tensor,
    found: Sequence[Explanation],
    said: str,
    advice: str,
    positions: int,
    answered: str | None = None,
) -> None:
    """Print heat by word, for one image or, with an answer, for each; say what was not read; draw."""
    from pixlex.report.figures import drawn, explained_image

    first, path = found[0], options.out
    maps, whole = [one.maps.tolist() for one in found], [one.whole.tolist() for one in found]
    values = {
        "path": str(path),
        "explained": first.explained,
        "score": first.score,
        "layer": first.layer,
        "words": first.words,
        "maps": maps[0] if answered is None else maps,
        "whole": whole[0] if answered is None else whole,
        "left_out": first.left_out,
    }
    answer(options, values if answered is None else {**values, "answer": answered}, f"{path}: {said}")
    if first.left_out:
        remark(
            options,
            f"the text is longer than the model's {positions} positions: cut behind {len(first.words)} words, not "
            f"read: {' '.join(first.left_out)}",
        )
    if not any(one.maps.any() for one in found):
        remark(options, f"no word has any heat in layer {first.layer}: {advice}")
    drawn(path, lambda place: explained_image(images, found, place, answer=answered or ""))
