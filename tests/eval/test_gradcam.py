"""Grad-CAM of cross-attention: against finite differences, and what must hold of any map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import IMAGE_SIZE, tiny_cbvila, tiny_reasoner
from torch import Tensor, nn

from pixlex.config.cbvila import ReasoningTask
from pixlex.eval import gradcam
from pixlex.eval.gradcam import attention_heat, default_layer, explain, explain_answer
from pixlex.models.cbvila import CBViLA
from pixlex.nn.bert import FusionEncoder

WIDTH, HEADS = 16, 2
TEXTS = ["about all", "any also add after", "and"]


@pytest.fixture(scope="module")
def model(language: Path) -> CBViLA:
    return tiny_cbvila(language).requires_grad_(False)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE)


def _fusion() -> FusionEncoder:
    fusion = FusionEncoder(WIDTH, 3, HEADS).double()
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.3)
    return fusion.eval().requires_grad_(False)


def _score_of(fused: Tensor) -> Tensor:
    return (fused[:, 0] * torch.linspace(-1, 1, WIDTH, dtype=fused.dtype)).sum(1)


@pytest.mark.parametrize("layer", [1, 2])
def test_maps_are_attention_times_what_a_little_more_of_it_adds(layer: int) -> None:
    """mean over heads of A * relu(dy / dA), every derivative by a central difference."""
    fusion = _fusion()
    text, states = torch.randn(1, 3, WIDTH).double(), torch.randn(1, 4, WIDTH).double()
    context = fusion.project(states)

    def score(change: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def changed(shares: Tensor) -> Tensor:
            seen.append(shares)
            return shares + change

        fused = text
        for number, (one, keys_values) in enumerate(zip(fusion.layers, context.layers, strict=True), start=1):
            fused = one(fused, None, keys_values, None, changed if number == layer else None)
        return _score_of(fused)[0], seen[0]

    shares = score(torch.zeros(1, HEADS, 3, 4).double())[1]
    slopes = torch.zeros_like(shares)
    for place in range(shares.numel()):
        step = torch.zeros_like(shares)
        step.view(-1)[place] = 1e-5
        slopes.view(-1)[place] = (score(step)[0] - score(-step)[0]) / 2e-5
    assert (slopes < 0).any()
    assert (slopes > 0).any()
    found = attention_heat(fusion, text, context, None, _score_of, layer=layer)
    expected = (shares * slopes.clamp(min=0)).mean(1)
    torch.testing.assert_close(found.maps, expected.float(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.scores, score(torch.zeros_like(shares))[0].float().unsqueeze(0))


def test_groups_of_texts_keep_their_own_maps_and_padding_changes_nothing() -> None:
    """Three groups over two contexts, some padded: each row as if it were alone."""
    fusion = _fusion()
    states, text = torch.randn(2, 5, WIDTH).double(), torch.randn(6, 4, WIDTH).double()
    lengths = [4, 3, 4, 2, 4, 4]
    padding = torch.arange(4) >= torch.tensor(lengths).unsqueeze(1)
    found = attention_heat(fusion, text, fusion.project(states), padding, _score_of, layer=1)
    for row, length in enumerate(lengths):
        alone = attention_heat(
            fusion, text[row : row + 1, :length], fusion.project(states[row % 2 : row % 2 + 1]), None,
            _score_of, layer=1,
        )  # fmt: skip
        torch.testing.assert_close(found.maps[row : row + 1, :length], alone.maps)
        torch.testing.assert_close(found.scores[row : row + 1], alone.scores)
        assert (found.maps[row, length:] == 0).all()


def test_the_score_is_the_models_own_and_maps_have_the_grid(model: CBViLA, images: Tensor) -> None:
    for image, text in zip(images.split(1), TEXTS, strict=True):
        found = explain(model, image, text)
        words = model.tokenize_texts([text], 16)
        with torch.no_grad():
            encoded = model.encode_text(words.word_ids, words.key_padding)
            fused = model.fusion(encoded, model.image_context(model.encode_image(image)), words.key_padding)
            assert found.score == pytest.approx(float(model.matching_head(fused[:, 0])[0, 1]))
        assert found.words == tuple(text.split())
        assert found.maps.shape == (len(text.split()), 4, 4)
        assert found.whole.max() > 0


@pytest.mark.parametrize("score", ["matching", "masked_language"])
def test_pieces_of_a_word_are_joined(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map of a word is the mean of those of its pieces, which stand where the tokenizer put them."""
    model = tiny_cbvila(Path("embedded")).requires_grad_(False)
    heats = []

    def noted(*arguments: object, **settings: object) -> object:
        heats.append(attention_heat(*arguments, **settings))  # type: ignore[arg-type]
        return heats[-1]

    monkeypatch.setattr(gradcam, "attention_heat", noted)
    image = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    found = explain(model, image, "a rhombicuboctahedron here", score=score)  # type: ignore[arg-type]
    assert found.words == ("a", "rhombicuboctahedron", "here")
    pieces = model.tokenizer.words(model.tokenize_texts(["a rhombicuboctahedron here"], 16).word_ids[0])
    count = sum(piece.startswith("##") for piece in pieces) + 1
    assert count > 1
    maps = heats[0].maps[0 if score == "matching" else 1]
    torch.testing.assert_close(found.maps[1].flatten(), maps[2 : 2 + count, 1:].mean(0))
    assert len(heats[0].maps) == (1 if score == "matching" else 3)


