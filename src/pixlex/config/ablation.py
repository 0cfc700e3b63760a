"""The rows of LQAE's Table 3 and Figure 5 and of CB-ViLA's Table IV: what each changes, what the papers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Expected = Literal["lower", "higher", "not higher", "level"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says a row does, against the unchanged recipe.

    Attributes:
        measure: the measure it is about; all of that name, such as every setting of `few_shot`.
        expected: where the row's value lies.
    """

    measure: Literal["linear_probe", "few_shot", "retrieval"]
    expected: Expected


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One model to train, or one way to use the unchanged one.

    Attributes:
        name: short and unique; the name of its folder.
        title: what it changes.
        group: the letter of its row in Table 3, `base`, `mask-ratio` for Figure 5, or `IV` for CB-ViLA's Table IV.
        changes: overrides of the recipe.
        family: "vqvae" trains a VQ-VAE of the same networks, whose code k is then the k-th codeword's word.
        trains: whether it is a model of its own; otherwise it uses that of `base`.
        keep_share: share of each image's words that go into a prompt, in (0, 1].
        claims: what the paper says.
    """

    name: str
    title: str
    group: str
    changes: tuple[str, ...] = ()
    family: Literal["lqae", "vqvae"] = "lqae"
    trains: bool = True
    keep_share: float = 1.0
    claims: tuple[Claim, ...] = ()


Ablated = Literal["lqae", "cbvila"]
# The paper gives no values for Table 3 that could be found, only what its text says of them.
NOT_DESCRIBED = {"C": "the paper lists row C in Table 3 and does not describe it"}
MASK_RATIOS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85)
MASKED_LANGUAGE_WEIGHTS = (0.0, 0.001, 0.01, 0.1)
KEEP_SHARES = (0.75, 0.5, 0.25)

# CB-ViLA's Table IV, from below; the contrastive term, where the recipe has one, stays.
_OBJECTIVES = (
    AblationRow(name="base", title="the recipe, unchanged: MLM+ITM+Pixel+MIM", group="base"),
    AblationRow(
        name="mlm-itm",
        title="MLM+ITM",
        group="IV",
        changes=("objective.pixel_weight=0", "objective.masked_image_weight=0"),
        claims=(Claim(measure="retrieval", expected="lower"),),
    ),
    AblationRow(
        name="mlm-itm-pixel",
        title="MLM+ITM+Pixel",
        group="IV",
        changes=("objective.masked_image_weight=0",),
        claims=(Claim(measure="retrieval", expected="lower"),),
    ),
)
_WORSE = (Claim(measure="linear_probe", expected="lower"), Claim(measure="few_shot", expected="lower"))
_NO_HELP = (
    Claim(measure="linear_probe", expected="not higher"),
    Claim(measure="few_shot", expected="not higher"),
)
_LEVEL = (Claim(measure="linear_probe", expected="level"), Claim(measure="few_shot", expected="level"))


def ablation_rows(family: Ablated = "lqae", entropy_weight: float = 0.05) -> tuple[AblationRow, ...]:
    """Return every row that can be run of a family's recipe, the unchanged one first.

    Row H, the size of the prompted language model, is no row here: each language model that few-shot
    classification is run with makes a column. Row C is not described (`NOT_DESCRIBED`).

    Args:
        family: of the recipe.
        entropy_weight: weight of the entropy regularization in row D.
    """
    if family == "cbvila":
        return _OBJECTIVES
    return (
        AblationRow(name="base", title="the recipe, unchanged", group="base"),
        AblationRow(
            name="A", title="no L2 norm: nearest by Euclidean distance", group="A",
            changes=("model.quantizer.metric=euclidean",), claims=_WORSE,
        ),
        AblationRow(
            name="B", title="language model with random weights", group="B",
            changes=("model.language.random_weights=true",), claims=_WORSE,
        ),
        AblationRow(
            name="D", title=f"entropy regularization, weight {entropy_weight:g}", group="D",
            changes=(f"objective.entropy_weight={entropy_weight:g}",), claims=_NO_HELP,
        ),
        *(_masked_language_row(weight) for weight in MASKED_LANGUAGE_WEIGHTS),
        AblationRow(
            name="F", title="predicted words into the decoder", group="F",
            changes=("model.decoder_input=predicted",), claims=_NO_HELP,
        ),
        *(
            AblationRow(
                name=f"G-{share:g}", title=f"first {share:.0%} of the words in the prompt", group="G",
                trains=False, keep_share=share,
                claims=(Claim(measure="few_shot", expected="level" if share >= 0.75 else "lower"),),
            )
            for share in KEEP_SHARES
        ),
        AblationRow(
            name="I", title="codes of a trained VQ-VAE assigned to words", group="I",
            family="vqvae", claims=(Claim(measure="few_shot", expected="lower"),),
        ),
        AblationRow(
            name="I-joint", title="a codebook learned along picks the words (released code)", group="I",
            changes=("model.quantizer.search=assigned", "objective.raw_commitment_weight=0.005"),
            claims=(Claim(measure="few_shot", expected="lower"),),
        ),
        *(
            AblationRow(
                name=f"mask-{ratio:g}", title=f"{ratio:.0%} of the words hidden in training",
                group="mask-ratio",
                changes=(f"objective.mask_ratio_min={ratio:g}", f"objective.mask_ratio_max={ratio:g}"),
            )
            for ratio in MASK_RATIOS
        ),
    )  # fmt: skip


def _masked_language_row(weight: float) -> AblationRow:
    """Row E: with a larger weight the probe rises and few-shot falls; without the term little changes."""
    larger = (Claim(measure="linear_probe", expected="higher"), Claim(measure="few_shot", expected="lower"))
    claims = _LEVEL if weight == 0 else larger if weight > 0.001 else ()
    return AblationRow(
        name=f"E-{weight:g}", title=f"masked-word loss, weight {weight:g}", group="E",
        changes=(f"objective.masked_language_weight={weight:g}",), claims=claims,
    )  # fmt: skip


def select_rows(wanted: Sequence[str], family: Ablated = "lqae") -> tuple[AblationRow, ...]:
    """Return the rows of some groups or names, `base` always among them, in the order of the table.

    Args:
        wanted: groups ("A", "mask-ratio") or names ("E-0.01"); nothing for all.
        family: of the recipe.

    Raises:
        ValueError: an unknown one, or row C; the message lists what there is.
    """
    rows = ablation_rows(family)
    known = {row.name for row in rows} | {row.group for row in rows}
    for one in wanted:
        if one in NOT_DESCRIBED and family == "lqae":
            raise ValueError(f"row {one} cannot be run: {NOT_DESCRIBED[one]}")
        if one == "H" and family == "lqae":
            raise ValueError(
                "row H is no model to train: name several language models, each makes a column of few-shot"
            )
        if one not in known:
            groups = ", ".join(dict.fromkeys(row.group for row in rows))
            raise ValueError(
                f"rows: expected groups ({groups}) or names of them such as {rows[-1].name}, got {one!r}"
            )
    return tuple(
        row for row in rows if not wanted or row.group == "base" or row.name in wanted or row.group in wanted
    )
