"""A large set of pictures as codes and words in Parquet parts, by a pool of Ray's workers with a model each.

    python encode_ray.py --workers 2 --part-size 64
    python encode_ray.py --model runs/mine --data PICTURES --out codes --workers 8 --gpus 1 --part-size 100000

Ray hands parts to whichever worker is free, and those of a worker that died to another. A part is written as
`pixlex encode --part-size` writes it, batch by batch into a journal and then in one move: what a dead worker
left goes on behind its last batch, what is finished is not touched, and so every picture is there once. The same
command finishes what was interrupted as a whole. On a cluster all paths lie on a disk that all machines see.
Needs the extra `ray`.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import ray

import pixlex
from pixlex.data.images import open_source
from pixlex.encoding.encode import encode_parts
from pixlex.encoding.files import read_codes


class Encode:
    """A worker: its model and the listing of the images are made once, then it writes part after part."""

    def __init__(self, tokenizer: pixlex.ImageTokenizer, data: str, out: Path, part_size: int) -> None:
        self.tokenizer, self.source, self.out, self.part_size = tokenizer, open_source(data), out, part_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write one part: the slice of one of so many processes, as torchrun would number them."""
        os.environ.update(RANK=str(batch["part"][0]), WORLD_SIZE=str(batch["of"][0]))
        done = encode_parts(self.tokenizer, self.source, self.out, part_size=self.part_size, progress=False)
        return {"part": batch["part"], "written": [done.num_images]}


def main() -> None:
    """Read the command line and encode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="small-words", help="folder or name, default %(default)s")
    parser.add_argument("--data", default="embedded:photographs:test", help="images, default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("codes"), help="folder, default %(default)s")
    parser.add_argument("--part-size", type=int, default=100, help="images of a part, default %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default %(default)s")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker, default %(default)s")
    args = parser.parse_args()

    tokenizer = pixlex.load(args.model)
    parts = -(-len(open_source(args.data)) // args.part_size)
    rows = ray.data.from_items(
        [{"part": number, "of": parts} for number in range(parts)], override_num_blocks=parts
    )
    done = rows.map_batches(
        Encode,
        fn_constructor_args=(tokenizer, args.data, args.out.resolve(), args.part_size),  # its pickle is small
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_gpus=args.gpus,
    )
    for row in done.iter_rows():
        print(f"part {row['part']}: {row['written']} images written")
    count = sum(1 for _ in read_codes(args.out, tokenizer))  # checks checksums, and that no part is missing
    print(f"{count} images in {parts} parts: {args.out}")


if __name__ == "__main__":
    main()
