"""A flipped bit in any file that is written and read back: never taken for what was written, never a traceback."""

from __future__ import annotations

import io
import random
import sqlite3
import tarfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.eval.few_shot.fakes import CLASSES, labeled
from tests.tiny import tiny_vqvae

from pixlex.api import ImageTokenizer
from pixlex.data.images import open_source
from pixlex.data.shards import read_index, write_index
from pixlex.data.tar import scan_shard
from pixlex.encoding.encode import _fits
from pixlex.encoding.files import EncodedImage, Kind, read_codes, write_checksum, write_codes
from pixlex.eval import probe_features
from pixlex.eval.few_shot.episodes import load_episodes, sample_episodes, save_episodes
from pixlex.eval.few_shot.prompts import Answer, setting_of
from pixlex.eval.few_shot.readers import append_texts, load_texts
from pixlex.eval.few_shot.run import AnswerJournal
from pixlex.eval.llm.endpoint import FILE_NAME, AnswerCache
from pixlex.eval.retrieval import CachedScores
from pixlex.files import Journal, read_json, sealed, write_json
from pixlex.models import checkpoint
from pixlex.search.store import Head, read_head, write_head
from pixlex.training.checkpoint import load_newest, save_checkpoint
from pixlex.training.logging import Tracker, read_metrics

# Flips of each kind in the suite; a campaign calls `flip` more often.
FLIPS = 8
CODES = tuple(range(16))
IMAGES = [EncodedImage(number, f"pictures/{number}.png", number % 3 - 1, CODES) for number in range(6)]


@dataclass(frozen=True)
class Files:
    """How files of a kind are written and read back.

    Attributes:
        write: into a folder; returns the files whose bits are flipped.
        read: what they hold, compared by `==`.
        partly: whether reading may leave out what is damaged, which is then made anew.
    """

    write: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    partly: bool = False


