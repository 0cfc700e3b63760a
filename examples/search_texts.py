"""Vectors of pictures and texts: an index that is searched, and classes by their names alone.

    python search_texts.py
    python search_texts.py --model runs/pairs --data PICTURES --query "two dogs in the snow" --names cat dog

Without --model it is small-pairs, which comes with pixlex and knows drawings: here those of Matplotlib's buttons.
Needs the extra `search`.
"""

import argparse

import matplotlib

import pixlex
from pixlex.data.images import open_source
from pixlex.search import ImageIndex

BUTTONS = f"{matplotlib.get_data_path()}/images"


def main() -> None:
    """Read the command line, compare, index and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="small-pairs", help="folder or name, default %(default)s")
    parser.add_argument("--data", default=BUTTONS, help="images, default %(default)s")
    parser.add_argument("--index", default="runs/buttons", help="folder, default %(default)s")
    parser.add_argument("--query", default="a house", help="default %(default)s")
    parser.add_argument("--names", nargs="+", default=["house", "arrow"], help="default %(default)s")
    args = parser.parse_args()

    model = pixlex.load(args.model)
    source = open_source(args.data)
    pictures = [source.read(number).data for number in range(min(4, len(source)))]
    images, texts = model.encode_image(pictures), model.encode_text(args.query)  # vectors of length 1
    print(f"cosines with {args.query!r}: {(images @ texts.T)[:, 0].tolist()}")
    chances = model.zero_shot(pictures, args.names, templates=["a {}", "a picture with a {}"])
    for number, row in enumerate(chances.tolist()):
        shares = (f"{name} {chance:.0%}" for name, chance in zip(args.names, row, strict=True))
        print(f"{source.key(number)}:", *shares)

    index = ImageIndex.open(args.index, model, create=True)
    index.update(args.data)  # only what is new or changed is embedded
    # rerank=32 lets the fusion encoder look at the best again: for models that were trained long enough for it.
    (found,) = index.search(texts=args.query, top_k=3)
    print(f"{args.query!r}:", *(f"{hit.key} ({hit.similarity:.3f})" for hit in found.hits))


if __name__ == "__main__":
    main()
