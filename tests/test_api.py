"""The tokenizer object: laws between its methods, what it takes, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import (
    IMAGE_SIZE,
    NUM_WORDS,
    tiny_language,
    tiny_lqae,
    tiny_vqvae,
    write_images,
)
from torch import Tensor

import pixlex
from pixlex.api import ImageTokenizer, load
from pixlex.api import tokenizer as tokenizer_module
from pixlex.data.images import UnreadableImage, load_image
from pixlex.data.transforms import evaluation_transform
from pixlex.models import pretrained


@pytest.fixture(scope="module")
def lqae(language: Path) -> ImageTokenizer:
    return ImageTokenizer(tiny_lqae(language))


@pytest.fixture(scope="module")
def vqvae() -> ImageTokenizer:
    return ImageTokenizer(tiny_vqvae())


@pytest.fixture(params=["lqae", "vqvae"])
def tokenizer(request: pytest.FixtureRequest) -> ImageTokenizer:
    made: ImageTokenizer = request.getfixturevalue(request.param)
    return made


def images(count: int, seed: int = 0) -> Tensor:
    """Images of soft blobs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=IMAGE_SIZE, mode="bilinear")


def test_what_it_says_of_itself(lqae: ImageTokenizer, vqvae: ImageTokenizer) -> None:
    facts = [
        (one.family, one.image_size, one.grid, one.num_codewords, one.has_words) for one in (lqae, vqvae)
    ]
    assert facts == [("lqae", 32, 4, NUM_WORDS, True), ("vqvae", 32, 4, 64, False)]


def test_codes_are_the_models_own(tokenizer: ImageTokenizer) -> None:
    codes = tokenizer.tokenize(images(5))
    assert codes.shape == (5, 16)
    assert torch.equal(codes, tokenizer.model.tokenize(images(5)))
    assert len(codes.unique()) > 5


