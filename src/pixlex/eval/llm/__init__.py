"""Language models that continue texts: endpoints and local ones behind one small interface."""

from pixlex.eval.llm.client import LanguageClient, LLMOptions

__all__ = ["LLMOptions", "LanguageClient", "connect"]


def connect(options: LLMOptions) -> LanguageClient:
    """Return the client of a language model: of an endpoint with `base_url`, of a local model without.

    Raises:
        ValueError: an option out of range, a model that cannot be loaded, an endpoint that is down, a key that is
            refused.
        ModuleNotFoundError: a package that is missing.
    """
    if options.base_url is None:
        from pixlex.eval.llm.local import load_local

        return load_local(options)
    from pixlex.eval.llm.endpoint import EndpointClient

    return EndpointClient(options)
