"""Train a released model, measure it, and write it with its card below src/pixlex/released.

    python scripts/release/drawings.py emoji.parquet icons.parquet
    python scripts/release/photographs.py photographs.parquet held-out.parquet
    python scripts/release/models.py small-pairs emoji.parquet icons.parquet --unseen OTHER_DESIGNERS.parquet
    python scripts/release/models.py small-words photographs.parquet emoji.parquet --unseen held-out.parquet

A run that was interrupted goes on; a finished one is measured again. The card's measures are those of the stored
model, in 8 or 16 bits, on pictures by whom nothing was trained.
"""

from __future__ import annotations

import argparse
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import drawings
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

import pixlex
from pixlex.api.pictures import batches_of
from pixlex.eval.few_shot.classifiers import embedded_encoder, sentence_vectors
from pixlex.eval.metrics import mse, ssim
from pixlex.models.initialization import CARD, RELEASED

Rows = list[tuple[str, str]]

RECIPES = {"small-pairs": "cbvila/drawings", "small-words": "lqae/tinyimages"}
# Trainings, each from the weights of the one before: how often the first table counts, changes of the recipe.
STAGES: Mapping[str, Sequence[tuple[int, str]]] = {
    "small-pairs": (
        (2, "model.text.words=frozen objective.teacher.steps=2600 train.steps=2900"),
        (
            8,
            "model.text.words=frozen objective.teacher.steps=900 objective.teacher.learning_rate=1.0e-3 "
            "train.steps=1100",
        ),
        (
            8,
            "model.text.words=frozen objective.lock_images=true objective.teacher.steps=2400 "
            "objective.teacher.learning_rate=1.0e-3 train.steps=2700",
        ),
        (
            8,
            "model.text.words=frozen objective.lock_images=true objective.teacher.steps=0 "
            'objective.burn_in_steps=0 train.steps=350 \'data.caption_templates=["{}", "{}", "{}", "a {}", '
            '"an {}", "the {}", "some {}", "an icon of {}", "a picture of a {}", "something like {}", '
            '"something to {}", "a kind of {}"]\'',
        ),
    ),
    "small-words": (
        (
            2,
            "model.image_size=128 model.patch_size=16 model.language.vocabulary=neutral-words "
            "model.decoder.width=256 model.decoder.depth=4 train.steps=1400",
        ),
    ),
}
ABOUT = {
    "small-pairs": "Finds drawings by words, names them, compares them with each other: icons and emoji. A "
    "CB-ViLA of 64 px whose word embeddings are those of MiniLM, named and not stored. Its vectors were trained "
    "for long, matching and pixels hardly: search with it, do not rank again.",
    "small-words": "Writes a picture of 128 px as 64 words of MiniLM's vocabulary, one for each patch, and draws "
    "it from the words alone. An LQAE: it has never seen a caption, and its words are no descriptions.",
}
EXAMPLE = {
    "small-pairs": 'model.zero_shot(["icon.png"], ["a house", "a tree"])',
    "small-words": 'model.to_words(["photo.jpg"])',
}
LIMITS = """It knows the kind of pictures that it was trained on, and shares the biases of their names and of
MiniLM's words. Nothing that it says of a picture of people should be taken for true."""
AUTHORS = {
    "noto": "Google", "twemoji": "Twitter and contributors", "fluent-emoji": "Microsoft",
    "fluent-emoji-flat": "Microsoft", "emojione": "EmojiOne", "tabler": "Paweł Kuna",
    "lucide": "Lucide contributors", "mdi": "Pictogrammers", "ph": "Phosphor Icons",
    "material-symbols": "Google", "carbon": "IBM", "fluent": "Microsoft",
}  # fmt: skip


