"""From options to the language model that answers, and to what counts an endpoint's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pixlex.eval.llm.client import LanguageClient, LLMOptions

TIKTOKEN = "tiktoken:"
# A start token, and the space that SentencePiece puts before a text.
_ADDED = 2

TokenCounter = Callable[[Sequence[str]], list[int]]


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


def token_counter(tokenizer: str | None, model: str) -> TokenCounter:
    """Return what counts an endpoint's tokens.

    Args:
        tokenizer: as `LLMOptions.tokenizer`.
        model: the endpoint's name of the model.

    Returns:
        `upper_bounds` where nothing counts them.

    Raises:
        ValueError: a tokenizer that cannot be loaded.
    """
    if tokenizer is None:
        try:
            import tiktoken

            return _counter(tiktoken.encoding_for_model(model))
        except (ImportError, KeyError, OSError):  # an unknown model, or no network to fetch the encoding from
            return upper_bounds
    if not tokenizer.startswith(TIKTOKEN):
        return _pretrained(tokenizer)
    try:
        import tiktoken

        return _counter(tiktoken.get_encoding(tokenizer.removeprefix(TIKTOKEN)))
    except ImportError as fault:
        missing = f"tokenizer {tokenizer} needs tiktoken: pip install tiktoken"
        raise ModuleNotFoundError(missing, name="tiktoken") from fault
    except (OSError, ValueError) as fault:
        raise ValueError(f"tokenizer {tokenizer} cannot be loaded: {fault}") from fault


def upper_bounds(texts: Sequence[str]) -> list[int]:
    """Return a number that no tokenizer in use exceeds: the bytes of each text in UTF-8, and two more.

    Every token of a byte-level or byte-fallback vocabulary stands for a byte or more. English has about four
    bytes a token, so the bound is some four times the truth: name a tokenizer where that is too much.
    """
    return [len(text.encode()) + _ADDED for text in texts]


def _counter(encoding: Any) -> TokenCounter:
    # What looks like a special token in a text is text.
    return lambda texts: [len(encoding.encode(text, disallowed_special=())) for text in texts]


def _pretrained(name: str) -> TokenCounter:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise ValueError(f"tokenizer {name!r} cannot be loaded: {fault}") from fault
    return lambda texts: [len(tokenizer(text)["input_ids"]) for text in texts]
