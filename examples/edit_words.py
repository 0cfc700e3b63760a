"""Words of a picture, and the picture of its words: one word is changed, and the picture changes.

    python edit_words.py
    python edit_words.py --model runs/mine --data PICTURES --image 3 --place 5 --word water

Without --model it is small-words, which comes with pixlex.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

import pixlex
from pixlex.data.images import open_source


def main() -> None:
    """Read the command line and change a word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="small-words", help="folder or name, default %(default)s")
    parser.add_argument("--data", default="embedded:photographs:test", help="images, default %(default)s")
    parser.add_argument("--image", type=int, default=1, help="number of the image, default %(default)s")
    parser.add_argument("--place", type=int, default=5, help="of the word, default %(default)s")
    parser.add_argument("--word", default="water", help="that is written there, default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("edited.png"), help="default %(default)s")
    args = parser.parse_args()

    tokenizer = pixlex.load(args.model)
    # Paths, bytes, PIL images, arrays and tensors will do, one or many; this is what the data hold.
    picture = open_source(args.data).read(args.image).data
    (text,) = tokenizer.to_words(picture)
    words = text.split()
    across = tokenizer.grid or len(words)  # words of places lie in a grid, rows first
    for first in range(0, len(words), across):
        print(" ".join(words[first : first + across]))

    edited = [*words]
    if not 0 <= args.place < len(words):
        parser.error(f"--place: expected 0 to {len(words) - 1}, got {args.place}")
    edited[args.place] = args.word
    before, after = tokenizer.decode([text, " ".join(edited)])  # (2, 3, H, W) in [0, 1]
    print(f"{words[args.place]} -> {args.word}: pixels change by {(after - before).abs().mean():.4f}")

    both = torch.cat([before, after], dim=2)  # side by side
    Image.fromarray((both * 255).round().byte().permute(1, 2, 0).numpy()).save(args.out)
    print(f"before and after: {args.out}")


if __name__ == "__main__":
    main()
