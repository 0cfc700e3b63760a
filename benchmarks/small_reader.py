"""What a language model can read in context: made-up pictures whose words a class shares, and noise.

Each picture of a class has words drawn from a handful that belong to its class alone, and a fraction of random
ones, in random order; names and words are one token each for the reader. Five shots, template `line`, bare.
Beside the scorers of the reader stands the nearest class mean of word counts, which sees that words are equal.

    OMP_NUM_THREADS=1 python benchmarks/small_reader.py --llm DIRECTORY [--episodes 60] [--scorer calibrated ...]

Without --llm nobody reads but the word counts.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.few_shot.classifiers import bag_of_words, nearest_class_mean
from pixlex.eval.few_shot.prompted import PromptedClassifier
from pixlex.eval.few_shot.prompts import Episode, Setting, Shown
from pixlex.eval.llm import LLMOptions, connect
from pixlex.nn.language_model import load_language_words
from pixlex.nn.vocabulary import build_vocabulary

# Ways, words a picture, fraction that is noise, words of a class.
ROWS = ((2, 4, 0.0, 1), (2, 16, 0.0, 4), (2, 16, 0.5, 8), (5, 4, 0.0, 1), (5, 8, 0.5, 4))
SHOTS = 5
NAMES = (
    "bird", "boat", "book", "car", "cat", "chair", "clock", "dog", "door", "fish", "flower", "fruit", "hand",
    "horse", "house", "phone", "plane", "ship", "train", "tree",
)  # fmt: skip


@dataclass
class MadeUp:
    """Words of pictures, by position: the source and its reader in one."""

    texts: dict[int, str]
    name: str = "made-up words"
    class_names: tuple[str, ...] = ()
    identity: str = "made-up"

    def __len__(self) -> int:
        return len(self.texts)

    def key(self, index: int) -> str:
        """Return a name: nobody asks."""
        return f"{index}"

    def read(self, images: Any, indices: Sequence[int] = ()) -> Any:
        """Return the text of each picture."""
        return {index: self.texts[index] for index in indices}


def episodes_of(
    row: tuple[int, int, float, int], words: Sequence[str], count: int
) -> tuple[MadeUp, list[Episode]]:
    """Draw episodes of one row of the table."""
    ways, length, noise, own = row
    texts: dict[int, str] = {}
    episodes = []
    for number in range(count):
        generator = np.random.default_rng((*map(int, (ways, length, 100 * noise, own)), number))
        drawn = generator.permutation(words)[: ways * own].reshape(ways, own)

        def picture(name: int, drawn: Any = drawn, generator: Any = generator) -> int:
            num_noise = round(noise * length)
            shown = [*generator.choice(drawn[name], length - num_noise), *generator.choice(words, num_noise)]
            texts[len(texts)] = " ".join(generator.permutation(shown))
            return len(texts) - 1

        answer = int(generator.integers(ways))
        support = tuple(Shown(picture(name), name) for _ in range(SHOTS) for name in range(ways))
        names = tuple(generator.permutation(NAMES)[:ways].tolist())
        episodes.append(
            Episode(number=number, names=names, support=support, query=picture(answer), answer=answer)
        )
    return MadeUp(texts), episodes


def main() -> None:
    """Print the table, with seconds of the processor for each episode and scorer, and the peak of memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llm", help="directory, hub repository or GGUF")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--scorer", nargs="*", default=["likelihood", "calibrated", "calibrated-orders"])
    parser.add_argument("--template", default="line")
    parser.add_argument("--induction", action="store_true")
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)))
    given = parser.parse_args()
    words = [
        word for word in build_vocabulary(load_language_words()).words if word.isalpha() and word.islower()
    ]
    words = sorted(set(words) - set(NAMES))
    client: Any = None
    scorers = given.scorer if given.llm else []
    if given.llm:
        client = connect(LLMOptions(model=given.llm), lambda said: print(said, file=sys.stderr))
        counts = client.count_tokens([f"x {word}" for word in words])
        words = [word for word, count in zip(words, counts, strict=True) if count == min(counts)]
    heads = ["ways", "words a picture", "noise", "words of a class", *scorers, "bag of words"]
    print(f"| {' | '.join(heads)} | seconds an episode |\n|{'---|' * (len(heads) + 1)}", flush=True)
    for row in (ROWS[number] for number in given.rows):
        reader, episodes = episodes_of(row, words, given.episodes)
        setting = Setting(ways=row[0], shots=SHOTS, induction=given.induction)
        prompted = [
            PromptedClassifier(reader, client, template=given.template, scorer=one) for one in scorers
        ]
        cells, seconds = [], []
        for classifier in (*prompted, nearest_class_mean(bag_of_words(reader))):
            began = time.process_time()
            credits = [answer.credit or 0.0 for answer in classifier.answer(setting, episodes, reader)]
            seconds.append((time.process_time() - began) / len(episodes))
            mean = sum(credits) / len(credits)
            low, high = wilson_interval(mean, len(credits))
            cells.append(f"{100 * mean:.1f} ({100 * low:.0f} to {100 * high:.0f})")
        took = ", ".join(f"{value:.2f}" for value in seconds[:-1])
        print(f"| {' | '.join([*map(str, row), *cells])} | {took} |", flush=True)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", file=sys.stderr)


if __name__ == "__main__":
    main()