def flip(kind: Files, paths: Sequence[Path], folder: Path, draw: random.Random) -> str:
    """Flip one bit, read, put it back; return "error", "less", or "same" for a bit that says nothing."""
    path = draw.choice(paths)
    content = path.read_bytes()
    place = draw.randrange(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    expected = kind.read(folder)
    path.write_bytes(changed)
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            found = kind.read(folder)
    except ValueError:
        return "error"
    finally:
        path.write_bytes(content)
    if found == expected:
        return "same"
    where = f"bit {place % 8} of byte {place // 8} of {path.name}"
    assert kind.partly, f"{where}: {found!r:.200}"
    assert _less(found, expected), f"{where}: {found!r:.200} is not part of {expected!r:.200}"
    return "less"


def _less(found: Any, expected: Any) -> bool:
    if found is None:
        return True
    if isinstance(expected, Mapping):
        return all(expected.get(key) == value for key, value in found.items())
    return all(one in expected for one in found)


def _codes(kind: Kind) -> Files:
    tokenizer = ImageTokenizer(tiny_vqvae())
    name = {"codes": "c.txt", "jsonl": "c.jsonl", "parquet": "c.parquet"}[kind]

    def write(folder: Path) -> list[Path]:
        write_codes(folder / name, IMAGES, kind, tokenizer)
        write_checksum(folder / name, kind)
        return [folder / name]

    return Files(write, lambda folder: list(read_codes(folder / name, tokenizer)))


def _checkpoints(folder: Path) -> list[Path]:
    for step in (1, 2):
        objective = {"weights": torch.full((500,), float(step))}
        save_checkpoint(folder, step, {"objective": objective, "optimizer": {}}, keep=2)
    return [folder / "step-00000002.pt"]


def _newest(folder: Path) -> list[float]:
    """Return step and weights of the newest; nothing where the one before was taken, and is what was written."""
    state = load_newest(folder)
    assert state is not None
    found = [float(state["step"]), *state["objective"]["weights"].tolist()]
    return [] if found == [1.0] * 501 else found


def _model(folder: Path) -> list[Path]:
    checkpoint.save(tiny_vqvae(), folder, trained_on=["pictures"])
    return [folder / "config.json", folder / "model.safetensors"]


def _fingerprint(folder: Path) -> list[Any]:
    model = checkpoint.load_any(str(folder))
    return [checkpoint.fingerprint(model), checkpoint.read_config(str(folder))["trained_on"]]


HEADER = {"journal": 1, "model": "m", "source": "s", "images": 6}


def _journal(folder: Path) -> list[Path]:
    with Journal(folder / "j", sealed(HEADER), "index", _fits) as journal:
        journal.append([asdict(image) for image in IMAGES[:3]])
        journal.append([asdict(image) for image in IMAGES[3:]])
    return [folder / "j"]


def _journaled(folder: Path) -> list[dict[str, Any]] | None:
    content = (folder / "j").read_bytes()
    try:
        with Journal(folder / "j", sealed(HEADER), "index", _fits) as journal:
            return [journal[index] for index in journal] if journal.header == HEADER else None
    finally:
        (folder / "j").write_bytes(content)


def _answers(folder: Path) -> list[Path]:
    with AnswerJournal(folder / "answers.jsonl") as journal:
        for number in range(5):
            journal.add("who", f"q{number}", Answer(episode=number, credit=number / 4, text="cat", detail=""))
    return [folder / "answers.jsonl"]


def _answered(folder: Path) -> dict[str, Any]:
    content = (folder / "answers.jsonl").read_bytes()
    try:
        with AnswerJournal(folder / "answers.jsonl") as journal:
            found = {f"q{number}": journal.get("who", f"q{number}") for number in range(5)}
            return {question: answer for question, answer in found.items() if answer is not None}
    finally:
        (folder / "answers.jsonl").write_bytes(content)


def _request(number: int) -> dict[str, Any]:
    return {"endpoint": "http://127.0.0.1:1/v1", "path": "completions", "body": {"prompt": f"image {number}"}}


def _cache(folder: Path) -> list[Path]:
    cache = AnswerCache(folder)
    for number in range(20):
        cache.put(
            _request(number), {"choices": [{"text": f" boat number {number}", "finish_reason": "stop"}]}
        )
    cache.close()
    return [folder / FILE_NAME]


def _cached(folder: Path) -> dict[int, Any]:
    content = (folder / FILE_NAME).read_bytes()
    try:
        cache = AnswerCache(folder)
        found = {number: cache.get(_request(number)) for number in range(20)}
        cache.close()
        return {number: answer for number, answer in found.items() if answer is not None}
    finally:
        (folder / FILE_NAME).write_bytes(content)


def _texts(folder: Path) -> list[Path]:
    append_texts(folder / "t.jsonl", {number: f"word {number}" for number in range(8)})
    return [folder / "t.jsonl"]


def _episodes(folder: Path) -> list[Path]:
    images = labeled(folder / "images", per_class=2, classes=CLASSES[:3])
    save_episodes(sample_episodes(images, setting_of("1/0", 2), count=3, seed=0), folder / "e.json")
    return [folder / "e.json"]


def _metrics(folder: Path) -> list[Path]:
    tracker = Tracker(folder, 0)
    for step in range(1, 5):
        tracker.log(step, {"train/total": 1 / step})
    tracker.close()
    return [folder / "metrics.jsonl"]


def _scores(folder: Path) -> list[Path]:
    CachedScores(folder, "k").write(0, torch.arange(9.0))
    return [folder / "scores-k" / "0000000.npz"]


def _read_scores(folder: Path) -> list[float] | None:
    found = CachedScores(folder, "k").read(0, 9)
    return None if found is None else found.tolist()


def _features(folder: Path) -> list[Path]:
    path, rows = folder / "f.npy", np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    np.save(path, rows)
    entry = {"header": {"a": 1}, "missing": [4], "skipped": [{"key": "x", "reason": "torn"}]}
    write_json(path.with_suffix(".json"), {**entry, "checksum": probe_features._checksum(path)})
    return [path, path.with_suffix(".json")]


def _read_features(folder: Path) -> list[Any] | None:
    entry = probe_features._stored(folder / "f.npy", {"a": 1})
    return None if entry is None else [str(entry), np.load(folder / "f.npy").tobytes()]


TOLD = {"form": 1, "shard": "s"}


def _shard(folder: Path) -> list[Path]:
    with tarfile.open(folder / "s.tar", "w") as archive:
        for name in ("a.jpg", "b.jpg"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"data"))
    with (folder / "s.tar").open("rb") as file:
        table = scan_shard(file, folder / "s.tar", "s", captioned=False)
    write_index(table, folder / "index.arrow", TOLD)
    return [folder / "index.arrow"]


