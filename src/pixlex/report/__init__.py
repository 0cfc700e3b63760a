"""Pictures and pages of runs: what callers use is named here."""

from pixlex.report.card import model_card
from pixlex.report.drawing import drawn
from pixlex.report.figures import image_columns, reconstruction_grid
from pixlex.report.page import Page, write_page
from pixlex.report.plots import curves
from pixlex.report.progress import Progress
from pixlex.report.results import write_ablation
from pixlex.report.tables import ablation_table

__all__ = [
    "Page",
    "Progress",
    "ablation_table",
    "curves",
    "drawn",
    "image_columns",
    "model_card",
    "reconstruction_grid",
    "write_ablation",
    "write_page",
]
