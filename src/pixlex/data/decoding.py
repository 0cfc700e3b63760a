"""Bytes of any common image file -> an upright 8-bit RGB image, or one clear reason why not -> square tensors."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

if TYPE_CHECKING:
    from pixlex.config.fields import DataConfig, ResizeMode

T = TypeVar("T")

# A whitelist: Pillow knows some fifty formats, and its rarely used readers are where its faults were found.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# Of several images of a sample in a shard the first of these is taken.
IMAGE_EXTENSIONS = (
    "jpg", "jpeg", "png", "webp", "jpe", "jfif", "jif", "pjpeg", "pjp", "mpo", "apng", "gif", "bmp", "dib",
    "tif", "tiff", "ppm", "pgm", "pbm", "pnm",
)  # fmt: skip
IMAGE_SUFFIXES = frozenset(f".{extension}" for extension in IMAGE_EXTENSIONS)

# No image file is larger: 6 bytes for each of the pixels that Pillow decodes at most (16-bit RGB, uncompressed).
MAX_FILE_BYTES = 1 << 29
# What decoding and scaling take for each pixel at most, but for animated WebP: the pixels as Pillow holds them (4
# bytes), once more as RGB (4), or the coefficients of a progressive JPEG (6).
_BYTES_A_PIXEL = 10
# Enough of a file to tell that it is an image, long profiles in front included.
_HEAD_BYTES = 1 << 20
# Pixels that are converted at a time: what a conversion needs between its steps does not grow with the image.
_BAND_PIXELS = 1 << 20

# What Pillow is known to raise on damaged files. `Warning` is there for users who turn warnings into errors.
_FAULTS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError,
    MemoryError, RuntimeError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError, Warning,
)  # fmt: skip

_ADOBE_BYTES = 16  # of the segment that says how the colors of a JPEG are meant
_PNG = b"\x89PNG\r\n\x1a\n"

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Width / height of a random crop is log-uniform between these (Szegedy et al. 2014, "Going deeper with
# convolutions", section 6).
ASPECT_RATIOS = (3 / 4, 4 / 3)
# Draws of a crop that does not fit into the image, before the largest centered one is taken.
_ATTEMPTS = 10
# Shrink to at least this many times the target by averaging whole pixels before the bicubic filter: on a
# large photograph several times faster, and by Pillow's documentation hardly to be told apart.
_REDUCING_GAP = 3.0

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class UnreadableImage(ValueError):
    """An image that could not be read: its stable name inside its source, and why, in one sentence."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True)
class ImageRecord:
    """One image as its source stores it: an image file or RGB pixels in 0..255.

    The label is its class index, -1 where unknown; the key its stable name inside the source.
    """

    data: bytes | UInt8[np.ndarray, "H W 3"]
    label: int
    key: str


class StoredForm(NamedTuple):
    """Pillow's names of format ("array" for pixels without a file) and pixel layout; width times height."""

    file_format: str
    mode: str
    pixels: int


def stored_form(record: ImageRecord) -> StoredForm:
    """Return how an image is stored, by its header; raises `UnreadableImage` for bytes that are no image."""
    if isinstance(record.data, np.ndarray):
        return StoredForm("array", "RGB", record.data.shape[0] * record.data.shape[1])
    return _tried(record.data, _form, record.key)


def decoding_bytes(record: ImageRecord) -> int:
    """Return about how many bytes it takes to hold a record and to decode and scale its image."""
    if isinstance(record.data, np.ndarray):
        return record.data.nbytes
    try:
        return len(record.data) + _BYTES_A_PIXEL * stored_form(record).pixels
    except UnreadableImage:
        return len(record.data)


def holds_image(file: io.BufferedIOBase) -> bool:
    """Whether bytes begin like an image of a format that is read."""
    try:
        _tried(file.read(_HEAD_BYTES), _form, "")
    except UnreadableImage:
        return False
    return True


def decode_record(record: ImageRecord, *, minimum_side: int = 0) -> Image.Image:
    """Return the RGB image of a record; see `load_image`."""
    if isinstance(record.data, np.ndarray):
        return Image.fromarray(record.data)
    return load_image(record.data, record.key, minimum_side=minimum_side)


