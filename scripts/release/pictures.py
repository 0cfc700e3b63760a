"""Draw the pictures of README and site with the released models and commands of pixlex.

    pip install resvg-py            # and npm on the PATH
    python scripts/release/pictures.py docs/images --drawings emoji.parquet --run runs/small-words

Two photographs of scikit-image as words; drawings of a set that nothing was trained on (FxEmoji, Apache-2.0),
found by text; codewords of `small-pairs` on drawings; the curves of a run.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from drawings import draw, opened
from PIL import Image

from pixlex import load
from pixlex.cli import main as pixlex
from pixlex.data.images import photograph
from pixlex.report.figures import Thumbnail, contact_sheet

UNSEEN = (
    "fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef", "Apache-2.0",
)  # fmt: skip
PHOTOGRAPHS = "coffee", "rocket"
ASKED = "an animal", "a building", "weather"
COLORS = 256


def run(*arguments: str | Path) -> None:
    """Run a command of pixlex; one that fails ends all."""
    if code := pixlex([*map(str, arguments), "--quiet"]):
        raise SystemExit(code)


def found(folder: Path, packages: Path) -> None:
    """Draw what of the unseen drawings is nearest to each text."""
    drawings = {name: draw(drawing) for name, drawing in opened(*UNSEEN, packages).items()}
    pictures = {name: Image.open(io.BytesIO(drawn)) for name, drawn in drawings.items() if drawn is not None}
    names, similarities = list(pictures), load("small-pairs").similarity(list(pictures.values()), list(ASKED))
    shown = [
        Thumbnail(pictures[names[number]], (asked, names[number]))
        for asked, column in zip(ASKED, similarities.T, strict=True)
        for number in column.argsort(descending=True)[:5].tolist()
    ]
    contact_sheet(f"The nearest of {len(names):,} drawings", shown, folder / "found.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument(
        "--drawings", type=Path, required=True, help="table whose drawings show the codewords"
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder of the curves")
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="where packages are kept")
    options = parser.parse_args()
    options.packages.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        work, photographs = Path(made), []
        for name in PHOTOGRAPHS:
            photographs.append(work / f"{name}.png")
            Image.fromarray(photograph(name)).save(photographs[-1])
        run("reconstruct", *photographs, "--model", "small-words", "--out", work / "words.png")
        found(work, options.packages)
        of_drawings = "--model", "small-pairs", "--data", options.drawings, "--limit", "3000"
        run("gallery", *of_drawings, "--codewords", "6", "--out", work / "codewords.png")
        drawn = (work / f"{name}.png" for name in ("words", "found", "codewords"))
        for path in (*drawn, options.run / "curves.png"):
            few = Image.open(path).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
            few.save(options.out / path.name, optimize=True)


if __name__ == "__main__":
    main()
