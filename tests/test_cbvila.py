"""CB-ViLA from recipe to folder and on: training, what it leaves, retrieval, gallery, bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_language, tiny_run, write_images
from tests.training.running import on_two_processes

import pixlex
from pixlex import run as runs
from pixlex.config.run import Run, write_run
from pixlex.families import FAMILIES, taken_over
from pixlex.files import read_json
from pixlex.models import checkpoint
from pixlex.models.cbvila import CBViLA
from pixlex.training.checkpoint import checkpoints
from pixlex.training.logging import read_metrics

RETRIEVAL = ("evaluate", "retrieval", "--model")
Call = Callable[..., tuple[int, str, str]]
RUN: dict[str, Any] = {
    "objective.burn_in_steps": 2, "data.train": "embedded:scenes:train:30", "data.augment": "resize",
    "data.validation": "embedded:scenes:test:12", "data.max_words": 30, "train.steps": 6, "eval.examples": 3,
    "train.checkpoint_every": 2, "train.evaluate_every": 3, "eval.batch_size": 5,
}  # fmt: skip


def _run(language: Path, **changes: Any) -> Run:
    return tiny_run("cbvila", language, RUN | {name.replace("__", "."): one for name, one in changes.items()})


@pytest.fixture(scope="module")
def trained(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert runs.run_training(_run(language), folder) == folder / "model"
    return folder


def test_a_run_leaves_pictures_page_and_model(trained: Path) -> None:
    for kind in ("rebuilt", "codewords"):
        assert (trained / f"pictures/{kind}-00000006.png").is_file()
    page = (trained / "report.html").read_text()
    assert page.count("data:image/png") == 3
    assert "Codewords, each with patches" in page
    card = (trained / "model/README.md").read_text()
    assert "model.similarity(" in card
    assert "## Vocabulary" in card


def test_a_saved_model_is_the_trained_one(trained: Path, language: Path, tmp_path: Path) -> None:
    """To the bit; it says with which vocabulary; another one is refused."""
    model = checkpoint.load_any(str(trained))
    assert isinstance(model, CBViLA)
    state = torch.load(checkpoints(trained / "checkpoints")[-1], weights_only=True)["objective"]
    for name, value in model.state_dict().items():
        assert torch.equal(state[f"model.{name}"], value), name
    assert checkpoint.fingerprint(model) == checkpoint.fingerprint(
        checkpoint.load_any(str(trained / "model"))
    )
    other = tiny_language(tmp_path / "other")
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["zzz"] = words.pop("about")
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match=r"trained with the vocabulary .* word vectors mean nothing"):
        checkpoint.load_any(str(trained), language_model=str(other))


def test_retrieval_at_another_size_and_published(call: Call, trained: Path, tmp_path: Path) -> None:
    """Positions resampled, images squashed, 30 tokens as trained, a top 256 for COCO; the line says all that."""
    names = [f"{number}.png" for number in range(3)]
    write_images(tmp_path, names)
    rows = "\n".join(f"{name},{'and ' * 60}{name}" for name in names)
    for name, other in (("coco_test.csv", "COCO's 5,000"), ("pairs.csv", None)):
        (tmp_path / name).write_text(f"path,caption\n{rows}\n")
        arguments = (*RETRIEVAL, trained, "--data", tmp_path / name, "--image-size", 64)
        code, out, _ = call(*arguments, "--resize-mode", "squash", "--raw-captions", "--quiet")
        assert code == 0
        head = out.splitlines()[0]
        assert head.startswith("zs-direct: 3 images, 3 captions, each against all; 64 px, images squashed")
        assert "captions of at most 30 tokens; ranked by the top 3 of each by contrast, then matching" in head
        assert "the paper's tables: 384 px, images squashed to squares, 30 tokens, the top 128 of" in head
        published = [line for line in out.splitlines() if line.startswith("published")]
        assert bool(published) == (other is not None)
        if other:
            assert f"zero-shot on {other} test images; here 3 images (CB-ViLA, Table I;" in published[0]
            assert published[-1].split()[1:] == ["CB-ViLA", "70.1", "90.2", "95.3", "52.4", "77.8", "86.0"]
    code, _, error = call(*arguments, "--image-size", 60)
    assert (code, "must be a multiple of the patch size 8, got 60" in error) == (2, True)


def test_a_model_without_contrast_says_so(call: Call, trained: Path, language: Path, tmp_path: Path) -> None:
    """In retrieval and in an index; one with contrast does not, nor one that is untrained on purpose."""
    run = _run(
        language, objective__image_text_contrastive_weight=0.0, train__steps=1, train__evaluate_every=0
    )
    assert runs.run_training(run, tmp_path / "eq7") is not None
    said = "was trained without contrast"
    for model, more, expected in (
        (tmp_path / "eq7", (), True),
        (tmp_path / "eq7", ("--untrained",), False),
        (trained, (), False),
    ):
        given = (model, *more, "--data", "embedded:scenes:test:6", "--score", "contrastive")
        code, _, error = call(*RETRIEVAL, *given)
        assert (code, said in error) == (0, expected)
    photos = write_images(tmp_path / "photos", ["one.png", "two.png"])
    code, _, error = call("index", photos, "--model", tmp_path / "eq7", "--out", tmp_path / "index")
    assert (code, said in error) == (0, True)


def test_pretraining_command(call: Call, trained: Path, tmp_path: Path) -> None:
    """The numbers of the run's own evaluation at its end, retrieval aside; pictures and a page."""
    arguments = ("--data", "embedded:scenes:test:12", "--batch-size", 5, "--quiet", "--json", "--precision")
    run = read_json(trained / "results.json")
    precision = "bf16" if "precision: bf16" in (trained / "config.yaml").read_text() else "fp32"
    code, out, _ = call(
        "evaluate", "pretraining", "--model", trained, *arguments, precision, "--out", tmp_path / "out"
    )
    values = json.loads(out)
    assert code == 0
    assert values == read_json(tmp_path / "out/results.json")
    assert "75% of the patches hidden; pairs compared within batches of 5" in values["protocol"]
    for name, value in run.items():
        if "recall" not in name and "churn" not in name:
            assert values[name.removeprefix("eval/")] == pytest.approx(value, rel=1e-4), name
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.json", "rebuilt.png", "codewords.png", "report.html",
    }  # fmt: skip
    (tmp_path / "bare").mkdir()
    shutil.copytree(trained / "model", tmp_path / "bare/model")  # no run at hand
    for model, more in ((trained, ("--untrained",)), (tmp_path / "bare", ())):
        code, out, _ = call("evaluate", "pretraining", "--model", model, *arguments, precision, *more)
        assert code == 0
        assert (json.loads(out)["image_text_matching"] == values["image_text_matching"]) == (not more)


