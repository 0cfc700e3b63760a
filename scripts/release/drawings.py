"""Draw the tables that `small-pairs` is trained on: emoji and icons with names, from packages under free licenses.

    pip install resvg-py            # and npm on the PATH
    python scripts/release/drawings.py emoji.parquet icons.parquet

Emoji of five designers with names and keywords (Unicode CLDR by emojibase-data), without skin tones; icons of
seven sets, whose names are their captions. Packages are fetched with npm, never installed or run, and checked by
hash and license. Rows: image (96 px, lossless WebP, white ground), captions, name, designer, group, subgroup.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 96
KEYWORDS = ("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
# Set: version, SHA-256 of the package, license, endings of the names that are taken, the plain one first.
EMOJI: Mapping[str, tuple[str, str, str]] = {
    "noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0"),
    "twemoji": ("1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "CC-BY-4.0"),
    "fluent-emoji": ("1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b", "MIT"),
    "fluent-emoji-flat": ("1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", "MIT"),
    "emojione": ("1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e", "CC-BY-4.0"),
}
ICONS: Mapping[str, tuple[str, str, str, tuple[str, ...]]] = {
    "tabler": (
        "1.2.41", "3bf99af156d28d05568aff524a35ed1ba238df640a7835a5e02e1f8e439685f6", "MIT", ("", "-filled"),
    ),
    "lucide": ("1.2.137", "e74db8c3a55fff55bc82de21268c4bced9f65ff10aacc0d5f3a395b0e93243c3", "ISC", ("",)),
    "mdi": (
        "1.2.3", "ddd817a7213f91de51147943915c0cda8c8b818a53c92b5c068cfa9883c6d7ac", "Apache-2.0",
        ("", "-outline"),
    ),
    "ph": (
        "1.2.2", "e3a582a047d9829fc7e8842c660d8065e598d1b68bb58cb68e75a1f1e5a614cc", "MIT", ("", "-fill"),
    ),
    "material-symbols": (
        "1.2.98", "142d50bf28e7db85362795be335ebc29dac611d73c404fc1e6fc5cc198e2b3d0", "Apache-2.0",
        ("", "-outline"),
    ),
    "carbon": (
        "1.2.29", "8e3059dc90933875439c29ff36ae4370767bc02d8beca6923b1f2bb856cf327a", "Apache-2.0", ("",),
    ),
    "fluent": (
        "1.2.60", "9a7cad7adb15288c1fd5e2e1835f1b17f2a8764bb1f31971bffa7c9df1349d6d", "MIT",
        ("-24-regular", "-24-filled"),
    ),
}  # fmt: skip
_STYLES = re.compile(
    r"-(outline|filled|fill|bold|light|thin|duotone|rounded|sharp|regular|alt|variant|\d+)\b"
)
_SKIN = re.compile(r"(skin-tone|-(medium-)?(light|dark)$|-medium$|-tone\d)")
# What an icon is changed by says nothing of what it shows; signs of companies are theirs.
_SIGNS = {"brand", "logo"}
_CHANGES = {"off", "slash", "plus", "minus", "remove", "cancel", "check", "x", "edit", "lock", "disabled"}


def fetched(package: str, version: str, sha256: str, folder: Path) -> tarfile.TarFile:
    """Return a package as an archive; raises `ValueError` where its hash is another one."""
    path = folder / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
    if not path.is_file():
        print(f"{package}: fetching", file=sys.stderr)
        command = ["npm", "pack", f"{package}@{version}", "--silent", "--pack-destination", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{path}: expected SHA-256 {sha256}, got {found}")
    return tarfile.open(path)


def content(archive: tarfile.TarFile, name: str) -> Any:
    """Return a JSON file of a package."""
    file = archive.extractfile(f"package/{name}")
    assert file is not None
    return json.load(file)


def opened(name: str, version: str, sha256: str, license: str, folder: Path) -> dict[str, Any]:
    """Return the drawings of a set, by id; raises `ValueError` where its license is another one."""
    with fetched(f"@iconify-json/{name}", version, sha256, folder) as archive:
        said = content(archive, "info.json")["license"].get("spdx")
        if said != license:
            raise ValueError(f"{name}: expected the license {license}, got {said}")
        drawings = content(archive, "icons.json")
    size = {"left": 0, "top": 0, "width": drawings.get("width", 16), "height": drawings.get("height", 16)}
    return {id: size | one for id, one in drawings["icons"].items() if not one.get("hidden")}


def draw(drawing: Mapping[str, Any]) -> bytes | None:
    """Return a drawing on white as lossless WebP; None where nothing is to be seen."""
    import resvg_py

    left, top, width, height = (drawing[one] for one in ("left", "top", "width", "height"))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIDE}" '
        f'height="{SIDE}" color="#202020" viewBox="{left} {top} {width} {height}">{drawing["body"]}</svg>'
    )
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    ground = Image.new("RGBA", drawn.size, "white")
    picture = Image.alpha_composite(ground, drawn).convert("RGB").resize((SIDE, SIDE))
    if picture.getextrema() == ((255, 255),) * 3:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=100, method=4)
    return buffer.getvalue()


def emoji(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the emoji of all designers, without skin tones, named as Unicode does."""
    with fetched(*KEYWORDS, folder) as archive:
        entries, groups = content(archive, "en/data.json"), content(archive, "meta/groups.json")
    known = {re.sub(r"[^a-z0-9]+", "-", one["label"].lower()).strip("-"): one for one in entries}
    for designer, (version, sha256, license) in EMOJI.items():
        for id, drawing in opened(designer, version, sha256, license, folder).items():
            entry = known.get(id, {})
            if not entry and _SKIN.search(id):
                continue
            name, tags = entry.get("label", id.replace("-", " ")), entry.get("tags", [])
            group, subgroup = (
                groups[kind].get(str(entry.get(kind[:-1], "")), "") for kind in ("groups", "subgroups")
            )
            captions = [name, ", ".join(tags)] if tags else [name]
            yield {"captions": captions, "name": name, "designer": designer, "group": group,
                   "subgroup": subgroup, "drawing": drawing}  # fmt: skip


