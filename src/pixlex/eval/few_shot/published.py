"""Published numbers, to stand beside measured ones: percent of episodes right, as printed."""

from __future__ import annotations

from dataclasses import dataclass

from pixlex.eval.few_shot.episodes import PAPER_COLUMNS


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper.

    Attributes:
        name: as the paper calls it.
        ways: 2 or 5.
        source: where it is printed.
        accuracy: percent by `Setting.column`.
        scorer: how answers were judged, as far as it is known.
        average: percent, over the seven columns; None where not all are printed.
    """

    name: str
    ways: int
    source: str
    accuracy: dict[str, float]
    scorer: str = "strict"
    average: float | None = None


def _lqae_table(ways: int, rows: dict[str, tuple[float, ...]]) -> list[PublishedRow]:
    source = f"LQAE, Table {1 if ways == 2 else 2}"
    return [
        PublishedRow(
            name,
            ways,
            source,
            dict(zip(PAPER_COLUMNS, values[:-1], strict=True)),
            average=values[-1],
        )
        for name, values in rows.items()
    ]


def _bare_and_best(
    name: str, ways: int, language: str, bare: float, induced: float, scorer: str = "strict"
) -> PublishedRow:
    """Return a row of De-Diffusion's table: one inner shot, without and with induction."""
    title = f"{name} ({language})"
    return PublishedRow(title, ways, "De-Diffusion, Table 3", {"bare:1/0": bare, "1/0": induced}, scorer)


# LQAE, Tables 1 and 2: miniImageNet test classes at 256 px, real names. LQAE and ASCII prompt GPT-3.5
# (text-davinci-003). LQAE's 5-way "bare:1/0" is missing in the text at hand; it follows from the average and
# is quoted by De-Diffusion.
PUBLISHED: tuple[PublishedRow, ...] = (
    *_lqae_table(
        2,
        {
            "ASCII 64x64": (0.0, 5.2, 5.9, 6.5, 4.5, 4.8, 5.2, 4.59),
            "MAE + linear": (0.0, 8.9, 11.4, 13.5, 12.8, 15.6, 19.8, 11.71),
            "Frozen": (1.7, 33.7, 66.0, 66.0, 63.0, 65.0, 63.7, 51.3),
            "untrained LQAE": (0.0, 8.2, 13.8, 14.5, 10.4, 12.7, 15.6, 10.74),
            "LQAE": (1.5, 35.2, 68.2, 69.8, 68.5, 68.7, 65.9, 53.97),
        },
    ),
    _bare_and_best("SPAE", 2, "PaLM 2-L", 32.2, 85.4),
    _bare_and_best("De-Diffusion", 2, "PaLM 2-L", 78.9, 99.3),
    PublishedRow("V2L (LLaMA-2)", 2, "V2L-Tokenizer, issue 2", {"3/0": 91.2}, "v2l"),
    *_lqae_table(
        5,
        {
            "ASCII 64x64": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            "MAE + linear": (0.3, 2.0, 2.5, 3.2, 3.1, 3.5, 3.6, 2.6),
            "Frozen": (0.9, 14.5, 34.7, 33.8, 33.8, 33.3, 32.8, 26.26),
            "untrained LQAE": (0.0, 1.2, 1.6, 2.3, 2.1, 1.9, 2.3, 1.63),
            "LQAE": (1.0, 15.7, 35.9, 36.5, 31.9, 36.4, 45.9, 29.04),
        },
    ),
    _bare_and_best("SPAE", 5, "PaLM 2-L", 23.6, 67.0),
    _bare_and_best("De-Diffusion", 5, "PaLM 2-L", 71.8, 97.0),
)


def published_rows(ways: int) -> list[PublishedRow]:
    """Return the published rows of a number of ways; none but for 2 and 5."""
    return [row for row in PUBLISHED if row.ways == ways]
