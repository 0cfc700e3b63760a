"""Language models that continue texts: endpoints and local ones behind one small interface."""

from pixlex.eval.llm.client import LanguageClient, LLMOptions
from pixlex.eval.llm.connect import connect

__all__ = ["LLMOptions", "LanguageClient", "connect"]
