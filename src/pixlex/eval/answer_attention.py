"""Seeing why a model answers as it does: the places of the images that speak for it, for each word of a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pixlex.batch import Words
from pixlex.data.text import plain_text
from pixlex.eval.gradcam import Explanation, ReadText, ScoreOf, attention_heat, check_images, default_layer
from pixlex.eval.passes import evaluating
from pixlex.messages import quoted
from pixlex.models.reasoner import Reasoner


@dataclass(frozen=True)
class ExplainedAnswer:
    """Why a model gives an answer.

    Attributes:
        answer: the answer.
        log_likelihood: of it, its end included, in nats; for classes the log-probability.
        images: one for each image of the text, with `log_likelihood` as the score.
    """

    answer: str
    log_likelihood: float
    images: tuple[Explanation, ...]


def explain_answer(
    model: Reasoner,
    images: Float[Tensor, "n 3 H W"],
    text: str,
    *,
    answer: str | None = None,
    layer: int | None = None,
) -> ExplainedAnswer:
    """Say which places of the images speak for an answer, for each word of the text.

    As `attention_heat`, the score being the log-likelihood with which the decoder writes the answer while it looks
    at the text, which has looked at the image; or the log-probability of the class.

    Args:
        model: the network, where it is.
        images: RGB pixels in [0, 1], as many as the model reads with each text.
        text: a question, statement or hypothesis, cleaned as in training; cut to the model's positions.
        answer: None for the model's own; otherwise any words for `vqa`, or one of the classes.
        layer: of the fusion encoder, counted from 1; None for `default_layer`.

    Raises:
        ValueError: images of another size, number or range; a text without words; an answer that is none of the
            classes, is empty or is longer than the model's answers; no such layer.
    """
    body, num_images = model.body, model.config.num_images
    check_images(body, images)
    if len(images) != num_images:
        raise ValueError(f"expected {num_images} images with the text, got {len(images)}")
    read = ReadText(body, text, 0)
    place = next(model.parameters()).device
    layer = default_layer(len(body.fusion.layers)) if layer is None else layer
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        ids = read.word_ids.unsqueeze(0).to(place)
        words = Words(ids, torch.zeros_like(ids, dtype=torch.bool))
        images = images.to(place)
        if answer is None:
            answer = model.config.answers[int(model.rank(images, words).numbers[0, 0])]
        score_of = _score_of(model, plain_text(answer), words.key_padding)
        found = attention_heat(
            body.fusion,
            body.encode_text(words.word_ids, words.key_padding).repeat(num_images, 1, 1),
            body.image_context(body.encode_image(images)),
            words.key_padding.repeat(num_images, 1),
            score_of,
            layer=layer,
        )
    score = float(found.scores.sum())
    heat = found.maps[..., 1:]  # without the class
    explained = tuple(read.of_tokens(one, "answer", score, layer) for one in heat)
    return ExplainedAnswer(answer, score, explained)


def _score_of(model: Reasoner, answer: str, key_padding: Tensor) -> ScoreOf:
    """Return the score of an answer as a function of the fused text: a share of it for each image."""
    if model.decoder is None:
        classes = model.config.answers
        if answer not in classes:
            raise ValueError(f"expected one of {', '.join(classes)} as the answer, got {quoted(answer)}")
        number = classes.index(answer)

        def of_class(fused: Tensor) -> Tensor:
            chances = model.head_logits(fused.unsqueeze(0)).log_softmax(-1)
            return chances[0, number].expand(len(fused)) / len(fused)

        return of_class
    # One more than fits, so that what is too long is seen.
    ids = model.tokenize_texts([answer], model.config.max_answer_words + 1).word_ids.to(key_padding.device)
    if not 3 <= ids.shape[1] <= model.config.max_answer_words:
        raise ValueError(
            f"expected an answer of 1 to {model.config.max_answer_words - 2} words (tokens), got {quoted(answer)}"
        )
    decoder, words = model.decoder, Words(ids, torch.zeros_like(ids, dtype=torch.bool))

    def of_written(fused: Tensor) -> Tensor:
        return model.log_likelihoods(words, decoder.project(fused, key_padding))

    return of_written
