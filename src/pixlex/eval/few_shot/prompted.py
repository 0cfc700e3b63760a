"""Language models that answer by continuing a prompt: of an image's words, or of its embeddings (Frozen)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.classifiers import NOT_ENDED, UNREADABLE, Answer, Classifier, fair_credit
from pixlex.eval.few_shot.episodes import Episode, Setting, digest, images_of
from pixlex.eval.few_shot.prompts import Prompt, Template, check_context, pieces, render, stops_of
from pixlex.eval.few_shot.readers import TextReader, compute_images
from pixlex.eval.llm.client import (
    DOES_NOT_FIT,
    Ability,
    CandidateScores,
    Completion,
    LanguageClient,
    cut_at,
)
from pixlex.eval.llm.ledger import Estimate
from pixlex.messages import quoted
from pixlex.models.checkpoint import fingerprint
from pixlex.models.frozen import Frozen
from pixlex.models.inference import Precision, computing

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


class PromptedClassifier(Classifier):
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
            that reasons first needs more; no stop ends its reasoning then, the answer is cut afterwards.

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
        self.reader, self.client, self.template = reader, client, template
        self.scorer: Scorer = scorer
        self._room = answer_tokens if scorer == "strict" else None
        self.name = f"{reader.name}, {client.name}, {template} prompt"
        room = () if self._room is None else (f"{self._room} tokens",)
        self.identity = digest("prompted", reader.identity, client.identity, template, scorer, *room)

    def check(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> str:
        """Return why a prompt does not fit the language model, or an empty text; nothing is sent."""
        return self._check(setting, self._prompts(setting, episodes, images)[1])

    def estimate(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> list[Estimate]:
        """Return what an answer to the episodes takes at most; nothing where the client costs nothing."""
        _, prompts = self._prompts(setting, episodes, images)
        if self._check(setting, prompts):
            return []  # none of them is asked
        found = []
        for stops, places in _by_stops(prompts):
            found.append(
                self.client.estimate(
                    SCORERS[self.scorer][0],
                    [prompts[place].text for place in places],
                    candidates=[prompts[place].candidates for place in places],
                    max_new_tokens=self._answer_tokens(prompts),
                    stop=self._stops_to_send(stops),
                )
            )
        return [one for one in found if one is not None]

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield an answer for each episode, as the language model gives them."""
        asked, prompts = self._prompts(setting, episodes, images)
        readable = {episode.number for episode in asked}
        for episode in episodes:
            if episode.number not in readable:
                yield Answer(episode=episode.number, credit=None, detail=UNREADABLE)
        if not prompts:
            return
        texts, candidates = [one.text for one in prompts], [one.candidates for one in prompts]
        if self.scorer == "strict":
            limit = self._answer_tokens(prompts)
            for stops, places in _by_stops(prompts):
                rows, sent = [texts[place] for place in places], self._stops_to_send(stops)
                for row, completion in self.client.generate(rows, max_new_tokens=limit, stop=sent):
                    yield judge(asked[places[row]], _end_at(completion, stops))
        elif self.scorer == "v2l":
            # By how a text begins, as V2L's code judges, whatever its end.
            written = (
                self.client.choose(texts, candidates, mix=True)
                if setting.induction
                else self.client.generate(texts, max_new_tokens=_V2L_TOKENS, stop=())
            )
            for place, completion in written:
                full = completion if completion.finish == "failed" else replace(completion, finish="stop")
                yield judge(asked[place], full, lambda text, name: text.removeprefix(" ").startswith(name))
        elif self.scorer == "constrained":
            for place, completion in self.client.choose(texts, candidates):
                yield judge(asked[place], completion, lambda text, name: text.strip() == name.strip())
        else:
            for place, scores in self.client.score(texts, candidates):
                yield rank(asked[place], scores, per_token=self.scorer == "likelihood-per-token")

    def _check(self, setting: Setting, prompts: Sequence[Prompt]) -> str:
        return check_context(prompts, self._answer_tokens(prompts), self.client, setting)

    def _stops_to_send(self, stops: tuple[str, ...]) -> tuple[str, ...]:
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


