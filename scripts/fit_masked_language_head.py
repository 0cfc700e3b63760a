"""Fit the masked-LM head that the embedded language model lacks: transform + bias, tied output matrix.

    python scripts/fit_masked_language_head.py --data shared/data/text --out masked_language_head.safetensors

The folder holds gzipped text, one text a line: every `NAME_train.txt.gz` is fitted to, every
`NAME_val.txt.gz` is measured on. Words are hidden at a rate drawn per text from [0.15, 0.5] (pixlex hides
half of an image's words), of them 80 % behind the mask word, 10 % behind a random word, 10 % not at all
(Devlin et al. 2019, section 3.1); texts stand alone without special tokens, as images do in pixlex. The trunk
is frozen and its last hidden state is the input. Everything is a function of the seed and the number of
threads. An interrupted fit goes on from `OUT.checkpoint` when it is started again with the same arguments.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from pixlex.nn.bert import EMBEDDED_SHA256, embedded_directory
from pixlex.nn.language_model import LanguageModel, load_language_model
from pixlex.training.parallel import mixed_precision

EVALUATED_RATES = (0.15, 0.5)
CHECKPOINT_EVERY = 50
BLOCK = 128


class Head(nn.Module):
    """BERT's masked-LM head without the output matrix: LayerNorm(GELU(W h + b)), and one bias per word."""

    def __init__(self, width: int, word_bias: Tensor) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.word_bias = nn.Parameter(word_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Turn hidden states into vectors to be compared with word embeddings."""
        vectors: Tensor = self.norm(functional.gelu(self.dense(hidden)))
        return vectors

    def named_as_in_bert(self) -> dict[str, Tensor]:
        """The weights under the names that transformers' BertForMaskedLM gives them."""
        place = "cls.predictions"
        named = {
            f"{place}.transform.dense.weight": self.dense.weight,
            f"{place}.transform.dense.bias": self.dense.bias,
            f"{place}.transform.LayerNorm.weight": self.norm.weight,
            f"{place}.transform.LayerNorm.bias": self.norm.bias,
            f"{place}.bias": self.word_bias,
        }
        return {name: weight.detach().contiguous().clone() for name, weight in named.items()}


@dataclass(frozen=True)
class Masked:
    """A batch of texts with words hidden.

    Attributes:
        word_ids: what the trunk reads.
        key_padding: True = padding.
        hidden: True = a word to be guessed.
        targets: the words to be guessed, in row order.
    """

    word_ids: Tensor
    key_padding: Tensor
    hidden: Tensor
    targets: Tensor


def read_texts(language: LanguageModel, path: Path) -> list[list[int]]:
    """Word ids of every line, no special tokens; lines of one word leave nothing to guess from."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        lines = [line.strip() for line in stream]
    read = language.tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]
    return [ids for ids in read if len(ids) > 1]


def batches(texts: list[list[int]], tokens: int, longest: int, seed: int) -> Iterator[list[list[int]]]:
    """Endless batches of about `tokens` words, texts of like length together; of long texts a random part."""
    epoch = 0
    while True:
        generator = np.random.default_rng((seed, epoch))
        starts = [int(generator.integers(max(1, len(text) - longest + 1))) for text in texts]
        cut = [text[start : start + longest] for text, start in zip(texts, starts, strict=True)]
        # noise among texts of one length: other neighbors in every epoch, hardly any padding
        order = np.argsort([len(text) + generator.random() for text in cut], kind="stable")
        groups: list[list[list[int]]] = []
        group: list[list[int]] = []
        for index in order:
            group.append(cut[index])
            if len(group) * len(cut[index]) >= tokens:
                groups.append(group)
                group = []
        if not groups:
            raise ValueError(f"expected more text than one batch of {tokens} words, got {len(texts)} texts")
        for place in generator.permutation(len(groups)):
            yield groups[place]
        epoch += 1


def hide(
    texts: list[list[int]],
    rates: np.ndarray,
    language: LanguageModel,
    generator: np.random.Generator,
    shown: float,
) -> Masked:
    """Hide words at the rate of each text; the share `shown` of them stays or becomes a random word."""
    longest = max(map(len, texts))
    words = np.zeros((len(texts), longest), dtype=np.int64)
    padding = np.ones((len(texts), longest), dtype=bool)
    for row, text in enumerate(texts):
        words[row, : len(text)] = text
        padding[row, : len(text)] = False
    hidden = (generator.random(words.shape) < rates[:, None]) & ~padding
    hidden[np.arange(len(texts)), generator.integers([len(text) for text in texts])] = (
        True  # at least one each
    )
    fate = generator.random(words.shape)
    random_words = generator.integers(language.vocab_size, size=words.shape)
    read = np.where(hidden & (fate >= shown), language.mask_id, words)
    read = np.where(hidden & (fate < shown / 2), random_words, read)
    return Masked(*map(torch.from_numpy, (read, padding, hidden, words[hidden])))


def hidden_states(language: LanguageModel, batch: Masked) -> Tensor:
    """Last hidden states at the hidden words."""
    with torch.no_grad(), mixed_precision(torch.device("cpu"), "auto"):
        embeddings = functional.embedding(batch.word_ids, language.word_embedding)
        return language(embeddings, batch.key_padding).last[batch.hidden].float()


def cross_entropy_backward(
    vectors: Tensor, matrix: Tensor, word_bias: nn.Parameter, targets: Tensor
) -> float:
    """Return the mean cross-entropy in nats and leave its gradients in the head, one exponential per logit.

    Equals `F.linear_cross_entropy(...).backward()` (tests/nn/test_masked_language_head.py) at a third of its
    time on a CPU: bfloat16 blocks that fit the cache, no maximum subtracted (LayerNorm keeps the logits far
    below 88).
    """
    gradient, bias_gradient, total = torch.empty_like(vectors), torch.zeros_like(word_bias), 0.0
    low, bias = vectors.detach().to(torch.bfloat16), word_bias.detach().to(torch.bfloat16)
    for place in range(0, len(targets), BLOCK):
        rows, block_targets = low[place : place + BLOCK], targets[place : place + BLOCK, None]
        logits = torch.addmm(bias, rows, matrix.T)
        right = logits.gather(1, block_targets).float()
        shares = logits.exp_()
        sums = shares.sum(1, keepdim=True, dtype=torch.float32)
        total += float((sums.log() - right).sum())
        gradient[place : place + BLOCK] = (shares @ matrix).float() / sums - matrix[
            block_targets[:, 0]
        ].float()
        bias_gradient += ((1 / sums).to(torch.bfloat16).T @ shares)[0]
    bias_gradient -= torch.bincount(targets, minlength=len(bias_gradient))
    word_bias.grad = bias_gradient / len(targets)
    vectors.backward(gradient / len(targets))
    return total / len(targets)


class Fit:
    """The state of a fit: head, optimizer, finished steps; read from and written to the checkpoint.

    Args:
        arguments: the command line.
        language: the embedded language model, its trunk.
        texts: the training texts as word ids.
    """

    def __init__(
        self, arguments: argparse.Namespace, language: LanguageModel, texts: list[list[int]]
    ) -> None:
        self.arguments, self.language, self.texts = arguments, language, texts
        counts = np.bincount(
            np.concatenate([np.asarray(text) for text in texts]), minlength=language.vocab_size
        )
        torch.manual_seed(arguments.seed)
        # the bias starts at the logarithm of the words' frequencies: the head starts as the frequency
        # baseline
        self.head = Head(language.width, torch.from_numpy(np.log((counts + 0.1) / counts.sum())).float())
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=arguments.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)
        )
        self.matrix = language.word_embedding.to(torch.bfloat16)
        self.finished = 0
        self.checkpoint = arguments.out.with_suffix(".checkpoint")
        if self.checkpoint.is_file():
            self._read_checkpoint()

    def run(self) -> Head:
        """Minimize the cross-entropy of the hidden words."""
        source = batches(self.texts, self.arguments.tokens, self.arguments.longest, self.arguments.seed)
        steps, smooth = self.arguments.steps, math.nan
        bar = tqdm(total=steps, initial=self.finished, desc="fit", unit="step", mininterval=5)
        for chosen in islice(source, self.finished, steps):
            loss = self._step(chosen)
            self.finished += 1
            smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
            bar.set_postfix(nats=f"{smooth:.3f}", refresh=False)
            bar.update()
            if self.finished % CHECKPOINT_EVERY == 0:
                self._write_checkpoint()
        bar.close()
        return self.head

    def _step(self, chosen: list[list[int]]) -> float:
        generator = np.random.default_rng((self.arguments.seed, 1, self.finished))
        rates = generator.uniform(0.15, 0.5, len(chosen))
        batch = hide(chosen, rates, self.language, generator, shown=0.2)
        vectors = self.head(hidden_states(self.language, batch))
        warm = min(1.0, (self.finished + 1) / self.arguments.warmup)
        decay = 0.5 * (1 + math.cos(math.pi * self.finished / self.arguments.steps))
        self.optimizer.param_groups[0]["lr"] = self.arguments.learning_rate * warm * decay
        self.optimizer.zero_grad()
        loss = cross_entropy_backward(vectors, self.matrix, self.head.word_bias, batch.targets)
        if not math.isfinite(loss):
            raise ValueError(f"step {self.finished}: the loss is not finite; lower --learning-rate")
        self.optimizer.step()
        return loss

    def _read_checkpoint(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=True)
        if saved["settings"] != settings_of(self.arguments):
            raise SystemExit(
                f"{self.checkpoint} was made with {saved['settings']}; repeat those or delete it"
            )
        self.head.load_state_dict(saved["head"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.finished = saved["finished"]

    def _write_checkpoint(self) -> None:
        state = {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "finished": self.finished,
            "settings": settings_of(self.arguments),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)


@torch.no_grad()
def measure(
    language: LanguageModel, head: nn.Module, texts: list[list[int]], frequent: int, rate: float, longest: int
) -> dict[str, float]:
    """Share of hidden words (all behind the mask word) that the head guesses, and the baseline's share."""
    right = baseline = total = 0
    loss = 0.0
    for place in range(0, len(texts), 64):
        generator = np.random.default_rng((0, 2, place))
        some = [text[:longest] for text in texts[place : place + 64]]
        batch = hide(some, np.full(len(some), rate), language, generator, shown=0.0)
        logits = functional.linear(
            head(hidden_states(language, batch)), language.word_embedding, head.word_bias
        )
        right += int((logits.argmax(1) == batch.targets).sum())
        loss += float(functional.cross_entropy(logits, batch.targets, reduction="sum"))
        baseline += int((batch.targets == frequent).sum())
        total += len(batch.targets)
    return {
        "mask_rate": rate,
        "accuracy": round(right / total, 4),
        "most_frequent_word_accuracy": round(baseline / total, 4),
        "cross_entropy_nats": round(loss / total, 3),
        "hidden_words": total,
    }


def most_frequent_word(texts: list[list[int]]) -> int:
    """The word id that occurs most often."""
    return int(np.bincount(np.concatenate([np.asarray(text) for text in texts])).argmax())


def evaluate(
    language: LanguageModel, head: nn.Module, folder: Path, longest: int
) -> dict[str, list[dict[str, float]]]:
    """Measure on every val file; the baseline is the most frequent word of the train file beside it."""
    measured = {}
    for path in sorted(folder.glob("*_val.txt.gz")):
        frequent = most_frequent_word(
            read_texts(language, path.with_name(path.name.replace("_val", "_train")))
        )
        texts = read_texts(language, path)
        measured[path.name] = [
            measure(language, head, texts, frequent, rate, longest) for rate in EVALUATED_RATES
        ]
        for result in measured[path.name]:
            print(
                f"{path.name}, {result['mask_rate']:.0%} hidden: {result['accuracy']:.1%} of "
                f"{result['hidden_words']} words right; always {language.tokenizer.decode([frequent])!r}: "
                f"{result['most_frequent_word_accuracy']:.1%}; {result['cross_entropy_nats']:.2f} nats a word"
            )
    return measured


def settings_of(arguments: argparse.Namespace) -> str:
    """What the numbers depend on, as JSON."""
    return json.dumps({name: value for name, value in vars(arguments).items() if name not in ("data", "out")})


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of *_train.txt.gz and *_val.txt.gz")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=4096, help="words in a batch")
    parser.add_argument("--longest", type=int, default=128, help="words of a text")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=30, help="steps until the learning rate is reached")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(words)


def main() -> None:
    """Fit, measure, write."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    paths = sorted(arguments.data.glob("*_train.txt.gz"))
    if not paths:
        raise SystemExit(f"expected *_train.txt.gz files in {arguments.data}, found none")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    language = load_language_model(str(embedded_directory()))
    texts = [text for path in paths for text in read_texts(language, path)]
    print(f"{len(texts)} texts, {sum(map(len, texts))} words", flush=True)
    fit = Fit(arguments, language, texts)
    head = fit.run()
    metadata = {
        "trunk_sha256": EMBEDDED_SHA256,
        "fingerprint": language.fingerprint,
        "script": "scripts/fit_masked_language_head.py",
        "arguments": settings_of(arguments),
        "train_files": json.dumps([path.name for path in paths]),
        "accuracy": json.dumps(evaluate(language, head, arguments.data, arguments.longest)),
    }
    save_file(head.named_as_in_bert(), arguments.out, metadata=metadata)
    fit.checkpoint.unlink(missing_ok=True)
    print(f"wrote {arguments.out} ({arguments.out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
