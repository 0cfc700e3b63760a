"""What an evaluation of a run in training shows, for each kind of data: pictures, and what stands on its page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from pixlex.batch import Skipped
from pixlex.data.records import Records
from pixlex.data.sources import ImageSource
from pixlex.eval.evaluate import Evaluation, read_pixels, write_arrays
from pixlex.eval.vqa import Answered, ReasoningResult
from pixlex.nn.vocabulary import content_words, words_in
from pixlex.report.figures import (
    Captioned,
    Sheet,
    captioned_images,
    drawn,
    enlarged,
    image_columns,
    reconstruction_grid,
)

CODES = "validation-codes.npz"
# Codewords, in pixels; patches in a row, and surroundings on each side, by which one sees what a patch is part of.
_PATCH, _PATCH_GAP, _CODEWORD = 72, 6, 118
_PATCHES, _AROUND = 14, 1
_FRAME = (214, 60, 40)
# Headings of pictures.
REBUILT = "Original, what was visible of it, rebuilt with its caption, rebuilt with the next one's"
CODEWORDS = "Codewords, each with patches that it stands for"
FEATURES = "Images where the teacher sees them: neighbors are alike to it (t-SNE)"
WORDS = "The words that are used most, each with images that have it"
# Of the picture of features: images, their side and the picture's in pixels; with fewer there is none.
_SHOWN, _THUMBNAIL, _MAP = 500, 40, 1400
_NEIGHBORS = 50


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a run after a step: its configuration, what was measured on, the run folder.

    What shows one draws pictures into the folder and returns the fields of its `Page`.
    """

    run: Any
    source: Any
    folder: Path
    step: int

    def path(self, kind: str) -> Path:
        """Return where a picture goes."""
        return self.folder / "pictures" / f"{kind}-{self.step:08d}.png"

    def title(self, name: str) -> str:
        """Return the heading of the page: what the network is, its images, what it was trained on."""
        model = self.run.model
        grid = f", {model.grid} x {model.grid}" if hasattr(model, "grid") else ""
        return f"{name}, {model.image_size} px{grid}: {self.run.data.train}"


def show_codes(one: Evaluated, result: Evaluation) -> dict[str, Any]:
    """Show images, words or codes, reconstructions."""
    examples, model = result.examples, one.run.model
    grid = examples["grid"]
    shown = examples["originals"], examples["reconstructions"], examples["words"], grid
    drawn(one.path("reconstruction"), lambda path: reconstruction_grid(*shown, path))
    name = "VQ-VAE"
    introduction = f"Each image was written as {grid} x {grid} codes and rebuilt from the codes alone."
    if examples["words"] is not None:
        name = "LQAE"
        introduction = (
            f"Each image was written as {grid} x {grid} words of a language model's vocabulary, and rebuilt from "
            "the words alone. The words are a code: they need not describe what is on the image."
        )
        if not grid:
            introduction = (
                f"Each image was written as {model.words} words of a language model's vocabulary, those of the "
                f"nearest of {model.quantizer.num_concepts} clusters of images, and rebuilt from the words alone. "
                "Images that look alike share words; which word a cluster has says nothing of what is on it."
            )
    page = _page(
        one.title(name), introduction, [*result.notes, *unreadable(result.skipped)], examples=examples
    )
    if "features" in result.rows and len(result.rows["features"]) > _NEIGHBORS:
        path = one.path("features")
        page["pictures"][FEATURES] = drawn(
            path, lambda path: feature_map(one.source, result.rows, model, path)
        )
        path = one.path("words")
        indices, codes = result.rows["indices"], result.rows["codes"]
        page["pictures"][WORDS] = drawn(
            path,
            lambda path: codeword_gallery(
                one.source, indices, codes, path, config=model,
                names=result.examples["vocabulary"],
            ),
        )  # fmt: skip
    return page


def show_patches(one: Evaluated, result: Evaluation) -> dict[str, Any]:
    """Show what a masked autoencoder makes of hidden patches."""
    found, model = result.examples, one.run.model
    columns = {"original": "originals", "visible": "visible", "rebuilt": "reconstructions"}
    images = {title: found[name] for title, name in columns.items()}
    drawn(one.path("masked"), lambda path: image_columns(images, path))
    note = f"The encoder saw {1 - model.mask_ratio:.0%} of the {model.grid} x {model.grid} patches."
    if one.run.objective.normalize_targets:
        note += " Each hidden patch is drawn with its own mean and spread, which the network need not know."
    return _page(one.title("MAE"), note, unreadable(result.skipped), examples=found)