def read(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a table, images as bytes."""
    columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    return {**columns, "image": [one["bytes"] for one in columns["image"]]}


def recalls(places: Sequence[int] | Tensor) -> str:
    """Return in percent how often the right answer is the first, among five, among ten."""
    counted = torch.as_tensor(places)
    return " / ".join(f"{100 * float((counted < rank).double().mean()):.1f}" for rank in (1, 5, 10))


def places_of(
    similarity: Tensor, names: Sequence[str], wanted: Sequence[str], *, distinct: bool = True
) -> list[int]:
    """Return for each row at which place the wanted name stands, among its columns or their distinct names."""
    places = []
    for row, name in zip(similarity.argsort(1, descending=True).tolist(), wanted, strict=True):
        found = [names[column] for column in row]
        found = list(dict.fromkeys(found)) if distinct else found
        places.append(found.index(name) if name in found else len(found))
    return places


def small_pixels(images: Sequence[bytes], side: int = 16) -> Tensor:
    """Return pictures of so few pixels as unit vectors: the baseline of whoever knows nothing."""
    pictures = [Image.open(io.BytesIO(one)).convert("RGB").resize((side, side)) for one in images]
    rows = torch.tensor(np.stack([np.asarray(one, dtype=np.float32).ravel() for one in pictures]))
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def measure_pairs(model: pixlex.ImageTokenizer, seen: Path, unseen: Path) -> Rows:
    """Return what the model makes of drawings by designers whom it has not seen, in percent."""
    train, other = read(seen), read(unseen)
    wanted = other["name"]
    names = sorted({*wanted, *train["name"]})
    images, trained = model.encode_image(other["image"]), model.encode_image(train["image"])
    similarity = images @ model.encode_text(names).T
    few = sorted(set(wanted))
    columns = similarity[:, [names.index(name) for name in few]]
    rows = [
        (f"name of a picture, of {len(names):,}", recalls(places_of(similarity, names, wanted))),
        (f"name of a picture, of {len(few):,}", recalls(places_of(columns, few, wanted))),
        (
            f"picture of a name, of {len(wanted):,}",
            recalls(places_of(columns.T, wanted, few, distinct=False)),
        ),
    ]
    matching = torch.full_like(columns, -torch.inf)
    near = torch.zeros_like(columns, dtype=torch.bool).scatter(1, columns.topk(32).indices, True)
    for column, name in enumerate(few):
        if rows_near := near[:, column].nonzero().flatten().tolist():
            pictures = [other["image"][row] for row in rows_near]
            matching[rows_near, column] = model.score(pictures, [name])[:, 0]
    again = recalls(places_of(matching, few, wanted))
    rows.insert(2, ("the same, its nearest 32 ranked again by matching", again))
    sentences = F.normalize(torch.from_numpy(sentence_vectors(embedded_encoder(), names)), dim=1)
    for what, alike in (
        ("name of the nearest training picture", images @ trained.T),
        ("the same by 16 x 16 pixels", small_pixels(other["image"]) @ small_pixels(train["image"]).T),
    ):
        rows.append((what, recalls(places_of(alike, train["name"], wanted))))
        nearest = alike.argmax(1).tolist()
        meant = sentences[[names.index(train["name"][one]) for one in nearest]]
        rows.append(
            (
                f"{what}, as a sentence encoder reads it",
                recalls(places_of(meant @ sentences.T, names, wanted)),
            )
        )
        right = [
            train["group"][one] == group for one, group in zip(nearest, other["group"], strict=True) if group
        ]
        if right:
            rows.append((f"{what}: its group", f"{100 * float(np.mean(right)):.1f}"))
    return rows


def measure_words(model: pixlex.ImageTokenizer, seen: Path, unseen: Path) -> Rows:
    """Return what is left of photographs that were held out as a whole."""
    pixels = torch.cat(list(batches_of(read(unseen)["image"], 64, model.image_size, "center")))
    codes = model.tokenize(pixels)
    rebuilt, bits = model.decode(codes), model.num_words * np.log2(model.vocab_size)
    painted = F.avg_pool2d(pixels, model.image_size // model.grid)
    painted = F.interpolate(painted, size=model.image_size, mode="nearest")
    small, size = smallest_jpegs(pixels, bits)
    shown = {
        "the picture, rebuilt from its words": rebuilt,
        f"JPEG of {size:,.0f} bits (the words: {bits:,.0f})": small,
        "each patch in its mean color": painted,
        "the whole in its mean color": pixels.mean((2, 3), keepdim=True).expand_as(pixels),
    }
    return [
        (what, f"{float(mse(pixels, one).mean()):.4f}, {float(ssim(pixels, one).mean()):.3f}")
        for what, one in shown.items()
    ] + [("distinct words on these pictures", f"{len(torch.unique(codes)):,}")]


def smallest_jpegs(pixels: Tensor, bits: float) -> tuple[Tensor, float]:
    """Return pictures as the best JPEG of so many bits, smaller ones scaled up, and the bits taken.

    Where no JPEG is so small (its tables alone take more), the smallest.
    """
    found, sizes = [], []
    for image in pixels:
        picture = Image.fromarray((image * 255).byte().movedim(0, -1).numpy())
        tried = []
        for side in (128, 64, 32, 16, 8):
            for quality in (1, 5, 10, 20, 40, 60):
                buffer = io.BytesIO()
                picture.resize((side, side)).save(buffer, "JPEG", quality=quality, optimize=True)
                again = Image.open(buffer).convert("RGB").resize(picture.size, Image.Resampling.BICUBIC)
                tensor = torch.from_numpy(np.array(again)).movedim(-1, 0) / 255
                size = 8 * len(buffer.getvalue())
                tried.append((max(size - bits, 0.0), float((tensor - image).square().mean()), size, tensor))
        best = min(tried, key=lambda one: one[:2])
        found.append(best[3])
        sizes.append(best[2])
    return torch.stack(found), float(np.mean(sizes))


def sources_of(table: Path) -> Rows:
    """Return who made a table's pictures, and under which license, with how many there are."""
    columns = pq.read_table(table).drop_columns(["image"]).to_pydict()
    if "package" in columns:  # photographs
        made = zip(columns["name"], columns["package"], columns["license"], strict=True)
        named = [f"{name} ({package}), {license}" for name, package, license in made]
    else:
        licenses = {**drawings.EMOJI, **drawings.ICONS}
        named = [f"{one} by {AUTHORS[one]}, {licenses[one][2]}" for one in columns["designer"]]
    return [(name, f"{count:,}") for name, count in sorted(Counter(named).items())]


def card(name: str, measures: Rows, sources: Rows, tables: Sequence[Path], unseen: Path, bits: int) -> str:
    """Return the model card."""
    given = [name, *(table.name for table in tables), "--unseen", unseen.name]
    stages = [
        f"`pixlex train {RECIPES[name]} {changes}` (the first table {times} times)"
        for times, changes in STAGES[name]
    ]
    unit = "in percent, first / of five / of ten" if name == "small-pairs" else "mean squared error, SSIM"
    parts = [
        f"---\nlibrary_name: pixlex\nlicense: mit\n---\n\n# {name}\n\n{ABOUT[name]}",
        f'```python\nimport pixlex\n\nmodel = pixlex.load("{name}")\n{EXAMPLE[name]}\n```',
        f"## Measures\n\nWeights in {bits} bits; pictures by whom nothing was trained.\n\n| | {unit} |\n|---|---|",
        "## Training",
        f"{'; then, from its weights, '.join(stages)}. By",
        f"```sh\npython scripts/release/models.py {shlex.join(given)}\n```",
        "## Data\n\n| from | pictures |\n|---|---|",
        f"## Limits\n\n{LIMITS}\n",
    ]
    parts[2] += "".join(f"\n| {what} | {value} |" for what, value in measures)
    parts[6] += "".join(f"\n| {what} | {value} |" for what, value in sources)
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=tuple(RECIPES))
    parser.add_argument("tables", type=Path, nargs=2, help="to train on")
    parser.add_argument("--unseen", type=Path, required=True, help="table to measure on")
    parser.add_argument("--out", type=Path, help="run folder; default runs/NAME")
    parser.add_argument("--released", type=Path, default=RELEASED, help="default %(default)s")
    parser.add_argument("--bits", type=int, choices=(8, 16, 32), default=8, help="default %(default)s")
    parser.add_argument("--changes", nargs="*", default=[], metavar="FIELD=VALUE", help="for a short trial")
    options = parser.parse_args()
    begun = out = options.out or Path("runs") / options.name
    first, second = options.tables
    before: dict[str, str] = {}
    for number, (times, changes) in enumerate(STAGES[options.name], start=1):
        out = begun if number == 1 else begun.with_name(f"{begun.name}-{number}")
        if not (out / "model").is_dir():
            data: Any = f"{times} * {first} + {second}"
            if options.name == "small-words":  # no captions to be weighed by
                data = [image for path in (*[first] * times, second) for image in read(path)["image"]]
            changed = (one.split("=", 1) for one in [*shlex.split(changes), *options.changes])
            settings = before | {key: yaml.safe_load(value) for key, value in changed}
            resume = (out / "checkpoints").is_dir()
            pixlex.train(RECIPES[options.name], data, str(options.unseen), out=out, resume=resume, **settings)
        before = {"start": str(out)}
    folder = options.released / options.name
    pixlex.load(out).save_pretrained(folder, bits=options.bits)
    measure = measure_pairs if options.name == "small-pairs" else measure_words
    measures = measure(pixlex.load(folder), first, options.unseen)
    sources = [row for table in options.tables for row in sources_of(table)]
    text = card(options.name, measures, sources, options.tables, options.unseen, options.bits)
    (folder / CARD).write_text(text, encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print("\n".join(f"{what}: {value}" for what, value in measures), f"\n{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
