"""Cut the tables of photographs that `small-words` is trained and measured on, from packages of Debian.

    python scripts/release/photographs.py photographs.parquet held-out.parquet     # where apt-get and dpkg-deb are

Desktop backgrounds under free licenses, photographs and paintings; packages are fetched with apt-get,
never installed, and checked by hash. Square crops of a fifth of the shorter side up to all of it, scaled
to 144 px; no crop of a picture that is held out is among the others. Rows: image (JPEG), name, package,
license.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from drawings import save
from PIL import Image

SIDE = 144
CROPS, HELD_OUT_CROPS = 260, 40
FLAT = 3.0  # standard deviation of 255, below which a crop shows nothing


class Package(NamedTuple):
    """Version, SHA-256, and patterns of names -> license; the first that fits counts, "" leaves out."""

    version: str
    sha256: str
    licenses: Mapping[str, str]


# As their copyright files and, for Plasma's, the metadata of each picture say.
_PLASMA_LGPL = (
    "Autumn", "BytheWater", "Canopee", "Cascade", "Cluster", "ColdRipple", "ColorfulCups", "DarkestHour", "Elarun",
    "EveningGlow", "FallenLeaf", "FlyingKonqui", "Grey", "Kite", "Kokkini", "OneStandsOut", "Opal", "PastelHills",
    "Path", "summer_1am",
)  # fmt: skip
_PLASMA_SHARE = ("Altai", "Flow", "Honeywave", "IceCold", "Kay", "MilkyWay", "Patak", "Shell", "Volna")
PACKAGES: Mapping[str, Package] = {
    "plasma-workspace-wallpapers": Package(
        "4:5.27.5-2", "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
        {"*/screenshot.*": "", "*/images_dark/*": "", "*/*x1920.*": "", "*/720x1440.*": "", "*/1622x2880.*": ""}
        | {f"*/{name}/*": "LGPL-3" for name in _PLASMA_LGPL}
        | {f"*/{name}/*": "CC-BY-SA-4.0" for name in _PLASMA_SHARE},
    ),
    "mate-backgrounds": Package(
        "1.26.0-1", "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        # Other files are transparent, or one of these in another size.
        {"*/nature/*": "GPL-2+", "*/abstract/Elephants.jpg": "GPL-2+"},
    ),
    "lomiri-wallpapers-16.04": Package(
        "20.04.0-2", "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        {"*/seeding_*": "CC0-1.0"}
        | {f"*_by_{name}.*": "CC-BY-SA-4.0" for name in ("Peter_Nerlich", "Sander_Klootwijk", "Bolly")}
        | {"*_by_*": "CC-BY-4.0"},
    ),
    "lomiri-wallpapers-20.04": Package(
        "20.04.0-2", "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
        {"*_by_*": "CC-BY-SA-3.0"},
    ),
    "ukui-wallpapers": Package(
        "20.04.3-1.1", "6d49be70152e6d603163458e177e501deb0be8f2916389ccbfcf59b0d7fc0262", {"*": "CC-BY-SA-3.0"},
    ),
}  # fmt: skip
# Whole pictures that no crop of is trained on.
HELD_OUT = (
    "BytheWater", "Kite", "EveningGlow", "Garden", "LadyBird", "picosdeeuropa_by_Aitzol_Berasategi",
    "Dragonfly_by_Bolly", "Wine_by_Jakkub_Mede", "city",
)  # fmt: skip


def unpacked(name: str, package: Package, folder: Path) -> Path:
    """Return the folder that a package is unpacked to; raises `ValueError` where its hash is another one."""
    files = sorted(folder.glob(f"{name}_*.deb"))
    if not files:
        print(f"{name}: fetching", file=sys.stderr)
        subprocess.run(
            ["apt-get", "download", "--quiet", f"{name}={package.version}"], check=True, cwd=folder
        )
        files = sorted(folder.glob(f"{name}_*.deb"))
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(f"{files[0]}: expected SHA-256 {package.sha256}, got {found}")
    target = folder / "unpacked" / name
    if not target.is_dir():
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["dpkg-deb", "--extract", str(files[0]), str(target)], check=True)
    return target


def pictures(folder: Path) -> Iterator[tuple[str, str, str, Path]]:
    """Yield name, package, license and file of each picture, in the order of their names."""
    for name, package in PACKAGES.items():
        for path in sorted(unpacked(name, package, folder).rglob("*")):
            if path.suffix.lower() not in (".jpg", ".png") or path.is_symlink():
                continue
            fitting = (
                license for pattern, license in package.licenses.items() if fnmatch(str(path), pattern)
            )
            if license := next(fitting, ""):
                title = path.parents[2].name if path.parent.name == "images" else path.stem
                yield title, name, license, path


def crops(picture: Image.Image, count: int, seed: int) -> Iterator[bytes]:
    """Yield square crops, their sides spread evenly in logarithm, their places evenly."""
    random, shorter = np.random.default_rng(seed), min(picture.size)
    for _ in range(count):
        side = max(SIDE, int(shorter * 5 ** (random.random() - 1)))
        left, top = (int(random.integers(length - side + 1)) for length in picture.size)
        crop = picture.resize(
            (SIDE, SIDE), Image.Resampling.LANCZOS, (left, top, left + side, top + side), reducing_gap=2.0
        )
        if np.asarray(crop).std((0, 1)).max() < FLAT:  # sky without a cloud
            continue
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=92)
        yield buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photographs", type=Path, help="table to write, for training")
    parser.add_argument("held_out", type=Path, help="table to write, for measuring")
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="where packages are kept")
    options = parser.parse_args()
    options.packages.mkdir(parents=True, exist_ok=True)
    tables: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for number, (name, package, license, path) in enumerate(pictures(options.packages)):
        picture, held_out = Image.open(path).convert("RGB"), name in HELD_OUT
        for data in crops(picture, HELD_OUT_CROPS if held_out else CROPS, number):
            image = {"bytes": data, "path": None}
            row = {"image": image, "name": name, "package": package, "license": license}
            tables[held_out].append(row)
        print(f"{name} ({package}, {license}): {picture.size[0]} x {picture.size[1]}", file=sys.stderr)
    for held_out, out in ((False, options.photographs), (True, options.held_out)):
        rows = tables[held_out]
        # One shuffle, so that neighbors in the table are of different pictures.
        order = np.random.default_rng(0).permutation(len(rows))
        columns = {key: [rows[index][key] for index in order] for key in rows[0]}
        save(columns, out)
        print(f"{out}: {len(rows)} crops of {len({*columns['name']})} pictures")


if __name__ == "__main__":
    main()