class FrozenClassifier(Classifier):
    """Prompts Frozen with images and words in turn (Tsimpoukelli et al. 2021, section 4.3).

    The text is that of the prompted rows' template; where those have an image's words, here are its embeddings.
    `strict`: the greedy answer up to a stop, a line or a period, is exactly the name. `likelihood`: the name with
    the highest log-likelihood among the episode's; equally likely ones share the credit, chance is 1 / ways.

    Args:
        model: vision encoder and language model; is put into evaluation mode on `device`.
        name: its name in tables.
        scorer: how an answer is judged.
        template: the form of the prompt.
        device: where to compute.
        precision: bf16 computes under autocast.

    Raises:
        ValueError: an unknown scorer.
    """

    def __init__(
        self,
        model: Frozen,
        *,
        name: str = "Frozen",
        scorer: Literal["strict", "likelihood"],
        template: Template = "frozen",
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        if scorer not in ("strict", "likelihood"):
            raise ValueError(f"expected a scorer of strict, likelihood, got {quoted(scorer)}")
        self.device, self.precision, self.template = torch.device(device), precision, template
        self.model = model.eval().to(self.device)
        self.name = f"{name}, {model.language.name.rstrip('/').rpartition('/')[2]}, {template} prompt"
        self.scorer: str = scorer
        self.identity = digest("frozen", fingerprint(model, precision=precision), scorer, template)

    def check(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> str:
        """Return why a prompt and its answer are longer than what the language model reads, or an empty text."""
        context = self.model.language.max_words
        if context is None or not episodes:
            return ""
        longest = max(self._length(setting, episode) for episode in episodes)
        if longest <= context:
            return ""
        return (
            f"{DOES_NOT_FIT}: {setting.label}: the longest prompt with its answer has {longest:,} tokens, but "
            f"{self.model.language.name} reads {context:,}: leave this setting out (fewer ways, shots or "
            "repeats), or train with a language model of a longer context"
        )

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield an answer for each episode."""
        if reason := self.check(setting, episodes, images):
            yield from (Answer(episode=one.number, credit=None, detail=reason) for one in episodes)
            return
        prefixes = compute_images(
            images, images_of(episodes), self.model, self.model.prefix, self.name, self.precision
        )
        for episode in episodes:
            if not all(image in prefixes for image in episode.images):
                yield Answer(episode=episode.number, credit=None, detail=UNREADABLE)
                continue
            with computing(self.device, self.precision):
                prompt = self._embedded(setting, episode, prefixes)
                if self.scorer == "likelihood":
                    yield rank(episode, self._scores(episode, prompt))
                else:
                    yield judge(episode, self._written(episode, prompt))

    def _segments(self, setting: Setting, episode: Episode) -> list[list[int] | int]:
        """Return a prompt in order: words of texts, and the positions of images."""
        found: list[list[int] | int] = []
        for is_text, group in itertools.groupby(
            pieces(self.template, setting, episode), lambda piece: isinstance(piece, str)
        ):
            if is_text:
                found.append(self.model.language.word_ids("".join(str(piece) for piece in group)))
            else:
                found += [int(piece) for piece in group]
        return found

    def _length(self, setting: Setting, episode: Episode) -> int:
        """Return the tokens of a prompt with its answer."""
        size = self.model.config.num_prefix_tokens
        segments = self._segments(setting, episode)
        prompt = sum(size if isinstance(one, int) else len(one) for one in segments)
        return len(self.model.language.start_ids) + prompt + self._room(episode)

    def _room(self, episode: Episode) -> int:
        """Return the tokens that an answer may take."""
        return max(len(row) for row in self._candidates(episode)) + _SPARE_TOKENS

    def _candidates(self, episode: Episode) -> list[list[int]]:
        """Return the words of each name behind a blank."""
        return [self.model.language.word_ids(f" {name}") for name in episode.names]

    def _embedded(
        self, setting: Setting, episode: Episode, prefixes: Mapping[int, Tensor]
    ) -> Float[Tensor, "1 prompt D"]:
        """Return a prompt as embeddings."""
        parts = [
            prefixes[one].float().to(self.device)
            if isinstance(one, int)
            else self.model.language.embed(torch.tensor(one, device=self.device))
            for one in self._segments(setting, episode)
            if one != []
        ]
        return self.model.prompt(torch.cat(parts).unsqueeze(0))

    def _scores(self, episode: Episode, prompt: Float[Tensor, "1 prompt D"]) -> CandidateScores:
        rows = self._candidates(episode)
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        word_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        padding = (torch.arange(longest) >= lengths.unsqueeze(1)).to(self.device)
        scores = self.model.score(prompt.expand(len(rows), -1, -1), word_ids, padding)
        return CandidateScores(log_probabilities=tuple(scores.tolist()), num_tokens=tuple(lengths.tolist()))

    def _written(self, episode: Episode, prompt: Float[Tensor, "1 prompt D"]) -> Completion:
        language = self.model.language
        (row,) = language.write(prompt, self._room(episode))
        ended = row[-1] == language.end_id
        full: str = language.tokenizer.decode(row[:-1] if ended else row, clean_up_tokenization_spaces=False)
        text = cut_at(full, stops_of(self.template, episode))
        return Completion(text=text, finish="stop" if ended or text != full else "length")


def is_exactly(text: str, name: str) -> bool:
    """Return whether a text is a name, blanks around it and one period behind it left out of account."""
    return text.strip() in (name, f"{name}.")


def judge(
    episode: Episode, completion: Completion, is_right: Callable[[str, str], bool] = is_exactly
) -> Answer:
    """Return the answer that a text is: right where it ends and is the name, a failure where nothing came."""
    if completion.finish == "failed":
        return Answer(episode=episode.number, credit=None, detail=completion.reason or "no answer")
    ended = completion.finish == "stop"
    right = ended and is_right(completion.text, episode.names[episode.answer])
    return Answer(
        episode=episode.number,
        credit=float(right),
        text=completion.text,
        detail="" if ended else NOT_ENDED,
    )


def rank(episode: Episode, scores: CandidateScores, *, per_token: bool = False) -> Answer:
    """Return the likeliest of an episode's names."""
    values = list(scores.log_probabilities)
    if not values:
        return Answer(episode=episode.number, credit=None, detail=scores.reason or "no answer")
    if per_token:
        values = [value / max(count, 1) for value, count in zip(values, scores.num_tokens, strict=True)]
    if any(math.isnan(value) for value in values):
        return Answer(episode=episode.number, credit=None, detail=f"log-likelihoods {values}")
    return fair_credit(episode, values, tolerance=_TIE)


def _by_stops(prompts: Sequence[Prompt]) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """Yield the places of prompts whose answers end at the same stops."""
    for stops in dict.fromkeys(prompt.stops for prompt in prompts):
        yield stops, [place for place, prompt in enumerate(prompts) if prompt.stops == stops]


def _end_at(completion: Completion, stops: Sequence[str]) -> Completion:
    """End an answer at the first stop, where its writer was given none."""
    text = completion.text.lstrip("\n")
    cut = cut_at(text, stops)
    return completion if cut == text else replace(completion, text=cut, finish="stop")
