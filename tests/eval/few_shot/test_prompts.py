"""Prompts: what stands in them, and that they fit before anything is sent."""

from __future__ import annotations

import pytest
from tests.eval.few_shot.fakes import TWO_WAY

from pixlex.eval.few_shot.prompts import TEMPLATES, Episode, Setting, Shown, Template, pieces, render

EPISODE = Episode(
    number=0,
    names=("dax", "St. Bernard"),
    support=(Shown(image=4, name=0), Shown(image=7, name=1)),
    query=2,
    answer=1,
)


def text_of(image: int) -> str:
    return f"words of {image}"


def test_the_papers_prompt() -> None:
    prompt = render("frozen", TWO_WAY, EPISODE, text_of)
    assert prompt.text == (
        "Answer with dax or St. Bernard.\nwords of 4\nThis is a dax.\nwords of 7\nThis is a St. Bernard.\n"
        "words of 2\nQ: What is this?\nA: This is a"
    )
    assert prompt.candidates == (" dax", " St. Bernard")
    assert prompt.stops == ("\n",)  # a period would cut the second name


def test_the_prompt_of_v2l() -> None:
    """As its code writes it: names sorted, the stray brackets, nothing between a name and the next rule."""
    prompt = render("v2l", TWO_WAY, EPISODE, text_of)
    assert prompt.text == (
        "For each of the following input output pairs, output is one of ['St. Bernard' or ['dax']\n"
        "###\nInput: < words of 4 >\nOutput: dax###\nInput: < words of 7 >\nOutput: St. Bernard"
        "###\nInput: < words of 2 >\nOutput:"
    )
    assert prompt.candidates == (" dax", " St. Bernard")


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template(template: Template) -> None:
    """Induction is the first sentence and nothing else; a candidate continues as a shown name does."""
    bare = Setting(ways=2, shots=1, induction=False)
    without, induced = render(template, bare, EPISODE, text_of), render(template, TWO_WAY, EPISODE, text_of)
    assert induced.text.endswith(without.text)
    assert "dax" in induced.text.removesuffix(without.text)
    assert without.text == without.text.rstrip()
    # As shown: the characters before a name are those before a candidate.
    assert f"{without.text.split()[-1]} dax" in without.text


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_repeats_show_the_whole_sequence_again(template: Template, repeats: int) -> None:
    setting = Setting(ways=2, shots=1, repeats=repeats)
    images = [piece for piece in pieces(template, setting, EPISODE) if isinstance(piece, int)]
    assert images == [4, 7] * (repeats + 1) + [2]


@pytest.mark.usefixtures("unchecked_shapes")
def test_unknown_templates_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a template of frozen, v2l, pixlex, got 'haiku'"):
        render("haiku", TWO_WAY, EPISODE, text_of)  # type: ignore[arg-type]
