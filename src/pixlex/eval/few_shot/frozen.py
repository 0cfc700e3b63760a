"""Frozen as an answerer: images stand in the prompt as embeddings, between words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.answers import NOT_ENDED, Answer, fair_credit
from pixlex.eval.few_shot.episodes import Episode, Setting, images_of
from pixlex.eval.few_shot.fingerprints import digest
from pixlex.eval.few_shot.prompted import is_exactly
from pixlex.eval.few_shot.prompts import Template, pieces, render
from pixlex.eval.few_shot.readers import read_pixels
from pixlex.eval.llm.client import DOES_NOT_FIT
from pixlex.messages import quoted
from pixlex.models.frozen import Frozen
from pixlex.models.inference import Precision, compute_rows, computing
from pixlex.models.pretrained import fingerprint

# Tokens beyond the longest name that an answer may take: a period, an end, a line.
_SPARE_TOKENS = 4
# Log-likelihoods nearer than this, in nats, are equal: sums of the same numbers in another order.
_TIE = 1e-6


class FrozenAnswerer:
    """Prompts Frozen with images and words in turn (Tsimpoukelli et al. 2021, section 4.3).

    The text is that of the prompted rows' template; where those have an image's words, here are its embeddings.
    `strict`: the greedy answer up to a stop, a line or a period, is exactly the name. `likelihood`: the name with
    the highest log-likelihood among the episode's; equally likely ones share the credit, chance is 1 / ways.

    Args:
        model: vision encoder and language model; is put into evaluation mode on `device`.
        name: what to call it.
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
        """Say why a prompt and its answer are longer than what the language model reads, or nothing."""
        context = self.model.language.max_words
        if context is None or not episodes:
            return ""
        longest = max(self._length(setting, episode) + self._room(episode) for episode in episodes)
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
        prefixes = self._prefixes(images, images_of(list(episodes)))
        for episode in episodes:
            if not all(image in prefixes for image in episode.images):
                yield Answer(episode=episode.number, credit=None, detail="an image cannot be read")
                continue
            with computing(self.device, self.precision):
                prompt = self._embedded(setting, episode, prefixes)
                yield (
                    self._ranked(episode, prompt)
                    if self.scorer == "likelihood"
                    else self._written(setting, episode, prompt)
                )

    def _prefixes(self, images: ImageSource, indices: Sequence[int]) -> dict[int, Float[Tensor, "prefix D"]]:
        """Return the embeddings of each image that can be read."""
        prefixes: dict[int, Tensor] = {}
        config = self.model.config
        for positions, pixels in read_pixels(images, indices, config.image_size, self.name, config.cut):
            rows = compute_rows(
                pixels, self.model.prefix, grid=self.model.grid, device=self.device, precision=self.precision
            )
            prefixes.update(zip(positions, rows.float(), strict=True))
        return prefixes

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
        size = self.model.config.num_prefix_tokens
        segments = self._segments(setting, episode)
        return len(self.model.language.start_ids) + sum(
            size if isinstance(one, int) else len(one) for one in segments
        )

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
            prefixes[one].to(self.device)
            if isinstance(one, int)
            else self.model.language.embed(torch.tensor(one, device=self.device))
            for one in self._segments(setting, episode)
            if one != []
        ]
        return self.model.prompt(torch.cat(parts).unsqueeze(0))

    def _ranked(self, episode: Episode, prompt: Float[Tensor, "1 prompt D"]) -> Answer:
        """Answer with the likeliest name."""
        rows = self._candidates(episode)
        longest = max(len(row) for row in rows)
        word_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        padding = torch.arange(longest) >= torch.tensor([len(row) for row in rows]).unsqueeze(1)
        padding = padding.to(self.device)
        scores = self.model.score(prompt.expand(len(rows), -1, -1), word_ids, padding)
        return fair_credit(episode, scores.tolist(), tolerance=_TIE)

    def _written(self, setting: Setting, episode: Episode, prompt: Float[Tensor, "1 prompt D"]) -> Answer:
        """Answer with what is written greedily."""
        language = self.model.language
        (row,) = language.write(prompt, self._room(episode))
        ended = row[-1] == language.end_id
        text: str = language.tokenizer.decode(row[:-1] if ended else row, clean_up_tokenization_spaces=False)
        stops = render(self.template, setting, episode, lambda image: "").stops
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
        text, ended = text[: min(places, default=len(text))], ended or bool(places)
        return Answer(
            episode=episode.number,
            credit=float(ended and is_exactly(text, episode.names[episode.answer])),
            text=text,
            detail="" if ended else NOT_ENDED,
        )
