"""The commands: what they answer, what they refuse, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.tiny import write_images

import pixlex
import pixlex.report.released
import pixlex.run
from pixlex import cli
from pixlex.api import load
from pixlex.cli import data, main, parse, train
from pixlex.cli.train import overrides_of
from pixlex.config.run import FAMILIES, read_run, recipe_names, write_run
from pixlex.data import images, tables
from pixlex.encoding.files import read_codes
from pixlex.eval.few_shot.classifiers import Features, linear_per_episode
from pixlex.models import checkpoint, initialization
from pixlex.search import store
from pixlex.training.logging import Tracker
from pixlex.training.loop import LossNotFinite

COMMANDS = tuple(dict.fromkeys(path.split()[0] for path in cli.COMMANDS))
NAMES = tuple(f"{number}.png" for number in range(5))


@pytest.fixture(scope="module")
def model(models: Path) -> str:
    return str(models / "lqae")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), NAMES)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Five images, one of which is none."""
    folder = write_images(tmp_path / "broken", NAMES)
    (folder / "2.png").write_text("no image")
    return folder


Outcome = tuple[int, str, str]

# Half a second each time; that loading loads is tested in test_api.py.
load_once = cache(load)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`run(*arguments)` returns exit code, stdout and stderr of a command."""
    monkeypatch.setattr(pixlex.api, "load", load_once)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def refused(outcome: Outcome, code: int = 2) -> str:
    """Check the form of an error and return its message."""
    assert outcome[0] == code
    assert outcome[1] == ""
    lines = outcome[2].splitlines()
    assert lines[-1].startswith("pixlex: error: ")
    assert "Traceback" not in outcome[2]
    return lines[-1].removeprefix("pixlex: error: ")


def test_help_needs_nothing_heavy() -> None:
    program = f"""
import contextlib, io, sys
from pixlex.cli import main, parse
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in {COMMANDS!r})]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main(arguments)
        except SystemExit as left:
            assert left.code == 0
    assert "pixlex" in printed.getvalue()
    assert arguments != ["--help"] or "exit codes: 0 fine, 1 the run failed, 2 bad" in printed.getvalue()
assert main(["version", "--json"]) == 0
print(sorted({{"torch", "transformers", "numpy", "PIL", "pyarrow", "yaml", "jsonargparse"}} & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] in ("[]", "['yaml']")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND (see pixlex --help)"),
        (["encoed"], "invalid choice: 'encoed': did you mean encode or decode? (see pixlex --help)"),
        (["evaluate", "retreival"], "invalid choice: 'retreival': did you mean retrieval?"),
        (["encode", "a.png", "--model", "m", "--to", "jsonlines"], "did you mean jsonl?"),
        (
            ["train", "lqae/tinny"],
            "no recipe 'lqae/tinny', neither a YAML file nor a name: did you mean lqae",
        ),
        (["train", "lqae/tiny", "--batchsize", "3"], "--batchsize 3; did you mean --batch-size?"),
        (["train", "lqae/tiny", "train.sed=3"], "unknown key train.sed; did you mean train.seed?"),
        (["describe", "lqea"], "no recipe or family 'lqea': did you mean lqae?"),
        (["encode", "embedded:digits:test", "--model", "small-wrods"], "did you mean small-words?"),
        (["train", "lqae/tiny", "--seed", "-1"], "--seed: expected an integer of 0 or more, got '-1'"),
        (
            ["train", "lqae/tiny", "--device", "gpu"],
            "device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'",
        ),
        (
            ["train", "lqae/tiny", "--seed", "1", "train.seed=1"],
            "--seed and train.seed= are the same setting",
        ),
        (["ablate", "lqae/tiny", "--out", "d", "--seed", "2", "train.seed=3"], "are the same setting"),
        (["train", "finetune/vqa"], "expected `pixlex finetune` with --from MODEL (or --untrained"),
        (["train", "finetune/coco"], "goes on with a trained model"),
        (["train"], "or --resume with --out DIR to go on with a run"),
        (["finetune", "--resume"], "or --resume with --out DIR"),
        (
            ["train", "train.steps=3", "--out", "d", "--resume"],
            "holds no run to resume: there is no config.yaml",
        ),
        (["finetune", "lqae/tiny", "--untrained"], "is a recipe of family lqae: expected one of cbvila"),
        (["gallery", "--model", "m", "--data", "d", "--out", "x.jpg"], "name of a .png file, got 'x.jpg'"),
        (["finetune", "finetune/vqa"], "expected --from MODEL, the model to go on with, or --untrained"),
        (["describe", "lqae", "--jsn"], "unrecognized arguments: --jsn; did you mean --json?"),
        (
            ["evaluate", "reconstruction", "--model", "m", "--data", "d", "--mask-ratio", "2"],
            "in [0, 1], got '2'",
        ),
    ],
)
def test_what_is_typed_wrong(run: Callable[..., Outcome], arguments: list[str], message: str) -> None:
    assert message in refused(run(*arguments))


