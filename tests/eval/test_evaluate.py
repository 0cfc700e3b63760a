"""The pass over a set: what one process finds, and two that share it; and intervals."""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import pickle
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from scipy.stats import binom
from tests.tiny import (
    IMAGE_SIZE,
    batches_of,
    evaluation_batches,
    tiny_cbvila,
    tiny_frozen,
    tiny_lqae,
    tiny_mae,
    tiny_reasoner,
    write_classes,
    write_images,
)
from torch import nn

from pixlex import distributed
from pixlex.batch import ImageBatch, Skipped
from pixlex.cli import main
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.data.captions import open_pairs
from pixlex.data.images import open_source
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.records import Pairs, Questions, Records
from pixlex.data.sources import subset
from pixlex.eval import retrieval
from pixlex.eval.evaluate import Measured, Pass, evaluate, wilson_interval
from pixlex.eval.pretraining import (
    evaluate_captions,
    evaluate_masked_patches,
    evaluate_pretraining,
    evaluate_reconstruction,
)
from pixlex.eval.probe_features import extract
from pixlex.eval.probe_sets import survey
from pixlex.eval.retrieval import evaluate_retrieval, gallery
from pixlex.eval.vqa import evaluate_reasoning
from pixlex.objectives.cbvila import CBViLAObjective

SERVER = multiprocessing.get_context("forkserver")