def show_captions(one: Evaluated, result: Evaluation) -> dict[str, Any]:
    """Show what Frozen says of images."""
    rows = zip(*(result.examples[name] for name in ("originals", "written", "texts")), strict=True)
    said = [
        Captioned(image.unsqueeze(0), (f"written: {written}", f"caption: {text}"))
        for image, written, text in rows
    ]
    drawn(one.path("captions"), lambda path: captioned_images(said, path))
    title = f"Frozen, {one.run.model.image_size} px: {one.run.data.train}"
    introduction = "A vision encoder speaks through a language model that was not changed."
    return _page(title, introduction, unreadable(result.skipped), captioned=said)


def show_pretraining(one: Evaluated, result: Evaluation) -> dict[str, Any]:
    """Show reconstructions with two captions, and codewords; keep the codes, to see how many change."""
    codes, run = result.rows.get("codes"), one.run
    if codes is not None:
        stored = {"codes": codes.numpy(), "step": np.array(one.step)}
        drawn(one.folder / CODES, lambda path: write_arrays(path, **stored))
    introduction = (
        f"A vision-language model with {run.model.codebook.num_codewords} visual codewords. "
        f"{run.objective.mask_ratio:.0%} of the patches are hidden where pixels and codes are predicted. Recall "
        "is that of the first stage, contrast alone, over the validation pairs."
    )
    pictures = draw_pretraining(result, one.source, run.model, one.path)
    return _page(one.title("CB-ViLA"), introduction, unreadable(result.skipped), pictures=pictures)


def show_answers(one: Evaluated, result: ReasoningResult) -> dict[str, Any]:
    """Show items with what a fine-tuned model answers."""
    titles = {"vqa": "Questions", "nlvr2": "True or false", "entailment": "Entailment"}
    run, shown = one.run, answered_items(result, one.source)
    drawn(one.path("answers"), lambda path: captioned_images(shown, path))
    start = f"from {run.start}" if run.start else "without pretraining on images and texts"
    title = f"{titles.get(result.task, 'Assignment')}, {run.model.image_size} px: {run.data.train}"
    notes = [*answer_notes(result), *unreadable(result.skipped)]
    return _page(title, f"{result.protocol}. It started {start}.", notes, captioned=shown)


def _page(title: str, introduction: str, notes: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"title": title, "introduction": introduction, "notes": notes, "pictures": {}, **more}


def draw_pretraining(
    result: Evaluation, pairs: Records, model: Any, path_of: Callable[[str], Path]
) -> dict[str, Path | None]:
    """Draw what an evaluation of CB-ViLA found on images, the configuration of whose network is `model`.

    Returns:
        The pictures by their headings; None for one that could not be made.
    """
    pictures: dict[str, Path | None] = {}
    codes = result.rows.get("codes")
    if result.examples:
        pictures[REBUILT] = drawn(path_of("rebuilt"), lambda path: reconstructed_pairs(result.examples, path))
    if codes is not None:
        about = pairs, result.rows["indices"], codes
        path = path_of("codewords")
        pictures[CODEWORDS] = drawn(path, lambda path: codeword_gallery(*about, path, config=model))
    return pictures


def unreadable(skipped: Sequence[Skipped]) -> list[str]:
    """Return a sentence on the images that could not be read, with the first of them."""
    if not skipped:
        return []
    first = skipped[0]
    return [f"{len(skipped)} images could not be read; the first: {first.key}, {first.reason}"]


def answer_notes(result: ReasoningResult) -> list[str]:
    """Return what stands below the numbers: the interval of the accuracy, and the accuracy of each kind."""
    notes = [f"{kind}: {accuracy:.1%}" for kind, accuracy in result.by_kind.items()]
    if result.interval is None:
        return notes
    low, high = result.interval
    return [f"95 % interval of the accuracy: {low:.1%} to {high:.1%}", *notes]


def answered_items(result: ReasoningResult, items: Records) -> list[Captioned]:
    """Return the first items, whose images were kept: texts, answers with probabilities, what people answered."""
    pairs = zip(result.examples["images"], result.answered, strict=False)
    return [Captioned(images, _said(one, items)) for images, one in pairs]