def load_image(data: bytes, key: str, *, minimum_side: int = 0) -> Image.Image:
    """Decode an image file to an upright 8-bit RGB image.

    The orientation stored in EXIF is applied. Transparent pixels are composited over white. 16-bit pixels
    are scaled by 255/65535, not clipped; floating-point pixels are read if they lie in [0, 1]. Of an
    animation or a multi-page file the first frame is taken. Color profiles are not applied. What damaged or
    very large texts and profiles of a PNG or JPEG say is not looked at.

    Args:
        data: the whole file, in one of `FORMATS`.
        key: name of the image, for the error.
        minimum_side: if above 0, a large JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, but not smaller than
            this many pixels on its short side.

    Raises:
        UnreadableImage: it is damaged, cut off, of another format, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    return _tried(data, lambda sound: _decoded(sound, minimum_side), key)


def _form(data: bytes) -> StoredForm:
    with _open(data) as image:
        return StoredForm(image.format or "unknown", image.mode, image.width * image.height)


def _decoded(data: bytes, minimum_side: int) -> Image.Image:
    with _open(data) as image:
        if minimum_side > 0 and image.format in ("JPEG", "MPO"):
            image.draft(None, (minimum_side, minimum_side))
        image.load()
        # After load: some formats hold their EXIF behind the pixels, and TIFF is turned by Pillow itself.
        orientation = _orientation(image)
        upright = _to_rgb(image)
        if orientation in _UPRIGHT:
            upright = upright.transpose(_UPRIGHT[orientation])
    # Pillow would write a kept EXIF block into saved files, and viewers would turn the image a second time.
    upright.info.clear()
    return upright


def _tried(data: bytes, work: Callable[[bytes], T], key: str) -> T:
    """Return what work makes of a file; of one that cannot be read, what it makes of its pixels alone.

    Pillow refuses files in which a text or a profile is damaged, or is larger than it wants to unpack.
    """
    try:
        return work(data)
    except _FAULTS as fault:
        bare = _bare_png(data) if data.startswith(_PNG) else _bare_jpeg(data)
        if len(bare) == len(data):
            raise UnreadableImage(key, _reason(fault)) from fault
    try:
        return work(bare)
    except _FAULTS as fault:
        raise UnreadableImage(key, _reason(fault)) from fault


def _bare_png(data: bytes) -> bytes:
    """Return a PNG without texts, profiles and all else that its pixels do not need."""
    parts, start = [_PNG], len(_PNG)
    while len(head := data[start : start + 8]) == 8:
        length, kind = struct.unpack(">I4s", head)
        chunk = data[start : start + length + 12]
        sound = len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        # A capital letter in front: no pixels without it.
        if kind[:1].isupper() or (kind in (b"tRNS", b"eXIf") and sound):
            parts.append(chunk)
        start += length + 12
    return b"".join(parts)


def _bare_jpeg(data: bytes) -> bytes:
    """Return a JPEG without comments and application segments but for EXIF and how its colors are meant."""
    parts, start = [data[:2]], 2
    while data.startswith(b"\xff\xd8") and data[start : start + 1] == b"\xff":
        marker, length = data[start + 1 : start + 2], int.from_bytes(data[start + 2 : start + 4], "big") + 2
        if marker == b"\xda":  # the pixels
            break
        segment = data[start : start + length]
        if not (b"\xe0" <= marker <= b"\xef" or marker == b"\xfe") or (
            segment[4:].startswith(b"Exif\0\0" if marker == b"\xe1" else b"Adobe") and length >= _ADOBE_BYTES
        ):
            parts.append(segment)
        start += length
    return b"".join((*parts, data[start:]))


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
    is_clear = isinstance(fault, OSError | ValueError) and sentence
    return sentence if is_clear else f"{type(fault).__name__}: {sentence}"


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _FAULTS:  # damaged EXIF around sound pixels: the image is used as it lies
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB, band after band."""
    transparent = image.has_transparency_data
    if image.mode == "RGB" and not transparent:
        return image
    is_number = image.mode == "F" or image.mode.startswith("I")
    if is_number:
        _check_range(image)
    rgb = Image.new("RGB", image.size)
    for box in _bands(image):
        band = image.crop(box)
        if is_number:
            band = _scaled(band)
        elif transparent:
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band.convert("RGBA"))
        rgb.paste(band.convert("RGB"), box)
    return rgb


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    rows, height = max(1, _BAND_PIXELS // image.width), image.height
    return [(0, top, image.width, min(top + rows, height)) for top in range(0, height, rows)]


def _scaled(band: Image.Image) -> Image.Image:
    """Scale greyscale pixels of 16 bits to 0..255 by 255/65535, or of [0, 1] by 255, rounding to nearest."""
    pixels = np.asarray(band)
    # 65535 = 257 * 255, so (v + 128) // 257 is v * 255 / 65535 rounded to nearest.
    grey = np.rint(pixels * 255) if band.mode == "F" else (pixels.astype(np.uint32) + 128) // 257
    return Image.fromarray(grey.astype(np.uint8))


def _check_range(image: Image.Image) -> None:
    """Raise `ValueError` for numbers that have no meaning as greyscale pixels."""
    pixels = (np.asarray(image.crop(box)) for box in _bands(image))
    ends = np.array([(float(band.min()), float(band.max())) for band in pixels])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())  # NaN stays NaN
    if image.mode == "F" and not (low >= 0 and high <= 1):
        raise ValueError(f"floating-point pixels must lie in [0, 1], got {low:g} to {high:g}")
    if image.mode != "F" and (low < 0 or high > 65535):
        raise ValueError(f"integer pixels must lie in 0..65535, got {low:g} to {high:g}")


