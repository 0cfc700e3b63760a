"""A language model and tokenizers of images small enough to build in a test: no network, no training."""

from __future__ import annotations

import copy
import dataclasses
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from pixlex.batch import ImageBatch, ImageTextBatch
from pixlex.config.cbvila import (
    CBViLAConfig,
    FusionConfig,
    ImageTowerConfig,
    ReasonerConfig,
    ReasoningTask,
    TextTowerConfig,
    VisualCodebookConfig,
)
from pixlex.config.fields import DataConfig
from pixlex.config.lqae import (
    CausalLanguageConfig,
    FrozenConfig,
    LanguageConfig,
    LQAEConfig,
    MAEConfig,
    QuantizerConfig,
    VisionConfig,
    VQVAEConfig,
)
from pixlex.config.run import Run, run_from
from pixlex.data.loader import Images, Loader, LoaderConfig
from pixlex.data.sources import ImageSource
from pixlex.models.baselines import MAE, VQVAE, Frozen
from pixlex.models.cbvila import CBViLA
from pixlex.models.finetuned import Reasoner
from pixlex.models.lqae import LQAE

IMAGE_SIZE = 32
PATCH_SIZE = 8
NUM_WORDS = 300
SIZES: dict[str, Any] = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
TOWER: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "mlp_ratio": 2.0}
SIDES: dict[str, Any] = {**SIZES, "encoder": VisionConfig(**TOWER), "decoder": VisionConfig(**TOWER)}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def english_words(count: int) -> list[str]:
    """Return the first lower-case words of three or more letters in Python's own manual, in sorted order."""
    text = " ".join(page for _, page in sorted(topics.items())).lower()
    bare = text.translate(str.maketrans({mark: " " for mark in text if mark not in string.ascii_lowercase}))
    return sorted(dict.fromkeys(word for word in bare.split() if len(word) > 2))[:count]