def _said(one: Answered, items: Records) -> tuple[str, ...]:
    """Return an item's text, the model's answers, people's answers."""
    likely = [f" ({probability:.0%})" for probability in one.probabilities]
    likely += [""] * (len(one.answers) - len(likely))
    ranked = [f"{answer}{probability}" for answer, probability in zip(one.answers, likely, strict=True)]
    given = ", ".join(dict.fromkeys(items.answers[one.item])) or "unknown"
    mark = ""
    if one.credit is not None:
        mark = f" - {({0.0: 'wrong', 1.0: 'right'}).get(one.credit, f'{one.credit:.0%} right')}"
    return (items.texts[one.item][0], f"model: {', '.join(ranked[:3])}{mark}", f"people: {given}")


def feature_map(images: ImageSource, rows: Mapping[str, Any], model: Any, path: Path) -> Path:
    """Write a PNG of images, each where t-SNE (van der Maaten and Hinton 2008) puts its features.

    Args:
        rows: `features` of images, and their `indices` in the source.
        model: the configuration that they were read with.
    """
    from sklearn.manifold import TSNE

    some = np.linspace(0, len(rows["indices"]) - 1, min(_SHOWN, len(rows["indices"]))).astype(int)
    places = TSNE(metric="cosine", random_state=0).fit_transform(rows["features"][some].numpy())
    places = (places - places.min(0)) / (places.max(0) - places.min(0)) * (_MAP - _THUMBNAIL)
    indices = rows["indices"][some].tolist()
    sheet = Sheet(_MAP, _MAP)
    where = dict(zip(indices, places.astype(int).tolist(), strict=True))
    for positions, found in read_pixels(images, indices, _THUMBNAIL, "images", model.resize_mode):
        for position, image in zip(positions, found, strict=True):
            sheet.image.paste(enlarged(image, 1), tuple(where[position]))
    return sheet.save(path)


