"""A language model that reads images as words and answers by continuing a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.answers import NOT_ENDED, Answer, fair_credit
from pixlex.eval.few_shot.episodes import Episode, Setting, images_of
from pixlex.eval.few_shot.fingerprints import digest
from pixlex.eval.few_shot.prompts import Prompt, Template, check_context, render
from pixlex.eval.few_shot.readers import TextReader
from pixlex.eval.llm.client import Ability, CandidateScores, Completion, LanguageClient, cut_at
from pixlex.eval.llm.ledger import Estimate
from pixlex.messages import quoted

Scorer = Literal["strict", "likelihood", "likelihood-per-token", "constrained", "v2l"]

SCORERS: dict[Scorer, tuple[Ability, str]] = {
    "strict": ("generate", "the greedy answer is exactly the name, then it ends"),
    "likelihood": (
        "score",
        "the name with the highest log-likelihood among the episode's, summed over tokens",
    ),
    "likelihood-per-token": ("score", "the same, divided by the number of the name's tokens"),
    "constrained": ("choose", "greedy, nothing but the episode's names allowed"),
    "v2l": (
        "mix",
        "as V2L's code: with induction greedy among the tokens that any name has at that place, without it free; "
        "right if the text begins with the name",
    ),
}

# Tokens beyond the longest name that a strict answer may take: a period, an end, a line.
_SPARE_TOKENS = 4
# What V2L lets be written.
_V2L_TOKENS = 16
# Log-likelihoods nearer than this, in nats, are equal: sums of the same numbers in another order.
_TIE = 1e-6


class PromptedAnswerer:
    """Answers by prompting a language model with the words of images.

    Scorers (`SCORERS`): `strict` is the paper's, open-ended: blanks around the answer and one period behind
    it do not count, upper and lower case do, and an answer that does not end is wrong. The others choose
    among the episode's names, so chance is 1 / ways with them, and about zero with `strict`. Equally likely
    names share the credit.

    Args:
        reader: turns images into text; wrap it in `Shortened` for a token budget, in `CachedReader` to read
            each image once.
        client: the language model.
        template: the form of the prompt.
        scorer: how an answer is judged.
        answer_tokens: room of a `strict` answer, 1 or more; None for the longest name and a little more. A model
            that thinks before it answers needs more; no stop ends its thoughts then, the answer is cut afterwards.

    Raises:
        ValueError: an unknown scorer or template, or a client that cannot do what the scorer needs.
    """

    def __init__(
        self,
        reader: TextReader,
        client: LanguageClient,
        *,
        template: Template,
        scorer: Scorer,
        answer_tokens: int | None = None,
    ) -> None:
        if scorer not in SCORERS:
            raise ValueError(f"expected a scorer of {', '.join(SCORERS)}, got {quoted(scorer)}")
        needed = SCORERS[scorer][0]
        if needed not in client.abilities:
            possible = [name for name, (ability, _) in SCORERS.items() if ability in client.abilities]
            raise ValueError(
                f"scorer {quoted(scorer)} needs a language model that can {needed}, but {client.name} can "
                f"{', '.join(sorted(client.abilities)) or 'nothing'}: "
                f"choose {' or '.join(possible) or 'another language model'}"
            )
        self.reader, self.client, self.template, self._scorer = reader, client, template, scorer
        self._room = answer_tokens if scorer == "strict" else None
        self.name = f"{reader.name}, {client.name}, {template} prompt"
        self.scorer: str = scorer
        room = () if self._room is None else (f"{self._room} tokens",)
        self.identity = digest("prompted", reader.identity, client.identity, template, scorer, *room)

    def check(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> str:
        """Say why a prompt does not fit the language model, or nothing; nothing is sent."""
        _, prompts = self._prompts(setting, episodes, images)
        return check_context(prompts, self._answer_tokens(prompts), self.client, setting)

    def estimate(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> list[Estimate]:
        """Return what an answer to the episodes takes at most; nothing where the client costs nothing."""
        _, prompts = self._prompts(setting, episodes, images)
        if check_context(prompts, self._answer_tokens(prompts), self.client, setting):
            return []  # none of them is asked
        estimates = [
            self.client.estimate(
                SCORERS[self._scorer][0],
                [one.text for one in prompts if one.stops == stops],
                candidates=[one.candidates for one in prompts if one.stops == stops],
                max_new_tokens=self._answer_tokens(prompts),
                stop=self._stops_of(stops),
            )
            for stops in dict.fromkeys(prompt.stops for prompt in prompts)
        ]
        return [one for one in estimates if one is not None]

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield an answer for each episode, as the language model gives them."""
        asked, prompts = self._prompts(setting, episodes, images)
        readable = {episode.number for episode in asked}
        for episode in episodes:
            if episode.number not in readable:
                yield Answer(episode=episode.number, credit=None, detail="an image cannot be read")
        if not prompts:
            return
        texts, candidates = [one.text for one in prompts], [one.candidates for one in prompts]
        if self._scorer == "strict":
            yield from self._generated(asked, prompts)
        elif self._scorer == "v2l":
            yield from self._begun(setting, asked, texts, candidates)
        elif self._scorer == "constrained":
            for place, completion in self.client.choose(texts, candidates):
                yield _judged(asked[place], completion, lambda text, name: text.strip() == name.strip())
        else:
            for place, scores in self.client.score(texts, candidates):
                yield _ranked(asked[place], scores, per_token=self._scorer == "likelihood-per-token")

    def _generated(self, episodes: Sequence[Episode], prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """Let the client continue the prompts, those with the same stops together."""
        limit = self._answer_tokens(prompts)
        for stops in dict.fromkeys(prompt.stops for prompt in prompts):
            places = [place for place, prompt in enumerate(prompts) if prompt.stops == stops]
            texts = [prompts[place].text for place in places]
            sent = self._stops_of(stops)
            for place, completion in self.client.generate(texts, max_new_tokens=limit, stop=sent):
                yield _judged(episodes[places[place]], _ended(completion, stops), is_exactly)

    def _begun(
        self,
        setting: Setting,
        episodes: Sequence[Episode],
        texts: Sequence[str],
        candidates: Sequence[Sequence[str]],
    ) -> Iterator[Answer]:
        """Judge by how a text begins, as V2L's code does, whatever its end."""
        written = (
            self.client.choose(texts, candidates, mix=True)
            if setting.induction
            else self.client.generate(texts, max_new_tokens=_V2L_TOKENS, stop=())
        )
        for place, completion in written:
            ended = completion if completion.finish == "failed" else replace(completion, finish="stop")
            yield _judged(episodes[place], ended, lambda text, name: text.removeprefix(" ").startswith(name))

    def _stops_of(self, stops: tuple[str, ...]) -> tuple[str, ...]:
        return stops if self._room is None else ()

    def _prompts(
        self, setting: Setting, episodes: Sequence[Episode], images: ImageSource
    ) -> tuple[list[Episode], list[Prompt]]:
        """Return the episodes whose images can be read, and their prompts.

        The longest prompts first: where nobody knows what fits, the first refusal ends the cell.
        """
        texts = self.reader.read(images, images_of(episodes))
        readable = [episode for episode in episodes if all(image in texts for image in episode.images)]
        asked = [(one, render(self.template, setting, one, texts.__getitem__)) for one in readable]
        asked.sort(key=lambda one: -len(one[1].text))
        return [episode for episode, _ in asked], [prompt for _, prompt in asked]

    def _answer_tokens(self, prompts: Sequence[Prompt]) -> int:
        """Return the room that the longest name needs and a little more, or the one that was asked for."""
        if self._room is not None:
            return self._room
        names = sorted({name for prompt in prompts for name in prompt.candidates})
        return max(self.client.count_tokens(names), default=0) + _SPARE_TOKENS


def is_exactly(text: str, name: str) -> bool:
    """Tell whether a text is a name, blanks around it and one period behind it left out of account."""
    return text.strip() in (name, f"{name}.")


def _ended(completion: Completion, stops: Sequence[str]) -> Completion:
    """End an answer at the first stop, where its writer was told of none."""
    text = completion.text.lstrip("\n")
    cut = cut_at(text, stops)
    return completion if cut == text else replace(completion, text=cut, finish="stop")


def _judged(episode: Episode, completion: Completion, is_right: Callable[[str, str], bool]) -> Answer:
    if completion.finish == "failed":
        return Answer(episode=episode.number, credit=None, detail=completion.reason or "no answer")
    right = completion.finish == "stop" and is_right(completion.text, episode.names[episode.answer])
    return Answer(
        episode=episode.number,
        credit=float(right),
        text=completion.text,
        detail="" if completion.finish == "stop" else NOT_ENDED,
    )


def _ranked(episode: Episode, scores: CandidateScores, *, per_token: bool) -> Answer:
    if not scores.log_probabilities:
        return Answer(episode=episode.number, credit=None, detail=scores.reason or "no answer")
    values = list(scores.log_probabilities)
    if per_token:
        values = [value / max(count, 1) for value, count in zip(values, scores.num_tokens, strict=True)]
    if any(math.isnan(value) for value in values):
        return Answer(episode=episode.number, credit=None, detail=f"log-likelihoods {values}")
    return fair_credit(episode, values, tolerance=_TIE)