def test_reconstruct_draws_figure_2(call: Call, trained: Path, tmp_path: Path) -> None:
    """With its caption and with the next one's; of one image alone with no text; without captions from codes."""
    arguments = ("--model", trained, "--out", tmp_path / "grid.png", "--json")
    code, out, _ = call("reconstruct", "embedded:scenes:test:3", *arguments)
    values = json.loads(out)
    assert (code, len(values["keys"]), values["num_visible"]) == (0, 3, 4)
    assert values["other_texts"] == [*values["texts"][1:], values["texts"][0]]
    code, out, _ = call("reconstruct", "embedded:scenes:test:3", *arguments, "--limit", 1)
    assert (code, json.loads(out)["other_texts"]) == (0, [""])
    code, out, error = call("reconstruct", "embedded:digits:test", *arguments, "--limit", 2)
    assert (code, "texts" in json.loads(out), "from their codes alone" in error) == (0, False, True)
    assert (tmp_path / "grid.png").is_file()


@pytest.mark.usefixtures("without_curves")
def test_ablate_makes_table_iv(call: Call, language: Path, tmp_path: Path) -> None:
    """Three combinations of objectives, re-ranked retrieval of each, the paper's values beside COCO's."""
    run = _run(language, train__steps=2, objective__burn_in_steps=1, eval__limit=4)
    write_run(run, tmp_path / "recipe.yaml")
    write_images(tmp_path, ["0.png", "1.png"])
    pairs, out = tmp_path / "coco_test.csv", tmp_path / "out"
    pairs.write_text("path,caption\n0.png,and\n1.png,all\n")
    code, text, _ = call("ablate", tmp_path / "recipe.yaml", "--out", out, "--retrieval", pairs, "--quiet")
    assert code == 0
    rows = {row["name"]: row["numbers"] for row in json.loads((out / "results.json").read_text())["rows"]}
    assert list(rows) == ["base", "mlm-itm", "mlm-itm-pixel"]
    assert [name for name in rows if "masked_image_gain" in rows[name]] == ["base"]
    assert [name for name in rows if "hidden_mse" in rows[name]] == ["base", "mlm-itm-pixel"]
    assert "| mlm-itm | MLM+ITM | retrieval lower |" in text
    assert "row C" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("| published: MLM+ITM |"))
    assert "CB-ViLA, Table IV: zero-shot on COCO's 5,000 test images" in line
    cells = ["65.2 %", "86.4 %", "91.5 %", "47.2 %", "73.1 %", "81.3 % |"]
    assert [cell for cell in line.split(" | ") if "%" in cell] == cells
    arguments = (*RETRIEVAL, out / "rows/base", "--data", pairs, "--json", "--quiet")
    found = json.loads(call(*arguments)[1])
    for name, one in rows["base"].items():
        if name.startswith("retrieval/"):
            assert one["value"] == found[name.removeprefix("retrieval/")]
    code, _, error = call("ablate", tmp_path / "recipe.yaml", "--out", out, "--rows", "A")
    assert (code, "expected groups (base, IV)" in error) == (2, True)


