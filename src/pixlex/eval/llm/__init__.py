"""Language models that continue texts: endpoints and local ones behind one small interface."""

from collections.abc import Callable

from pixlex.eval.llm.client import LanguageClient, LLMOptions

__all__ = ["LLMOptions", "LanguageClient", "connect"]


def connect(options: LLMOptions, say: Callable[[str], object] = bool) -> LanguageClient:
    """Return the client of a language model: of an endpoint with `base_url`, of a local model without.

    Of a local one weights are read from safetensors and GGUF only, and none of its code is run; `say` is told
    before what memory it takes. `precision="auto"` is float32 on every processor: in bfloat16 Gemma 3 270M takes
    1.4 times as long where the processor multiplies it, and no less memory while it is loaded.

    Raises:
        ValueError: an option out of range, a model that cannot be loaded, an endpoint that is down, a key that is
            refused.
        ModuleNotFoundError: a package that is missing.
    """
    if options.base_url is not None:
        from pixlex.eval.llm.endpoint import EndpointClient

        return EndpointClient(options)
    import torch

    from pixlex.distributed import pick_device
    from pixlex.eval.llm.local import LocalClient
    from pixlex.nn.language_model import load_causal_parts

    device, precision = pick_device(options.device), options.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    model, tokenizer = load_causal_parts(
        options.model, torch.bfloat16 if precision == "bf16" else torch.float32, say
    )
    return LocalClient(model.to(device), tokenizer, options)
