"""Bytes of any common image file -> an upright 8-bit RGB image, or one clear reason why not."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

# A whitelist: Pillow knows some fifty formats, and its rarely used readers are where its faults were found.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    )
)

# What Pillow is known to raise on damaged files. `Warning` is there for users who turn warnings into errors.
_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(ValueError):
    """An image that could not be read.

    Args:
        key: the stable name of the image inside its source.
        reason: why it could not be read, in one sentence.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True)
class ImageRecord:
    """One image as its source stores it.

    Attributes:
        data: the bytes of an image file, or RGB pixels in 0..255.
        label: class index, -1 where unknown.
        key: the stable name of the image inside its source.
    """

    data: bytes | UInt8[np.ndarray, "H W 3"]
    label: int
    key: str


@dataclass(frozen=True)
class StoredForm:
    """How an image is stored, read from its header without decoding the pixels.

    Attributes:
        file_format: Pillow's name of the format, "array" for pixels without a file.
        mode: Pillow's name of the pixel layout, such as "RGB", "L", "P", "CMYK" or "I;16".
    """

    file_format: str
    mode: str


def stored_form(record: ImageRecord) -> StoredForm:
    """Return format and mode of a stored image.

    Raises:
        UnreadableImage: if the bytes are not an image of a format that is read.
    """
    if isinstance(record.data, np.ndarray):
        return StoredForm("array", "RGB")
    try:
        with _open(record.data) as image:
            return StoredForm(image.format or "unknown", image.mode)
    except _FAULTS as fault:
        raise UnreadableImage(record.key, _reason(fault)) from fault


def decode_record(record: ImageRecord, *, minimum_side: int = 0) -> Image.Image:
    """Return the RGB image of a record; see `load_image`."""
    if isinstance(record.data, np.ndarray):
        return Image.fromarray(record.data)
    return load_image(record.data, record.key, minimum_side=minimum_side)


def load_image(data: bytes, key: str, *, minimum_side: int = 0) -> Image.Image:
    """Decode an image file to an upright 8-bit RGB image.

    The orientation stored in EXIF is applied. Transparent pixels are composited over white. 16-bit pixels
    are scaled by 255/65535, not clipped; floating-point pixels are read if they lie in [0, 1]. Of an
    animation or a multi-page file the first frame is taken. Color profiles are not applied.

    Args:
        data: the whole file; formats: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM.
        key: name of the image, for the error.
        minimum_side: if above 0, a large JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, but not
            smaller than this many pixels on its short side; 0 decodes at full size.

    Returns:
        An image of mode "RGB".

    Raises:
        UnreadableImage: if the bytes are damaged, truncated, not an image of these formats, or would decode
            to more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    try:
        with _open(data) as image:
            if minimum_side > 0 and image.format in ("JPEG", "MPO"):
                image.draft(None, (minimum_side, minimum_side))
            image.load()
            # After load: some formats hold their EXIF behind the pixels, and TIFF is turned by Pillow itself.
            orientation = _orientation(image)
            upright = _to_rgb(image)
            if orientation in _UPRIGHT:
                upright = upright.transpose(_UPRIGHT[orientation])
    except _FAULTS as fault:
        raise UnreadableImage(key, _reason(fault)) from fault
    # Pillow would write a kept EXIF block into saved files, and viewers would turn the image a second time.
    upright.info.clear()
    return upright


def _open(data: bytes) -> Image.Image:
    """Read the header, refusing more pixels than Pillow's limit (Pillow itself only warns of them)."""
    if not data:
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels exceed the limit of {limit} pixels (decompression bomb?)"
        )
    return image


def _reason(fault: BaseException) -> str:
    """Put a fault of Pillow into one sentence that is the same on every reading."""
    if isinstance(fault, UnidentifiedImageError):  # its own message holds a memory address
        return f"not an image in a format that is read ({', '.join(FORMATS)})"
    sentence = " ".join(str(fault).split())
    return (
        sentence
        if isinstance(fault, OSError | ValueError) and sentence
        else f"{type(fault).__name__}: {sentence}"
    )


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _FAULTS:  # damaged EXIF around sound pixels: the image is used as it lies
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    # `copy` cuts the ties to the file, which is closed on return.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _to_eight_bits(pixels: np.ndarray) -> UInt8[np.ndarray, "H W"]:
    """Scale greyscale pixels of 16 bits to 0..255 by 255/65535, or of [0, 1] by 255, rounding to nearest."""
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ValueError(f"floating-point pixels must lie in [0, 1], got {low:g} to {high:g}")
        return np.asarray(np.rint(pixels * 255), dtype=np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"integer pixels must lie in 0..65535, got {low:g} to {high:g}")
    # 65535 = 257 * 255, so (v + 128) // 257 is v * 255 / 65535 rounded to nearest.
    return np.asarray((pixels.astype(np.uint32) + 128) // 257, dtype=np.uint8)
