"""Pictures and pages of runs: what callers use is named here."""

from pixlex.report.card import model_card
from pixlex.report.page import run_page, write_page
from pixlex.report.pictures import reconstruction_grid
from pixlex.report.plots import curves

__all__ = ["curves", "model_card", "reconstruction_grid", "run_page", "write_page"]
