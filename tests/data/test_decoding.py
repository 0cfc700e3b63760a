"""Every awkward file becomes upright 8-bit RGB, or one error with a reason; what may be cut of an image."""

from __future__ import annotations

import io
import math
import pickle
import struct
import threading
import time
import warnings
import zlib
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.conftest import encoded

from pixlex.config.fields import DataConfig
from pixlex.data.decoding import (
    ImageRecord,
    UnreadableImage,
    evaluation_crop,
    evaluation_transform,
    holds_image,
    load_image,
    minimum_decoded_side,
    random_box,
    stored_form,
    training_crop,
)
from pixlex.data.images import open_embedded
from pixlex.data.loader import prefetch


def decoded(data: bytes) -> np.ndarray:
    image = load_image(data, "key")
    assert image.mode == "RGB"
    return np.asarray(image)


def rgb(seed: int = 0, height: int = 9, width: int = 13) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    checksum = zlib.crc32(kind + body) ^ (not sound)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def sixteen_bit_png(values: np.ndarray) -> bytes:
    """A 16-bit grey PNG put together by hand, so that what is tested is the file and not Pillow's writer."""
    height, width = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


SIXTEEN_BITS = np.linspace(0, 65535, 4096).round().astype(np.uint16).reshape(64, 64)


@pytest.mark.parametrize(
    "data",
    [
        sixteen_bit_png(SIXTEEN_BITS),
        encoded(Image.fromarray(SIXTEEN_BITS), "TIFF"),
        b"P5 64 64 65535\n" + SIXTEEN_BITS.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "pgm"],
)
def test_sixteen_bits_are_scaled_not_clipped(data: bytes) -> None:
    expected = np.rint(SIXTEEN_BITS.astype(np.float64) * 255 / 65535).astype(np.uint8)
    out = decoded(data)
    assert np.array_equal(out, np.repeat(expected[..., None], 3, axis=-1))
    assert len(np.unique(out)) == 256


def test_numbers_are_read_in_their_range_and_refused_elsewhere() -> None:
    ramp = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    assert np.array_equal(decoded(encoded(Image.fromarray(ramp), "TIFF"))[..., 0], np.rint(ramp * 255))
    for damaged in (ramp * 300, np.where(ramp > 0.5, np.nan, ramp).astype(np.float32)):
        with pytest.raises(UnreadableImage, match=r"must lie in \[0, 1\]"):
            load_image(encoded(Image.fromarray(damaged), "TIFF"), "key")
    values = np.array([[0, 70_000]], dtype=np.int32)
    with pytest.raises(UnreadableImage, match=r"must lie in 0\.\.65535, got 0 to 70000"):
        load_image(encoded(Image.fromarray(values), "TIFF"), "key")


