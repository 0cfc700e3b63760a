"""What a run of CB-ViLA shows of its validation pairs: terms, codebook, retrieval, rebuilt images, codewords."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixlex import distributed
from pixlex.config.cbvila import CBViLAConfig, CBViLARun
from pixlex.data.records import PairSource
from pixlex.eval.evaluate import Evaluation, read_arrays, write_arrays
from pixlex.eval.pretraining import ReconstructedExamples
from pixlex.report.drawing import drawn
from pixlex.report.galleries import codeword_gallery, reconstructed_pairs
from pixlex.report.measuring import Progress, unreadable
from pixlex.report.page import write_page

_CODES = "validation-codes.npz"
_SHOWN_CODEWORDS = 12
# Headings of pictures.
REBUILT = "Original, what was seen of it, rebuilt with its caption, rebuilt with the next one's"
CODEWORDS = "Codewords, each with patches that it stands for"


class PretrainingProgress(Progress):
    """Measures and draws CB-ViLA while it is pretrained.

    The codes of the last evaluation are kept in the run folder, to see how many change.
    """

    result: Evaluation
    run: CBViLARun

    def _previous_codes(self, step: int) -> Tensor | None:
        """Return the codes of an earlier step; none where a run was resumed behind them, or they are damaged."""
        if not distributed.is_first():
            return None
        stored = read_arrays(self.folder / _CODES)
        if not {"codes", "step"} <= stored.keys() or int(stored["step"]) >= step:
            return None
        return torch.from_numpy(stored["codes"])

    def _draw(self, step: int) -> None:
        codes, examples = self.result.rows.get("codes"), self.result.examples
        if codes is None:
            return
        drawn(self.folder / _CODES, lambda path: write_arrays(path, codes=codes.numpy(), step=np.array(step)))
        if examples:
            self._draw_rebuilt(ReconstructedExamples(**examples), step)
        gallery_of_codewords = drawn(
            self.picture("codewords", step),
            lambda path: codeword_gallery(
                self.validation,
                self.result.rows["indices"],
                codes,
                image_size=self.run.model.image_size,
                cut=self.run.model.cut,
                num_codewords=_SHOWN_CODEWORDS,
                path=path,
            ),
        )
        self._show(CODEWORDS, gallery_of_codewords)

    def _draw_rebuilt(self, examples: ReconstructedExamples, step: int) -> None:
        self._show(
            REBUILT, drawn(self.picture("rebuilt", step), lambda path: reconstructed_pairs(examples, path))
        )

    def _show(self, heading: str, picture: Path | None) -> None:
        """Have the page show a picture, if there is one."""
        self.pictures.pop(heading, None)
        if picture is not None:
            self.pictures[heading] = picture

    def write_page(self, path: Path, commands: Sequence[str]) -> Path:
        """Write the page of the newest evaluation."""
        config, objective = self.run.model, self.run.objective
        return write_page(
            path,
            title=f"CB-ViLA, {config.image_size} px, {config.grid} x {config.grid}: {self.run.data.train}",
            introduction=f"A vision-language model with {config.codebook.num_codewords} visual codewords. "
            f"{objective.mask_ratio:.0%} of the patches are hidden where pixels and codes are foretold. "
            "Recall is that of the first stage, contrast alone, over the validation pairs.",
            numbers=self.numbers,
            examples=None,
            commands=commands,
            config=dataclasses.asdict(self.run),
            notes=unreadable(self.result.skipped),
            curves=self.curves,
            pictures=self.pictures,
        )


def pretraining_page(
    folder: Path,
    result: Evaluation,
    pairs: PairSource,
    model: CBViLAConfig,
    protocol: str,
    *,
    commands: Sequence[str],
    config: Mapping[str, Any],
) -> Path | None:
    """Draw what an evaluation found, and write its page.

    Args:
        folder: where rebuilt.png, codewords.png and report.html go.
        result: what was found.
        pairs: the images that were measured.
        model: shapes of the network.
        protocol: what the numbers mean.
        commands: what was typed to get this result, exactly.
        config: the settings, of plain values.

    Returns:
        The page; None where it could not be made.
    """
    pictures, codes = {}, result.rows.get("codes")
    if result.examples:
        examples = ReconstructedExamples(**result.examples)
        pictures[REBUILT] = drawn(folder / "rebuilt.png", lambda path: reconstructed_pairs(examples, path))
    if codes is not None:
        pictures[CODEWORDS] = drawn(
            folder / "codewords.png",
            lambda path: codeword_gallery(
                pairs,
                result.rows["indices"],
                codes,
                image_size=model.image_size,
                cut=model.cut,
                num_codewords=_SHOWN_CODEWORDS,
                path=path,
            ),
        )
    return drawn(
        folder / "report.html",
        lambda path: write_page(
            path,
            title=f"CB-ViLA, {model.image_size} px, {model.grid} x {model.grid}: {pairs.name}",
            introduction=f"{protocol}.",
            numbers=result.numbers,
            examples=None,
            commands=commands,
            config=config,
            notes=unreadable(result.skipped),
            pictures={heading: picture for heading, picture in pictures.items() if picture is not None},
        ),
    )
