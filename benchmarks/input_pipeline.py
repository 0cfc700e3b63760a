"""Images from the disk to batches: ours, from folders, shards and tables, next to a plain Pillow loop.

Photographs of 500 x 375 pixels as JPEG, crops of those that come with scikit-image, written to a temporary folder
as files, as tar shards and as Parquet with row groups that do not fit the cache together. Each contestant yields
training batches (a random area, flipped by chance) at the given size, in turn, several rounds; medians. "By
blocks": with data.shuffle_blocks, which reads forward.

    python benchmarks/input_pipeline.py [--images 2000] [--size 224] [--batches 8] [--rounds 3] [--workers 0]
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pixlex.config.fields import DataConfig
from pixlex.data import tables
from pixlex.data.images import PHOTOGRAPHS, open_source, photograph
from pixlex.data.loader import Images, Loader, LoaderConfig

BATCH = 64
SHARDS = 10
# Of the cache of row groups: so small that three of ten fit.
CACHED = 3 / SHARDS


def encoded(count: int) -> list[bytes]:
    """Return JPEG files."""
    generator = np.random.default_rng(0)
    names = list(PHOTOGRAPHS)
    files = []
    for number in range(count):
        whole = Image.fromarray(photograph(names[number % len(names)]))
        side = int(min(whole.size) * generator.uniform(0.5, 0.95))
        left, top = (int(generator.uniform(0, edge - side)) for edge in whole.size)
        picture = whole.crop((left, top, left + side, top + side)).resize((500, 375))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def write(folder: Path, files: list[bytes]) -> int:
    """Write files, shards and a table; return the bytes of all images."""
    (folder / "files").mkdir()
    per_shard = -(-len(files) // SHARDS)
    for number, data in enumerate(files):
        (folder / "files" / f"{number:06d}.jpg").write_bytes(data)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard-{shard:02d}.tar", "w") as tar:
            for number, data in enumerate(files[shard * per_shard : (shard + 1) * per_shard]):
                entry = tarfile.TarInfo(f"{shard:02d}-{number:06d}.jpg")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    pq.write_table(pa.table({"image": files}), folder / "table.parquet", row_group_size=per_shard)
    return sum(map(len, files))


class PlainImages(Dataset[Tensor]):
    """What one writes first: open, convert, crop, resize, flip."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size = sorted(folder.glob("*.jpg")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        width, height = image.size
        area = width * height * float(torch.empty(1).uniform_(0.2, 1))
        shape = float(torch.empty(1).uniform_(3 / 4, 4 / 3))
        wide, high = min(width, round((area * shape) ** 0.5)), min(height, round((area / shape) ** 0.5))
        left, top = (int(torch.randint(0, edge + 1, ())) for edge in (width - wide, height - high))
        box = (left, top, left + wide, top + high)
        image = image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def plain(folder: Path, size: int, workers: int) -> Iterator[Tensor]:
    while True:
        yield from DataLoader(
            PlainImages(folder / "files", size), BATCH, shuffle=True, num_workers=workers, drop_last=True
        )


def ours(description: str, size: int, workers: int, blocks: int = 0) -> Iterator[Tensor]:
    data = DataConfig(shuffle_blocks=blocks)
    config = LoaderConfig(image_size=size, batch_size=BATCH, workers=workers, data=data)
    return (batch.images for batch in Loader(Images(open_source(description)), config).training())


def rate(stream: Iterator[Tensor], batches: int) -> float:
    next(stream)  # opening does not count
    began = time.perf_counter()
    for _ in islice(stream, batches):
        pass
    return BATCH * batches / (time.perf_counter() - began)


def main() -> None:
    """Let all take turns and print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = write(folder, encoded(given.images))
        tables.CACHE_BYTES = int(stored * CACHED)
        shards, table = str(folder / "shard-*.tar"), str(folder / "table.parquet")
        size, workers = given.size, given.workers
        contestants: dict[str, Callable[[], Iterator[Tensor]]] = {
            "plain Pillow loop, files": lambda: plain(folder, size, workers),
            "ours, files": lambda: ours(str(folder / "files"), size, workers),
            "ours, tar shards": lambda: ours(shards, size, workers),
            "ours, tar shards by blocks": lambda: ours(shards, size, workers, 2),
            "ours, Parquet": lambda: ours(table, size, workers),
            "ours, Parquet by blocks": lambda: ours(table, size, workers, 2),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(given.rounds):
            for name, begin in contestants.items():
                rates[name].append(rate(begin(), given.batches))
    print(
        f"{given.images} images, {stored / 2**20:.0f} MiB, to {size} px, {workers} workers, batches of {BATCH}"
    )
    print("| | images per second | over the plain loop |\n|---|---|---|")
    base = statistics.median(rates["plain Pillow loop, files"])
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):.0f} | {statistics.median(found) / base:.2f} |")


if __name__ == "__main__":
    main()
