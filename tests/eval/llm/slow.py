"""What a causal language model says, worked out the slow and plain way: one text at a time, no cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class SlowModel:
    """The reference of the local client, and what answers behind the endpoint of the tests."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.end: int = self.tokenizer.eos_token_id
        self.written = lru_cache(None)(self.generate)  # over all tests
        self.tokens = lru_cache(None)(self.tokens)  # type: ignore[method-assign]

    @torch.inference_mode()
    def _logits(self, ids: Sequence[int]) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=torch.tensor([list(ids)])).logits[0].float()
        return logits

    def count(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])

    def generate(self, prompt: str, limit: int, stop: Sequence[str]) -> tuple[str, str, int]:
        """Return the text, why it ended, and the number of new tokens."""
        ids = list(self.tokenizer(prompt)["input_ids"])
        before, num_before, text = len(self._text(ids)), len(ids), ""
        while len(ids) - num_before < limit:
            token = int(self._logits(ids)[-1].argmax())
            if token == self.end:
                return text, "stop", len(ids) - num_before
            ids.append(token)
            text = self._text(ids)[before:]
            places = [text.index(mark) for mark in stop if mark in text]
            if places:
                return text[: min(places)], "stop", len(ids) - num_before
        return text, "length", limit

    def tokens(self, text: str) -> list[tuple[str, int, int, float | None]]:
        """Return text, start, end and log-probability of each token; the first has none."""
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        scores = self._logits(ids).double().log_softmax(-1)
        rows: list[tuple[str, int, int, float | None]] = []
        for place, (token, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
            score = float(scores[place - 1, token]) if place else None
            # a token that is not part of the text is shown by its name
            shown = text[start:end] or self.tokenizer.convert_ids_to_tokens(token)
            rows.append((shown, start, end, score))
        return rows

    def score(self, prompt: str, candidate: str) -> tuple[float, int]:
        """Return the log-probability of a candidate's tokens, and their number."""
        own = [score for _, _, end, score in self.tokens(prompt + candidate) if end > len(prompt)]
        return sum(score for score in own if score is not None), len(own)

    def choose(self, prompt: str, candidates: Sequence[str]) -> str:
        """Return the candidate that greedy writing among the candidates' tokens ends at."""
        texts = {candidate: self.tokenizer(prompt + candidate)["input_ids"] for candidate in candidates}
        written: list[int] = []
        while True:
            left = {name: ids for name, ids in texts.items() if ids[: len(written)] == written}
            ended = [name for name, ids in left.items() if len(ids) == len(written)]
            following = sorted({ids[len(written)] for ids in left.values() if len(ids) > len(written)})
            if not following:
                return ended[0]
            if len(following) == 1 and not ended:
                written.append(following[0])
                continue
            logits = self._logits(written)[-1]
            best = max([*following, *([self.end] if ended else [])], key=lambda token: float(logits[token]))
            if best == self.end and ended:
                return ended[0]
            written.append(best)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
