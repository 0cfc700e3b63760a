"""Images with captions: opened by description; batches in an order that only seed and step decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import torch

from pixlex.batch import ImageBatch, ImageTextBatch, Words
from pixlex.config.data import Cut, DataConfig
from pixlex.data.captioned import NoCaptions, PairSource
from pixlex.data.captions import open_set
from pixlex.data.descriptions import read_descriptions
from pixlex.data.loader import evaluation_batches, training_batches
from pixlex.data.mixing import mix
from pixlex.data.sources import remark_left_out

__all__ = ["NoCaptions", "PairSource", "evaluation_pairs", "open_pairs", "training_pairs"]

Encode = Callable[[Sequence[str]], Words]


def open_pairs(description: str, *, every_split: bool = False) -> PairSource:
    """Open images with captions.

    `[WEIGHT * ]PATH[?OPTION=VALUE&...]`, several such sets joined by ` + `. PATH is one of

    - .json: ALBEF's list of {image, caption or captions}; Karpathy's files of COCO, Flickr30k and Flickr8k
      (they need `split=train`, several joined by +, or `split=all`); COCO's captions; Visual Genome's region
      descriptions, each phrase a text of the whole image (`index=image_data.json`, where folder and file name
      cannot be told from the id). The content says which it is.
    - .csv, .tsv or .jsonl with `path`, `filepath`, `image` or `file_name` and `captions` (.jsonl: a text or a
      list of texts), `caption`, `title` or `text`; .parquet with the same columns.
    - .parquet files (one, a folder, a pattern) with image bytes, a data set of Hugging Face (hf:NAME[:SPLIT]
      or a saved one), with such a caption column.
    - .tar shards or a folder of images, with .txt or .json (`captions`, `caption` or `text`) beside each image;
      a folder also with a metadata.jsonl, .csv or .parquet, as Hugging Face's imagefolder reads it.
    - embedded:scenes:train|test[:COUNT].

    Paths of images are relative to the folder of the file, or to `images=FOLDER`; of an absolute path that does
    not exist here the longest tail that lies below that folder is taken. Rows with one path are one image with
    several captions. Texts are freed of what no tokenizer reads (see `pixlex.data.text.plain_text`), and lists
    that a text writes down are lists. `captions=COLUMN` names another column. `rows=captions` gives a row for each
    caption, which share `image_of`. Images without a caption are left out and named in `ignored`; files that
    are missing are found out when they are read. Weights are explained at `pixlex.data.mixing.mix`.

    Args:
        description: one set or several.
        every_split: take all images of a file with splits that names none.

    Raises:
        NoCaptions: the images have no captions.
        ValueError: nothing of the kind, an unknown option or split, a malformed file, web addresses in place
            of files, or no image with a caption.
        ModuleNotFoundError: if the kind of source needs a package that is not installed.
    """
    sets = read_descriptions(description)
    sources = [open_set(one, every_split=every_split) for one in sets]
    mixed = mix(description.strip(), sources, [one.weight for one in sets])
    remark_left_out(mixed.name, mixed.ignored, "images without a caption")
    return mixed


def training_pairs(
    source: PairSource,
    *,
    encode: Encode,
    config: DataConfig,
    image_size: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    cut: Cut = "center",
) -> Iterator[ImageTextBatch]:
    """Return this process's share of an endless stream of training batches, starting at a step.

    Images come as `training_batches` gives them; each has one of its captions, drawn from (seed, epoch, index).
    Texts are encoded in this process, for which workers need no tokenizer.

    Args:
        source: images and captions.
        encode: texts to padded word ids.
        config: how images are cut, and by how many worker processes.
        image_size: side of the images, in pixels.
        batch_size: images in a batch over all processes.
        seed: 0 or more.
        first_step: the first step to return, 0 or more.
        rank: number of this process, in [0, world_size).
        world_size: number of processes.
        cut: how images become square.

    Raises:
        ValueError: as `training_batches`.
        TooManyBroken: as `training_batches`.
    """
    batches = training_batches(
        source.images,  # without the captions, which workers do not need
        config=config,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        first_step=first_step,
        rank=rank,
        world_size=world_size,
        cut=cut,
    )
    for batch in batches:
        assert batch.epochs is not None
        drawn = zip(batch.indices.tolist(), batch.epochs.tolist(), strict=True)
        yield _paired(source, batch, [source.draw(index, epoch, seed) for index, epoch in drawn], encode)


def evaluation_pairs(
    source: PairSource,
    *,
    encode: Encode,
    image_size: int,
    batch_size: int,
    limit: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    cut: Cut = "center",
) -> Iterator[ImageTextBatch]:
    """Return one pass over the images, each with its first caption; the rest as `evaluation_batches`."""
    batches = evaluation_batches(
        source.images, image_size=image_size, batch_size=batch_size, limit=limit, workers=workers,
        rank=rank, world_size=world_size, cut=cut,
    )  # fmt: skip
    for batch in batches:
        yield _paired(source, batch, [source.captions[index][0] for index in batch.indices.tolist()], encode)


def encoded(texts: Sequence[str], encode: Encode) -> Words:
    """Return texts as a language model reads them; no rows of no texts (a batch may be empty)."""
    if texts:
        return encode(texts)
    return Words(torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0, dtype=torch.bool))


def _paired(source: PairSource, batch: ImageBatch, texts: Sequence[str], encode: Encode) -> ImageTextBatch:
    words = encoded(texts, encode)
    parts = {field.name: getattr(batch, field.name) for field in fields(ImageBatch)}
    return ImageTextBatch(
        **parts,
        texts=tuple(texts),
        image_ids=torch.tensor(
            [source.image_of(index) for index in batch.indices.tolist()], dtype=torch.int64
        ),
        word_ids=words.word_ids,
        key_padding=words.key_padding,
    )