def test_hidden_words_are_scored_as_pseudo_log_likelihood(model: CBViLA, images: Tensor) -> None:
    """Each word hidden alone, by the model's ordinary path."""
    found = explain(model, images[:1], "any also add", score="masked_language", layer=2)
    words = model.tokenize_texts(["any also add"], 16)
    assert model.tokenizer.tokenizer.unk_token_id not in words.word_ids
    total = 0.0
    with torch.no_grad():
        context = model.image_context(model.encode_image(images[:1]))
        for place in (1, 2, 3):
            hidden = words.word_ids.clone()
            hidden[0, place] = model.tokenizer.mask_id
            fused = model.fusion(model.encode_text(hidden, words.key_padding), context, words.key_padding)
            vectors = model.masked_word_head(fused[:, place])
            logits = model.text_encoder.words.weight @ vectors[0] + model.masked_word_head.bias
            total += float(logits.log_softmax(-1)[words.word_ids[0, place]])
    assert found.score == pytest.approx(total, rel=1e-5)
    assert (found.maps.flatten(1).amax(1) > 0).all()  # in the last layer too: a word's own vector is scored


def test_in_the_last_layer_matching_hears_the_start_alone(model: CBViLA, images: Tensor) -> None:
    """Hence the default is a layer before it, where words have heat."""
    last, default = (explain(model, images[:1], TEXTS[0], layer=layer) for layer in (2, None))
    assert not last.maps.any()
    assert last.whole.max() > 0
    assert default.layer == 1
    assert (default.maps.flatten(1).amax(1) > 0).all()
    assert [default_layer(depth) for depth in (1, 2, 3, 4, 6, 12)] == [1, 1, 2, 3, 3, 3]


def test_nothing_is_left_behind_whatever_the_caller_has_switched(model: CBViLA, images: Tensor) -> None:
    """Without gradients, in inference mode, in training with parameters that ask for gradients: the same maps."""
    expected = explain(model, images[:1], TEXTS[0])
    with torch.inference_mode():
        found = explain(model, images[:1].clone(), TEXTS[0])
    assert torch.equal(found.maps, expected.maps)
    model.train().requires_grad_(True)
    with torch.no_grad():
        found = explain(model, images[:1], TEXTS[0])
    assert torch.equal(found.maps, expected.maps)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not found.maps.requires_grad
    model.eval().requires_grad_(False)


def test_what_is_too_long_is_cut_and_named(model: CBViLA, images: Tensor) -> None:
    words = ["about", "all", "and"] * 6
    found = explain(model, images[:1], " ".join(words))
    assert (found.words, found.left_out) == (tuple(words[:14]), tuple(words[14:]))
    read = explain(model, images[:1], " ".join(words[:14]))
    assert (read.left_out, read.score) == ((), found.score)
    assert torch.equal(read.maps, found.maps)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input(model: CBViLA, images: Tensor) -> None:
    for changed, message in (
        ({"text": " "}, r"expected a text of one word or more, got ' '"),
        ({"image": images[:2]}, "expected 1 images with the text, got 2"),
        ({"image": images[:1, :, :16]}, r"shape \(I, 3, 32, 32\), got \(1, 3, 16, 32\)"),
        ({"image": 255 * images[:1]}, r"pixels in \[0, 1\], got 0"),
        ({"image": images[:1] * torch.nan}, r"pixels in \[0, 1\], got nan"),
        ({"layer": 3}, "layer must be one of the fusion encoder's, 1 to 2, got 3"),
    ):
        arguments = {"image": images[:1], "text": TEXTS[0], **changed}
        with pytest.raises(ValueError, match=message):
            explain(model, **arguments)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "entailment"])
def test_the_score_of_an_answer_is_the_likelihood_that_ranking_finds(
    task: ReasoningTask, language: Path
) -> None:
    """Of the model's own answer, and of another one; two images have one score."""
    model = tiny_reasoner(language, task)
    images = torch.rand(model.config.num_images, 3, model.config.image_size, model.config.image_size)
    ranked = model.rank(images, model.tokenize_texts(["about all and"], 12))
    numbers, scores = ranked.numbers[0].tolist(), ranked.log_likelihoods[0].tolist()
    assert explain_answer(model, images, "about all and").answer == model.config.answers[numbers[0]]
    for number, score in zip(numbers, scores, strict=True):
        one = explain_answer(model, images, "about all and", answer=model.config.answers[number])
        assert one.log_likelihood == pytest.approx(score, abs=1e-5)
        assert len(one.images) == len(images)
        for explained in one.images:
            assert explained.words == ("about", "all", "and")
            assert explained.maps.shape == (3, 4, 4)
            assert explained.maps.max() > 0
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_of_answers(language: Path) -> None:
    questions = tiny_reasoner(language, "vqa", max_answer_words=4)
    pairs = tiny_reasoner(language, "nlvr2")
    image = torch.rand(1, 3, pairs.config.image_size, pairs.config.image_size)
    two = image.repeat(2, 1, 1, 1)
    number = r"expected an answer of 1 to 2 words \(tokens\), got"
    for model, images, text, settings, message in (
        (pairs, image, "about", {}, "expected 2 images with the text, got 1"),
        (pairs, two, "about", {"answer": "yes"}, "expected one of false, true as the answer, got 'yes'"),
        (questions, image, "about", {"answer": ""}, number),
        (questions, image, "about", {"answer": "about the class and any other"}, number),
    ):
        with pytest.raises(ValueError, match=message):
            explain_answer(model, images, text, **settings)  # type: ignore[arg-type]
