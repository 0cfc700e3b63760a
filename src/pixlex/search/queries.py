"""What is searched by, and where the images of an index are."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pixlex.config.cbvila import CBViLAConfig
from pixlex.data.text import clean_caption
from pixlex.data.transforms import evaluation_transform
from pixlex.messages import quoted


def square(image: Image.Image, config: CBViLAConfig) -> Float[Tensor, "3 H W"]:
    """Return an image as the model sees it in evaluation; pixels in [0, 1]."""
    return evaluation_transform(image, config.image_size, config.cut)


def query_text(text: str) -> str:
    """Return a text as captions are cleaned.

    Raises:
        ValueError: nothing is left of it.
    """
    cleaned = clean_caption(text)
    if not cleaned:
        why = "" if not text.strip() else ": it holds punctuation alone"
        raise ValueError(f"expected a text to search by, got {quoted(text)}{why}")
    return cleaned


def lasting_description(source: str) -> str:
    """Return the description of a source such that it can be opened from any folder."""
    source = source.strip()
    if source.startswith(("embedded:", "hf:")):
        return source
    return str(Path(source).expanduser().absolute())
