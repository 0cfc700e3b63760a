"""Labeled pictures, readers and language models that are made up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.prompts import PAPER_COLUMNS, Naming, Setting, setting_of
from pixlex.eval.llm.client import Ability, LanguageClient, Prompt, Reply

CLASSES = ("camel", "lobster", "pig", "red panda", "teapot", "zebra")


def labeled(folder: Path, per_class: int = 8, classes: Sequence[str] = CLASSES, seed: int = 0) -> ImageSource:
    """Write a folder for each class, its pictures noise around a color of its own."""
    generator = np.random.default_rng(seed)
    for name in classes:
        color = generator.integers(40, 216, 3)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = (color + generator.integers(-30, 30, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return open_source(str(folder))


@dataclass
class FakeReader:
    """Reads an image as its class's name and its number, backwards or as one text for all; counts readings."""

    constant: bool = False
    unreadable: frozenset[int] = frozenset()
    name: str = "fake words"
    identity: str = "fake"
    asked: list[int] = field(default_factory=list)

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        self.asked += indices
        return {index: self._text(images, index) for index in indices if index not in self.unreadable}

    def _text(self, images: ImageSource, index: int) -> str:
        if self.constant:
            return "same words everywhere"
        return f"{images.key(index).split('/')[0].replace(' ', '')[::-1]} number{index}"


SHOWN = re.compile(r"(\w+) number\d+\nThis is a (.+)\.\n")
ASKED = re.compile(r"(\w+) number\d+\nQ: What is this\?\nA: This is a$")


def right_answer(prompt: str) -> str:
    """Answer a prompt of the template `frozen` over texts of `FakeReader` as one who learns from it.

    Where none of them is asked about, there is no answer.
    """
    names = dict(SHOWN.findall(prompt))
    return "".join(f" {names[asked]}" for asked in ASKED.findall(prompt))


@dataclass
class FakeClient(LanguageClient):
    """A language model that knows the answer, {} in what it is told to say; keeps what it was asked."""

    abilities: frozenset[Ability] = frozenset(("generate", "score", "choose", "mix"))
    context_size: int | None = None
    counts_exactly: bool = True
    says: str | None = None
    finish: Literal["stop", "length"] = "stop"
    indifferent: bool = False
    fails: frozenset[int] = frozenset()
    name: str = "fake model"
    identity: str = "fake model"
    sent: list[str] = field(default_factory=list)
    asked: list[tuple[Ability, int, tuple[str, ...]]] = field(default_factory=list)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def ask(self, ability: Ability, prompts: Sequence[Prompt], limit: int = 1) -> Iterator[tuple[int, Reply]]:
        for place in reversed(range(len(prompts))):  # in any order
            prompt = prompts[place]
            self.sent.append(prompt.text)
            self.asked.append((ability, limit, prompt.stops))
            if place in self.fails:
                yield place, Reply.failed("cut connection")
                continue
            right = right_answer(prompt.text) if "{}" in (self.says or "{}") else ""
            values = tuple(
                -1.0 if name == right and not self.indifferent else -3.0 for name in prompt.candidates
            )
            if ability == "score":
                yield place, Reply(log_probabilities=values, num_tokens=(1,) * len(values))
            else:
                text = (self.says or "{}").replace("{}", right)
                yield place, Reply(text=text, finish=self.finish)


TWO_WAY = Setting(ways=2, shots=1)


def paper_settings(ways: int, naming: Naming = "real") -> tuple[Setting, ...]:
    """The paper's seven settings for a number of ways (LQAE, Tables 1 and 2)."""
    return tuple(setting_of(column, ways, naming) for column in PAPER_COLUMNS)
