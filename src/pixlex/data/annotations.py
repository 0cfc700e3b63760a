"""Annotation files that the community shares, a table of formats: those of captions, and what all are read by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pixlex.data.folders import image_path
from pixlex.data.records import Record
from pixlex.data.text import id_text, json_value, texts_in, whole_number
from pixlex.files import read_regular
from pixlex.messages import quoted

Row = Mapping[str, Any]
ReadRow = Callable[[int, Row], Iterable[Record]]

_GENOME_FOLDERS = ("VG_100K", "VG_100K_2")


class LeftOut(Exception):
    """A row that is no item, and why; not a fault of the file."""


class NamedImages:
    """Images as rows name them (see `pixlex.data.named_images`).

    Attributes:
        folder: the folder that paths are relative to; None where images lie in a table.
    """

    folder: Path | None = None

    def of(self, number: int, row: Row) -> tuple[str | int, ...]:
        """Return what the images of a row are called; raises `ValueError` if the row does not say."""
        raise NotImplementedError

    def called(self, image_id: str, path: str) -> str:
        """Return what an image is called that has this id, and this path."""
        raise NotImplementedError

    def located(self, name: str) -> str:
        """Return what an image is called whose file has this name."""
        raise NotImplementedError


@dataclass(frozen=True)
class Format:
    """A kind of annotation file.

    Attributes:
        name: what it holds, in messages.
        shape: its content, in messages.
        options: of a description, that it takes.
        fits: whether a content is of this kind.
        open: content, images, options -> what a row is called, the rows, what reads one.
    """

    name: str
    shape: str
    options: tuple[str, ...]
    fits: Callable[[Any], bool]
    open: Callable[[Any, NamedImages, Mapping[str, str]], tuple[str, Iterable[Any], ReadRow]]


def read_annotations(
    path: Path, formats: tuple[Format, ...], images: NamedImages, options: Mapping[str, str]
) -> tuple[Any, list[Record]]:
    """Read a .json file of any of some formats, told by its content.

    Args:
        path: the file.
        formats: `CAPTION_FORMATS` or `QUESTION_FORMATS`.
        images: where the images lie.
        options: those of its description.

    Returns:
        The content, and the records in the order of the file.

    Raises:
        ValueError: it is no JSON, of no known format, an entry is malformed, or an option says nothing to it.
    """
    content = load_json(path)
    if isinstance(content, dict) and isinstance(content.get("image_urls"), list):
        raise ValueError(
            f"{path} lists web addresses; download the pictures first, for example with img2dataset"
        )
    known = next((one for one in formats if one.fits(content)), None)
    if known is None:
        expected = " or ".join(f"{one.name} ({one.shape})" for one in formats)
        raise ValueError(f"{path}: expected {expected}; found {found_in(content)}")
    check_options(path, known.name, known.options, options)
    try:
        unit, rows, read_row = known.open(content, images, options)
    except ValueError as fault:
        raise ValueError(f"{path}: {fault}") from fault
    records, _ = read_records(path, unit, enumerate(rows), read_row)
    return content, records


def check_options(path: object, kind: str, known: Iterable[str], options: Mapping[str, str]) -> None:
    """Raise `ValueError` for an option that says nothing to this kind of source."""
    if foreign := [name for name in options if name not in known]:
        raise ValueError(f"{path}: {kind} take the options {', '.join(known)}, got {foreign[0]}")


def read_records(
    path: Path, unit: str, rows: Iterable[tuple[int, Any]], read_row: ReadRow
) -> tuple[list[Record], list[str]]:
    """Read records row by row.

    Equal answers share their memory: VQA v2 has 6.6 million of them and some 200,000 different ones.

    Args:
        path: the file, as messages name it.
        unit: what a row is called in messages, such as "line".
        rows: number and content of each.
        read_row: yields the records of a row.

    Returns:
        The records, each with an id, and what was left out, a line each.

    Raises:
        ValueError: a row is malformed, two records have one id or other numbers of images, or there are none.
    """
    records: list[Record] = []
    left_out: list[str] = []
    ids: set[str] = set()
    shared: dict[str, str] = {}
    for number, row in rows:
        where = f"{path} {unit} {number}"
        try:
            for record in read_row(number, row):
                name = record.id or f"{unit} {number}"
                if name in ids:
                    raise ValueError(f"expected ids that occur once, got {name:.80} again")
                ids.add(name)
                if records and len(record.images) != len(records[0].images):
                    raise ValueError(
                        f"expected {len(records[0].images)} images as before, got {len(record.images)}"
                    )
                answers = tuple(map(shared.setdefault, record.answers, record.answers))
                records.append(replace(record, id=name, answers=answers))
        except LeftOut as reason:
            left_out.append(f"{unit} {number}: {reason}")
        except ValueError as fault:
            raise ValueError(f"{where}: {fault}") from fault
        except KeyError as fault:
            raise ValueError(f"{where} has no field {quoted(fault.args[0])}") from fault
        except (TypeError, AttributeError) as fault:
            raise ValueError(f"{where}: expected an object, got {quoted(row)}") from fault
    if not records:
        first = f"; left out: {left_out[0]}" if left_out else ""
        raise ValueError(f"{path} lists no item{first}")
    return records, left_out


def load_json(path: Path) -> Any:
    """Return what is in a .json file, without what is not looked at; raises `ValueError` if it cannot be read."""
    try:
        data = read_regular(path)
    except OSError as fault:
        raise ValueError(f"{path} cannot be read: {fault.strerror or fault}") from fault
    return json_value(data, path, _without_bulk)


def _without_bulk(entry: dict[str, Any]) -> Any:
    """Keep what is used: Visual Genome has 5.4 million regions, VQA v2 6.6 million answers."""
    if "phrase" in entry and "regions" not in entry:
        return {"phrase": entry["phrase"]}
    if "raw" in entry and "tokens" in entry:
        return {"raw": entry["raw"]}
    if "answer_id" in entry and "answer" in entry:
        return entry["answer"]
    if "qa_id" in entry:
        return {name: entry.get(name) for name in ("qa_id", "question", "answer")}
    return entry


def has_some(entries: Any, *keys: str) -> bool:
    """Whether this is a list in which an object has all these keys."""
    return isinstance(entries, list) and any(
        isinstance(one, dict) and entries and one.keys() >= set(keys) for one in entries
    )


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


def _albef(content: Any, images: NamedImages, options: Mapping[str, str]) -> tuple[str, Any, ReadRow]:
    def read(number: int, row: Row) -> Iterable[Record]:
        path = _path(row["image"], images)
        yield Record(
            (path,), texts_in(row["captions"] if "captions" in row else row["caption"], f"{path:.80}")
        )

    return "entry", content, read


def _karpathy(content: Any, images: NamedImages, options: Mapping[str, str]) -> tuple[str, Any, ReadRow]:
    def read(number: int, row: Row) -> Iterable[Record]:
        path = _path(str(PurePosixPath(row.get("filepath") or "", row["filename"])), images)
        sentences = (texts_in(sentence["raw"], f"{path:.80}") for sentence in row.get("sentences", ()))
        yield Record((path,), tuple(text for texts in sentences for text in texts), split=str(row["split"]))

    return "image", content["images"], read


def _coco(content: Any, images: NamedImages, options: Mapping[str, str]) -> tuple[str, Any, ReadRow]:
    known = {id_text(row["id"]) for row in content["images"] if isinstance(row, dict) and "id" in row}
    texts: dict[str, list[str]] = {}
    for place, row in enumerate(content["annotations"]):
        where = f"annotation {place}"
        if not isinstance(row, dict) or not {"image_id", "caption"} <= row.keys():
            raise ValueError(f"{where}: expected the fields image_id and caption, got {quoted(row)}")
        name = id_text(row["image_id"])
        if name not in known:
            raise ValueError(
                f"{where} belongs to image {quoted(row['image_id'])}, which is not among the images"
            )
        texts.setdefault(name, []).extend(texts_in(row["caption"], f"{where} (image {name:.80})"))

    def read(number: int, row: Row) -> Iterable[Record]:
        name = id_text(row["id"])
        yield Record((_path(row["file_name"], images),), tuple(texts.get(name, ())), id=name)

    return "image", content["images"], read


def _genome(content: Any, images: NamedImages, options: Mapping[str, str]) -> tuple[str, Any, ReadRow]:
    """Read [{id or image_id, regions: [{phrase}]}]; the phrase of a region is a text of the whole image."""
    paths = genome_paths(images, options)

    def read(number: int, row: Row) -> Iterable[Record]:
        image, path = genome_image(row, paths)
        phrases = (texts_in(region["phrase"], f"image {image}") for region in row["regions"])
        yield Record((path,), tuple(text for texts in phrases for text in texts))

    return "entry", content, read


def _path(value: object, images: NamedImages) -> str:
    assert images.folder is not None
    return image_path(value, "image", images.folder)


def genome_image(row: Row, paths: Mapping[int, str]) -> tuple[int, str]:
    """Return number and path of an image of Visual Genome."""
    number = whole_number(row["id"] if "id" in row else row["image_id"])
    if number is None:
        raise ValueError(f"expected a whole number as id, got {quoted(dict(row))}")
    return number, paths.get(number, f"{_GENOME_FOLDERS[0]}/{number}.jpg")


def genome_paths(images: NamedImages, options: Mapping[str, str]) -> dict[int, str]:
    """Return the path of each image below a folder, from the URLs in image_data.json or by looking."""
    if "index" in options:
        index = Path(options["index"]).expanduser()
        rows = load_json(index)
        if not isinstance(rows, list) or not all(has_some([row], "image_id", "url") for row in rows):
            raise ValueError(f"{index} is no image_data.json: expected a list of {{image_id, url}}")
        ids = [whole_number(row["image_id"]) for row in rows]
        if None in ids:
            raise ValueError(f"{index} entry {ids.index(None)}: expected a whole number as image_id")
        tails = ("/".join(str(row["url"]).split("/")[-2:]) for row in rows)
        return {number: tail for number, tail in zip(ids, tails, strict=True) if number is not None}
    paths: dict[int, str] = {}
    for folder in (*_GENOME_FOLDERS, ".") if images.folder is not None else ():
        assert images.folder is not None
        for name in (images.folder / folder).glob("*.jpg"):
            if name.stem.isdecimal():
                paths.setdefault(int(name.stem), str(PurePosixPath(folder, name.name)))
    return paths


CAPTION_FORMATS = (
    Format(
        "Karpathy's files", "{images: [{filename, split, sentences: [{raw}]}]}", ("split", "images", "rows"),
        lambda content: isinstance(content, dict) and has_some(content.get("images"), "sentences"), _karpathy,
    ),
    Format(
        "COCO's captions", "{images: [{id, file_name}], annotations: [{image_id, caption}]}",
        ("split", "images", "rows"),
        lambda content: isinstance(content, dict) and isinstance(content.get("images"), list)
        and has_some(content.get("annotations"), "image_id", "caption"), _coco,
    ),
    Format(
        "Visual Genome's region descriptions", "a list of {id, regions: [{phrase}]}",
        ("split", "images", "index", "rows"), lambda content: has_some(content, "regions"), _genome,
    ),
    Format(
        "ALBEF's captions", "a list of {image, caption}", ("split", "images", "rows"),
        lambda content: has_some(content, "image", "caption") or has_some(content, "image", "captions"), _albef,
    ),
)  # fmt: skip