def tiny_language(folder: Path, *, seed: int = 0) -> Path:
    """Write a BERT of one layer, 32 wide, and a WordPiece tokenizer of 300 words; return the folder."""
    entries = [*SPECIAL, *english_words(NUM_WORDS)]
    backend = Tokenizer(WordPiece({word: row for row, word in enumerate(entries)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    names = {f"{word[1:-1].lower()}_token": word for word in SPECIAL}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=len(entries),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_lqae_config(folder: Path, *, search: str = "whitened") -> LQAEConfig:
    """Return an LQAE of 32 px images, 8 px patches (16 words), width 32, depth 1, with a `tiny_language`."""
    return LQAEConfig(
        **SIDES,
        language=LanguageConfig(name=str(folder)),
        quantizer=QuantizerConfig(search=search, search_dim=4),  # type: ignore[arg-type]
    )


def tiny_words_config(folder: Path, **changes: Any) -> LQAEConfig:
    """Return an LQAE of the same sizes with 4 words for the whole image, of 6 concepts, and convolutions."""
    values: dict[str, Any] = {
        **SIZES,
        "encoder": VisionConfig(block="convolutional", width=16),
        "decoder": SIDES["decoder"],
        "language": LanguageConfig(name=str(folder)),
        "quantizer": QuantizerConfig(search="concepts", search_dim=4, num_concepts=6),
        "decoder_input": "mixed",
        "words": 4,
    }
    return LQAEConfig(**(values | changes))


def tiny_vqvae_config() -> VQVAEConfig:
    """Return a VQ-VAE of the same sizes with 64 codewords."""
    return VQVAEConfig(**SIDES, num_codewords=64, codebook_dim=8)


def tiny_mae_config() -> MAEConfig:
    """Return a masked autoencoder of the same sizes."""
    return MAEConfig(**SIDES)


def tiny_mae(*, seed: int = 0) -> MAE:
    """Build an untrained masked autoencoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MAE.build(tiny_mae_config()).eval()


def tiny_frozen(folder: Path, *, seed: int = 0) -> Frozen:
    """Build an untrained Frozen of the same sizes around the causal language model in `folder`."""
    config = FrozenConfig(**SIZES, encoder=SIDES["encoder"], language=CausalLanguageConfig(name=str(folder)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Frozen.build(config)
        _enlarge(model.encoder.patches.weight)
    return model.eval()


def tiny_lqae(folder: Path, *, seed: int = 0, search: str = "whitened") -> LQAE:
    """Build an untrained LQAE around the language model in `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LQAE.build(tiny_lqae_config(folder, search=search))
        _enlarge(model.encoder.patches.weight)
    return model.eval()


def tiny_vqvae(*, seed: int = 0) -> VQVAE:
    """Build an untrained VQ-VAE."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VQVAE.build(tiny_vqvae_config())
        _enlarge(model.encoder.patches.weight)
    return model.eval()


def _enlarge(weight: torch.Tensor) -> None:
    """Let the image, not the positions, decide the words of an untrained encoder."""
    with torch.no_grad():
        weight.mul_(20)


def write_images(folder: Path, names: Sequence[str], *, seed: int = 0) -> Path:
    """Write a PNG of 40 x 36 pixels, soft blobs of color, under each name (folders in it are made)."""
    generator = np.random.default_rng(seed)
    for name in names:
        coarse = generator.integers(0, 256, size=(5, 6, 3), dtype=np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(path, format="PNG")
    return folder


def tiny_cbvila_config(folder: Path, **changes: object) -> CBViLAConfig:
    """Return a CB-ViLA of the same sizes with 16 codewords; changes are of the codebook or of the whole."""
    of_codebook = {"num_codewords": 16, "dim": 32}
    of_codebook |= {
        name: changes.pop(name) for name in ("num_codewords", "dim", "metric", "estimator") if name in changes
    }
    image = ImageTowerConfig(**TOWER, pixels="half")
    if changes.pop("convolutional", False):
        image = ImageTowerConfig(block="convolutional", width=16)
    return CBViLAConfig(
        **SIZES,
        image=image,
        text=TextTowerConfig(tokenizer=str(folder), **TOWER, positions=16),
        fusion=FusionConfig(depth=2),
        codebook=VisualCodebookConfig(**of_codebook),  # type: ignore[arg-type]
        contrastive_dim=8,
        **changes,  # type: ignore[arg-type]
    )


def tiny_cbvila(folder: Path, *, seed: int = 0, **changes: object) -> CBViLA:
    """Build an untrained CB-ViLA of `tiny_cbvila_config`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CBViLA.build(tiny_cbvila_config(folder, **changes))
        if model.config.image.block == "standard":
            _enlarge(model.image_encoder.patches.weight)
    return model.eval()


def tiny_reasoner(
    folder: Path,
    task: ReasoningTask = "vqa",
    answers: Sequence[str] | None = None,
    *,
    num_images: int | None = None,
    max_answer_words: int = 10,
) -> Reasoner:
    """Build an untrained model of a task over a `tiny_cbvila`; statements are about two images unless said."""
    named = {
        "vqa": ("about", "about the", "class and any", "other", "also the class"),
        "nlvr2": ("false", "true"),
        "entailment": ("entailment", "neutral", "contradiction"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = tiny_cbvila(folder, num_codewords=16, dim=32)
        config = ReasonerConfig(
            task=task,
            body=body.config,
            answers=tuple(named[task] if answers is None else answers),
            num_images=num_images or (2 if task == "nlvr2" else 1),
            max_answer_words=max_answer_words,
        )
        return Reasoner.start(config, body).eval()


def tiny_run(
    family: str, language: Path | None = None, changes: Mapping[str, Any] | None = None, *, depth: int = 1
) -> Run:
    """Return a run of the smallest size: two steps on the CPU; names of settings that differ have dots."""
    tower = {**TOWER, "depth": depth}
    named, sides = {"name": str(language)}, {**SIZES, "encoder": tower, "decoder": tower}
    pairs = {
        **SIZES, "image": tower, "text": {**tower, "tokenizer": str(language), "positions": 40},
        "fusion": {"depth": depth}, "codebook": {"num_codewords": 16, "dim": 32}, "contrastive_dim": 8,
    }  # fmt: skip
    model: dict[str, Any] = {
        "lqae": {**sides, "language": named, "quantizer": {"search_dim": 4}},
        "vqvae": {**sides, "num_codewords": 64, "codebook_dim": 8},
        "mae": sides,
        "frozen": {**SIZES, "encoder": tower, "language": named},
        "cbvila": pairs,
        "reasoning": {"body": pairs},
    }[family]
    train = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "device": "cpu", "log_every": 1}
    values: dict[str, Any] = copy.deepcopy({"family": family, "model": model, "train": train})
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return run_from(values, "a test")


def pair_batch(model: CBViLA, texts: Sequence[str], *, seed: int = 0, max_words: int = 12) -> ImageTextBatch:
    """Return images of noise, one with each text."""
    words, count = model.tokenize_texts(texts, max_words), len(texts)
    return ImageTextBatch(
        torch.rand(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed)),
        torch.zeros(count, dtype=torch.long),
        tuple(f"image {number}" for number in range(count)),
        torch.arange(count),
        texts=tuple(texts),
        image_ids=torch.arange(count),
        word_ids=words.word_ids,
        key_padding=words.key_padding,
    )


def training_batches(
    source: ImageSource,
    *,
    config: DataConfig | None = None,
    first_step: int = 0,
    together: int = 1,
    **settings: Any,
) -> Iterator[ImageBatch]:
    """Batches of images alone, with the workers of the data's configuration."""
    data = DataConfig() if config is None else config
    loading = LoaderConfig(data=data, workers=data.workers, **settings)
    return Loader(Images(source, together), loading).training(first_step)


def evaluation_batches(
    source: ImageSource, *, limit: int | None = None, together: int = 1, **settings: Any
) -> Iterator[ImageBatch]:
    """One pass over images alone."""
    return Loader(Images(source, together), LoaderConfig(**settings)).evaluation(limit)


def batches_of(images: torch.Tensor, batch_size: int) -> list[ImageBatch]:
    """The images in batches, numbered from 100."""
    whole = ImageBatch(
        images,
        torch.full((len(images),), -1),
        tuple(f"image-{row}" for row in range(len(images))),
        torch.arange(len(images)) + 100,
    )
    cuts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    return [
        dataclasses.replace(
            whole,
            images=whole.images[cut],
            labels=whole.labels[cut],
            keys=whole.keys[cut],
            indices=whole.indices[cut],
        )
        for cut in cuts
    ]


CLASSES = ("blue", "green", "red")


def write_classes(
    folder: Path, count: int, *, names: Sequence[str] = CLASSES, seed: int = 0, noise: float = 40.0
) -> Path:
    """Write `count` noisy pictures of 36 x 36 pixels for each class; colors follow the sorted names."""
    random = np.random.default_rng(seed)
    colors = np.random.default_rng(7).uniform(40, 215, (64, 3))
    for place, name in enumerate(sorted(names)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = colors[place] + noise * random.normal(size=(36, 36, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{number}.png")
    return folder
