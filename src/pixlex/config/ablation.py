"""The rows of LQAE's Table 3 and Figure 5 and of CB-ViLA's Table IV: what each changes, what the papers say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One model to train, or one way to use the unchanged one."""

    name: str  # short and unique; the name of its folder
    title: str  # what it changes
    group: str  # the letter of its row in Table 3, `base`, `mask-ratio` (Figure 5), `IV` (CB-ViLA's Table IV)
    changes: tuple[str, ...] = ()  # overrides of the recipe
    # "vqvae" trains a VQ-VAE of the same networks, whose code k is then the k-th codeword's word.
    family: Literal["lqae", "vqvae"] = "lqae"
    trains: bool = True  # a model of its own; otherwise it uses that of `base`
    keep_fraction: float = 1.0  # fraction of each image's words that go into a prompt, in (0, 1]
    paper: str = ""  # what the paper says of it, against the unchanged recipe


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is compared with the unchanged recipe of a family."""

    rows: tuple[AblationRow, ...]  # those that can be run, the unchanged one first
    measures: tuple[str, ...]  # taken on the models of the rows besides the run's own numbers
    refused: Mapping[str, str] = field(default_factory=dict)  # what cannot be run, with the reason


# The paper gives no values for Table 3 that could be found, only what its text says of them.
NOT_DESCRIBED = {"C": "the paper lists row C in Table 3 and does not describe it"}
MASK_RATIOS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85)
MASKED_LANGUAGE_WEIGHTS = (0.0, 0.001, 0.01, 0.1)
KEEP_FRACTIONS = (0.75, 0.5, 0.25)


def _masked_language_row(weight: float) -> AblationRow:
    larger = "probe higher, few-shot lower" if weight > 0.001 else ""
    return AblationRow(
        name=f"E-{weight:g}", title=f"masked-word loss, weight {weight:g}", group="E",
        changes=(f"objective.masked_language_weight={weight:g}",),
        paper=larger if weight else "probe and few-shot level",
    )  # fmt: skip


_WORSE = "probe and few-shot lower"
_NO_HELP = "probe and few-shot not higher"
_LQAE = (
    AblationRow(name="base", title="the recipe, unchanged", group="base"),
    AblationRow(
        name="A", title="no L2 norm: nearest by Euclidean distance", group="A",
        changes=("model.quantizer.metric=euclidean",), paper=_WORSE,
    ),
    AblationRow(
        name="B", title="language model with random weights", group="B",
        changes=("model.language.random_weights=true",), paper=_WORSE,
    ),
    AblationRow(
        name="D", title="entropy regularization, weight 0.05", group="D",
        changes=("objective.entropy_weight=0.05",), paper=_NO_HELP,
    ),
    *map(_masked_language_row, MASKED_LANGUAGE_WEIGHTS),
    AblationRow(
        name="F", title="predicted words into the decoder", group="F",
        changes=("model.decoder_input=predicted",), paper=_NO_HELP,
    ),
    *(
        AblationRow(
            name=f"G-{kept:g}", title=f"first {kept:.0%} of the words in the prompt", group="G",
            trains=False, keep_fraction=kept, paper="few-shot level" if kept >= 0.75 else "few-shot lower",
        )
        for kept in KEEP_FRACTIONS
    ),
    AblationRow(
        name="I", title="codes of a trained VQ-VAE assigned to words", group="I",
        family="vqvae", paper="few-shot lower",
    ),
    AblationRow(
        name="I-joint", title="a codebook learned along picks the words (released code)", group="I",
        changes=("model.quantizer.search=assigned", "objective.raw_commitment_weight=0.005"),
        paper="few-shot lower",
    ),
    *(
        AblationRow(
            name=f"mask-{ratio:g}", title=f"{ratio:.0%} of the words hidden in training", group="mask-ratio",
            changes=(f"objective.mask_ratio_min={ratio:g}", f"objective.mask_ratio_max={ratio:g}"),
        )
        for ratio in MASK_RATIOS
    ),
)  # fmt: skip
# CB-ViLA's Table IV, from below; the contrastive term, where the recipe has one, stays.
_CBVILA = (
    AblationRow(name="base", title="the recipe, unchanged: MLM+ITM+Pixel+MIM", group="base"),
    AblationRow(
        name="mlm-itm", title="MLM+ITM", group="IV",
        changes=("objective.pixel_weight=0", "objective.masked_image_weight=0"),
        paper="retrieval lower",
    ),
    AblationRow(
        name="mlm-itm-pixel", title="MLM+ITM+Pixel", group="IV",
        changes=("objective.masked_image_weight=0",), paper="retrieval lower",
    ),
)  # fmt: skip
_ONE_MODEL = "it is no model to train: name several language models, each makes a column of few-shot"
_ABLATIONS = {
    "lqae": Ablation(
        rows=_LQAE, measures=("linear_probe", "few_shot"), refused={**NOT_DESCRIBED, "H": _ONE_MODEL}
    ),
    "cbvila": Ablation(rows=_CBVILA, measures=("retrieval",)),
}


def ablation_of(family: str) -> Ablation:
    """Return what is compared with the recipes of a family.

    Raises:
        ValueError: a family without ablations.
    """
    found = _ABLATIONS.get(family)
    if found is None:
        raise ValueError(
            f"ablations are of LQAE or CB-ViLA: expected a recipe of family lqae or cbvila, got {family}"
        )
    return found


def select_rows(wanted: Sequence[str], family: str = "lqae") -> tuple[AblationRow, ...]:
    """Return the rows of some groups ("A") or names ("E-0.01"), or all, in the table's order, `base` among them.

    Raises:
        ValueError: an unknown one, or one that cannot be run; the message lists what there is.
    """
    ablation = ablation_of(family)
    rows = ablation.rows
    known = {row.name for row in rows} | {row.group for row in rows}
    for one in wanted:
        if one in ablation.refused:
            raise ValueError(f"row {one} cannot be run: {ablation.refused[one]}")
        if one not in known:
            groups = ", ".join(dict.fromkeys(row.group for row in rows))
            raise ValueError(
                f"rows: expected groups ({groups}) or names of them such as {rows[-1].name}, got {one!r}"
            )
    return tuple(
        row for row in rows if not wanted or row.group == "base" or row.name in wanted or row.group in wanted
    )