def codeword_gallery(
    source: ImageSource | Records,
    indices: Int[Tensor, " I"],
    codes: Int[Tensor, "I N"],
    path: Path,
    *,
    config: Any,
    num_codewords: int = 12,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Path:
    """Write a PNG with a row for each of some codewords: patches of as many images as possible that have it.

    As figure 3 of CB-ViLA. A patch is shown with its surroundings, framed; where there are captions, its codeword
    has a name (`codeword_names`). Of words that belong to no place there are those that are used most, and whole
    images, those first to which the word is nearest.

    Args:
        indices: Where the images lie in their source.
        codes: Of each image, rows of its square grid first, or the nearest first.
        seed: Of the draw of codewords and patches.
        names: The word of each code, where words belong to no place.
    """
    counts = torch.bincount(codes.flatten())
    images = source.images if isinstance(source, Records) else source
    said: dict[int, tuple[str, int]] = {}
    if isinstance(source, Records):
        said = codeword_names(codes, [source.texts[row] for row in indices.tolist()])
    if names is None:
        chosen = choose_codewords(codes, num_codewords, seed)
        places = {code: _spread_out((codes == code).nonzero(), seed) for code in chosen}
    else:
        chosen = counts.topk(min(num_codewords, int((counts > 0).sum()))).indices.tolist()
        having = {code: (codes == code).nonzero() for code in chosen}
        places = {  # those first to which the word is nearest
            code: [(row, 0) for row, _ in some[some[:, 1].argsort(stable=True)][:_PATCHES].tolist()]
            for code, some in having.items()
        }
    wanted = sorted({int(indices[row]) for several in places.values() for row, _ in several})
    pixels: dict[int, Float[Tensor, "3 H W"]] = {}
    for positions, found in read_pixels(images, wanted, config.image_size, "patches", config.resize_mode):
        pixels.update(zip(positions, found, strict=True))
    step = _PATCH + _PATCH_GAP
    sheet = Sheet(2 * _PATCH_GAP + _CODEWORD + _PATCHES * step, _PATCH_GAP + max(1, len(chosen)) * step)
    for line, code in enumerate(chosen):
        top = _PATCH_GAP + line * step
        frequency = float(counts[code]) / codes.numel()
        label = f"codeword {code}\n{int(counts[code])} patches\n{frequency:.2%}"
        if code in said:
            label += "\n{:.12} {}".format(*said[code])
        if names is not None:
            label = f"{names[code]}\n{int(counts[code])} images\n{int(counts[code]) / len(codes):.1%}"
        sheet.text(_PATCH_GAP, top + 8, label, 13, spacing=3)
        for column, (row, patch) in enumerate(places[code]):
            image = pixels.get(int(indices[row]))
            if image is not None:
                framed = _framed(image, patch, 1 if names is not None else math.isqrt(codes.shape[1]))
                sheet.image.paste(framed, (_PATCH_GAP + _CODEWORD + column * step, top))
    return sheet.save(path)


def codeword_names(
    codes: Int[Tensor, "I N"], captions: Sequence[Sequence[str]]
) -> dict[int, tuple[str, int]]:
    """Return a word for each codeword, of the captions of the images that have it, and how many of them have both.

    It is the content word w with the largest n(c, w) log(n(c, w) n / (n(c) n(w))), counted in images: its part of
    the mutual information, in which rare words do not win as they do by pointwise information alone. A codeword
    has no name where no word comes with it in two images or more, and more often than by chance.
    """
    words = content_words(captions)
    number = {word: column for column, word in enumerate(words)}
    num_codewords = int(codes.max()) + 1 if codes.numel() else 0
    both, has_word = torch.zeros(num_codewords, len(words)), torch.zeros(len(words))
    has_code = torch.zeros(num_codewords)
    for row, texts in zip(codes, captions, strict=True):
        own = torch.tensor([number[word] for word in words_in(texts) if word in number], dtype=torch.long)
        used = row.unique()
        both[used.unsqueeze(1), own] += 1
        has_word[own] += 1
        has_code[used] += 1
    if not words:
        return {}
    gain = both * (both * len(codes) / (has_code.unsqueeze(1) * has_word).clamp_min(1)).clamp_min(1e-9).log()
    best = gain.masked_fill(both < 2, 0).max(dim=1)
    return {
        code: (words[column], int(both[code, column]))
        for code, (column, value) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        if value > 0
    }


def reconstructed_pairs(examples: Mapping[str, Any], path: Path) -> Path:
    """Write a PNG of `reconstructed_examples`: a row for each image, rebuilt with two texts, and both below it."""
    columns = {
        "original": "originals", "masked": "visible", "rebuilt": "reconstructions",
        "with another text": "other_reconstructions",
    }  # fmt: skip
    pairs = zip(examples["texts"], examples["other_texts"], strict=True)
    labels = [f"{text}\nother text: {other or '(none)'}" for text, other in pairs]
    return image_columns({title: examples[name] for title, name in columns.items()}, path, labels)


def choose_codewords(
    codes: Int[Tensor, "I N"], num_codewords: int, seed: int = 0, least: int = 4
) -> list[int]:
    """Return codewords drawn at random from those used `least` times or more, ascending.

    Where no codeword is used as often, those that are used most; fewer where there are not as many.
    """
    counts = torch.bincount(codes.flatten())
    used = (counts >= min(least, int(counts.max()))).nonzero().flatten().numpy()
    drawn = np.random.default_rng(seed).permutation(used)[:num_codewords]
    return sorted(int(code) for code in drawn)


def _spread_out(found: Int[Tensor, "F 2"], seed: int) -> list[tuple[int, int]]:
    """Return (row, patch) of some patches at random, of other images first."""
    order = np.random.default_rng(seed).permutation(len(found))
    seen = Counter[int]()
    ranked: list[tuple[int, int, int]] = []
    for row, patch in found[order].tolist():
        ranked.append((seen[row], row, patch))
        seen[row] += 1
    return [(row, patch) for _, row, patch in sorted(ranked, key=lambda one: one[0])[:_PATCHES]]


def _framed(image: Float[Tensor, "3 H W"], patch: int, grid: int) -> Image.Image:
    """Return a patch with its surroundings, a frame around the patch itself."""
    side = image.shape[-1] // grid
    row, column = divmod(patch, grid)
    window = min((2 * _AROUND + 1) * side, image.shape[-1])
    top = min(max(0, (row - _AROUND) * side), image.shape[-1] - window)
    left = min(max(0, (column - _AROUND) * side), image.shape[-1] - window)
    scale = math.ceil(_PATCH / window)
    crop = enlarged(image[:, top : top + window, left : left + window], scale)
    first = ((column * side - left) * scale, (row * side - top) * scale)
    last = (first[0] + side * scale - 1, first[1] + side * scale - 1)
    ImageDraw.Draw(crop).rectangle((first, last), outline=_FRAME, width=max(1, scale // 2))
    return crop.resize((_PATCH, _PATCH), Image.Resampling.LANCZOS)