def test_transparency_is_composited_over_white() -> None:
    """Of alpha channels, palettes with a transparent entry or an alpha for each, grey with a transparent value."""
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, :3], pixels[0, :, 3] = (200, 0, 100), (0, 128, 255)
    out = decoded(encoded(Image.fromarray(pixels), "PNG"))[0]
    assert (out[0].tolist(), out[2].tolist()) == ([255, 255, 255], [200, 0, 100])
    assert np.abs(out[1].astype(float) - (255 + (np.array([200, 0, 100]) - 255) * 128 / 255)).max() <= 1
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decoded(encoded(image, "PNG"))[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    for transparency in (1, b"\xff\x00"):
        data = encoded(image, "PNG", transparency=transparency)
        assert decoded(data)[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    grey, alpha = (Image.fromarray(np.array([row], dtype=np.uint8)) for row in ([7, 8], [255, 0]))
    for data in (encoded(grey, "PNG", transparency=8), encoded(Image.merge("LA", (grey, alpha)), "PNG")):
        assert decoded(data)[0].tolist() == [[7] * 3, [255] * 3]


def test_cmyk_jpeg() -> None:
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:, 8:] = (0, 255, 255, 0)  # no cyan, full magenta and yellow: red; the left half is bare paper
    out = decoded(encoded(Image.fromarray(pixels, mode="CMYK"), "JPEG", quality=100))
    assert np.abs(out[:, :7].astype(int) - 255).max() <= 4
    assert np.abs(out[:, 9:].astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(file_format: str) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert (decoded(data) == (255, 0, 0)).all()


# What a viewer must do to the stored pixels for each value of EXIF's Orientation (EXIF 2.32, 4.6.4).
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", list(UPRIGHT))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_orientation_of_exif_is_applied_once(orientation: int, file_format: str) -> None:
    pixels = rgb()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(encoded(Image.fromarray(pixels), file_format, exif=exif), "key")
    assert np.array_equal(np.asarray(image), UPRIGHT[orientation](pixels))
    # Saved and read again, it must not be turned a second time.
    again = load_image(encoded(image, "PNG"), "key")
    assert np.array_equal(np.asarray(again), np.asarray(image))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"a text file named .jpg", "not an image in a format that is read"),
        (encoded(Image.fromarray(rgb(0, 64, 64)), "JPEG")[:400], "(?i)truncated"),
        (encoded(Image.fromarray(rgb(0, 64, 64)), "PNG")[:600], "truncated"),
        (encoded(Image.new("RGB", (4, 4)), "ICO"), "not an image in a format that is read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "not an image in a format that is read"),
    ],
    ids=["zero bytes", "text", "cut jpeg", "cut png", "ico", "postscript"],
)
def test_unreadable_files_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason) as caught:
        load_image(data, "some/key.jpg")
    assert caught.value.key == "some/key.jpg"
    assert "0x" not in caught.value.reason  # the reason is the same in every run
    assert str(caught.value).startswith("some/key.jpg: ")


