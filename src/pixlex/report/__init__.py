"""Pictures and pages of runs: what callers use is named here."""

from pixlex.report.ablations import ablation_table, write_ablation
from pixlex.report.card import model_card
from pixlex.report.drawing import drawn
from pixlex.report.figures import image_columns, reconstruction_grid
from pixlex.report.measuring import Progress
from pixlex.report.page import run_page, write_page
from pixlex.report.plots import curves
from pixlex.report.progress import progress_of

__all__ = [
    "Progress",
    "ablation_table",
    "curves",
    "drawn",
    "image_columns",
    "model_card",
    "progress_of",
    "reconstruction_grid",
    "run_page",
    "write_ablation",
    "write_page",
]
