"""What the released models make of pictures that they have not seen, for the quickstart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pixlex.api import ImageTokenizer, load
from pixlex.api.pictures import batches_of
from pixlex.data.given import picture_of
from pixlex.data.images import open_source, photograph
from pixlex.eval.metrics import mean_color_mse, mse, patch_color_mse
from pixlex.report.figures import Thumbnail, contact_sheet, drawn
from pixlex.report.page import Page, Table, write_page

# Photographs of scikit-image and scikit-learn, icons of Matplotlib; no released model was trained on any of them.
_PHOTOGRAPHS, _SAMPLES = ("cat", "coffee", "astronaut", "rocket"), ("china.jpg", "flower.jpg")
_ICONS = ("back", "filesave", "forward", "help", "home", "move", "qt4_editor_options", "zoom_to_rect")
_ASKED = ("a house", "something to look closer with", "a disk", "turn back", "a question")
_FOUND, _COMPARED = 5, 96  # a row of the sheet for each text
LOOK, COMPARED = "released.html", "compared.json"


def look(folder: Path) -> Path | None:
    """Leave a page of what the released models make of pictures they have not seen; None where that fails.

    `released.html`: words, pictures rebuilt from them beside what as many mean colors are worth, icons named, and
    found by text.
    """
    return drawn(folder / LOOK, lambda path: write_page(path, _page(folder)))


def _page(folder: Path) -> Page:
    import matplotlib
    from sklearn.datasets import load_sample_image

    words, pairs = load("small-words"), load("small-pairs")
    photographs = {name: photograph(name) for name in _PHOTOGRAPHS}
    photographs |= {Path(name).stem: load_sample_image(name) for name in _SAMPLES}
    pixels = _squares(words, list(photographs.values()))
    codes = words.tokenize(pixels)
    rebuilt = words.decode(codes)
    rows = [
        ("the picture, rebuilt from its words", mse(pixels, rebuilt)),
        ("each patch in its mean color", patch_color_mse(pixels, words.grid)),
        ("the whole in its mean color", mean_color_mse(pixels)),
    ]
    icons = Path(matplotlib.get_data_path(), "images")
    pictures = [picture_of(icons / f"{name}_large.png", name) for name in _ICONS]
    named = list(zip(_ICONS, pairs.to_words(pictures), strict=True))
    sheet = folder / "pictures/found.png"
    drawn(sheet, lambda path: _found(pairs, pictures, path))
    return Page(
        title="pixlex: released models",
        introduction=(
            "Two small models come with pixlex. Neither has seen any of these pictures: photographs of "
            "scikit-image and scikit-learn, icons of Matplotlib.\n\nsmall-words writes a picture as words of "
            "MiniLM's vocabulary, one for each patch, without having seen a caption, and draws it from the words "
            "alone. small-pairs learned from drawings and their names what drawings show."
        ),
        examples={
            "keys": tuple(photographs), "originals": pixels, "reconstructions": rebuilt, "grid": words.grid,
            "words": [text.split() for text in words.to_words(codes)],
        },
        tables=[
            Table("Error of pixels", ("what is shown", "mean squared error"),
                  [(what, f"{float(error.mean()):.4f}") for what, error in rows], values=(1,)),
            Table("Icons, named by small-pairs", ("icon", "its nearest words"), named),
        ],
        pictures={"Found by text among these icons": sheet if sheet.is_file() else None},
        commands=["pixlex quickstart"],
        config={},
    )  # fmt: skip


def _found(pairs: ImageTokenizer, pictures: Sequence[Image.Image], path: Path) -> None:
    similarities = pairs.similarity(pictures, list(_ASKED))
    thumbnails = []
    for asked, column in zip(_ASKED, similarities.T, strict=True):
        for rank, number in enumerate(column.argsort(descending=True)[:_FOUND].tolist(), start=1):
            lines = asked, f"{rank}. similarity {float(column[number]):.2f}"
            thumbnails.append(Thumbnail(pictures[number], lines))
    contact_sheet("The nearest to each text", thumbnails, path)


def compared(own: ImageTokenizer, data: str) -> Mapping[str, Any]:
    """Return the errors of a model and of the released one on the same images, at the smaller size of both."""
    source = open_source(data)
    images = [source.read(index).data for index in range(min(len(source), _COMPARED))]
    both = {"own": own, "small-words": load("small-words")}
    side = min(one.image_size for one in both.values())
    errors: dict[str, Any] = {"data": source.name, "num_images": len(images), "image_size": side}
    for name, model in both.items():
        pixels = _squares(model, images)
        small, rebuilt = (
            F.interpolate(one, size=side, mode="area") for one in (pixels, model.reconstruct(pixels))
        )
        errors[name] = float(mse(small, rebuilt).mean())
    return errors


def _squares(model: ImageTokenizer, images: Sequence[Any]) -> Float[Tensor, "B 3 H W"]:
    """Return images as the model takes them."""
    return next(batches_of(images, len(images), model.image_size, model.model.config.resize_mode))
