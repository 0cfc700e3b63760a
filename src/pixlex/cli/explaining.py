"""`explain`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixlex.api.models import ImageReasoner
from pixlex.cli.explain import ExplainOptions
from pixlex.cli.models import model_of
from pixlex.cli.options import answer, remark
from pixlex.data.decoding import evaluation_transform
from pixlex.data.images import load_image
from pixlex.data.sources import read_file
from pixlex.data.text import clean_caption, plain_text
from pixlex.distributed import pick_device
from pixlex.eval.gradcam import Explanation, explain
from pixlex.messages import quoted
from pixlex.models.finetuned import Reasoner
from pixlex.report.drawing import drawn
from pixlex.report.galleries import explained_image

# Cleaning is not to cut: what is too long is said in words that the model counts.
_ENDLESS = 100_000


def explain_pair(options: ExplainOptions) -> int:
    """Draw what the words of a text find in an image that it belongs to, or what speaks for an answer."""
    pictures = [load_image(read_file(path, path.as_posix()), path.as_posix()) for path in options.paths]
    model = model_of(options)
    size, cut = model.config.image_size, model.config.cut
    images = torch.stack([evaluation_transform(picture, size, cut) for picture in pictures])
    if model.task is not None:
        return _explain_answer(options, model, images)
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
        (found,) = explain(model, images, [text], score=options.score or "matching", layer=options.layer)
    path = options.out
    answer(options, _values(found, str(path)), f"{path}: {_said(found)}")
    _remark(options, found, model.config.text.positions)
    if not found.maps.any():
        remark(
            options,
            f"no word has any heat in layer {found.layer}: behind the last layer matching reads the first vector "
            "alone, so choose a lower --layer where there is one, or --score masked_language",
        )
    drawn(path, lambda place: explained_image(images, [found], place))
    return 0


def _explain_answer(options: ExplainOptions, model: Reasoner, images: Tensor) -> int:
    """Draw what speaks for the model's answer, or for one that is named."""
    if options.score is not None:
        raise ValueError(f"{options.model} was fine-tuned to answer: --score is for a pretrained model")
    if options.raw_text:
        raise ValueError(f"{options.model} was fine-tuned to answer: --raw-text is for a pretrained model")
    reasoner = ImageReasoner(model, device=pick_device(options.device), precision=options.precision)
    found = reasoner.explain(images, options.text, answer=options.answer, layer=options.layer)
    path, first = options.out, found.images[0]
    values = {
        **_values(first, str(path)),
        "answer": found.answer,
        "maps": [one.maps.tolist() for one in found.images],
        "whole": [one.whole.tolist() for one in found.images],
    }
    answer(
        options, values, f"{path}: answer {found.answer!r}, log-likelihood {found.log_likelihood:.3f} nats"
    )
    _remark(options, first, model.config.body.text.positions)
    if not any(one.maps.any() for one in found.images):
        remark(
            options, f"no word has any heat in layer {first.layer}: choose a lower --layer where there is one"
        )
    drawn(path, lambda place: explained_image(images, found.images, place, answer=found.answer))
    return 0


def _remark(options: ExplainOptions, found: Explanation, positions: int) -> None:
    """Say what of the text was not read."""
    if found.left_out:
        remark(
            options,
            f"the text is longer than the model's {positions} positions: cut behind {len(found.words)} words, not "
            f"read: {' '.join(found.left_out)}",
        )


def _values(found: Explanation, path: str) -> dict[str, Any]:
    return {
        "path": path,
        "explained": found.explained,
        "score": found.score,
        "layer": found.layer,
        "words": list(found.words),
        "maps": found.maps.tolist(),
        "whole": found.whole.tolist(),
        "left_out": list(found.left_out),
    }


def _said(found: Explanation) -> str:
    if found.explained == "matching":
        return f"{len(found.words)} words, logit of belonging {found.score:.3f}"
    mean = found.score / len(found.words)
    return f"{len(found.words)} words, each foretold with {mean:.3f} nats of log-probability on average"
