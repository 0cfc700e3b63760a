"""How many tokens a text has for an endpoint whose tokenizer is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

TIKTOKEN = "tiktoken:"
# A start token, and the space that SentencePiece puts before a text.
_ADDED = 2

TokenCounter = Callable[[Sequence[str]], list[int]]


def token_counter(tokenizer: str | None, model: str) -> tuple[TokenCounter, str]:
    """Return what counts an endpoint's tokens, and the sentence that says how.

    Args:
        tokenizer: `tiktoken:ENCODING`, a directory or a name on the hub; None for tiktoken where it is
            installed and knows the model, else for an upper bound.
        model: the endpoint's name of the model.

    Raises:
        ValueError: a tokenizer that cannot be had.
    """
    if tokenizer is None:
        counter = _tiktoken_of(model)
        if counter is not None:
            return counter, f"tokens counted by tiktoken as of {model}"
        return upper_bounds, "tokens bounded from above by the bytes of the text"
    if tokenizer.startswith(TIKTOKEN):
        return _tiktoken(tokenizer.removeprefix(TIKTOKEN)), f"tokens counted by {tokenizer}"
    return _pretrained(tokenizer), f"tokens counted by the tokenizer of {tokenizer}"


def upper_bounds(texts: Sequence[str]) -> list[int]:
    """Return a number that no tokenizer in use exceeds: the bytes of each text in UTF-8, and two more.

    Every token of a byte-level or byte-fallback vocabulary stands for a byte or more. English has about four
    bytes a token, so the bound is some four times the truth: name a tokenizer where that is too much.
    """
    return [len(text.encode()) + _ADDED for text in texts]


def _tiktoken_of(model: str) -> TokenCounter | None:
    try:
        import tiktoken
    except ImportError:
        return None
    try:
        return _counter(tiktoken.encoding_for_model(model))
    except (KeyError, OSError):  # a model it does not know, or no network to fetch the encoding from
        return None


def _tiktoken(name: str) -> TokenCounter:
    try:
        import tiktoken
    except ImportError as fault:
        missing = f"tokenizer {TIKTOKEN}{name} needs tiktoken: pip install tiktoken"
        raise ModuleNotFoundError(missing, name="tiktoken") from fault
    try:
        return _counter(tiktoken.get_encoding(name))
    except (OSError, ValueError) as fault:
        raise ValueError(f"tokenizer {TIKTOKEN}{name} cannot be had: {fault}") from fault


def _counter(encoding: object) -> TokenCounter:
    # What looks like a special token in a text is text.
    return lambda texts: [len(encoding.encode(text, disallowed_special=())) for text in texts]  # type: ignore[attr-defined]


def _pretrained(name: str) -> TokenCounter:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise ValueError(f"tokenizer {name!r} cannot be loaded: {fault}") from fault
    return lambda texts: [len(tokenizer(text)["input_ids"]) for text in texts]
