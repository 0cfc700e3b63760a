"""Cuts of images: what may be drawn, what must come out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixlex.config.data import DataConfig
from pixlex.data.transforms import (
    evaluation_crop,
    evaluation_transform,
    minimum_decoded_side,
    random_box,
    training_crop,
)

PLAIN = DataConfig(augment="resize", horizontal_flip=False)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pixels_are_the_image_divided_by_255() -> None:
    pixels = noise(16, 16)
    out = evaluation_transform(Image.fromarray(pixels), 16)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert torch.equal(out, torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)) / 255)


@pytest.mark.parametrize(("height", "width"), [(20, 35), (35, 20), (21, 34), (8, 8)])
def test_evaluation_is_the_short_side_resized_and_the_center_cut_out(height: int, width: int) -> None:
    pixels = noise(height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    out = evaluation_transform(Image.fromarray(pixels), side)
    assert torch.equal(
        out * 255, torch.from_numpy(pixels[top : top + side, left : left + side]).permute(2, 0, 1)
    )
    # At twice the size: resized whole by Pillow, then cut.
    whole = Image.fromarray(pixels).resize((width * 2, height * 2), Image.Resampling.BICUBIC)
    cut = np.asarray(whole)[2 * top : 2 * (top + side), 2 * left : 2 * (left + side)]
    doubled = evaluation_transform(Image.fromarray(pixels), 2 * side).permute(1, 2, 0).numpy() * 255
    assert np.abs(doubled - cut).max() <= 1.001


def test_a_large_photograph_is_shrunk_as_by_the_full_filter() -> None:
    rows, columns = np.mgrid[0:1500, 0:2000]
    wave = 127 + 60 * np.sin(rows / 40) + 60 * np.cos(columns / 55)
    image = Image.fromarray(np.stack([wave, 255 - wave, wave], axis=-1).astype(np.uint8))
    full = image.resize((64, 64), Image.Resampling.BICUBIC, box=(250, 0, 1750, 1500))
    out = evaluation_transform(image, 64).permute(1, 2, 0).numpy() * 255
    difference = np.abs(out - np.asarray(full))
    assert difference.max() <= 3
    assert difference.mean() <= 0.8


def test_without_randomness_training_is_evaluation() -> None:
    image, generator = Image.fromarray(noise(30, 40)), np.random.default_rng(0)
    state = generator.bit_generator.state
    assert torch.equal(training_crop(image, 16, PLAIN, generator), evaluation_crop(image, 16))
    assert generator.bit_generator.state == state


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_a_random_box_lies_inside_and_keeps_what_it_promises(
    width: int, height: int, scale_min: float, seed: int
) -> None:
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
    generator = np.random.default_rng(0)
    boxes = np.array([random_box(100, 100, 0.2, generator) for _ in range(4000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share = widths * heights / 10_000
    # Areas near 1 fit in few shapes and are redrawn; below 3/4 every shape fits, so there they are uniform.
    fitting = share[share < 0.75]
    assert np.quantile(fitting, [0.25, 0.5, 0.75]) == pytest.approx([0.3375, 0.475, 0.6125], abs=0.02)
    ratios = np.log(widths / heights)[share < 0.75] / math.log(4 / 3)
    assert np.quantile(ratios, [0.25, 0.5, 0.75]) == pytest.approx([-0.5, 0, 0.5], abs=0.06)
    assert abs((boxes[:, 0] / (100 - widths)).mean() - 0.5) < 0.03


def test_half_of_the_images_are_mirrored() -> None:
    config = DataConfig(augment="resize", horizontal_flip=True)
    image = Image.fromarray(noise(12, 12))
    plain = evaluation_crop(image, 12)
    outs = [training_crop(image, 12, config, np.random.default_rng(seed)) for seed in range(200)]
    mirrored = [torch.equal(out, plain.flip(-1)) for out in outs]
    assert all(flip or torch.equal(out, plain) for flip, out in zip(mirrored, outs, strict=True))
    assert 75 < sum(mirrored) < 125


@given(st.integers(8, 512), st.floats(0.05, 1.0))
def test_an_image_decoded_at_the_minimum_side_is_never_enlarged_by_a_crop(
    size: int, scale_min: float
) -> None:
    side = minimum_decoded_side(size, DataConfig(crop_scale_min=scale_min))
    assert math.sqrt(0.75 * scale_min) * side >= size - 1e-6
    assert math.sqrt(0.75 * scale_min) * (side - 1) < size
    assert minimum_decoded_side(size, PLAIN) == 0


def test_a_squashed_image_keeps_all_of_it() -> None:
    """As NLVR's pictures of 400 x 100: three colors side by side stay; the center alone has the middle one."""
    pixels = np.zeros((30, 90, 3), dtype=np.uint8)
    for place in range(3):
        pixels[:, 30 * place : 30 * place + 30, place] = 255
    image = Image.fromarray(pixels)
    squashed = evaluation_crop(image, 30, "squash")
    assert [int(squashed[:, 15, column].argmax()) for column in (3, 15, 27)] == [0, 1, 2]
    assert int(evaluation_crop(image, 30)[1].min()) == 255
    config = DataConfig(augment="resize", horizontal_flip=False)
    assert torch.equal(training_crop(image, 30, config, np.random.default_rng(0), "squash"), squashed)