@pytest.mark.parametrize("limit", [1199, 400])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_decompression_bomb_is_refused_at_the_limit_not_at_twice_the_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int, action: Literal["ignore", "error"]
) -> None:
    data = encoded(Image.new("RGB", (40, 30)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert load_image(data, "key").size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(UnreadableImage, match=r"limit of \d+ pixels"):
            load_image(data, "key")
        with pytest.raises(UnreadableImage, match=r"limit of \d+ pixels"):
            stored_form(ImageRecord(data, -1, "key"))


def test_the_error_survives_the_way_out_of_a_worker() -> None:
    fault = pickle.loads(pickle.dumps(UnreadableImage("key", "reason")))
    assert (fault.key, fault.reason, str(fault)) == ("key", "reason", "key: reason")


PLAIN = encoded(Image.fromarray(rgb()), "PNG")
LONG = zlib.compress(bytes(2 << 20))
EXIF = Image.Exif()
EXIF[0x0112] = 6


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("zTXt", chunk(b"zTXt", b"Raw\0\0" + LONG)),
        ("iTXt", chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)),
        ("iCCP", chunk(b"iCCP", b"profile\0\0" + LONG)),
        ("long tEXt", chunk(b"tEXt", b"a\0" + b"x" * (2 << 20))),
        ("cut iCCP", chunk(b"iCCP", b"profile\0\0" + LONG[:-9])),
        ("no iCCP", chunk(b"iCCP", b"no end of the name")),
        ("checksum", chunk(b"tEXt", b"a\0text", sound=False)),
        ("short", chunk(b"pHYs", b"short") + chunk(b"gAMA", b"") + chunk(b"cHRM", b"x")),
        ("damaged EXIF", chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff", sound=False)),
    ],
)
def test_a_png_is_its_pixels_alone(name: str, others: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.PngImagePlugin.MAX_TEXT_MEMORY", 1 << 20)
    for data in (PLAIN[:33] + others + PLAIN[33:], PLAIN[:-12] + others + PLAIN[-12:]):
        assert np.array_equal(decoded(data), rgb())
        assert stored_form(ImageRecord(data, 0, "key")).mode == "RGB"
        assert holds_image(io.BytesIO(data)) or name == "long tEXt"  # the pixels lie too far behind
    turned = PLAIN[:33] + others + chunk(b"eXIf", EXIF.tobytes().removeprefix(b"Exif\0\0")) + PLAIN[33:]
    assert load_image(turned, "key").size == (9, 13)


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE2, b"ICC_PROFILE\0"), (0xE2, b"ICC_PROFILE\0\1\3" + bytes(50)), (0xEE, b"Adobe"), (0xE0, b"JFIF\0"),
        (0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\xff\xff\xff\xff"), (0xE1, b"Exif\0\0" + b"\xff" * 50),
        (0xFE, b"x" * 65000), (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65000)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_jpeg_is_its_pixels_alone(marker: int, body: bytes, mode: str) -> None:
    plain = encoded(Image.fromarray(rgb()).convert(mode), "JPEG", quality=95)
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
    assert np.array_equal(decoded(plain[:2] + segment + plain[2:]), decoded(plain))
    turned = encoded(Image.fromarray(rgb()).convert(mode), "JPEG", exif=EXIF)
    # Of two blocks of EXIF the first counts.
    if not body.startswith(b"Exif"):
        assert load_image(turned[:2] + segment + turned[2:], "key").size == (9, 13)


SAMPLES = [
    *(
        encoded(Image.fromarray(rgb(1, 12, 12)), kind)
        for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
    ),
    sixteen_bit_png(SIXTEEN_BITS[:8, :8]),
]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_damaged_bytes_give_an_image_or_the_one_error(sample: bytes, data: st.DataObject) -> None:
    damaged = bytearray(sample)
    places = st.integers(0, len(sample) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        damaged[place] = value
    cut = data.draw(st.integers(0, len(damaged)))
    if data.draw(st.booleans()):
        del damaged[cut:]
    try:
        image = load_image(bytes(damaged), "key")
    except UnreadableImage:
        return
    assert image.mode == "RGB"
    assert np.asarray(image).shape == (image.height, image.width, 3)


def test_a_large_jpeg_may_be_decoded_smaller_but_not_below_the_asked_side() -> None:
    gradient = np.linspace(0, 255, 800).astype(np.uint8)
    pixels = np.stack([np.tile(gradient, (600, 1))] * 3, axis=-1)
    data = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    sizes = {side: load_image(data, "key", minimum_side=side).size for side in (0, 600, 301, 300, 140, 1)}
    assert sizes[0] == sizes[600] == sizes[301] == (800, 600)
    assert sizes[300] == (400, 300)
    assert sizes[140] == (200, 150)
    assert min(sizes[1]) >= 1
    small = np.asarray(load_image(data, "key", minimum_side=140))[0, :, 0].astype(float)
    assert np.abs(small - gradient.reshape(200, 4).mean(axis=1)).max() <= 4


def test_images_wait_for_the_memory_of_those_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they keep to the bound, however large the batch is; one beyond the bound is decoded alone."""
    sizes = [30, 40, 300, 20, 60, 30, 50]
    source = open_embedded("digits:test")
    monkeypatch.setattr("pixlex.data.loader.MAX_BYTES", 100)
    monkeypatch.setattr(
        "pixlex.data.loader.decoding_bytes", lambda record: sizes[int(record.key[-4:]) - 1437]
    )
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    lock, held, seen = threading.Lock(), [], []

    def prepare(index: int, record: ImageRecord) -> int:
        with lock:
            held.append(sizes[index])
            seen.append(list(held))
        time.sleep(0.01)
        with lock:
            held.remove(sizes[index])
        return index

    assert list(prefetch(source, range(7), 5, prepare)) == [[0, 1, 2, 3, 4], [5, 6]]
    assert all(sum(some) <= 100 or len(some) == 1 for some in seen)
    assert max(map(len, seen)) > 1


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pixels_do_not_depend_on_bands(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(rgb(3, 40, 30))
    if mode in ("I;16", "I", "F"):
        values = np.arange(1200).reshape(40, 30)
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((values / 1200 if mode == "F" else values).astype(kind))
    else:
        image = image.convert(mode)
    data = encoded(image, "PNG" if mode in ("1", "LA", "P", "RGBA") else "TIFF")
    whole = decoded(data)
    monkeypatch.setattr("pixlex.data.decoding._BAND_PIXELS", 100)
    assert np.array_equal(decoded(data), whole)


RESIZED = DataConfig(augment="resize", horizontal_flip=False)


@pytest.mark.parametrize(("height", "width"), [(20, 35), (35, 20), (21, 34), (8, 8)])
def test_evaluation_is_the_short_side_resized_and_the_center_cut_out(height: int, width: int) -> None:
    pixels = rgb(0, height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    out = evaluation_transform(Image.fromarray(pixels), side)
    center = pixels[top : top + side, left : left + side].transpose(2, 0, 1)
    assert out.is_contiguous()
    assert torch.equal(out, torch.from_numpy(center.astype(np.float32)) / 255)
    # At twice the size: resized whole by Pillow, then cut.
    whole = Image.fromarray(pixels).resize((width * 2, height * 2), Image.Resampling.BICUBIC)
    cut = np.asarray(whole)[2 * top : 2 * (top + side), 2 * left : 2 * (left + side)]
    doubled = evaluation_transform(Image.fromarray(pixels), 2 * side).permute(1, 2, 0).numpy() * 255
    assert np.abs(doubled - cut).max() <= 1.001


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_a_random_box_keeps_what_it_promises(width: int, height: int, scale_min: float, seed: int) -> None:
    left, top, right, bottom = random_box(width, height, scale_min, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    ratio = (right - left) / (bottom - top)
    assert 3 / 4 - 1e-6 <= ratio <= 4 / 3 + 1e-6
    share = (right - left) * (bottom - top) / (width * height)
    largest = min(width, height * 4 / 3) * min(height, width * 4 / 3) / (width * height)
    assert share >= min(scale_min, largest) - 1e-6
    # The box may be handed to Pillow as it is.
    Image.new("RGB", (width, height)).resize((4, 4), box=(left, top, right, bottom))


def test_areas_and_shapes_of_random_boxes_are_spread_as_documented() -> None:
    """Areas near 1 fit in few shapes and are redrawn; below 3/4 every shape fits, so there they are uniform."""
    generator = np.random.default_rng(0)
    boxes = np.array([random_box(100, 100, 0.2, generator) for _ in range(4000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    fits = (ratio := widths * heights / 10_000) < 0.75
    assert np.quantile(ratio[fits], [0.25, 0.5, 0.75]) == pytest.approx([0.3375, 0.475, 0.6125], abs=0.02)
    shapes = np.log(widths / heights)[fits] / math.log(4 / 3)
    assert np.quantile(shapes, [0.25, 0.5, 0.75]) == pytest.approx([-0.5, 0, 0.5], abs=0.06)
    assert abs((boxes[:, 0] / (100 - widths)).mean() - 0.5) < 0.03


def test_half_of_the_images_are_mirrored() -> None:
    config = DataConfig(augment="resize", horizontal_flip=True)
    image = Image.fromarray(rgb(0, 12, 12))
    plain = evaluation_crop(image, 12)
    outs = [training_crop(image, 12, config, np.random.default_rng(seed)) for seed in range(200)]
    mirrored = [torch.equal(out, plain.flip(-1)) for out in outs]
    assert all(flip or torch.equal(out, plain) for flip, out in zip(mirrored, outs, strict=True))
    assert 75 < sum(mirrored) < 125


@given(st.integers(8, 512), st.floats(0.05, 1.0))
def test_an_image_of_the_minimum_side_is_never_enlarged(size: int, scale_min: float) -> None:
    side = minimum_decoded_side(size, DataConfig(crop_scale_min=scale_min))
    assert math.sqrt(0.75 * scale_min) * side >= size - 1e-6
    assert math.sqrt(0.75 * scale_min) * (side - 1) < size
    assert minimum_decoded_side(size, RESIZED) == 0


def test_a_squashed_image_keeps_all_of_it() -> None:
    """As NLVR's pictures of 400 x 100: three colors side by side stay; the center alone has the middle one."""
    pixels = np.zeros((30, 90, 3), dtype=np.uint8)
    for place in range(3):
        pixels[:, 30 * place : 30 * place + 30, place] = 255
    image = Image.fromarray(pixels)
    squashed = evaluation_crop(image, 30, "squash")
    assert [int(squashed[:, 15, column].argmax()) for column in (3, 15, 27)] == [0, 1, 2]
    assert int(evaluation_crop(image, 30)[1].min()) == 255
    generator = np.random.default_rng(0)
    state = generator.bit_generator.state
    assert torch.equal(training_crop(image, 30, RESIZED, generator, "squash"), squashed)
    assert generator.bit_generator.state == state  # nothing is drawn where nothing is random
