"""Episodes as prompts of a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pixlex.eval.few_shot.episodes import Episode, Setting
from pixlex.eval.llm.client import DOES_NOT_FIT, LanguageClient
from pixlex.messages import quoted

Template = Literal["frozen", "v2l", "pixlex"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a language model is asked, and how its answer can look.

    Attributes:
        text: the prompt, without a blank at its end.
        candidates: each name as the prompt's continuation, its leading blank included: a tokenizer makes
            another token of a word behind a blank than of a word behind nothing.
        stops: where an answer ends.
    """

    text: str
    candidates: tuple[str, ...]
    stops: tuple[str, ...]


@dataclass(frozen=True)
class _Form:
    """The pieces of a template: induction, around an image (`{name}` is replaced), behind the query, stops."""

    induction: Callable[[Sequence[str]], str]
    before: str
    after: str
    after_query: str
    stops: tuple[str, ...]


def _v2l_induction(names: Sequence[str]) -> str:
    listed = " or ".join(f"['{name}'" for name in sorted(names))
    return f"For each of the following input output pairs, output is one of {listed}]\n"


def _pixlex_induction(names: Sequence[str]) -> str:
    return (
        "Each picture is written as words of a secret code. Pictures of the same thing have similar words.\n"
        f"Every picture shows one of: {', '.join(names)}.\n\n"
    )


_FORMS: dict[str, _Form] = {
    # Tsimpoukelli et al. (2021), which the paper follows: images stand where images stood, as words.
    "frozen": _Form(
        lambda names: f"Answer with {' or '.join(names)}.\n",
        before="",
        after="\nThis is a {name}.\n",
        after_query="\nQ: What is this?\nA: This is a",
        stops=("\n", "."),
    ),
    # What V2L's code sends (Zhu et al. 2024, after SPAE): names sorted, each behind a bracket of its own, no line
    # end behind a name. Its pieces are tokenized one by one, these as a whole.
    "v2l": _Form(
        _v2l_induction,
        before="###\nInput: < ",
        after=" >\nOutput: {name}",
        after_query=" >\nOutput:",
        stops=("\n",),
    ),
    # Ours: says what the words are, keeps image and name on lines of their own, ends names with the line.
    "pixlex": _Form(
        _pixlex_induction,
        before="Words: ",
        after="\nName: {name}\n\n",
        after_query="\nName:",
        stops=("\n",),
    ),
}
TEMPLATES: tuple[Template, ...] = ("frozen", "v2l", "pixlex")


def pieces(template: Template, setting: Setting, episode: Episode) -> Iterator[str | int]:
    """Yield a prompt in order: texts, and the positions of images where images stand.

    Repeats show the whole interleaved sequence of support images again, in the same order, so that every
    class comes up in turn: with one repeat c1 c2 | c1 c2. The paper (section 4) says how often an image is
    repeated and not where; Tsimpoukelli et al. (2021) neither.

    Raises:
        ValueError: an unknown template.
    """
    form = _form(template)
    if setting.induction:
        yield form.induction(episode.names)
    for shown in episode.support * (setting.repeats + 1):
        yield form.before
        yield shown.image
        yield form.after.replace("{name}", episode.names[shown.name])
    yield form.before
    yield episode.query
    yield form.after_query


def render(template: Template, setting: Setting, episode: Episode, text_of: Callable[[int], str]) -> Prompt:
    """Write an episode as a prompt; `text_of` is the text of an image, by its position in the source.

    Raises:
        ValueError: an unknown template.
    """
    parts = (
        piece if isinstance(piece, str) else text_of(piece) for piece in pieces(template, setting, episode)
    )
    return Prompt(
        text="".join(parts),
        candidates=tuple(f" {name}" for name in episode.names),
        stops=stops_of(template, episode),
    )


def stops_of(template: Template, episode: Episode) -> tuple[str, ...]:
    """Return where an answer ends: a stop inside a name ("St. Bernard") would cut the right answer."""
    stops = _form(template).stops
    return tuple(stop for stop in stops if not any(stop in name for name in episode.names))


def check_context(
    prompts: Sequence[Prompt], answer_tokens: int, client: LanguageClient, setting: Setting
) -> str:
    """Return why a prompt of a setting with its answer is longer than what the language model reads, or nothing.

    A client that does not know its context, or bounds the number of tokens from above, passes everything: its
    refusal shows what does not fit.
    """
    context = client.context_size
    if context is None or not client.counts_exactly or not prompts:
        return ""
    longest = max(client.count_tokens([prompt.text for prompt in prompts]))
    if longest + answer_tokens <= context:
        return ""
    ratio = (context - answer_tokens) / longest
    fewer = (
        f"keep a smaller share of the words (about {0.95 * ratio:.2f})"
        if ratio > 0.05
        else "keep fewer words"
    )
    return (
        f"{DOES_NOT_FIT}: {setting.label}: the longest prompt has {longest:,} tokens and its answer takes up to "
        f"{answer_tokens}, but {client.name} reads {context:,} together: {fewer}, leave this setting out "
        f"(fewer ways, shots or repeats), or take a language model with a longer context"
    )


def _form(template: str) -> _Form:
    if template not in _FORMS:
        raise ValueError(f"expected a template of {', '.join(_FORMS)}, got {quoted(template)}")
    return _FORMS[template]
