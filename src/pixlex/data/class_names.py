"""Names of classes as a person would say them: ImageNet's by their first synonym, those of a `classes.csv`."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from pixlex.data.addresses import Place
from pixlex.data.text import csv_rows, plain_text, whole_number
from pixlex.messages import quoted

SIDECAR = "classes.csv"

# A WordNet id, perhaps with a name behind it, as in n02119789_kit_fox.
_WORDNET_ID = re.compile(r"(n\d{8})(?:[\s_-]+(.*))?")
_COMMA = re.compile(r"\s*(?:(?<!\d),|,(?!\d))\s*")


@dataclass(frozen=True)
class NamesBeside:
    """What a file of classes says.

    Attributes:
        path: the file.
        names: label -> name.
        of_wordnet: WordNet id -> name.
    """

    path: Place
    names: Mapping[int, str] = field(default_factory=dict)
    of_wordnet: Mapping[str, str] = field(default_factory=dict)


@cache
def imagenet_classes() -> Mapping[str, tuple[int, str]]:
    """Return ImageNet's 1,000 classes: WordNet id -> number in 0..999, synonyms ("kit fox, Vulpes macrotis")."""
    text = resources.files("pixlex.data").joinpath("imagenet_classes.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return {wordnet_id: (number, synonyms) for number, (wordnet_id, synonyms) in enumerate(rows)}


def spoken_names(
    names: Mapping[int, str], source: str, folder: Place | None, *, numbered_here: bool = False
) -> dict[int, str]:
    """Return class names that can be answers: one name for each class, without synonyms, ids and odd characters.

    WordNet ids of ImageNet's classes, and their lists of synonyms, become the first synonym: `n02119789` and "kit
    fox, Vulpes macrotis" are "kit fox". Of other names with commas the part before the first is taken, unless two
    classes would then share it. What `classes.csv` in the folder says of such a class wins. Other names stay. A
    warning says what was changed.

    Args:
        names: label -> name as given.
        source: name of the source, for the warning.
        folder: where `classes.csv` is looked for; None: nowhere.
        numbered_here: labels are the positions of folders in sorted order.

    Raises:
        ValueError: `classes.csv` is malformed, or numbers classes otherwise than the folders are numbered.
    """
    cleaned = {label: " ".join(plain_text(name).split()) for label, name in names.items()}
    unclear = {label for label, name in cleaned.items() if _COMMA.search(name) or _WORDNET_ID.fullmatch(name)}
    beside = names_beside(folder) if unclear else None
    given: dict[int, str] = {}
    if beside is not None and folder is not None:
        given = {label: beside.names[label] for label in unclear & beside.names.keys()}
        if given and numbered_here and beside.names.keys() != names.keys():
            raise ValueError(
                f"{beside.path}: expected a column wnid with the names of folders, or the labels 0 to "
                f"{len(names) - 1} of the {len(names)} folders in sorted order; found {len(beside.names)} labels"
            )
        ids = {label: _wordnet_id(cleaned[label]) for label in unclear}
        given |= {label: beside.of_wordnet[one] for label, one in ids.items() if one in beside.of_wordnet}
    short = {label: _short(name) if label in unclear else name for label, name in cleaned.items()}
    shared = Counter(short[label] for label in unclear if not _is_known(cleaned[label]))
    spoken = {
        label: given.get(label, cleaned[label] if shared[name] > 1 else name) for label, name in short.items()
    }
    _warn(names, {label: name for label, name in spoken.items() if label not in given}, unclear, source)
    return spoken


def names_beside(folder: Place | None) -> NamesBeside | None:
    """Return what `classes.csv` in a folder says: the `class_name` of each `label`, WordNet id in `wnid`, or both.

    Raises:
        ValueError: a column is missing, a row is malformed, or a class has two names.
    """
    path = None if folder is None else folder / SIDECAR
    if path is None or not path.is_file():
        return None
    names: dict[int, str] = {}
    of_wordnet: dict[str, str] = {}
    for line, row in csv_rows(path):
        where = f"{path} line {line}"
        if "class_name" not in row or not row.keys() & {"label", "wnid"}:
            found = ", ".join(map(str, row))
            raise ValueError(
                f"{where}: expected the columns label (or wnid) and class_name, found {found:.200}"
            )
        name, label, wnid = (
            plain_text(row.get(key) or "").strip() for key in ("class_name", "label", "wnid")
        )
        number = whole_number(label)
        wordnet_id = wnid or (label if _WORDNET_ID.fullmatch(label) else "")
        if not name or (number is None and not wordnet_id) or (number is not None and number < 0):
            raise ValueError(f"{where}: expected a label and a class_name, got {quoted(row)}")
        if number is not None and names.setdefault(number, name) != name:
            raise ValueError(f"{where}: label {number} has two names")
        if wordnet_id and of_wordnet.setdefault(wordnet_id, name) != name:
            raise ValueError(f"{where}: {wordnet_id} has two names")
    return NamesBeside(path, names, of_wordnet)


def _wordnet_id(name: str) -> str:
    match = _WORDNET_ID.fullmatch(name)
    return match[1] if match else ""


def _short(name: str) -> str:
    if match := _WORDNET_ID.fullmatch(name):
        wordnet_id, behind = match.groups()
        if wordnet_id in imagenet_classes():
            name = imagenet_classes()[wordnet_id][1]
        elif behind:
            name = behind.replace("_", " ")
    return _COMMA.split(name, maxsplit=1)[0] or name


@cache
def _synonyms() -> frozenset[str]:
    return frozenset(synonyms for _, synonyms in imagenet_classes().values())


def _is_known(name: str) -> bool:
    """Whether this is a class of ImageNet: two of them may share a name (crane)."""
    return _wordnet_id(name) in imagenet_classes() or name in _synonyms()


def _warn(names: Mapping[int, str], spoken: Mapping[int, str], unclear: set[int], source: str) -> None:
    """Say which names were changed, and that others are no names."""
    changed = [label for label, name in spoken.items() if name != " ".join(names[label].split())]
    same = [label for label in spoken if label in unclear and label not in changed]
    remedy = f"a {SIDECAR} in their folder (label or wnid, and class_name) names them otherwise"
    if changed:
        first = f"{quoted(names[changed[0]])} as {quoted(spoken[changed[0]])}"
        warnings.warn(
            f"{source}: {len(changed)} of {len(names)} class names are taken by their first synonym, or without "
            f"characters that no tokenizer reads, such as {first}; {remedy}",
            stacklevel=4,
        )
    if same:
        warnings.warn(
            f"{source}: {len(same)} of {len(names)} class names are lists or ids, and answers would be such, the "
            f"first is {quoted(spoken[same[0]])}; {remedy}",
            stacklevel=4,
        )