@pytest.mark.parametrize("command", ["train", "finetune", "ablate", "quickstart"])
def test_settings_that_are_options(command: str) -> None:
    given = [] if command == "quickstart" else ["lqae/tiny", "train.steps=3"]
    _, options = parse([command, *given, "--device", "cuda:1", "--seed", "0", "--batch-size", "8"])
    typed = overrides_of(options)
    assert typed == [*given[1:], "train.device=cuda:1", "train.seed=0", "train.batch_size=8"]
    run = read_run("lqae/tiny", typed).train
    assert (run.device, run.seed, run.batch_size) == ("cuda:1", 0, 8)
    assert overrides_of(parse([command, *given])[1]) == given[1:]


def test_fine_tuning_from_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --untrained a recipe of finetune/ runs in its own shape; with start= it is a run like any other."""
    begun: list[Any] = []
    monkeypatch.setattr(train, "_train", lambda options, run: begun.append(run) or 0)
    assert main(["finetune", "finetune/vqa", "--untrained", "--seed", "3"]) == 0
    assert main(["train", "finetune/vqa", "start=runs/pairs"]) == 0
    assert main(["train", "cbvila/tiny"]) == 0
    assert [getattr(run, "start", "") for run in begun] == ["", "runs/pairs", ""]
    assert begun[0].train.seed == 3


@pytest.mark.parametrize(
    ("package", "call", "extra"),
    [
        ("wandb", lambda folder: Tracker(folder, 0, wandb=True), "wandb"),
        ("sklearn", lambda folder: linear_per_episode(Features("n", "i", lambda *_: {})), "eval"),
        ("lancedb", lambda folder: store._lancedb(), "search"),
        ("datasets", lambda folder: tables._datasets(), "datasets"),
        ("sklearn.datasets", lambda folder: images._digits(), "words"),
    ],
)
def test_missing_extras_fail_and_are_named(
    package: str, call: Callable[[Path], object], extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Outcome],
) -> None:  # fmt: skip
    """Nothing that was typed is wrong: exit code 1."""
    for name in [package, *sys.modules]:
        if name == package or name.startswith(f"{package}."):
            monkeypatch.setitem(sys.modules, name, None)
    images._digits.cache_clear()
    monkeypatch.setattr(data.cli, "answer", lambda *_: call(tmp_path))
    assert f"pip install 'pixlex[{extra}]'" in refused(run("version"), code=1)


def test_the_package_is_a_program() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "pixlex", "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout == f"pixlex {pixlex.__version__}\n"
    program = "import pixlex, sys; names = dir(pixlex); assert 'torch' not in sys.modules; print(*names)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(pixlex.__all__) <= set(answer.stdout.split())


FOLDERS = {
    "train": ["lqae/tiny"], "ablate": ["lqae/tiny"], "index": ["d", "--model", "m"],
    "evaluate vqa": ["--model", "m", "--data", "d"], "evaluate few-shot": ["--data", "d"],
    "evaluate linear-probe": ["--model", "m", "--data", "d", "--test", "t"],
}  # fmt: skip
FILES = {"convert": ["d"], "explain": ["a", "text", "--model", "m"]}


@pytest.mark.parametrize("command", [*FOLDERS, *FILES])
def test_where_nothing_can_be_written_is_found_first(
    run: Callable[..., Outcome], command: str, tmp_path: Path
) -> None:
    """Not after all was computed; what must be there is not even looked for."""
    (tmp_path / "file").touch()
    given = FOLDERS.get(command) or FILES.get(command) or []
    for out in (tmp_path / "file" / "deeper" / "x.png", *([tmp_path / "file"] if command in FOLDERS else [])):
        message = refused(run(*command.split(), *given, "--out", out))
        assert f"argument --out: expected a folder, but '{tmp_path / 'file'}' is none" in message


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (FileExistsError(17, "File exists", "runs"), 2, "runs: File exists"),
        (NotADirectoryError(20, "Not a directory", "a/b"), 2, "a/b: Not a directory"),
        (OSError(28, "No space left on device", "x.pt"), 1, "x.pt: No space left on device"),
        (OSError("no such thing"), 1, "no such thing"),
    ],
)
def test_faults_of_the_system_name_the_file(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, fault: OSError, code: int, message: str
) -> None:
    def failing(*_: Any) -> int:
        raise fault

    monkeypatch.setattr(data.cli, "answer", failing)
    assert refused(run("version"), code=code) == message


def test_describe_lists_recipes_and_families(run: Callable[..., Outcome]) -> None:
    code, out, _ = run("describe")
    assert code == 0
    values = json.loads(run("describe", "--json")[1])
    assert list(values["recipes"]) == recipe_names()
    assert list(values["families"]) == list(FAMILIES)
    assert all(name in out for name in (*recipe_names(), *FAMILIES))
    assert "(He et al. 2021, arXiv:2111.06377, " in values["recipes"]["mae/default"]  # not cut at "al."


def test_describe_shows_what_a_recipe_changes(run: Callable[..., Outcome], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("family: vqvae\ntrain: {steps: 7}\n")
    listed = {one["field"]: one for one in json.loads(run("describe", recipe, "--json")[1])}
    assert (listed["train.steps"]["value"], listed["train.batch_size"]["value"]) == (7, 512)
    assert "train.steps = 7   (default 250200)" in run("describe", recipe)[1]


@pytest.mark.filterwarnings("default:.*passed over")
def test_what_a_source_passes_over_is_said_and_doctor_lists_it(
    run: Callable[..., Outcome], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path / "photos", ("a.png",))
    for name in ("a.txt", "b.heic", "c.heic"):
        (folder / name).write_text("a caption")
    said = f"pixlex: {folder}: {{}}, `pixlex doctor` lists them\n"
    assert said.format("3 files passed over (2 .heic, 1 .txt)") in run("encode", folder, "--model", model)[2]
    assert run("encode", folder, "--model", model, "--quiet")[2] == ""
    code, out, err = run("doctor", folder)  # it reads the caption
    assert said.format("2 files passed over (2 .heic)") in err
    assert (code, out.count("files passed over (2)"), out.count("b.heic")) == (0, 1, 1)
    (folder / "a.txt").unlink()
    assert json.loads(run("doctor", folder, "--json")[1])["ignored"][0]["name"] == "b.heic"
    (tmp_path / "rows.csv").write_text(f"path,caption\n{folder}/a.png,text\nb.png,\nc.png,\n")
    assert (
        "rows.csv: 2 images without a caption passed over (b.png, ...)"
        in run("doctor", tmp_path / "rows.csv")[2]
    )
    monkeypatch.setenv("RANK", "1")
    assert "passed over" not in run("encode", folder, "--model", model)[2]


def test_encode_prints(run: Callable[..., Outcome], model: str, photos: Path, tmp_path: Path) -> None:
    """Each kind as it is read back; words by default, jsonl where JSON is asked for."""
    tokenizer, printed = load(model), {}
    rows = tokenizer.tokenize([photos / name for name in NAMES]).tolist()
    for kind in ("words", "codes", "jsonl"):
        code, printed[kind], err = run("encode", photos, "--model", model, "--to", kind, "--batch-size", 2)
        assert (code, "encode: 100%" in err) == (0, True)
        (tmp_path / "printed").write_text(printed[kind])
        read = list(read_codes(tmp_path / "printed", tokenizer))
        assert read == [(name, tuple(row)) for name, row in zip(NAMES, rows, strict=True)]
    assert run("encode", photos, "--model", model, "--quiet") == (0, printed["words"], "")
    assert run("encode", photos, "--model", model, "--json", "--quiet")[1] == printed["jsonl"]


def test_broken_images(run: Callable[..., Outcome], model: str, broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    arguments = ("encode", broken, "--model", model, "--out", out, "--json")
    message = refused(run(*arguments), code=1)
    assert "max_broken_fraction is 5.0%" in message
    assert not out.exists()
    code, printed, err = run(*arguments, "--max-broken-fraction", 0.5)
    assert (code, json.loads(printed)["num_images"]) == (0, 4)
    assert "pixlex: skipped 2.png: not an image" in err
    evaluate = ("evaluate", "reconstruction", "--model", model, "--data", broken)
    assert "2.png" in refused(run(*evaluate), code=1)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "none.png").write_text("none")
    reconstruct = ("reconstruct", tmp_path / "one", "--model", model, "--out", tmp_path / "grid.png")
    assert "none of 1 images can be read" in refused(run(*reconstruct), code=1)


def test_paths_it_refuses(run: Callable[..., Outcome], model: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    end = ("--model", model)
    assert "is empty" in refused(run("encode", tmp_path / "empty", *end))
    assert "does not exist" in refused(run("encode", photos / "0.png", photos / "9.png", *end))
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is no file" in refused(run("encode", photos / "0.png", tmp_path / "pipe", *end))
    assert "neither a file nor a folder" in refused(run("encode", tmp_path / "pipe", *end))
    message = refused(run("encode", photos / "0.png", photos, *end))
    assert "expected image files, or one folder" in message
    message = refused(run("encode", photos, *end, "--to", "parquet"))
    assert message == "parquet cannot be printed: name a file with --out"
    assert "holds no model" in refused(run("encode", photos, "--model", photos))
    assert "got 'abacus'" in refused(run("encode", photos, *end, "--device", "abacus"))
    assert "--json prints jsonl, not words" in refused(run("encode", photos, *end, "--to", "words", "--json"))


def test_decode_a_file_and_words_and_stdin(
    run: Callable[..., Outcome], model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run("encode", photos, "--model", model)[1]
    (tmp_path / "words.txt").write_text(lines)
    end = ("--model", model, "--out")
    code, out, _ = run("decode", tmp_path / "words.txt", *end, tmp_path / "file")
    assert (code, out) == (0, f"{tmp_path / 'file'}: 5 pictures\n")
    assert sorted(path.name for path in (tmp_path / "file").glob("*.png")) == sorted(NAMES)
    answer = json.loads(run("decode", tmp_path / "words.txt", *end, tmp_path / "file", "--json")[1])
    assert answer == {"folder": str(tmp_path / "file"), "num_images": 5, "num_resumed": 5}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert run("decode", "-", *end, tmp_path / "stdin", "--quiet")[0] == 0
    words = lines.splitlines()[0].split("\t")[1]
    assert run("decode", words, *end, tmp_path / "quoted")[0] == 0
    assert run("decode", *words.split(), *end, tmp_path / "plain")[0] == 0
    pictures = [tmp_path / name for name in ("file/0.png", "stdin/0.png", "quoted/1.png", "plain/1.png")]
    assert len({Image.open(picture).tobytes() for picture in pictures}) == 1


def test_decode_refuses(run: Callable[..., Outcome], model: str, tmp_path: Path) -> None:
    end = ("--model", model, "--out", tmp_path / "out")
    assert "expected 16 words (4 x 4), got 2" in refused(run("decode", "about above", *end))
    assert "words.txt does not exist: expected a file" in refused(run("decode", "words.txt", *end))
    for name in ("pipe", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        assert f"{name} is no file but a pipe" in refused(run("decode", tmp_path / name, *end))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in a folder of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("family: vqvae\ntrain: {steps: 7}\n")
    return tmp_path / "mine.yaml"


class FakeTraining:
    """Stands where `run_training` is."""

    def __init__(self, outcome: BaseException | None = None, *, finishes: bool = True) -> None:
        self.outcome, self.finishes = outcome, finishes
        self.calls: list[tuple[int, Path, bool]] = []

    def __call__(self, run: Any, folder: Path, *, resume: bool) -> Path | None:
        print("a bar", file=sys.stderr)
        self.calls.append((run.train.steps, folder, resume))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "step-00000001.pt").touch()
        if self.outcome is not None:
            raise self.outcome
        return folder / "model" if self.finishes else None


def test_train_numbers_its_folders(
    run: Callable[..., Outcome], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = FakeTraining()
    monkeypatch.setattr(pixlex.run, "run_training", training)
    code, out, err = run("train", "mine.yaml", "--json", "train.steps=9")
    assert (code, json.loads(out)) == (0, {"folder": "runs/mine-1", "model": "runs/mine-1/model"})
    assert "pixlex: run folder runs/mine-1" in err
    run("train", "lqae/default", "train.steps=3")
    run("train", recipe, "--out", "elsewhere", "train.steps=4")
    assert run("train", "mine.yaml", "--quiet")[2] == ""
    assert run("train", "mine.yaml", "--resume")[0] == 0
    folders = ["runs/mine-1", "runs/lqae-default-1", "elsewhere", "runs/mine-2", "runs/mine-2"]
    assert training.calls == [
        (steps, Path(folder), resume)
        for steps, folder, resume in zip((9, 3, 4, 7, 7), folders, (False,) * 4 + (True,), strict=True)
    ]


def test_train_refuses(run: Callable[..., Outcome], recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = FakeTraining()
    monkeypatch.setattr(pixlex.run, "run_training", training)
    assert "no run runs/mine-NUMBER to resume" in refused(run("train", "mine.yaml", "--resume"))
    assert "there is no run to resume" in refused(run("train", "mine.yaml", "--resume", "--out", "nothing"))
    assert "expected key=value, got 'steps'" in refused(run("train", "mine.yaml", "steps"))
    assert training.calls == []
    run("train", "mine.yaml", "--out", "here")
    message = refused(run("train", "mine.yaml", "--out", "here"))
    assert "pass --resume to go on with it, or another --out" in message


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_example_of_every_command_is_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.COMMANDS[name]
    typed = command.example.partition(" > ")[0]
    assert parse([*name.split(), *shlex.split(typed)])[0] is command
    with pytest.raises(SystemExit):
        parse([*name.split(), "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"example: pixlex {name} {command.example}".strip().replace(" ", "") in printed.replace(" ", "")


def test_other_names_of_commands() -> None:
    assert parse(["tokenize", "a.png", "--model", "m"])[0] is cli.COMMANDS["encode"]
    typed = ["eval", "retrieval", "--model", "m", "--data", "d"]
    assert parse(typed)[0] is cli.COMMANDS["evaluate retrieval"]


def test_a_run_is_resumed_by_its_folder(
    run: Callable[..., Outcome], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = FakeTraining()
    monkeypatch.setattr(pixlex.run, "run_training", training)
    run("train", "mine.yaml", "--out", "here", "train.steps=9")
    write_run(read_run("mine.yaml", ["train.steps=9"]), Path("here/config.yaml"))
    assert run("train", "--resume", "--out", "here")[0] == 0
    assert run("train", "--resume", "--out", "here", "train.log_every=3")[0] == 0
    assert run("train", "train.log_every=3", "--resume", "--out", "here")[0] == 0
    assert training.calls[1:] == [(9, Path("here"), True)] * 3
    message = refused(run("train", "--resume", "--out", "here", "--from", "there"))
    assert "expected --resume or --from, got both" in message


SMALL = (
    "model.image_size=32", "model.patch_size=8", "model.encoder.width=32", "model.encoder.depth=1",
    "model.encoder.heads=2", "model.decoder.width=32", "model.decoder.depth=1", "model.decoder.heads=2",
    "train.steps=2", "train.batch_size=4", "eval.word_folds=0",
)  # fmt: skip


def test_a_rehearsal_tells_and_leaves_nothing(
    run: Callable[..., Outcome], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["train", "lqae/vqvae", *SMALL, "train.steps=1000", f"data.train={photos}", "--dry-run"]
    code, out, _ = run(*typed)
    assert code == 0
    assert "  steps: 1000\n" in out
    assert "1,000 steps of 4 images, 800.0 times each of 5" in out
    assert " s a step of the phase train: " in out
    found = json.loads(run(*typed, "--json")[1])
    assert 0 < found["seconds"] < 60
    assert found["num_parameters"] > 10_000
    assert found["config"]["train"]["steps"] == 1000
    assert not [*tmp_path.iterdir()]


def test_a_rehearsal_ends_where_the_run_would(
    run: Callable[..., Outcome], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At broken images, at an interruption, and where several processes would share the work."""
    typed = ["train", "lqae/vqvae", *SMALL, "train.steps=1000", "--dry-run"]
    broken = write_images(tmp_path / "broken", [f"{number}.png" for number in range(6)])
    for number in range(4):
        (broken / f"{number}.png").write_text("no image")
    message = refused(run(*typed, f"data.train={broken}", "data.max_broken_fraction=0"), code=1)
    assert "cannot be read" in message
    with monkeypatch.context() as patch:
        patch.setattr(pixlex.run, "fit", lambda *given, **more: 2)
        assert run(*typed, f"data.train={photos}")[0] == 130
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "expected one process for a rehearsal, got 2" in refused(run(*typed, f"data.train={photos}"))


