"""The tokenizer object: laws between its methods, what it takes, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tests.tiny import IMAGE_SIZE, tiny_language, tiny_lqae, tiny_reasoner, tiny_vqvae, write_images
from torch import Tensor

import pixlex
from pixlex import api
from pixlex.api import ImageReasoner, ImageTokenizer, load
from pixlex.data.decoding import UnreadableImage
from pixlex.models import checkpoint


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


def test_decoding_gives_pixels_in_range(tokenizer: ImageTokenizer) -> None:
    codes = tokenizer.tokenize(images(5))
    assert torch.equal(codes, tokenizer.model.tokenize(images(5)))
    assert len(codes.unique()) > 5
    decoded = tokenizer.decode(codes)
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


def test_the_model_sees_few_shapes(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lqae(language)
    seen: set[tuple[int, ...]] = set()
    inner = model.tokenize

    def recording(batch: Tensor) -> Tensor:
        seen.add(tuple(batch.shape))
        return inner(batch)

    monkeypatch.setattr(model, "tokenize", recording)
    tokenizer = ImageTokenizer(model)
    for count in (1, 2, 3, 33, 100):
        assert len(tokenizer.tokenize(images(count))) == count
    assert {shape[0] for shape in seen} <= {1, 2, 4, 32}  # powers of two; few where the bits are the same


def test_words_and_codes_are_inverse(lqae: ImageTokenizer) -> None:
    codes = lqae.tokenize(images(4))
    words = lqae.to_words(codes)
    assert [len(text.split()) for text in words] == [16] * 4
    assert torch.equal(lqae.from_words(words), codes)
    assert torch.equal(lqae.from_words(words[0]), codes[:1])
    assert lqae.to_words(images(4)) == words
    assert torch.equal(lqae.decode(words), lqae.decode(codes))
    assert torch.equal(lqae.decode(words[2]), lqae.decode(codes[2:3]))
    assert lqae.from_words([]).shape == (0, 16)


def photograph(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA").resize((40, 36), Image.Resampling.BICUBIC).convert(mode)


def forms(picture: Image.Image, folder: Path) -> dict[str, Any]:
    """One picture in everything that programs have."""
    array, path = np.asarray(picture), folder / "one.png"
    picture.save(path)
    data, tensor = path.read_bytes(), torch.from_numpy(array.copy())
    channels_first = tensor.movedim(-1, 0) if array.ndim == 3 else tensor
    return {
        "path": path, "path as text": str(path), "bytes": data, "PIL image of a file": Image.open(path),
        "bytearray": bytearray(data), "memoryview": memoryview(data), "stream": io.BytesIO(data),
        "file": path.open("rb"), "datasets": {"bytes": data, "path": None}, "datasets, path": {"path": str(path)},
        "generator": (one for one in [path]), "paths in an array": np.array([str(path)]),
        "objects in an array": np.array([path, None], dtype=object)[:1],
        "array": array, "turned array": array[::-1][::-1], "list of arrays": [array],
        "array, channels first": np.ascontiguousarray(channels_first.numpy()),
        "float array": array / 255, "half array": (array / 255).astype(np.float32),
        "tensor": channels_first, "tensor, channels last": tensor, "list of tensors": [channels_first],
        "float tensor": channels_first / 255, "double tensor": channels_first.double() / 255,
        "gradient": (channels_first / 255).requires_grad_(),
        **({} if array.ndim == 2 else {"batch of arrays": array[None], "batch of tensors": channels_first[None]}),
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_every_form_of_a_picture_is_the_same_image(lqae: ImageTokenizer, mode: str, tmp_path: Path) -> None:
    expected = lqae.embed(photograph(mode))
    for name, given in forms(photograph(mode), tmp_path).items():
        assert torch.equal(lqae.embed(given), expected), name


def test_floats_of_the_models_size_are_taken_as_they_are(lqae: ImageTokenizer) -> None:
    """Not rounded to 8 bits, whatever holds them."""
    several = images(3)
    expected = lqae.embed(several)
    for given in (
        list(several), several.double(), several.movedim(1, -1).numpy(), several.numpy(), several.half().float(),
        (one for one in several), list(several.movedim(1, -1).numpy()),
    ):  # fmt: skip
        assert torch.allclose(lqae.embed(given), expected, atol=0.1)
    assert torch.equal(lqae.embed(list(several)), expected)
    assert torch.equal(lqae.embed(several.movedim(1, -1).numpy()), expected)
    grey = several[0, :1]
    assert torch.equal(lqae.embed(grey), lqae.embed(grey.expand(3, -1, -1)))


def test_images_are_read_when_their_turn_comes(lqae: ImageTokenizer) -> None:
    """A generator of more pictures than memory holds is never a list."""
    alive, most = [0], [0]

    def given() -> Iterator[np.ndarray]:
        for _ in range(9):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield np.zeros((32, 32, 3), np.uint8)

    inner = lqae.model.tokenize

    def computed(batch: Tensor) -> Tensor:
        alive[0] = 0
        return inner(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lqae.model, "tokenize", computed)
        assert len(lqae.tokenize(given(), batch_size=2)) == 9
    assert most[0] == 2


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


def test_embedding_is_the_mean_of_hidden_states_or_codewords(
    lqae: ImageTokenizer, vqvae: ImageTokenizer
) -> None:
    codes = lqae.tokenize(images(3))
    model = lqae.model
    assert isinstance(model, checkpoint.LQAE)
    with torch.no_grad():
        states = model.encode_text(model.quantizer.embedding[codes], all_states=True).hidden_states
    last, every = lqae.embed(images(3)), lqae.embed(images(3), layer="all")
    assert torch.allclose(last, states[-1].mean(1), atol=1e-5)
    assert torch.allclose(every, torch.cat([state.mean(1) for state in states], dim=1), atol=1e-5)
    assert every.shape == (3, 2 * 32)
    codewords = vqvae.model.codebook.weight.detach()[vqvae.tokenize(images(3))]  # type: ignore[union-attr]
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
    checkpoint.save(tokenizer.model, tmp_path / "run" / "model", trained_on=["some photographs"])
    assert not (tmp_path / "run" / "model" / "README.md").exists()
    (tmp_path / "run" / "model" / "README.md").write_text("# card")
    load(tmp_path / "run").save(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == "# card"
    assert checkpoint.read_config(str(tmp_path / "copy"))["trained_on"] == ["some photographs"]


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

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, revision: None) -> None:
        names = sorted(path.name for path in folder_path.iterdir())
        card = folder_path / "README.md"
        text = card.read_text() if card.exists() else None
        config = json.loads((folder_path / "config.json").read_text())
        self.calls.append({"repo_id": repo_id, "names": names, "card": text, "family": config["family"]})


def test_push_to_hub_uploads_model_and_card(
    lqae: ImageTokenizer, vqvae: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "HfApi", FakeHub)
    address = vqvae.push_to_hub("me/tiny", private=True, token="secret", card="# tiny")
    assert address == "https://hub.example/me/tiny"
    uploaded = {
        "names": ["README.md", "config.json", "model.safetensors"],
        "card": "# tiny",
        "family": "vqvae",
    }
    assert FakeHub.calls == [
        {"token": "secret"},
        {"repo_id": "me/tiny", "private": True, "exist_ok": True},
        {"repo_id": "me/tiny", **uploaded},
    ]
    with pytest.warns(UserWarning, match="local directory"):
        lqae.push_to_hub("me/tiny")


def test_models_that_are_not_there(
    tmp_path: Path, vqvae: ImageTokenizer, monkeypatch: pytest.MonkeyPatch, unchecked_shapes: None
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for nobody in ("nobody/nothing", ""):
        with pytest.raises(ValueError, match=f"no model '{nobody}'"):
            load(nobody)
    with pytest.raises(ValueError, match=r"holds no model: expected config\.json"):
        load(tmp_path)
    vqvae.save(tmp_path)
    with pytest.raises(ValueError, match=r"'cuda:99' is not there: torch sees \d+ GPUs"):
        load(tmp_path, device="cuda:99")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(5, 9, 9), r"image 0: expected pixels \(H, W, C\) or \(C, H, W\) .*, got \(5, 9, 9\)"),
        (np.zeros((2, 3, 0, 9), np.uint8), r"image 0: expected pixels .*got \(3, 0, 9\)"),
        ([np.zeros((9, 9)), np.zeros(9)], r"image 1: expected pixels .*got \(9,\)"),
        (np.zeros((9, 9, 3), np.int64), r"8 bits or floats in \[0, 1\], got int64"),
        (torch.zeros(3, 9, 9, dtype=torch.bool), "8 bits or floats in .*, got torch.bool"),
        (np.full((9, 9, 3), 255.0), r"image 0: expected pixels in \[0, 1\], got 255 to 255: .*8-bit"),
        (
            torch.randn(2, 3, 9, 9),
            "image 0: expected pixels in .*: floats without mean and standard deviation",
        ),
        ([None], "image 0: expected a path, the bytes of a file, a PIL image or pixels, got NoneType"),
        ([{"bytes": None}], "the row holds no image"),
        (7, "expected a path, .*, got int"),
        ((one for one in ()), "at least one image, got none"),
        ([[1, 2]], "got list"),
        (torch.rand(0, 3, 32, 32), "at least one image, got none"),
        (
            torch.linspace(0, 255, 3 * 32 * 32).view(1, 3, 32, 32),
            r"expected pixels in \[0, 1\], got 0 to 255",
        ),
        (torch.full((1, 3, 32, 32), torch.nan), r"expected pixels in \[0, 1\], got nan"),
    ],
)
def test_pictures_it_refuses(lqae: ImageTokenizer, unchecked_shapes: None, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lqae.tokenize(given)


def test_codes_come_back_in_any_form(lqae: ImageTokenizer) -> None:
    """As `tokenize`, JSON, Parquet, `datasets` and pandas hold them."""
    codes = lqae.tokenize(images(3))
    expected, words = lqae.decode(codes), lqae.to_words(codes)
    arrays = np.empty(3, dtype=object)
    arrays[:] = list(codes.numpy())
    for given in (
        codes.int(), codes.short(), codes.to(torch.uint16), codes.numpy(), codes.numpy().astype(np.uint16),
        codes.tolist(), tuple(map(tuple, codes.tolist())), json.loads(json.dumps(codes.tolist())), list(codes),
        list(codes.numpy()), arrays, pa.array(codes.tolist()), pa.chunked_array([codes.tolist()]),
        [list(row) for row in codes.numpy()],
    ):  # fmt: skip
        assert torch.equal(lqae.decode(given), expected)
        assert lqae.to_words(given) == words
    assert torch.equal(lqae.decode(row for row in codes.tolist()), expected)
    for one in (codes[0], codes[0].tolist(), codes[0].numpy(), list(codes[0])):
        assert torch.equal(lqae.decode(one), expected[:1])
        assert lqae.to_words(one) == words[:1]
    for texts in (tuple(words), np.array(words), (text for text in words)):
        assert torch.equal(lqae.decode(texts), expected)
    assert torch.equal(lqae.from_words(text for text in words), codes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1] * 16, [1] * 15], r"as many codes of every image, got \[15, 16\]"),
        ([[1.5] * 16], "expected integer codes, got float64"),
        ([[None] * 16], "expected integer codes, got NoneType"),
        ([True] * 16, "expected integer codes, got bool"),
        ([2**70] * 16, r"expected .*codes"),
        ({"codes": [1] * 16}, "expected integer codes, got dict"),
        (None, "expected integer codes, got NoneType"),
        (b"words", "expected .*codes"),
        (" ".join(["above"] * 15), r"expected 16 words \(4 x 4\), got 15"),
        ([" ".join(["above"] * 16), "above"], "image 1: expected 16 words"),
        ("xylophone " * 16, "'xylophone' is not one of the 300 codewords"),
        (["words", 3], "expected a text or several, got int"),
        ([[[1] * 4] * 4], r"expected codes of shape \(B, 16\), got \(1, 4, 4\)"),
        ([[0] * 15 + [300]], r"expected codes in \[0, 300\), got 0 to 300"),
        ([[0] * 15 + [-1]], r"expected codes in \[0, 300\), got -1 to 0"),
        (torch.zeros(1, 15, dtype=torch.int64), r"expected codes of shape \(B, 16\), got \(1, 15\)"),
        ([], "at least one image, got none"),
    ],
)
def test_what_is_no_codes(lqae: ImageTokenizer, unchecked_shapes: None, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lqae.decode(given)


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


@pytest.fixture(scope="module")
def pair(language: Path) -> ImageReasoner:
    return ImageReasoner(tiny_reasoner(language, "nlvr2"))


def test_a_reasoner_takes_every_form(language: Path, pair: ImageReasoner, tmp_path: Path) -> None:
    one, picture, question = ImageReasoner(tiny_reasoner(language)), photograph(), "about the class"
    expected = one.answer(picture, question)
    for given in forms(picture, tmp_path).values():
        assert one.answer(given, question) == expected
    for texts in (iter([question]), np.array([question]), (question,)):
        assert one.answer([picture], texts) == expected
    other = picture.rotate(90)
    of_two = pair.answer([picture, other, other, picture], [question, question])
    assert pair.answer([[picture, other], (other, picture)], [question, question]) == of_two
    assert pair.answer((picture, np.asarray(other)), question) == pair.answer([picture, other], question)
    explained = pair.explain([(picture, other)], question)
    assert len(explained.images) == 2


@pytest.mark.parametrize(
    ("images_given", "texts", "message"),
    [
        (3, "a", "expected 2 images for each of 1 texts, or 2 for all, got 3 images"),
        (2, [], "expected a text or several, got none"),
        (2, None, "expected a text or several, got NoneType"),
        (2, ["a", b"b"], "expected a text or several, got bytes"),
        (2, " ?", "expected a question or a sentence with a word in it, got ' [?]'"),
    ],
)
def test_what_a_reasoner_refuses(
    pair: ImageReasoner, unchecked_shapes: None, images_given: int, texts: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pair.answer([photograph()] * images_given, texts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_codes_on_a_gpu_do_not_depend_on_neighbors(language: Path) -> None:
    tokenizer = ImageTokenizer(tiny_lqae(language), device="cuda")
    codes = tokenizer.tokenize(images(70))
    for place in (0, 33, 69):
        assert torch.equal(tokenizer.tokenize(images(70)[place : place + 1])[0], codes[place])
