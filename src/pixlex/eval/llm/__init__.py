"""Language models that continue texts: endpoints and local ones behind one small interface."""

from pixlex.eval.llm.factory import connect

__all__ = ["connect"]
