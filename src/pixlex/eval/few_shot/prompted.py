"""Language models that answer by continuing a prompt: of an image's words, or of its embeddings (Frozen)."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import digest
from pixlex.eval.few_shot.prompts import (
    SCORERS,
    UNREADABLE,
    Answer,
    Episode,
    Scorer,
    Setting,
    Template,
    failed,
    images_of,
    judge,
    pieces,
    render,
    stops_of,
)
from pixlex.eval.few_shot.readers import TextReader, compute_images
from pixlex.eval.few_shot.run import Classifier
from pixlex.eval.llm.client import DOES_NOT_FIT, Ability, Estimate, LanguageClient, Prompt, Reply, cut_at
from pixlex.messages import quoted
from pixlex.models import Precision, computing
from pixlex.models.baselines import Frozen
from pixlex.models.checkpoint import fingerprint

# Tokens beyond the longest name that a strict answer may take: a period, an end, a line.
_SPARE_TOKENS = 4
# What V2L lets be written.
_V2L_TOKENS = 16


class PromptedClassifier(Classifier):
    """Answers by prompting a language model with the words of images.

    Scorers (`SCORERS`): `strict` is the paper's, open-ended: blanks around the answer and one period behind
    it do not count, upper and lower case do, and an answer that does not end is wrong. The others choose
    among the episode's names, so chance is 1 / ways with them, and about zero with `strict`. Equally likely
    names share the credit.

    `answer_tokens` is the room of a `strict` answer, 1 or more; None for the longest name and a little more. A
    model that reasons first needs more; no stop ends its reasoning then, the answer is cut afterwards. An unknown
    scorer, or a client that cannot do what it needs, raises `ValueError`.
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
        self._ability = SCORERS[scorer].ability
        if self._ability not in client.abilities:
            possible = [name for name, row in SCORERS.items() if row.ability in client.abilities]
            raise ValueError(
                f"scorer {quoted(scorer)} needs a language model that can {self._ability}, but {client.name} can "
                f"{', '.join(sorted(client.abilities)) or 'nothing'}: "
                f"choose {' or '.join(possible) or 'another language model'}"
            )
        self.reader, self.client, self.template = reader, client, template
        self.scorer: Scorer = scorer
        # What is said of cells, whose prompts are too large to be held until all are checked.
        self._checked: dict[tuple[Setting, tuple[Episode, ...]], str] = {}
        self._room = answer_tokens if scorer == "strict" else None
        self.name = f"{reader.name}, {client.name}, {template} prompt"
        room = () if self._room is None else (f"{self._room} tokens",)
        self.identity = digest("prompted", reader.identity, client.identity, template, scorer, *room)

    def check(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> str:
        """Return why a prompt does not fit the language model, or an empty text; nothing is sent."""
        cell = setting, tuple(episodes)
        if cell not in self._checked:
            self._checked[cell] = self._does_not_fit(setting, self._prompts(setting, episodes, images)[1])
        return self._checked[cell]

    def estimate(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Estimate | None:
        """Return what an answer to the episodes takes at most; None where the client costs nothing."""
        _, prompts = self._prompts(setting, episodes, images)
        self._checked[setting, tuple(episodes)] = reason = self._does_not_fit(setting, prompts)
        if reason:
            return None  # none of them is asked
        return self.client.estimate(*self._request(setting, prompts))

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield an answer for each episode, as the language model gives them."""
        asked, prompts = self._prompts(setting, episodes, images)
        readable = {episode.number for episode in asked}
        yield from (failed(episode, UNREADABLE) for episode in episodes if episode.number not in readable)
        if not prompts:
            return
        size, came = SCORERS[self.scorer].num_prompts, defaultdict[int, dict[int, Reply]](dict)
        for place, reply in self.client.ask(*self._request(setting, prompts)):
            number, part = divmod(place, size)
            came[number][part] = reply
            if len(came[number]) == size:
                replies = came.pop(number)
                reply = combined(self.scorer, [replies[part] for part in range(size)])
                yield judge(self.scorer, asked[number], reply, prompts[place].stops)

    def _request(self, setting: Setting, prompts: Sequence[Prompt]) -> tuple[Ability, list[Prompt], int]:
        """Return what the client is asked: an ability, prompts, a limit of tokens."""
        free = self._ability == "mix" and not setting.induction  # as V2L's code, which knows no names then
        if free or self._room is not None:
            prompts = [replace(prompt, stops=()) for prompt in prompts]
        limit = _V2L_TOKENS if free else self._answer_tokens(prompts)
        return "generate" if free else self._ability, list(prompts), limit

    def _prompts(
        self, setting: Setting, episodes: Sequence[Episode], images: ImageSource
    ) -> tuple[list[Episode], list[Prompt]]:
        """Return the episodes whose images can be read, and the prompts of each, one episode's after another's.

        The longest prompts first: where nobody knows what fits, the first refusal ends the cell.
        """
        texts = self.reader.read(images, images_of(episodes))
        asked = [
            (one, questions(self.scorer, self.template, setting, one, texts.__getitem__))
            for one in episodes
            if all(image in texts for image in one.images)
        ]
        asked.sort(key=lambda one: -len(one[1][0].text))
        return [episode for episode, _ in asked], [prompt for _, row in asked for prompt in row]

    def _answer_tokens(self, prompts: Sequence[Prompt]) -> int:
        """Return the room that the longest name needs and a little more, or the one that was asked for."""
        if self._room is not None:
            return self._room
        names = sorted({name for prompt in prompts for name in prompt.candidates})
        return max(self.client.count_tokens(names), default=0) + _SPARE_TOKENS

    def _does_not_fit(self, setting: Setting, prompts: Sequence[Prompt]) -> str:
        """Return why a prompt with its answer is longer than what the language model reads, or nothing.

        A client that does not know its context, or bounds the number of tokens from above, passes everything:
        its refusal shows what does not fit.
        """
        context, client = self.client.context_size, self.client
        if context is None or not client.counts_exactly or not prompts:
            return ""
        longest = max(client.count_tokens([prompt.text for prompt in prompts]))
        room = self._answer_tokens(prompts)
        if longest + room <= context:
            return ""
        ratio = (context - room) / longest
        some = f"a fraction of the words (about {0.95 * ratio:.2f})" if ratio > 0.05 else "fewer words"
        return (
            f"{DOES_NOT_FIT}: {setting.label}: the longest prompt has {longest:,} tokens and its answer takes "
            f"up to {room}, but {client.name} reads {context:,} together: keep {some}, leave this setting out "
            f"(fewer ways, shots or repeats), or take a language model with a longer context"
        )


def questions(
    scorer: Scorer, template: Template, setting: Setting, episode: Episode, text_of: Callable[[int], str]
) -> list[Prompt]:
    """Return the prompts that a scorer asks of an episode; see `render`."""
    row = SCORERS[scorer]

    def texts(words: str | None) -> Callable[[int], str]:
        return lambda image: text_of(image) if words is None or image != episode.query else words

    return [
        render(template, setting, one, texts(words))
        for one in itertools.islice(_orders(episode), row.orders)
        for words in row.queries
    ]


def combined(scorer: Scorer, replies: Sequence[Reply]) -> Reply:
    """Return what the replies to `questions` say together; one that failed, where one did.

    With p(name) among the names of an episode, and p_c that of content-free words c, a name's value is
    p(name) / mean over c of p_c(name), divided by the sum over names; then the mean over orders (Zhao et al. 2021,
    section 5: W = diag(p_cf)^-1). The paper takes a name's first token, here all of them count.
    """
    failure = next((reply for reply in replies if reply.finish == "failed"), None)
    if failure is not None or len(replies) == 1:
        return failure or replies[0]
    rows = np.array([reply.log_probabilities for reply in replies])
    rows = _among_names(rows).reshape(SCORERS[scorer].orders, -1, rows.shape[-1])
    values = _among_names(rows[:, 0] - np.logaddexp.reduce(rows[:, 1:], axis=1))
    mean = np.logaddexp.reduce(values, axis=0) - math.log(len(values))
    return replace(replies[0], log_probabilities=tuple(mean.tolist()))


def _among_names(values: Float64[np.ndarray, "... names"]) -> Float64[np.ndarray, "... names"]:
    found: Float64[np.ndarray, "... names"] = values - np.logaddexp.reduce(values, axis=-1, keepdims=True)
    return found


def _orders(episode: Episode) -> Iterator[Episode]:
    """Yield an episode, then the same with its support in orders drawn from a hash of what it shows."""
    yield episode
    shown = f"{episode.names} {[tuple(one) for one in episode.support]} {episode.query}"
    generator = np.random.default_rng(list(hashlib.sha256(shown.encode()).digest()))
    while True:
        order = generator.permutation(len(episode.support))
        yield replace(episode, support=tuple(episode.support[place] for place in order))


class FrozenClassifier(Classifier):
    """Prompts Frozen with images and words in turn (Tsimpoukelli et al. 2021, section 4.3).

    The text is that of the prompted rows' template; where those have an image's words, here are its embeddings.
    `strict`: the greedy answer up to a stop, a line or a period, is exactly the name. `likelihood`: the name with
    the highest log-likelihood among the episode's; equally likely ones share the credit, chance is 1 / ways.
    The model is put into evaluation mode on `device`.
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
        self.language = model.language
        self.name = f"{name}, {self.language.name.rstrip('/').rpartition('/')[2]}, {template} prompt"
        self.scorer: Literal["strict", "likelihood"] = scorer
        self.identity = digest("frozen", fingerprint(model, precision=precision), scorer, template)

    def check(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> str:
        """Return why a prompt and its answer are longer than what the language model reads, or an empty text."""
        context = self.language.max_words
        longest = max((self._length(setting, episode) for episode in episodes), default=0)
        if context is None or longest <= context:
            return ""
        return (
            f"{DOES_NOT_FIT}: {setting.label}: the longest prompt with its answer has {longest:,} tokens, but "
            f"{self.language.name} reads {context:,}: leave this setting out (fewer ways, shots or "
            "repeats), or train with a language model of a longer context"
        )

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield an answer for each episode."""
        model, shown = self.model, images_of(episodes)
        prefixes = compute_images(images, shown, model, model.prefix, self.name, self.precision)
        for episode in episodes:
            if not all(image in prefixes for image in episode.images):
                yield failed(episode, UNREADABLE)
                continue
            with computing(self.device, self.precision):
                prompt = self._embedded(setting, episode, prefixes)
                reply = (self._scored if self.scorer == "likelihood" else self._written)(episode, prompt)
            yield judge(self.scorer, episode, reply)

    def _segments(self, setting: Setting, episode: Episode) -> Iterator[list[int] | int]:
        """Yield a prompt in order: words of texts, and the positions of images."""
        parts = pieces(self.template, setting, episode)
        for is_image, group in itertools.groupby(parts, lambda piece: isinstance(piece, int)):
            if is_image:
                yield from map(int, group)
            elif words := self.language.word_ids("".join(map(str, group))):
                yield words

    def _length(self, setting: Setting, episode: Episode) -> int:
        size = self.model.config.num_prefix_tokens
        segments = self._segments(setting, episode)
        prompt = sum(size if isinstance(one, int) else len(one) for one in segments)
        return len(self.language.start_ids) + prompt + self._room(episode)

    def _room(self, episode: Episode) -> int:
        return max(len(row) for row in self._candidates(episode)) + _SPARE_TOKENS

    def _candidates(self, episode: Episode) -> list[list[int]]:
        return [self.language.word_ids(f" {name}") for name in episode.names]

    def _embedded(
        self, setting: Setting, episode: Episode, prefixes: Mapping[int, Tensor]
    ) -> Float[Tensor, "1 prompt D"]:
        parts = [
            prefixes[one].float().to(self.device)
            if isinstance(one, int)
            else self.language.embed(torch.tensor(one, device=self.device))
            for one in self._segments(setting, episode)
        ]
        return self.model.prompt(torch.cat(parts).unsqueeze(0))

    def _scored(self, episode: Episode, prompt: Float[Tensor, "1 prompt D"]) -> Reply:
        rows = self._candidates(episode)
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        word_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        padding = (torch.arange(longest) >= lengths.unsqueeze(1)).to(self.device)
        scores = self.model.score(prompt, word_ids, padding)
        return Reply(log_probabilities=tuple(scores.tolist()), num_tokens=tuple(lengths.tolist()))

    def _written(self, episode: Episode, prompt: Float[Tensor, "1 prompt D"]) -> Reply:
        (row,) = self.language.write(prompt, self._room(episode))
        ended = row[-1] == self.language.end_id
        written = row[:-1] if ended else row
        full: str = self.language.tokenizer.decode(written, clean_up_tokenization_spaces=False)
        text = cut_at(full, stops_of(self.template, episode))
        return Reply(text=text, finish="stop" if ended or text != full else "length")