TEXTS = ("about the class", "and any other", "also about", "the class", "any", "above and")
# Batches are of three: the second has no readable image at all, the fourth misses one.
BROKEN = (3, 4, 5, 10)


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, models: Path, language: Path, causal_language: Path
) -> Path:
    """Twenty pictures with captions, four of them broken; language models; a network of features; a model."""
    folder = tmp_path_factory.mktemp("shared")
    rows, captions = [], []
    for number in range(20):
        rng = np.random.default_rng(number)
        buffer = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((40, 40), Image.Resampling.BICUBIC).save(buffer, "PNG")
        rows.append(b"no image" if number in BROKEN else buffer.getvalue())
        captions.append([TEXTS[number % 6], *TEXTS[: number % 3]])
    pq.write_table(pa.table({"image": rows, "captions": captions}), folder / "pairs.parquet")
    for path, name in (
        (language, "language"),
        (causal_language, "causal"),
        *((models / n, n) for n in ("lqae", "cbvila")),
    ):
        (folder / name).symlink_to(path)
    torch.jit.trace(Features().eval(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).save(folder / "fid.pt")
    write_classes(folder / "train", 8)
    write_images(folder / "pictures", [f"{number}.png" for number in range(7)])
    return folder


class Features(nn.Module):
    """Eight numbers of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().div(255).unflatten(2, (2, -1)).mean((3, 4)).flatten(1).cumsum(1)


def _results(folder: Path, scratch: Path) -> dict[str, Any]:
    """Evaluate everything, as one of two processes or alone."""
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    batch: dict[str, Any] = {"image_size": IMAGE_SIZE, "batch_size": 3, **share}
    language = folder / "language"
    pictures, pairs = open_source(str(folder / "pairs.parquet")), open_pairs(str(folder / "pairs.parquet"))
    found: dict[str, Any] = {}
    few = Pass(progress=False, save_examples=4)
    for limit in (None, 2):  # two images: one batch, nothing for the second process
        found[f"reconstruction {limit}"] = evaluate_reconstruction(
            tiny_lqae(language, search="raw"), evaluation_batches(pictures, limit=limit, **batch), few,
            fid_features=folder / "fid.pt",
        )  # fmt: skip
    found["masked patches"] = evaluate_masked_patches(
        tiny_mae(), evaluation_batches(pictures, **batch), few, normalize=True
    )
    model = tiny_cbvila(language)
    objective = CBViLAObjective(model, CBViLAObjectiveConfig(), 10, 12)
    batches = Loader(
        Pairs(pairs, lambda texts: model.tokenize_texts(texts, 12)), LoaderConfig(**batch)
    ).evaluation()
    found["pretraining"] = evaluate_pretraining(objective, batches, few)
    frozen = tiny_frozen(folder / "causal")
    batches = Loader(
        Pairs(pairs, lambda texts: frozen.tokenize_texts(texts, 12)), LoaderConfig(**batch)
    ).evaluation()
    found["captions"] = evaluate_captions(frozen, batches, few, max_words=4)
    items = gallery(model, pairs.by_caption(), few, max_words=12, batch_size=3)
    assert len(items.states) == len(items.own) == {1: (16,), 2: (11, 5)}[share["world_size"]][share["rank"]]
    retrieval._IMAGES_A_FILE = 2
    for score in ("contrastive", "matching", "matching+contrastive"):
        found[f"retrieval {score}"] = evaluate_retrieval(
            model, items, few, score=score, top_k=2, cache=scratch
        )  # type: ignore[arg-type]
    found["vectors"] = [items.image_vectors, items.text_vectors, items.text, items.image_of]
    found["vqa"] = _answers(folder, batch)
    labeled = survey(open_source(str(folder / "train")))
    features = extract(tiny_lqae(language), labeled, scratch / "features")
    found["probe"] = [labeled.digests, labeled.labels.tolist(), features.values.tobytes()]
    return found


def _answers(folder: Path, batch: dict[str, Any]) -> Any:
    model = tiny_reasoner(folder / "language", "vqa")
    images = subset(open_source(str(folder / "pairs.parquet")), [0, 0, 1, 3, 4, 5, 0, 6, 7, 8, 8])
    answers = [(model.config.answers[number % 5],) for number in range(11)]
    ids = tuple(map(str, range(11)))
    source = Records(
        "items", images, tuple((text,) for text in (*TEXTS, *TEXTS[:5])), answers=tuple(answers), ids=ids
    )
    items = Loader(
        Questions(source, lambda texts: model.tokenize_texts(texts, 12)), LoaderConfig(**batch)
    ).evaluation()
    return evaluate_reasoning(model, source, items, Pass(progress=False, save_examples=4), training=source)


def _one_of_two(rank: int, folder: Path, scratch: Path) -> None:
    """Both halves of what one process does alone: evaluations, then commands as torchrun starts them."""
    torch.set_num_threads(1)
    joined, counted = dist.init_process_group, iter(range(100))

    def join(backend: str) -> None:  # without a port
        place = f"file://{scratch}/rendezvous-{next(counted)}"
        joined(backend, init_method=place, rank=rank, world_size=2)

    join("gloo")
    found = _results(folder, scratch)
    dist.destroy_process_group()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group = join
    # Pickled, for results hold more than tensors.
    (scratch / f"{rank}.pickle").write_bytes(pickle.dumps((found, _typed(folder, scratch))))


@pytest.fixture(scope="module")
def two(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Where two processes wrote, and what each of them found and printed."""
    folder = tmp_path_factory.mktemp("two")
    children = [SERVER.Process(target=_one_of_two, args=(rank, place, folder)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(400)
    assert [child.exitcode for child in children] == [0, 0]
    return folder, [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


def _same(one: Any, two: Any, name: str) -> None:
    """Equal to the bit, but for what is a clock's, and the Frechet distance, whose sums are put together anew."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), name
    elif hasattr(one, "__dataclass_fields__"):
        for field in one.__dataclass_fields__:
            _same(getattr(one, field), getattr(two, field), f"{name}.{field}")
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), name
        for key in one.keys() - {"images_per_second"}:
            if key in ("rfid", "mean_image_mse"):
                assert one[key] == pytest.approx(two[key], rel=1e-6, abs=1e-6)
            else:
                _same(one[key], two[key], f"{name}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), name
        for number, (left, right) in enumerate(zip(one, two, strict=True)):
            _same(left, right, f"{name}[{number}]")
    else:
        assert one == two or (one != one and two != two), name


def test_two_processes_equal_one(place: Path, tmp_path: Path, two: tuple[Path, list[Any]]) -> None:
    """Every evaluation, with broken images and uneven shares, on both processes."""
    alone = _results(place, tmp_path)
    whole = alone["reconstruction None"]
    assert whole.values["num_images"] == 16
    assert whole.values["rfid"] > 0
    assert [one.key for one in whole.skipped] == [f"pairs.parquet#{number}" for number in BROKEN]
    assert alone["retrieval matching"].num_images == 16
    assert "text_alone_accuracy" in alone["vqa"].values
    assert [one.item for one in alone["vqa"].answered] == [0, 1, 2, 6, 7, 8, 9, 10]
    assert math.isfinite(alone["pretraining"].values["image_text_contrastive"])
    for found, _ in two[1]:
        assert found.keys() == alone.keys()
        for name, result in alone.items():
            _same(result, found[name], name)
    assert not list(two[0].glob("scores-*"))


COMMANDS = {
    "reconstruction": "evaluate reconstruction --model {0}/lqae --data {0}/pictures --batch-size 2 --out {1}",
    "retrieval": "evaluate retrieval --model {0}/cbvila --data {0}/pairs.parquet --batch-size 3 --out {1} "
    "--max-words 12 --max-broken-fraction 0.5",
    "linear-probe": "evaluate linear-probe --model {0}/lqae --data {0}/train --test {0}/train --allow-overlap "
    "--out {1}",
    "gallery": "gallery --model {0}/lqae --data {0}/train --out {1}/codewords.png",
    "broken": "evaluate reconstruction --model {0}/lqae --data {0}/pairs.parquet --batch-size 4 "
    "--max-broken-fraction 0.15",
}


def _typed(folder: Path, scratch: Path) -> dict[str, tuple[int, str]]:
    """Run the commands; return exit codes and what was printed."""
    found = {}
    for name, command in COMMANDS.items():
        out = scratch / name
        out.mkdir(exist_ok=True)
        with redirect_stdout(io.StringIO()) as printed:
            code = main([*command.format(folder, out).split(), "--quiet"])
        found[name] = (code, printed.getvalue().replace(str(scratch), ""))
    return found


def test_commands_share_and_the_first_process_writes(
    place: Path, tmp_path: Path, two: tuple[Path, list[Any]]
) -> None:
    """Same answers, same files, the second process silent; too many broken images stop both."""
    alone = _typed(place, tmp_path)
    first, second = (printed for _, printed in two[1])
    for name, (code, printed) in alone.items():
        assert code == (1 if name == "broken" else 0), name
        assert (first[name][0], second[name]) == (code, (code, "")), name
        if name != "reconstruction":  # which prints its speed
            assert first[name][1] == printed, name
    files = [
        {path.relative_to(folder).as_posix() for name in COMMANDS for path in (folder / name).rglob("*.*")}
        for folder in (tmp_path, two[0])
    ]
    assert files[0] == files[1]
    assert "reconstruction/report.html" in files[0]
    for name in ("retrieval/results.json", "gallery/codewords.png"):
        assert (tmp_path / name).read_bytes() == (two[0] / name).read_bytes(), name


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("describe", "this command does not share its work: expected one process, got 2"),
        ("index {0}/pictures --model {0}/cbvila --out {1}", "does not share its work"),
        ("encode {0}/pictures --model {0}/lqae --out {1}/words.txt", "expected --part-size"),
    ],
)
def test_commands_that_cannot_share_refuse(
    command: str, sentence: str, place: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, printed, remarked = call(*command.format(place, tmp_path).split())
    assert (code, printed) == (2, "")
    assert sentence in remarked
    assert list(tmp_path.iterdir()) == []


def test_a_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """Weighted means, rows in order, first examples, skipped images, a bar; nothing to evaluate is an error."""
    broken = (Skipped("torn.png", "truncated"),)
    nothing = ImageBatch(torch.empty(0, 3, 4, 4), torch.empty(0).long(), (), torch.empty(0).long(), broken)
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 4, 4) / 10
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).train()
    model[0].eval()

    def measure(batch: ImageBatch, room: int) -> Measured:
        assert not model[1].training
        values = batch.images.mean((1, 2, 3))
        sums = {"mean": (float(values.sum()), len(values)), "of_nothing": (0.0, 0)}
        return Measured(sums, {"keys": batch.keys}, {"values": values[:room]} if room else {})

    found = evaluate(model, [*batches_of(images, 2), nothing], measure, Pass(total=5, save_examples=3))
    assert found.values == {"num_images": 5, "mean": pytest.approx(0.2)}
    assert found.numbers == {"eval/num_images": 5.0, "eval/mean": pytest.approx(0.2)}
    assert found.rows["keys"] == tuple(f"image-{row}" for row in range(5))
    torch.testing.assert_close(found.examples["values"], images[:3, 0, 0, 0])
    assert found.skipped == broken
    assert [one.training for one in model] == [False, True]
    shown = capsys.readouterr().err
    assert "5/5 images" in shown
    assert "images/s" in shown
    with pytest.raises(ZeroDivisionError):
        evaluate(model, batches_of(images, 2), lambda *_: 1 // 0, Pass(progress=False))  # type: ignore[arg-type]
    assert [one.training for one in model] == [False, True]
    with pytest.raises(ValueError, match=r"no item to evaluate \(1 could not be read\)"):
        evaluate(model, [nothing], measure, Pass(progress=False), unit="items")


def test_a_textbook_interval_and_what_is_no_ratio() -> None:
    """81 of 263 (Newcombe 1998, table I)."""
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    for ratio, count in ((0.5, 0), (1.1, 5), (-0.1, 5), (float("nan"), 5)):
        with pytest.raises(ValueError, match="expected a ratio"):
            wilson_interval(ratio, count)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 333, 10**6])
def test_the_ratio_lies_in_its_interval(count: int) -> None:
    """0 begins at 0 and 1 ends at 1; a mean that was rounded is one of them."""
    for right in range(0, count + 1, max(1, count // 500)):
        low, high = wilson_interval(right / count, count)
        assert 0 <= low <= right / count <= high <= 1
        assert low < high
    assert (wilson_interval(0.0, count)[0], wilson_interval(1.0, count)[1]) == (0, 1)
    assert wilson_interval(1 + 2e-16, count) == wilson_interval(1.0, count)
    assert wilson_interval(-2e-16, count) == wilson_interval(0.0, count)


@pytest.mark.parametrize("count", [10, 40, 500])
def test_the_interval_holds_the_truth_as_often_as_it_says(count: int) -> None:
    """Over all outcomes of so many trials, for true ratios between 0.05 and 0.95: 95 % in the mean."""
    truths, outcomes = np.linspace(0.05, 0.95, 181)[:, None], np.arange(count + 1)
    low, high = np.array([wilson_interval(right / count, count) for right in outcomes]).T
    covered = (binom.pmf(outcomes, count, truths) * ((low <= truths) & (truths <= high))).sum(1)
    assert covered.mean() == pytest.approx(0.95, abs=0.01)
    assert covered.min() > 0.88
