"""Codes and words as columns of a data set of Hugging Face's `datasets`; the second run finds the first one's.

    python encode_datasets.py
    python encode_datasets.py --model runs/mine --data PICTURES

`map` looks for its result by a hash of the data, the function and its arguments. A tokenizer is hashed as its
directory and its fingerprint: the same model is found again in any process, another one is computed anew.
Needs the extra `datasets`.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

import pixlex
from pixlex.data.images import open_source


def rows_of(description: str) -> Iterator[dict[str, Any]]:
    """Yield images as `datasets` stores them; `datasets.load_dataset(...)` with a column of images does, too."""
    source = open_source(description)
    for number in range(len(source)):
        record = source.read(number)
        stored = {"bytes": record.data, "path": None} if isinstance(record.data, bytes) else record.data
        yield {"key": record.key, "image": stored}


def add_codes(batch: dict[str, list[Any]], tokenizer: pixlex.ImageTokenizer) -> dict[str, list[Any]]:
    """Return the new columns of a batch."""
    codes = tokenizer.tokenize(batch["image"])
    return {"codes": codes.tolist(), "words": tokenizer.to_words(codes)}


def main() -> None:
    """Read the command line, encode, and say whether that had been done before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="small-words", help="folder or name, default %(default)s")
    parser.add_argument("--data", default="embedded:photographs:test", help="images, default %(default)s")
    args = parser.parse_args()

    tokenizer = pixlex.load(args.model)
    columns = datasets.Features({"key": datasets.Value("string"), "image": datasets.Image()})
    images = datasets.Dataset.from_generator(rows_of, features=columns, gen_kwargs={"description": args.data})

    start = time.time()
    encoded = images.map(add_codes, batched=True, batch_size=64, fn_kwargs={"tokenizer": tokenizer})
    stored = Path(encoded.cache_files[0]["filename"])
    how = "found again" if stored.stat().st_mtime < start else "computed"
    print(f"{len(encoded)} images {how} in {time.time() - start:.1f} s: {stored}")
    print(f"{encoded[0]['key']}: {encoded[0]['words']}")


if __name__ == "__main__":
    main()
