"""Settings and episodes, as prompts of a language model, and how its replies are judged."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from pixlex.eval.llm.client import DOES_NOT_FIT, NO_TEXT, Ability, Prompt, Reply, cut_at
from pixlex.messages import quoted

Naming = Literal["real", "nonsense"]
Template = Literal["frozen", "v2l", "pixlex", "line"]
Scorer = Literal[
    "strict", "likelihood", "likelihood-per-token", "constrained", "v2l", "calibrated", "calibrated-orders"
]
WordClassifier = Literal["sentence", "layers", "last-layer", "bag"]

# The seven columns of the paper's Tables 1 and 2, in their order.
PAPER_COLUMNS = ("bare:1/0", "1/0", "3/0", "5/0", "1/1", "1/3", "1/5")
_BARE = "bare:"
_COLUMN = re.compile(rf"({_BARE})?(\d+)/(\d+)")
# The detail of an answer that the limit of tokens cut off, and of one about an image that cannot be read.
NOT_ENDED = "it did not end"
UNREADABLE = "an image cannot be read"
# How the reason of a cell without answers begins where a classifier knows classes by labeled images alone.
NEEDS_EXAMPLE = "needs an example"
# What stands in place of the query's words where a name's likelihood without them is asked for (Zhao et al. 2021).
CONTENT_FREE = ("N/A", "[MASK]", "")
# Orders of the support that `calibrated-orders` averages over, the episode's own among them.
NUM_ORDERS = 4
# Log-likelihoods nearer than this, in nats, are equal: sums of the same numbers in another order.
_TIE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One column of the paper's Tables 1 and 2, or no labeled image at all.

    A value out of range raises `ValueError`; so do repeats and nonsense names without shots.
    """

    ways: int  # classes of an episode, 2 or more
    shots: int  # different images of each class, 0 or more
    repeats: int = 0  # how many more times each of them is shown
    induction: bool = True  # a sentence that lists the names comes first
    naming: Naming = "real"  # the classes' own, or nonsense names ("dax") drawn for every episode

    def __post_init__(self) -> None:
        for name, smallest in (("ways", 2), ("shots", 0), ("repeats", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < smallest:
                raise ValueError(f"{name} must be an integer of {smallest} or more, got {quoted(value)}")
        if type(self.induction) is not bool:
            raise ValueError(f"induction must be true or false, got {quoted(self.induction)}")
        if self.naming not in get_args(Naming):
            names = ", ".join(get_args(Naming))
            raise ValueError(f"naming must be one of {names}, got {quoted(self.naming)}")
        if self.shots == 0 and self.repeats:
            raise ValueError(f"repeats must be 0 where no image is shown (0 shots), got {self.repeats}")
        if self.shots == 0 and self.naming == "nonsense":
            raise ValueError("nonsense names say nothing of a picture: expected 1 or more shots, got 0")

    @property
    def column(self) -> str:
        """The column's short name: shots/repeats, "bare:" before it without induction."""
        return f"{'' if self.induction else _BARE}{self.shots}/{self.repeats}"

    @property
    def label(self) -> str:
        """The setting in words."""
        shots = f"{self.shots} shot{'s' * (self.shots != 1)}"
        repeats = f"{self.repeats} repeat{'s' * (self.repeats != 1)}"
        induction = "" if self.induction else ", no induction"
        return f"{self.ways}-way, {shots}, {repeats}{induction}, {self.naming} names"


def setting_of(column: str, ways: int, naming: Naming = "real") -> Setting:
    """Return the setting of a column's short name: shots/repeats, such as "3/0"; "bare:1/0" without induction.

    "0/0" shows no labeled image.

    Raises:
        ValueError: it is no name of a column, or a number is out of range.
    """
    match = _COLUMN.fullmatch(column)
    if match is None:
        raise ValueError(f"expected a setting like 3/0 (shots/repeats) or bare:1/0, got {quoted(column)}")
    bare, shots, repeats = match.groups()
    return Setting(ways=ways, shots=int(shots), repeats=int(repeats), induction=bare is None, naming=naming)


class Shown(NamedTuple):
    """A labeled image of an episode: its position in the source, and that of its class in `Episode.names`."""

    image: int
    name: int


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One question."""

    number: int  # position in its set of episodes
    names: tuple[str, ...]  # of the classes, in the order in which they are shown first
    support: tuple[Shown, ...]  # the labeled images, each once, interleaved by class: c1, c2, c1, c2 ...
    query: int  # position of the image asked about in the source of images; no support image
    answer: int  # position of its class in `names`

    @property
    def images(self) -> tuple[int, ...]:
        """The positions of all its images, the one asked about last."""
        return (*(shown.image for shown in self.support), self.query)


def images_of(episodes: Iterable[Episode]) -> list[int]:
    """Return the positions of all images of several episodes, each once, sorted."""
    return sorted({image for episode in episodes for image in episode.images})


class _Form(NamedTuple):
    """A template: induction, what stands around an image (`{name}` is replaced), behind the query, stops."""

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


TEMPLATES: dict[Template, _Form] = {
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
    # For small readers, which copy what stood behind equal words: nothing but words and name, on one line.
    "line": _Form(
        lambda names: f"Words -> {' or '.join(names)}\n",
        before="",
        after=" -> {name}\n",
        after_query=" ->",
        stops=("\n",),
    ),
}


# The same without an example, where it says something else then; the others leave examples out.
WITHOUT_EXAMPLE: dict[Template, _Form] = {
    "pixlex": _Form(
        lambda names: (
            f"The words tell what a picture shows.\nEvery picture shows one of: {', '.join(names)}.\n\n"
        ),
        before="Words: ",
        after="",
        after_query="\nName:",
        stops=("\n",),
    ),
    # As a caption would go on, of which a base model has read many.
    "line": _Form(
        lambda names: f"The picture shows one of: {', '.join(names)}.\n",
        before="Words: ",
        after="",
        after_query=". This is a picture of a",
        stops=("\n", "."),
    ),
}


def pieces(template: Template, setting: Setting, episode: Episode) -> Iterator[str | int]:
    """Yield a prompt in order: texts, and the positions of images where images stand.

    Repeats show the whole interleaved sequence of support images again, in the same order, so that every
    class comes up in turn: with one repeat c1 c2 | c1 c2. The paper (section 4) says how often an image is
    repeated and not where; Tsimpoukelli et al. (2021) neither.
    """
    form = _form(template, setting.shots)
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
    """Write an episode as a prompt; `text_of` is the text of an image, by its position in the source."""
    parts = (one if isinstance(one, str) else text_of(one) for one in pieces(template, setting, episode))
    names = tuple(f" {name}" for name in episode.names)
    return Prompt(text="".join(parts), candidates=names, stops=stops_of(template, episode))


def stops_of(template: Template, episode: Episode) -> tuple[str, ...]:
    """Return where an answer ends: a stop inside a name ("St. Bernard") would cut the right answer."""
    stops = _form(template, len(episode.support)).stops
    return tuple(stop for stop in stops if not any(stop in name for name in episode.names))


def _form(template: Template, shots: int) -> _Form:
    if template not in TEMPLATES:
        raise ValueError(f"expected a template of {', '.join(TEMPLATES)}, got {quoted(template)}")
    return TEMPLATES[template] if shots else WITHOUT_EXAMPLE.get(template, TEMPLATES[template])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one episode.

    The credit is 1 for right, 0 for wrong, 1 / t where t names are equally good and the right one is among
    them; None where no answer came, which is a failure and no wrong answer.
    """

    episode: int  # its number
    credit: float | None
    text: str = ""  # a name, or what a language model wrote
    detail: str = ""  # why there is no answer, or what else is worth keeping

    @property
    def is_cut_off(self) -> bool:
        """Whether it was cut off before its end, or is empty."""
        empty = self.credit == 0 and not self.text.strip()
        return empty or self.detail.startswith((NOT_ENDED, NO_TEXT))

    @property
    def does_not_fit(self) -> bool:
        """Whether there is none because the episode is longer than what the language model reads."""
        return self.credit is None and self.detail.startswith(DOES_NOT_FIT)


def failed(episode: Episode, detail: str) -> Answer:
    """Return the answer that did not come."""
    return Answer(episode=episode.number, credit=None, detail=detail or "no answer")


def fair_credit(episode: Episode, values: Sequence[float], *, tolerance: float) -> Answer:
    """Return the answer of whoever gives each name of an episode a value and takes the largest.

    Names whose values differ from the largest by no more than `tolerance` (what rounding can make of equal
    values) share the credit: who sees no difference scores exactly 1 / ways, where the first of the largest
    would score what the order of the names makes of it.
    """
    best = max(values)
    chosen = [name for name, value in enumerate(values) if value >= best - tolerance]
    credit = 1 / len(chosen) if episode.answer in chosen else 0.0
    text = " | ".join(episode.names[name] for name in chosen)
    return Answer(episode=episode.number, credit=credit, text=text)


def is_exactly(text: str, name: str) -> bool:
    """Return whether a text is a name, blanks around it and one period behind it left out of account."""
    return text.strip() in (name, f"{name}.")


def _judge(episode: Episode, reply: Reply, is_right: Callable[[str, str], bool]) -> Answer:
    """Return the answer that a text is: right where it ends and is the name."""
    ended = reply.finish == "stop"
    right = ended and is_right(reply.text, episode.names[episode.answer])
    detail = "" if ended else NOT_ENDED
    return Answer(episode=episode.number, credit=float(right), text=reply.text, detail=detail)


def _strict(episode: Episode, reply: Reply, stops: Sequence[str]) -> Answer:
    text = reply.text.lstrip("\n")
    cut = cut_at(text, stops)  # where its writer was given none
    ended = reply if cut == text else replace(reply, text=cut, finish="stop")
    return _judge(episode, ended, is_exactly)


def _chosen(episode: Episode, reply: Reply, stops: Sequence[str]) -> Answer:
    return _judge(episode, reply, lambda text, name: text.strip() == name.strip())


def _beginning(episode: Episode, reply: Reply, stops: Sequence[str]) -> Answer:
    """Judge by how a text begins, as V2L's code does, whatever its end."""
    ended = replace(reply, finish="stop")
    return _judge(episode, ended, lambda text, name: text.removeprefix(" ").startswith(name))


def _likeliest(episode: Episode, reply: Reply, stops: Sequence[str]) -> Answer:
    values = reply.log_probabilities
    if not values or any(math.isnan(value) for value in values):
        return failed(episode, f"log-likelihoods {list(values)}" if values else "")
    return fair_credit(episode, values, tolerance=_TIE)


def _likeliest_per_token(episode: Episode, reply: Reply, stops: Sequence[str]) -> Answer:
    counted = zip(reply.log_probabilities, reply.num_tokens, strict=True)
    values = tuple(value / max(count, 1) for value, count in counted)
    return _likeliest(episode, replace(reply, log_probabilities=values), stops)


class Scoring(NamedTuple):
    """A scorer: what a language model must be able to do, what becomes of its reply, and the rule in words.

    It asks once for each order of the support and each text in place of the query's words; None leaves these.
    """

    ability: Ability
    judge: Callable[[Episode, Reply, Sequence[str]], Answer]
    rule: str
    orders: int = 1
    queries: tuple[str | None, ...] = (None,)

    @property
    def num_prompts(self) -> int:
        """Prompts of an episode."""
        return self.orders * len(self.queries)


SCORERS: dict[Scorer, Scoring] = {
    "strict": Scoring("generate", _strict, "the greedy answer is exactly the name, then it ends"),
    "likelihood": Scoring(
        "score",
        _likeliest,
        "the name with the highest log-likelihood among the episode's, summed over tokens",
    ),
    "likelihood-per-token": Scoring(
        "score", _likeliest_per_token, "the same, divided by the number of the name's tokens"
    ),
    "constrained": Scoring("choose", _chosen, "greedy, nothing but the episode's names allowed"),
    "v2l": Scoring(
        "mix",
        _beginning,
        "as V2L's code: with induction greedy among the tokens that any name has at that place, without it free; "
        "right if the text begins with the name",
    ),
    "calibrated": Scoring(
        "score",
        _likeliest,
        "the name whose likelihood among the episode's names is highest over its mean likelihood with "
        "content-free words (N/A, [MASK], none) in place of the query's",
        queries=(None, *CONTENT_FREE),
    ),
    "calibrated-orders": Scoring(
        "score",
        _likeliest,
        f"the same, averaged over {NUM_ORDERS} orders of the labeled images",
        orders=NUM_ORDERS,
        queries=(None, *CONTENT_FREE),
    ),
}


def judge(scorer: Scorer, episode: Episode, reply: Reply, stops: Sequence[str] = ()) -> Answer:
    """Return the answer that a reply is; a failure, and no wrong answer, where nothing came."""
    return (
        failed(episode, reply.reason)
        if reply.finish == "failed"
        else SCORERS[scorer].judge(episode, reply, stops)
    )