def _kept_rows(folder: Path) -> dict[str, Any] | None:
    table = read_index(folder / "index.arrow", TOLD)
    return None if table is None else {"rows": table.to_pylist(), "about": table.schema.metadata}


def _head(folder: Path) -> list[Path]:
    write_head(str(folder), Head("a/model", "f" * 64, "fp32", 8, "pictures"))
    return [folder / "index.json"]


def _results(folder: Path) -> list[Path]:
    write_json(folder / "results.json", {"eval/mse": 0.25, "eval/psnr": 6.0})
    return [folder / "results.json"]


KINDS: Mapping[str, Callable[[], Files]] = {
    "codes as text": lambda: _codes("codes"),
    "codes as jsonl": lambda: _codes("jsonl"),
    "codes as parquet": lambda: _codes("parquet"),
    "checkpoint": lambda: Files(_checkpoints, _newest, partly=True),
    "model": lambda: Files(_model, _fingerprint),
    "journal of encode": lambda: Files(_journal, _journaled, partly=True),
    "journal of answers": lambda: Files(_answers, _answered, partly=True),
    "cache of answers": lambda: Files(_cache, _cached, partly=True),
    "texts of images": lambda: Files(_texts, lambda folder: load_texts(folder / "t.jsonl"), partly=True),
    "episodes": lambda: Files(
        _episodes, lambda folder: load_episodes(folder / "e.json", open_source(str(folder / "images")))
    ),
    "metrics": lambda: Files(_metrics, lambda folder: read_metrics(folder / "metrics.jsonl"), partly=True),
    "scores of pairs": lambda: Files(_scores, _read_scores, partly=True),
    "features": lambda: Files(_features, _read_features, partly=True),
    "index of a shard": lambda: Files(_shard, _kept_rows, partly=True),
    "head of an index": lambda: Files(_head, lambda folder: read_head(str(folder))),
    "results": lambda: Files(_results, lambda folder: read_json(folder / "results.json")),
}


@pytest.mark.parametrize("name", KINDS)
def test_no_flipped_bit_is_silent(name: str, tmp_path: Path, unchecked_shapes: None) -> None:
    kind = KINDS[name]()
    paths, draw = kind.write(tmp_path), random.Random(name)
    found = [flip(kind, paths, tmp_path, draw) for _ in range(FLIPS)]
    assert "error" in found or "less" in found


def test_a_journal_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """The first line of a device never ends; another's pipe is left alone."""
    path = tmp_path / "codes.journal"
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"codes\.journal is no file but a device"):
        Journal(path, {"journal": 1}, "index", _fits)


def test_a_bad_answer_is_asked_again_and_one_of_a_version_without_checksums_counts(tmp_path: Path) -> None:
    (path,) = _cache(tmp_path)
    expected = _cached(tmp_path)
    with sqlite3.connect(path) as file:
        file.execute("UPDATE answers SET answer = replace(answer, 'boat', 'coat')")
    cache = AnswerCache(tmp_path)
    with pytest.warns(UserWarning, match="cannot be read .* and is asked for again"):
        assert cache.get(_request(0)) is None
    with pytest.warns(UserWarning, match="asked for again"):
        assert cache.ask(_request(1), lambda: expected[1]) == expected[1]
    assert cache.get(_request(1)) == expected[1]
    cache.close()
    (old,) = _cache(tmp_path / "old")
    with sqlite3.connect(old) as file:
        file.execute("ALTER TABLE answers DROP COLUMN checksum")
        file.execute("UPDATE answers SET answer = '7' WHERE rowid = 2")
    cache = AnswerCache(tmp_path / "old")
    assert cache.get(_request(0)) == expected[0]
    with pytest.warns(UserWarning, match="asked for again"):
        assert cache.get(_request(1)) is None
    cache.put(_request(30), expected[3])
    assert cache.get(_request(30)) == expected[3]
