"""Annotation files that the community shares: json of ALBEF, Karpathy, COCO and Visual Genome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pixlex.data.captioned import AnnotatedSplits
from pixlex.data.folders import image_path
from pixlex.data.text import id_text, json_value, texts_in, whole_number
from pixlex.files import read_regular
from pixlex.messages import quoted

GENOME_FOLDERS = ("VG_100K", "VG_100K_2")
_EXPECTED = (
    "expected ALBEF's list of {image, caption}, Karpathy's {images: [{filename, split, sentences}]}, COCO's "
    "{images: [{id, file_name}], annotations: [{image_id, caption}]} or Visual Genome's list of {id, regions: "
    "[{phrase}]}"
)


@dataclass(frozen=True)
class Entry:
    """One image of an annotation file: its path as the file gives it, its texts, its split."""

    path: str
    captions: tuple[str, ...]
    split: str = ""


@dataclass(frozen=True)
class Annotations:
    """What an annotation file holds.

    Attributes:
        entries: the images, each once, in the order of the file.
        splits: the splits, of Karpathy's files alone.
    """

    entries: tuple[Entry, ...]
    splits: AnnotatedSplits | None = None


def read_annotations(path: Path, images: Path, index: Path | None = None) -> Annotations:
    """Read an annotation file of any of the four kinds, told by its content.

    Args:
        path: the json file.
        images: folder of the images; looked at for Visual Genome alone, whose images lie in VG_100K and
            VG_100K_2 and are named by their id.
        index: Visual Genome's image_data.json, where ids alone do not say the folder.

    Raises:
        ValueError: if the file is no JSON, of another kind, or an entry is malformed.
    """
    content = load_json(path, _without_bulk)
    reader = _reader(content, path)
    if reader is _genome:
        reader = partial(_genome, paths=genome_paths(images, index))
    elif index is not None:
        raise ValueError(f"{path}: the option index belongs to Visual Genome's region descriptions")
    try:
        return reader(content, images)
    except ValueError as fault:
        raise ValueError(f"{path}: {fault}; {_EXPECTED}") from fault


def load_json(path: Path, kept: Callable[[dict[str, Any]], Any]) -> Any:
    """Return what is in a .json file, objects as `kept` returns them; raises `ValueError` if it cannot be read."""
    try:
        data = read_regular(path)
    except OSError as fault:
        raise ValueError(f"{path} cannot be read: {fault.strerror or fault}") from fault
    return json_value(data, path, kept)


def _without_bulk(entry: dict[str, Any]) -> Any:
    """Keep of a region or a sentence what is used: Visual Genome has 5.4 million regions."""
    if "phrase" in entry and "regions" not in entry:
        return {"phrase": entry["phrase"]}
    if "raw" in entry and "tokens" in entry:
        return {"raw": entry["raw"]}
    return entry


def _reader(content: Any, path: Path) -> Callable[..., Annotations]:
    """Return what reads this content."""
    if isinstance(content, dict):
        images, annotations = content.get("images"), content.get("annotations")
        if has_some(images, {"sentences"}):
            return _karpathy
        if isinstance(images, list) and has_some(annotations, {"image_id", "caption"}):
            return _coco
        if isinstance(content.get("image_urls"), list):
            raise ValueError(
                f"{path} lists web addresses; download the pictures first, for example with img2dataset"
            )
    elif has_some(content, {"regions"}):
        return _genome
    elif has_some(content, {"image", "caption"}) or has_some(content, {"image", "captions"}):
        return _albef
    raise ValueError(f"{path}: {_EXPECTED}; found {found_in(content)}")


def has_some(entries: Any, keys: set[str]) -> bool:
    """Whether this is a list in which an object has all these keys."""
    return isinstance(entries, list) and any(isinstance(one, dict) and keys <= one.keys() for one in entries)


def found_in(content: Any) -> str:
    """Say what is in a file that is of no known kind."""
    if isinstance(content, dict):
        parts = [
            f"{key}: {found_in(value)}" if isinstance(value, list) else key for key, value in content.items()
        ]
        return f"an object of {', '.join(parts[:8]) or 'nothing':.200}"
    if isinstance(content, list) and content:
        first = content[0]
        inside = (
            f"objects of {', '.join(map(str, first)):.200}" if isinstance(first, dict) else quoted(first, 40)
        )
        return f"a list of {len(content)} {inside}"
    return quoted(content, 40)


def _each(rows: Iterable[Any], read: Callable[[Any, str], None], kind: str = "entry") -> None:
    """Read the entries of a list; raise `ValueError` naming the number of one that is malformed."""
    for number, row in enumerate(rows):
        where = f"{kind} {number}"
        try:
            read(row, where)
        except KeyError as fault:
            raise ValueError(f"{where} has no field {quoted(fault.args[0])}") from fault
        except (TypeError, AttributeError) as fault:
            raise ValueError(f"{where} is malformed: {quoted(row)}") from fault


def _albef(content: Any, images: Path) -> Annotations:
    """Read {image, caption: text or texts}; rows of one image are put together."""
    texts: dict[str, list[str]] = {}

    def read(row: Any, where: str) -> None:
        path = image_path(row["image"], where, images)
        value = row["captions"] if "captions" in row else row["caption"]
        texts.setdefault(path, []).extend(texts_in(value, f"{where} ({path:.80})"))

    _each(content, read)
    return Annotations(tuple(Entry(path, tuple(found)) for path, found in texts.items()))


def _karpathy(content: Any, images: Path) -> Annotations:
    """Read {images: [{filepath?, filename, split, sentences: [{raw}]}], dataset}."""
    entries: list[Entry] = []

    def read(row: Any, where: str) -> None:
        path = image_path(str(PurePosixPath(row.get("filepath") or "", row["filename"])), where, images)
        captions = tuple(
            text for sentence in row.get("sentences", ()) for text in texts_in(sentence["raw"], where)
        )
        entries.append(Entry(path, captions, str(row["split"])))

    _each(content["images"], read, "image")
    sizes = Counter(entry.split for entry in entries)
    return Annotations(tuple(entries), AnnotatedSplits(str(content.get("dataset", "")), dict(sizes)))


def _coco(content: Any, images: Path) -> Annotations:
    """Read {images: [{id, file_name}], annotations: [{image_id, caption}]}."""
    paths: dict[str, str] = {}
    texts: dict[str, list[str]] = {}

    def read_image(row: Any, where: str) -> None:
        name = id_text(row["id"])
        if name in paths:
            raise ValueError(f"{where}: expected ids that occur once, got {quoted(row['id'])} again")
        paths[name] = image_path(row["file_name"], where, images)
        texts[name] = []

    def read_caption(row: Any, where: str) -> None:
        name = id_text(row["image_id"])
        if name not in texts:
            raise ValueError(
                f"{where} belongs to image {quoted(row['image_id'])}, which is not among the images"
            )
        texts[name] += texts_in(row["caption"], f"{where} (image {name:.80})")

    _each(content["images"], read_image, "image")
    _each(content["annotations"], read_caption, "annotation")
    return Annotations(tuple(Entry(path, tuple(texts[name])) for name, path in paths.items()))


def _genome(content: Any, images: Path, paths: Mapping[int, str]) -> Annotations:
    """Read [{id or image_id, regions: [{phrase}]}]; the phrase of a region is a text of the whole image."""
    entries: list[Entry] = []

    def read(row: Any, where: str) -> None:
        number = whole_number(row["id"] if "id" in row else row["image_id"])
        if number is None:
            raise ValueError(f"{where}: expected a whole number as id, got {quoted(row)}")
        captions = tuple(text for region in row["regions"] for text in texts_in(region["phrase"], where))
        entries.append(Entry(paths.get(number, f"{GENOME_FOLDERS[0]}/{number}.jpg"), captions))

    _each(content, read)
    return Annotations(tuple(entries))


def genome_paths(images: Path, index: Path | None) -> dict[int, str]:
    """Return the path of each image below a folder, from the addresses in the index or by looking."""
    if index is not None:
        rows = load_json(index, dict)
        if not isinstance(rows, list) or not all(has_some([row], {"image_id", "url"}) for row in rows):
            raise ValueError(f"{index} is no image_data.json: expected a list of {{image_id, url}}")
        ids = [whole_number(row["image_id"]) for row in rows]
        if None in ids:
            raise ValueError(f"{index} entry {ids.index(None)}: expected a whole number as image_id")
        tails = ("/".join(str(row["url"]).split("/")[-2:]) for row in rows)
        return {number: tail for number, tail in zip(ids, tails, strict=True) if number is not None}
    paths: dict[int, str] = {}
    for folder in (*GENOME_FOLDERS, "."):
        inside = images / folder
        names = inside.glob("*.jpg") if inside.is_dir() else ()
        for name in names:
            if name.stem.isdecimal():
                paths.setdefault(int(name.stem), str(PurePosixPath(folder, name.name)))
    return paths