def test_decoding_gives_pixels_in_range(tokenizer: ImageTokenizer) -> None:
    decoded = tokenizer.decode(tokenizer.tokenize(images(5)))
    assert decoded.shape == (5, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert decoded.dtype == torch.float32
    assert 0 <= decoded.min() < decoded.max() <= 1
    assert torch.equal(tokenizer.reconstruct(images(5)), decoded)


def test_neighbors_and_batch_size_change_nothing(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    many = images(70)
    together = (tokenizer.tokenize(many), tokenizer.reconstruct(many), tokenizer.embed(many))
    for place in (0, 1, 31, 32, 69):
        alone = many[place : place + 1]
        apart = (tokenizer.tokenize(alone), tokenizer.reconstruct(alone), tokenizer.embed(alone))
        for one, all_of_them in zip(apart, together, strict=True):
            assert torch.equal(one[0], all_of_them[place])
    names = [f"{number}.png" for number in range(7)]
    files = [write_images(tmp_path, names) / name for name in names]
    codes = [tokenizer.tokenize(files, batch_size=size) for size in (1, 3, 64)]
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


def test_the_model_always_sees_one_shape(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lqae(language)
    seen: set[tuple[int, ...]] = set()
    inner = model.tokenize

    def recording(batch: Tensor) -> Tensor:
        seen.add(tuple(batch.shape))
        return inner(batch)

    monkeypatch.setattr(model, "tokenize", recording)
    tokenizer = ImageTokenizer(model)
    for count in (1, 2, 33, 100):
        assert len(tokenizer.tokenize(images(count))) == count
    assert len(seen) == 1


def test_words_and_codes_are_inverse(lqae: ImageTokenizer) -> None:
    codes = lqae.tokenize(images(4))
    words = lqae.to_words(codes)
    assert [len(text.split()) for text in words] == [16] * 4
    assert torch.equal(lqae.from_words(words), codes)
    assert torch.equal(lqae.from_words(words[0]), codes[:1])
    assert lqae.to_words(images(4)) == words
    assert torch.equal(lqae.decode(words), lqae.decode(codes))
    assert torch.equal(lqae.decode(words[2]), lqae.decode(codes[2:3]))


def test_no_texts_are_no_codes(lqae: ImageTokenizer) -> None:
    assert lqae.from_words([]).shape == (0, 16)


def test_path_bytes_and_pil_image_are_the_same_image(lqae: ImageTokenizer, tmp_path: Path) -> None:
    path = write_images(tmp_path, ["one.png"]) / "one.png"
    data = path.read_bytes()
    prepared = evaluation_transform(load_image(data, "one"), IMAGE_SIZE).unsqueeze(0)
    expected = lqae.tokenize(prepared)
    for given in (path, str(path), data, Image.open(path), [path], [data], [Image.open(path)], (str(path),)):
        assert torch.equal(lqae.tokenize(given), expected)


def stored(image: Image.Image, file_format: str, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **settings)
    return stream.getvalue()


def odd_images() -> dict[str, bytes]:
    """Image files whose pixels are not plain upright RGB."""
    generator = np.random.default_rng(0)
    rgb = Image.fromarray(generator.integers(0, 256, (30, 44, 3), dtype=np.uint8))
    rgba = rgb.convert("RGBA")
    rgba.putalpha(Image.fromarray(generator.integers(0, 256, (30, 44), dtype=np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(generator.integers(0, 65536, (30, 44), dtype=np.uint16))
    real = Image.fromarray(generator.random((30, 44), dtype=np.float32))
    palette = rgb.quantize(16)
    return {
        "RGBA": stored(rgba, "PNG"),
        "palette with a transparent color": stored(palette, "PNG", transparency=3),
        "greyscale": stored(rgb.convert("L"), "PNG"),
        "black and white": stored(rgb.convert("1"), "PNG"),
        "16 bits": stored(deep, "PNG"),
        "floating point": stored(real, "TIFF"),
        "CMYK": stored(rgb.convert("CMYK"), "TIFF"),
        "turned by EXIF": stored(rgb, "PNG", exif=exif),
    }


@pytest.mark.parametrize("kind", odd_images())
def test_a_pil_image_is_read_like_its_file(lqae: ImageTokenizer, kind: str) -> None:
    data = odd_images()[kind]
    opened = Image.open(io.BytesIO(data))
    assert torch.equal(lqae.embed(opened), lqae.embed(data))


def test_embedding_is_the_mean_of_the_language_models_hidden_states(lqae: ImageTokenizer) -> None:
    codes = lqae.tokenize(images(3))
    model = lqae.model
    assert isinstance(model, pretrained.LQAE)
    with torch.no_grad():
        states = model.read(model.quantizer.embedding[codes]).hidden_states
    last, every = lqae.embed(images(3)), lqae.embed(images(3), layer="all")
    assert torch.allclose(last, states[-1].mean(1), atol=1e-5)
    assert torch.allclose(every, torch.cat([state.mean(1) for state in states], dim=1), atol=1e-5)
    assert every.shape == (3, 2 * 32)


def test_embedding_of_a_vqvae_is_its_mean_codeword(vqvae: ImageTokenizer) -> None:
    model = vqvae.model
    assert isinstance(model, pretrained.VQVAE)
    codewords = model.codebook.weight.detach()[vqvae.tokenize(images(3))]
    assert torch.allclose(vqvae.embed(images(3)), codewords.mean(1), atol=1e-6)


def test_saved_and_loaded_is_the_same(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "run" / "model")
    again = load(tmp_path / "run" / "model")
    assert again.family == tokenizer.family
    assert torch.equal(again.tokenize(images(6)), tokenizer.tokenize(images(6)))
    assert torch.equal(again.reconstruct(images(6)), tokenizer.reconstruct(images(6)))
    for other in (
        pixlex.load(str(tmp_path / "run")),
        ImageTokenizer.from_pretrained(tmp_path / "run", device="cpu"),
    ):
        assert torch.equal(other.tokenize(images(2)), tokenizer.tokenize(images(2)))


def test_card_and_history_travel_with_the_model(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    pretrained.save(tokenizer.model, tmp_path / "run" / "model", trained_on=["some photographs"])
    assert not (tmp_path / "run" / "model" / "README.md").exists()
    (tmp_path / "run" / "model" / "README.md").write_text("# card")
    load(tmp_path / "run").save(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == "# card"
    assert pretrained.read_config(str(tmp_path / "copy"))["trained_on"] == ["some photographs"]


def test_a_moved_language_model_is_named_at_loading(language: Path, tmp_path: Path) -> None:
    shutil.copytree(language, tmp_path / "before")
    tokenizer = ImageTokenizer(tiny_lqae(tmp_path / "before"))
    tokenizer.save(tmp_path / "model")
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.raises(ValueError, match="before"):
        load(tmp_path / "model")
    moved = load(tmp_path / "model", language_model=str(tmp_path / "after"))
    assert torch.equal(moved.tokenize(images(3)), tokenizer.tokenize(images(3)))


def test_another_vocabulary_is_refused(lqae: ImageTokenizer, tmp_path: Path) -> None:
    lqae.save(tmp_path / "model")
    other = tiny_language(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="codes mean nothing in another vocabulary"):
        load(tmp_path / "model", language_model=str(other))


class FakeHub:
    """Records what would be uploaded."""

    calls: list[dict[str, Any]]

    def __init__(self, token: str | None = None) -> None:
        type(self).calls = [{"token": token}]

    def create_repo(self, repo_id: str, **settings: Any) -> str:
        self.calls.append({"repo_id": repo_id, **settings})
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        names = sorted(path.name for path in folder_path.iterdir())
        card = folder_path / "README.md"
        text = card.read_text() if card.exists() else None
        config = json.loads((folder_path / "config.json").read_text())
        self.calls.append({"repo_id": repo_id, "names": names, "card": text, "family": config["family"]})


def test_push_to_hub_uploads_model_and_card(vqvae: ImageTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "HfApi", FakeHub)
    address = vqvae.push_to_hub("me/tiny", private=True, token="secret", card="# tiny")
    assert address == "https://hub.example/me/tiny"
    assert FakeHub.calls == [
        {"token": "secret"},
        {"repo_id": "me/tiny", "private": True, "exist_ok": True},
        {
            "repo_id": "me/tiny",
            "names": ["README.md", "config.json", "model.safetensors"],
            "card": "# tiny",
            "family": "vqvae",
        },
    ]


def test_push_to_hub_warns_of_a_local_language_model(
    lqae: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "HfApi", FakeHub)
    with pytest.warns(UserWarning, match="local directory"):
        lqae.push_to_hub("me/tiny")


def test_a_repository_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no model 'nobody/nothing'"):
        load("nobody/nothing")


def test_directories_that_are_no_model(tmp_path: Path, vqvae: ImageTokenizer) -> None:
    with pytest.raises(ValueError, match=r"holds no model: expected config\.json"):
        load(tmp_path)
    vqvae.save(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="does not hold this model's weights"):
        load(tmp_path / "cut")


def test_settings_that_do_not_exist(tmp_path: Path, vqvae: ImageTokenizer, unchecked_shapes: None) -> None:
    vqvae.save(tmp_path)
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got 'tpu9'"):
        load(tmp_path, device="tpu9")
    with pytest.raises(ValueError, match=r"'cuda:99' is not there: torch sees \d+ GPUs"):
        load(tmp_path, device="cuda:99")


def test_tensors_it_refuses(lqae: ImageTokenizer, unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, 32, 32\), got \(2, 3, 16, 16\)"):
        lqae.tokenize(torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        lqae.tokenize(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match=r"got \(0, 3, 32, 32\)"):
        lqae.tokenize(torch.rand(0, 3, 32, 32))
    with pytest.raises(ValueError, match=r"expected pixels in \[0, 1\], got 0 to 255"):
        lqae.tokenize(torch.linspace(0, 255, 3 * 32 * 32).view(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"expected pixels in \[0, 1\], got nan"):
        lqae.embed(torch.full((1, 3, 32, 32), torch.nan))
    with pytest.raises(ValueError, match="expected floating-point pixels"):
        lqae.reconstruct(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_files_it_refuses(lqae: ImageTokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnreadableImage, match=r"text\.png: not an image"):
        lqae.tokenize(tmp_path / "text.png")
    with pytest.raises(UnreadableImage, match="does not exist"):
        lqae.tokenize([tmp_path / "missing.png"])
    with pytest.raises(UnreadableImage, match="image 1: "):
        lqae.tokenize([stored(Image.new("RGB", (40, 40)), "PNG"), b"nothing"])
    cut = stored(Image.effect_noise((200, 200), 50), "PNG")[:-3000]
    with pytest.raises(UnreadableImage, match="image 0: "):
        lqae.tokenize(Image.open(io.BytesIO(cut)))
    with pytest.raises(ValueError, match="at least one image, got none"):
        lqae.tokenize([])
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        lqae.tokenize([tmp_path / "text.png"], batch_size=0)


def test_codes_it_refuses(lqae: ImageTokenizer, unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match=r"expected codes in \[0, 300\), got 0 to 300"):
        lqae.decode(torch.tensor([[0] * 15 + [300]]))
    with pytest.raises(ValueError, match=r"expected codes in \[0, 300\), got -1 to 0"):
        lqae.to_words(torch.tensor([[0] * 15 + [-1]]))
    with pytest.raises(ValueError, match=r"expected codes of shape \(B, 16\), got \(1, 15\)"):
        lqae.decode(torch.zeros(1, 15, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(16,\)"):
        lqae.decode(torch.zeros(16, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected integer codes"):
        lqae.decode(torch.zeros(1, 16))
    with pytest.raises(ValueError, match="at least one image, got none"):
        lqae.decode([])


def test_words_it_refuses(lqae: ImageTokenizer) -> None:
    word = lqae.to_words(torch.zeros(1, 16, dtype=torch.int64))[0].split()[0]
    with pytest.raises(ValueError, match=r"expected 16 words \(4 x 4\), got 15"):
        lqae.from_words(" ".join([word] * 15))
    with pytest.raises(ValueError, match="image 1: expected 16 words"):
        lqae.decode([" ".join([word] * 16), " ".join([word] * 17)])
    with pytest.raises(ValueError, match="'xylophone' is not one of the 300 codewords"):
        lqae.from_words(" ".join([word] * 15 + ["xylophone"]))


def test_a_vqvae_has_no_words(vqvae: ImageTokenizer) -> None:
    for call in (vqvae.to_words, vqvae.from_words, vqvae.decode):
        with pytest.raises(ValueError, match="a vqvae has no words"):
            call("some words")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"layer must be last \(a vqvae has no further layers\), got 'all'"):
        vqvae.embed(images(1), layer="all")


def test_bf16_is_a_choice(language: Path) -> None:
    tokenizer = ImageTokenizer(tiny_lqae(language), precision="bf16")
    codes = tokenizer.tokenize(images(40))
    assert torch.equal(tokenizer.tokenize(images(40)[7:8])[0], codes[7])
    exact = ImageTokenizer(tiny_lqae(language)).tokenize(images(40))
    assert 0.8 < (codes == exact).float().mean() <= 1


def test_a_callers_autocast_changes_nothing(lqae: ImageTokenizer) -> None:
    expected = lqae.embed(images(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lqae.embed(images(3)), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_codes_on_a_gpu_do_not_depend_on_neighbors(language: Path) -> None:
    tokenizer = ImageTokenizer(tiny_lqae(language), device="cuda")
    codes = tokenizer.tokenize(images(70))
    for place in (0, 33, 69):
        assert torch.equal(tokenizer.tokenize(images(70)[place : place + 1])[0], codes[place])
