"""Draw the pictures of README and site with the released models and commands of pixlex.

    pip install resvg-py            # and npm on the PATH
    python scripts/release/pictures.py docs/images --drawings emoji.parquet --run runs/small-words

Two photographs of scikit-image as words; icons of a set that nothing was trained on (flat-color-icons, MIT), found
by text; codewords of `small-pairs` on drawings; the curves of a run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from drawings import draw, opened
from PIL import Image

from pixlex.cli import main as pixlex
from pixlex.data.images import photograph

ICONS = (
    "flat-color-icons", "1.2.3", "d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786", "MIT",
)  # fmt: skip
PHOTOGRAPHS = "coffee", "rocket"
ASKED = "something to write with", "money", "a way to travel"
COLORS = 256


def run(*arguments: str | Path) -> None:
    """Run a command of pixlex; one that fails ends all."""
    if code := pixlex([*map(str, arguments), "--quiet"]):
        raise SystemExit(code)


def icons(folder: Path, packages: Path) -> Path:
    """Write the icons of the set that was not trained on, each by its name; return their folder."""
    folder.mkdir()
    for name, drawing in opened(*ICONS, packages).items():
        if (drawn := draw(drawing)) is not None:
            (folder / f"{name}.webp").write_bytes(drawn)
    return folder


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
        run(
            "index",
            icons(work / "icons", options.packages),
            "--model",
            "small-pairs",
            "--out",
            work / "index",
        )
        run("search", *ASKED, "--index", work / "index", "--top-k", "5", "--sheet", work / "found.png")
        of_drawings = "--model", "small-pairs", "--data", options.drawings, "--limit", "3000"
        run("gallery", *of_drawings, "--codewords", "6", "--out", work / "codewords.png")
        for path in (*sorted(work.glob("*.png")), options.run / "curves.png"):
            if path not in photographs:
                few = Image.open(path).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
                few.save(options.out / path.name, optimize=True)


if __name__ == "__main__":
    main()
