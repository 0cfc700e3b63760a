"""What the released models make of pictures that they have not seen, for the quickstart."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pixlex.api import ImageTokenizer, load
from pixlex.api.pictures import batches_of
from pixlex.data.images import open_source
from pixlex.eval.metrics import mean_color_mse, mse, patch_color_mse
from pixlex.models.initialization import released
from pixlex.report.figures import Thumbnail, contact_sheet, drawn
from pixlex.report.page import Page, Table, write_page

# Photographs and icons that lie inside installed packages; no released model was trained on any of them.
_PHOTOGRAPHS = {
    "cat": "skimage/data/chelsea.png", "coffee": "skimage/data/coffee.png",
    "astronaut": "skimage/data/astronaut.png", "rocket": "skimage/data/rocket.jpg",
    "temple": "sklearn/datasets/images/china.jpg", "flower": "sklearn/datasets/images/flower.jpg",
}  # fmt: skip
_ICONS = ("back", "filesave", "forward", "help", "home", "move", "qt4_editor_options", "zoom_to_rect")
_ASKED = ("a house", "something to look closer with", "a disk", "turn back", "a question")
_FOUND, _COMPARED = 5, 96  # a row of the sheet for each text
LOOK, COMPARED = "released.html", "compared.json"


def look(folder: Path) -> Path | None:
    """Leave a page of what the released models make of pictures they have not seen; None where there are none.

    `released.html`: words, pictures rebuilt from them beside what as many mean colors are worth, icons named, and
    found by text.
    """
    if not {"small-words", "small-pairs"} <= released().keys():
        return None
    return drawn(folder / LOOK, lambda path: write_page(path, _page(folder)))


def _page(folder: Path) -> Page:
    words, pairs = load("small-words"), load("small-pairs")
    photographs = {name: _installed(place) for name, place in _PHOTOGRAPHS.items()}
    pixels = _squares(words, list(photographs.values()))
    codes = words.tokenize(pixels)
    rebuilt = words.decode(codes)
    rows = [
        ("the picture, rebuilt from its words", mse(pixels, rebuilt)),
        ("each patch in its mean color", patch_color_mse(pixels, words.grid)),
        ("the whole in its mean color", mean_color_mse(pixels)),
    ]
    icons = [_installed(f"matplotlib/mpl-data/images/{name}_large.png") for name in _ICONS]
    pictures = [Image.open(path).convert("RGBA") for path in icons if path.is_file()]
    named = [
        (Path(path).stem.removesuffix("_large"), text)
        for path, text in zip(icons, pairs.to_words(pictures), strict=True)
    ]
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
            ground = Image.new("RGBA", pictures[number].size, "white")
            shown = Image.alpha_composite(ground, pictures[number]).convert("RGB")
            thumbnails.append(Thumbnail(shown, (asked, f"{rank}. similarity {float(column[number]):.2f}")))
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


def _installed(place: str) -> Path:
    """Return a file of an installed package."""
    package, _, name = place.partition("/")
    found = importlib.util.find_spec(package)
    return Path(*(found.submodule_search_locations or []) if found is not None else "", name)
