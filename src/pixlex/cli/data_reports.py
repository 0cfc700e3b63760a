"""What `doctor` and `convert` found, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pixlex.cli.options import table

if TYPE_CHECKING:
    from pixlex.data.convert import CaptionReport, DataReport, Spread

_SHOWN = 10
_LONGEST_TEXT = 60


def report_text(report: DataReport) -> str:
    """Return a report for people."""
    rows = [
        ("source", report.name),
        ("images", f"{report.num_images:,}"),
        ("broken", _broken(report)),
        ("width", _spread(report.width)),
        ("height", _spread(report.height)),
        ("formats", _counts(report.formats)),
        ("stored as", _counts(report.modes)),
        ("classes", _counts(report.images_per_class) or "none"),
    ]
    if report.images_per_class and report.unlabeled:
        rows.append(("without a class", f"{report.unlabeled:,}"))
    lines = [table(rows)]
    lines += listed("broken images", [f"{one.key}: {one.reason}" for one in report.broken])
    lines += listed(
        "keys that occur more than once", [f"{k}: {n} times" for k, n in report.duplicate_keys.items()]
    )
    lines += listed("files passed over", [str(one) for one in report.ignored])
    lines += listed("folders without images", list(report.empty_folders))
    return "\n".join(lines)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "no image can be read"
    return f"{spread.smallest} to {spread.largest} px, middle {spread.middle}"


def _counts(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN])
    return f"{shown}, and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else shown


def listed(title: str, entries: Sequence[str]) -> list[str]:
    """Return a title and the first entries, if there are any."""
    if not entries:
        return []
    more = [f"  and {len(entries) - _SHOWN:,} more (--json lists all)"] if len(entries) > _SHOWN else []
    return ["", f"{title} ({len(entries):,})", *(f"  {entry}" for entry in entries[:_SHOWN]), *more]


def caption_text(report: CaptionReport) -> str:
    """Return a report on captions."""
    per_image, words = report.captions_per_image, report.words_per_caption
    rows = [
        ("captions", f"{report.num_captions:,}"),
        ("per image", f"{per_image.smallest:,} to {per_image.largest:,}, middle {per_image.middle:,}"),
        ("words each", f"{words.smallest:,} to {words.largest:,}, middle {words.middle:,}"),
        ("duplicates", f"{report.num_duplicates:,} ({report.num_duplicates / report.num_captions:.1%})"),
        ("no caption", f"{len(report.without_captions):,} images, left out"),
    ]
    rows += [(f"split {name}", _split(report, name)) for name in report.splits]
    lines = [table(rows), *report.remarks]
    repeated = (f"{count:,} times: {text:.{_LONGEST_TEXT}}" for text, count in report.most_repeated.items())
    lines += listed("captions that occur most often", list(repeated))
    return "\n".join([*lines, *listed("images without a caption", report.without_captions)])


def _split(report: CaptionReport, name: str) -> str:
    found, expected = report.splits[name], report.expected_splits.get(name)
    if expected is None:
        return f"{found:,} images"
    return f"{found:,} images, {'as' if found == expected else f'{expected:,}'} expected"


def _broken(report: DataReport) -> str:
    missing = f", {report.num_missing:,} of them missing files" if report.num_missing else ""
    return f"{len(report.broken):,} ({report.broken_share:.1%}{missing})"