def icons(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the icons of all sets whose names are one to three words of things, in one or two styles."""
    for designer, (version, sha256, license, endings) in ICONS.items():
        for id, drawing in opened(designer, version, sha256, license, folder).items():
            ending = max((one for one in endings if id.endswith(one)), key=len, default=None)
            base = None if ending is None else id[: len(id) - len(ending)]
            if base is None or _STYLES.search(base) or base.endswith("-"):
                continue
            words = base.split("-")
            if (
                len(words) > 3
                or _CHANGES & set(words[1:])
                or _SIGNS & set(words)
                or not re.fullmatch(r"[a-z ]+", " ".join(words))
            ):
                continue
            name = " ".join(words)
            yield {"captions": [name], "name": name, "designer": designer, "group": "", "subgroup": "",
                   "drawing": drawing}  # fmt: skip


def save(columns: Mapping[str, list[Any]], out: Path) -> None:
    """Write a table; `image` holds bytes and path, as `datasets` stores images."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = {key: pa.array(some, kind if key == "image" else None) for key, some in columns.items()}
    pq.write_table(pa.table(arrays), out, row_group_size=500)


def write(rows: Iterator[dict[str, Any]], out: Path) -> None:
    """Draw rows into a table, and say how many of each designer came."""
    columns: dict[str, list[Any]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        image = draw(row.pop("drawing"))
        if image is None:
            continue
        counts[row["designer"]] = counts.get(row["designer"], 0) + 1
        for key, value in {"image": {"bytes": image, "path": None}, **row}.items():
            columns.setdefault(key, []).append(value)
        if sum(counts.values()) % 1000 == 0:
            print(f"{out}: {sum(counts.values())} drawn", file=sys.stderr)
    save(columns, out)
    print(f"{out}: {sum(counts.values())} drawings, {len(set(columns['name']))} names: {counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("emoji", type=Path, help="table of emoji to write")
    parser.add_argument("icons", type=Path, help="table of icons to write")
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="where packages are kept")
    options = parser.parse_args()
    options.packages.mkdir(parents=True, exist_ok=True)
    write(emoji(options.packages), options.emoji)
    write(icons(options.packages), options.icons)


if __name__ == "__main__":
    main()
