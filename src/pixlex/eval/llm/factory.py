"""From plain arguments, as they come from a command line, to the language model that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pixlex.eval.llm.budget import Budget, Prices

if TYPE_CHECKING:
    from pixlex.eval.llm.endpoint import EndpointClient
    from pixlex.eval.llm.local import LocalClient

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"


def connect(
    model: str,
    *,
    base_url: str | None = None,
    key_variable: str | None = None,
    mode: Literal["auto", "chat", "completions"] = "auto",
    concurrency: int = 8,
    timeout: float = 120.0,
    retries: int = 6,
    first_delay: float = 1.0,
    cache: Path | None = None,
    input_price: float | None = None,
    output_price: float | None = None,
    max_cost: float | None = None,
    max_tokens: int | None = None,
    context_size: int | None = None,
    tokenizer: str | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    batch_size: int = 16,
) -> EndpointClient | LocalClient:
    """Return the client of a language model: of an endpoint with `base_url`, of a local model without.

    Args:
        model: the endpoint's name of the model; without an endpoint a directory or a name on the hub.
        base_url: an OpenAI-compatible endpoint, up to and with its version: `http://localhost:8000/v1`.
        key_variable: the environment variable that holds the endpoint's key; None for OPENAI_API_KEY, and
            for no key where that is not set.
        mode: whether prompts are continued as they are (`completions`) or sent as a user's message (`chat`);
            `auto` takes completions where they are to be had.
        concurrency: requests under way at the same time, 1 or more.
        timeout: seconds until a request is given up and sent again, above 0.
        retries: how often a request is sent again after a failure that may pass, 0 or more.
        first_delay: seconds before that, about; doubled each time, never less than the endpoint asks for.
        cache: folder where the endpoint's answers are kept; None keeps them in memory only.
        input_price: what a million tokens of prompts cost; the currency is the user's.
        output_price: what a million tokens of answers cost.
        max_cost: spending stops before it exceeds so much; needs both prices.
        max_tokens: spending stops before prompts and answers together exceed so many tokens.
        context_size: tokens that prompt and answer may have together; None for what the server or the model
            tells.
        tokenizer: directory, name on the hub, or `tiktoken:ENCODING`, to count an endpoint's tokens with;
            None for the upper bound of `pixlex.eval.llm.tokens`.
        device: of a local model: auto, cpu, cuda or cuda:N.
        precision: of a local model; `auto` takes bf16 on GPUs that compute it.
        batch_size: prompts that a local model reads at a time, 1 or more.

    Raises:
        ValueError: an argument out of range, a package that is missing, a model that cannot be loaded, an
            endpoint that is down, a key that is refused.
    """
    for name, value, least in (
        ("concurrency", concurrency, 1),
        ("retries", retries, 0),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0, got {timeout}")
    if context_size is not None and context_size < 2:
        raise ValueError(f"context_size must be 2 or more, got {context_size}")
    if base_url is None:
        from pixlex.eval.llm.loading import load_local

        return load_local(
            model,
            chat=mode == "chat",
            device=device,
            precision=precision,
            batch_size=batch_size,
            context_size=context_size,
        )
    from pixlex.eval.llm.endpoint import EndpointClient
    from pixlex.eval.llm.exchange import EndpointOptions
    from pixlex.eval.llm.sending import Connection

    options = EndpointOptions(
        model=model,
        connection=Connection(
            base_url=base_url,
            key_variable=key_variable or DEFAULT_KEY_VARIABLE,
            key_required=key_variable is not None,
            timeout=timeout,
            retries=retries,
            first_delay=first_delay,
        ),
        mode=mode,
        concurrency=concurrency,
        context_size=context_size,
        tokenizer=tokenizer,
    )
    prices = Prices.of(input_price, output_price)
    return EndpointClient(options, budget=Budget(prices, max_cost, max_tokens), cache=cache)