def test_codes_of_a_later_step_are_not_compared(trained: Path, language: Path, tmp_path: Path) -> None:
    """A run resumed behind an evaluation must not compare it with itself, and a cut-off file stops nothing."""
    shutil.copytree(trained, tmp_path / "again")
    for later in checkpoints(tmp_path / "again/checkpoints")[1:]:
        later.unlink()
    assert runs.run_training(_run(language), tmp_path / "again", resume=True) is not None
    assert "eval/churn" not in json.loads((tmp_path / "again/results.json").read_text())
    (tmp_path / "again/validation-codes.npz").write_bytes(b"PK")
    for later in checkpoints(tmp_path / "again/checkpoints")[1:]:
        later.unlink()
    assert runs.run_training(_run(language), tmp_path / "again", resume=True) is not None


def _one_of_two(rank: int, folder: Path, language: Path) -> None:
    run = _run(language, train__steps=2, train__evaluate_every=1, objective__burn_in_steps=1)
    runs.run_training(run, folder)


def test_two_processes_evaluate_on_one(language: Path, tmp_path: Path) -> None:
    """The loss that rank 0 computes for itself waits for nobody, in the middle and at the end."""
    on_two_processes(tmp_path, _one_of_two, tmp_path / "run", language)
    assert (tmp_path / "run/model/model.safetensors").is_file()
    steps = [
        line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl") if "eval/num_images" in line
    ]
    assert steps == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch_size": 1}, "batch_size of 2 or more"),
        ({"objective__mask_ratio": 0.99}, "leaves some of the 16 patches visible"),
        ({"data__max_words": 41}, "max_words of at most 40, text.positions"),
        ({"data__caption_templates": ("a {}", "icon")}, "must be texts with one {} each"),
        ({"objective__lock_images": True}, "nothing has taught the image encoder"),
        (
            {"objective__lock_images": True, "start": "model", "model__contrastive_dim": 65},
            "contrastive_dim .65. is above model.image.width .",
        ),
        (
            {"objective__alternate_every": 3, "objective__codebook_update": "ema"},
            "must be 0 with codebook_update=ema",
        ),
        (
            {"model__codebook": {"num_codewords": 16, "dim": 32, "estimator": "gumbel", "metric": "cosine"}},
            "must be euclidean with estimator=gumbel",
        ),
        ({"objective__codebook_start": "k-means"}, "codebook_start"),
        ({"model__masked_image_head": "cls"}, "masked_image_head"),
    ],
)
def test_settings_that_do_not_fit_are_refused(language: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _run(language, **changes)


def test_codes_and_back(call: Call, trained: Path, tmp_path: Path) -> None:
    """It is a tokenizer as LQAE and VQ-VAE are: encode, decode, reconstruct, measure."""
    tokenizer = pixlex.load(trained)
    assert (tokenizer.family, tokenizer.grid, tokenizer.num_codewords) == ("cbvila", 4, 16)
    code, out, _ = call("encode", "embedded:scenes:test:3", "--model", trained, "--quiet")
    assert code == 0
    rows = [[int(one) for one in line.split()[-16:]] for line in out.splitlines()]
    assert len(rows) == 3
    images = tokenizer.decode(torch.tensor(rows))
    assert images.shape == (3, 3, 32, 32)
    assert not torch.equal(images[0], images[1])
    arguments = ("--model", trained, "--data", "embedded:scenes:test:6", "--json", "--quiet")
    code, out, _ = call("evaluate", "reconstruction", *arguments, "--out", tmp_path / "out")
    assert code == 0
    assert json.loads(out)["mse"] > 0
    with pytest.raises(ValueError, match="a cbvila has no words"):
        tokenizer.to_words(tokenizer.tokenize(images))


def test_a_run_stores_the_words_of_its_captions(call: Call, trained: Path, tmp_path: Path) -> None:
    """Where contrast is trained; a list stays; who starts from the model has words of its own; codewords too."""
    model = checkpoint.load_cbvila(str(trained))
    assert {"red", "circle"} <= set(model.config.caption_words)
    assert "the" not in model.config.caption_words
    (text,) = pixlex.load(trained, top_k=1).to_words(torch.rand(1, 3, 32, 32))
    assert text in model.config.caption_words
    assert "caption_words" not in taken_over("cbvila", str(trained), checkpoint.read_config(str(trained)))
    for changes, expected in (
        ({"objective__image_text_contrastive_weight": 0.0}, ()),
        ({"model__caption_words": ["dog", "ice cream"]}, ("dog", "ice cream")),
    ):
        run = _run(Path(model.config.text.tokenizer), **changes)
        family = FAMILIES["cbvila"]
        resolved = family.resolve(run, family.open(run, run.data.train), None)
        assert resolved.model.caption_words == expected
    with pytest.raises(ValueError, match="caption_words must hold words of one character or more"):
        _run(Path(model.config.text.tokenizer), model__caption_words=["dog", " "])
    arguments = ("gallery", "--model", trained, "--out", tmp_path / "codewords.png", "--json", "--quiet")
    code, out, _ = call(*arguments, "--data", "embedded:scenes:test:12")
    names = json.loads(out)["names"]
    assert (code, names != {}) == (0, True)
    assert {int(one) for one in names} <= set(range(16))
    assert all(2 <= one["num_images"] <= 12 for one in names.values())
    write_images(tmp_path / "pictures", ["a.png"])
    assert "names" not in json.loads(call(*arguments, "--data", tmp_path / "pictures")[1])
