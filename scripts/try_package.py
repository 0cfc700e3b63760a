"""Try an installed pixlex in the empty folder where this is started: its models, two steps, words, errors."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib

import pixlex
from pixlex.cli import main
from pixlex.data.images import photograph


def run(*arguments: str, code: int = 0) -> None:
    """Run one command; anything but the exit code that is expected ends the trial."""
    found = main(list(arguments))
    assert found == code, f"pixlex {' '.join(arguments)}: exit code {found}"


if __name__ == "__main__":
    assert Path(pixlex.__file__).is_relative_to(Path.cwd()), f"not the installed package: {pixlex.__file__}"
    start = time.perf_counter()
    (words,) = pixlex.load("small-words").to_words(photograph("coffee"))
    print(f"words of a photograph after {time.perf_counter() - start:.1f} s: {words[:60]} ...")
    house = Path(matplotlib.get_data_path(), "images/home_large.png")
    said = pixlex.load("small-pairs").zero_shot(house, ["a house", "an arrow", "a disk"])
    assert int(said.argmax()) == 0, said
    run("describe", "lqae/tiny")
    short = ["train.steps=2", "train.batch_size=4", "eval.limit=4", "eval.word_folds=0"]
    run("train", "lqae/tiny", *short, "--out", "run", "--quiet")
    run(
        "encode",
        "embedded:photographs:test",
        "--model",
        "run",
        "--to",
        "words",
        "--out",
        "words.txt",
        "--quiet",
    )
    run("train", "lqae/tinny", code=2)
    tokenizer = pixlex.load("run")
    words = Path("words.txt").read_text(encoding="utf-8").splitlines()[0].split("\t")[-1]
    assert len(words.split()) == tokenizer.num_words, words
    assert tokenizer.decode(words).shape == (1, 3, tokenizer.image_size, tokenizer.image_size)