def test_a_new_run_goes_on_from_a_model(run: Callable[..., Outcome], photos: Path, tmp_path: Path) -> None:
    """It has that one's shape and weights, and names it; another family or shape is refused."""
    first, second = tmp_path / "first", tmp_path / "second"
    typed = ["train", "lqae/vqvae", f"data.train={photos}", "data.validation="]
    assert run(*typed, *SMALL, "--out", first)[0] == 0
    more = [
        "--from",
        first,
        "train.steps=1",
        "train.batch_size=4",
        "train.learning_rate=1.0e-9",
        "--out",
        second,
    ]
    assert run(*typed, *more)[0] == 0
    before, after = load(first), load(second)
    assert after.image_size == 32
    assert after.trained_on == (str(photos), str(photos))
    pictures = [photos / name for name in NAMES]
    assert (before(pictures) == after(pictures)).float().mean() > 0.9
    assert "holds a model of family vqvae: expected one of mae, as the recipe" in refused(
        run("train", "mae/tiny", "--from", first)
    )
    message = refused(run(*typed, "--from", first, "model.encoder.width=64", "--out", tmp_path / "third"))
    assert "is a model of another family or shape" in message


def test_a_start_of_a_revision_is_that_revision_throughout(
    run: Callable[..., Outcome], model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shape, weights and history."""
    asked, find = [], checkpoint.find_model

    def found(name: str, kind: str, *, revision: str | None, **how: Any) -> Path:
        asked.append((name, revision))
        return find(model if name == "me/mine" else name, kind, revision=None, **how)

    monkeypatch.setattr(checkpoint, "find_model", found)
    typed = ["lqae/tiny", "--from", "me/mine", "--revision", "v1", f"data.train={photos}", "data.validation="]
    assert run("train", *typed, "train.batch_size=4", "--dry-run")[0] == 0
    assert [one for one in asked if one[0] == "me/mine"] == [("me/mine", "v1")]
    assert len(asked) > 1


def test_completion_knows_commands_and_options(run: Callable[..., Outcome]) -> None:
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh", "tcsh"):
        code, out, _ = run("completion", shell)
        assert code == 0
        assert "few-shot" in out
        assert "keep-fraction" in out


def test_a_shell_completes_recipes_and_files(run: Callable[..., Outcome], tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    (tmp_path / "pixlex.bash").write_text(run("completion", "bash")[1])
    (tmp_path / "pictures").mkdir()

    def completed(*words: str) -> list[str]:
        typed = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        script = f'source pixlex.bash; {typed}; _shtab_pixlex; echo "${{COMPREPLY[@]}}"'
        asked = subprocess.run([bash, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return asked.stdout.split()

    assert completed("pixlex", "train", "mae/") == ["mae/default", "mae/tiny", "mae/tinyimages"]
    assert completed("pixlex", "train", "pict") == ["pictures"]
    assert completed("pixlex", "encode", "--model", "pict") == ["pictures"]
    assert completed("pixlex", "evaluate", "few-shot", "--scorer", "str") == ["strict"]


def test_models_that_come_with_the_package(
    run: Callable[..., Outcome], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name wherever a model is asked for; listed with what their cards say first."""
    load(model).save(tmp_path / "released/small")
    (tmp_path / "released/small/README.md").write_text(
        "---\nlicense: mit\n---\n\n# small\n\nWords of\npictures.\n\nMore."
    )
    monkeypatch.setattr(initialization, "RELEASED", tmp_path / "released")
    code, out, _ = run("models", "--json")
    (found,) = json.loads(out)
    shown = (code, found["name"], found["family"], found["about"])
    assert shown == (0, "small", "lqae", "Words of pictures.")
    assert "small  lqae, " in run("models")[1]
    assert run("describe", "small")[1].startswith("# small\n\nWords of\npictures.")
    assert load("small").fingerprint == load(model).fingerprint
    with pytest.raises(ValueError, match="no model 'smal': did you mean small"):
        load("smal")
    hub = {"me/small": tmp_path / "released/small"}  # no misspelt one
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(hub[name]))
    assert load("me/small").family == "lqae"
    assert load("small").card is not None


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (LossNotFinite("step 3: total not finite"), 1, "error: step 3: total not finite"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (ImportError("pip install 'pixlex[words]'"), 1, "error: pip install 'pixlex[words]'"),
        (MemoryError(), 1, "error: out of memory"),
        (RuntimeError("CUDA\nout of memory"), 1, "error: CUDA out of memory"),
        (ValueError("expected a, got b"), 2, "error: expected a, got b"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(
    run: Callable[..., Outcome],
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: BaseException,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(pixlex.run, "run_training", FakeTraining(outcome))
    found, out, err = run("train", "mine.yaml")
    assert (found, out, err.splitlines()[-1]) == (code, "", f"pixlex: {message}")
    assert "Traceback" not in err
    assert "Traceback" in run("train", "mine.yaml", "--debug")[2]
    monkeypatch.setenv("PIXLEX_DEBUG", "1")
    assert "Traceback" in run("train", "mine.yaml")[2]


def test_only_the_first_process_prints(
    run: Callable[..., Outcome], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixlex.run, "run_training", FakeTraining(finishes=False))
    code, out, err = run("train", "mine.yaml")
    assert (code, out) == (130, "")
    assert "the same command with --out runs/mine-1 --resume goes on" in err
    monkeypatch.setenv("RANK", "1")
    assert run("train", "mine.yaml", "--quiet") == (0, "", "")
    monkeypatch.setattr(pixlex.run, "run_training", FakeTraining(OSError("gone")))
    assert run("train", "mine.yaml")[2].splitlines()[-1] == "pixlex (process 1): error: gone"


def test_quickstart(run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(folder: Path, *, resume: bool, overrides: Sequence[str] = ()) -> Path | None:
        calls.append((folder, resume))
        if len(calls) == 1:
            return None
        folder.mkdir()
        (folder / "report.html").touch()
        return folder / "report.html"

    monkeypatch.setattr(pixlex.run, "quickstart", fake)
    monkeypatch.setattr(pixlex.report.released, "look", lambda folder: None)
    out = tmp_path / "quick"
    code, printed, err = run("quickstart", "--out", out)
    assert (code, printed, "the same command goes on" in err) == (130, "", True)
    assert run("quickstart", "--out", out)[1].splitlines()[0] == f"page    {out / 'report.html'}"
    code, printed, err = run("quickstart", "--out", out, "--json")
    assert (code, json.loads(printed)["page"]) == (0, str(out / "report.html"))
    assert "is finished" in err
    assert calls == [(out, True)] * 2


def test_a_reader_that_has_enough() -> None:
    program = f"from pixlex.cli import main; import sys; sys.exit(main({['describe', 'lqae']!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (1, "")