def training_crop(
    image: Image.Image,
    size: int,
    config: DataConfig,
    generator: np.random.Generator,
    resize_mode: ResizeMode = "center",
) -> UInt8[Tensor, "3 H W"]:
    """Crop an RGB image for training, scale it bicubically to a square of `size` pixels, mirror half of them.

    With `augment="random_resized_crop"` the crop is that of `random_box`, with "resize" that of `evaluation_crop`.
    """
    if config.augment == "random_resized_crop":
        box = random_box(image.width, image.height, config.crop_scale_min, generator)
    else:
        box = _whole_box(image, resize_mode)
    square = _resize(image, size, box)
    if config.horizontal_flip and generator.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _to_tensor(square)


def evaluation_crop(
    image: Image.Image, size: int, resize_mode: ResizeMode = "center"
) -> UInt8[Tensor, "3 H W"]:
    """Return an RGB image as a square of `size` pixels, bicubically scaled.

    "center" cuts out the largest centered square; "squash" keeps all of the image and not its shape (ALBEF).
    """
    return _to_tensor(_resize(image, size, _whole_box(image, resize_mode)))


def evaluation_transform(
    image: Image.Image, size: int, resize_mode: ResizeMode = "center"
) -> Float[Tensor, "3 H W"]:
    """Return `evaluation_crop` with pixels in [0, 1]."""
    return float_images(evaluation_crop(image, size, resize_mode))


def float_images(pixels: UInt8[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """Return pixels of 0..255 as float32 in [0, 1]."""
    # NumPy takes half of torch's time for it.
    return torch.from_numpy(np.divide(pixels.numpy(), np.float32(255), dtype=np.float32))


def minimum_decoded_side(size: int, config: DataConfig) -> int:
    """Return the short side that a training image must keep when decoded, for no crop to be enlarged.

    The shortest side that `random_box` can draw is s * sqrt(3/4 * crop_scale_min), s being the short side
    of the image. 0 (full size) for plain resizing, which then gives the pixels of evaluation.
    """
    if config.augment == "resize":
        return 0
    return math.ceil(size / math.sqrt(ASPECT_RATIOS[0] * config.crop_scale_min))


def random_box(width: int, height: int, scale_min: float, generator: np.random.Generator) -> Box:
    """Draw a crop: area uniform in [scale_min, 1] of the image's, aspect ratio log-uniform, place uniform.

    Its sides are not rounded: small images have few whole pixels.
    """
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(scale_min, 1.0)
        ratio = math.exp(generator.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            left = generator.uniform(0.0, width - crop_width)
            top = generator.uniform(0.0, height - crop_height)
            return left, top, min(left + crop_width, float(width)), min(top + crop_height, float(height))
    # The image is too long for the drawn shapes: the largest centered crop of an allowed aspect ratio.
    crop_width = min(width, height * ASPECT_RATIOS[1])
    crop_height = min(height, width / ASPECT_RATIOS[0])
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def center_box(width: int, height: int) -> Box:
    """Return the largest centered square, on whole pixels."""
    side = float(min(width, height))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _whole_box(image: Image.Image, resize_mode: ResizeMode) -> Box:
    width, height = image.size
    return (0.0, 0.0, float(width), float(height)) if resize_mode == "squash" else center_box(width, height)


def _resize(image: Image.Image, size: int, box: Box) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))
