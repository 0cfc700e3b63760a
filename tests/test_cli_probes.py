"""`pixlex evaluate few-shot`: what it leaves behind, what it refuses."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.eval.few_shot.fakes import FakeClient, labeled
from tests.eval.llm.server import Endpoint, serving
from tests.eval.llm.slow import SlowModel
from tests.tiny import write_classes

from pixlex.cli import main
from pixlex.eval import llm
from pixlex.eval.llm import LLMOptions


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, models: Path, language: Path, causal_language: Path
) -> Path:
    """Labeled images, language models, one of each kind of model."""
    place = tmp_path_factory.mktemp("few-shot")
    labeled(place / "images", per_class=4)
    for path in (*models.iterdir(), language, causal_language):
        name = {language: "language", causal_language: "causal"}.get(path, path.name)
        (place / name).symlink_to(path)
    return place


@pytest.fixture
def cells(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    """Run the command and return the cells that it prints."""

    def run(*rest: str) -> list[dict[str, Any]]:
        assert main(command(folder, *rest, "--json")) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return found

    return run


def command(folder: Path, *rest: str) -> list[str]:
    language = str(folder / "language")
    return [
        "evaluate", "few-shot", "--data", str(folder / "images"), "--episodes", "5", "--ways", "2",
        "--settings", "1/0", "3/0", "--encoder", language, "--code-words", language, "--device", "cpu",
        "--quiet", *rest,
    ]  # fmt: skip


def test_models_and_baselines_give_rows(folder: Path, tmp_path: Path, cells: Any) -> None:
    models = [f"words={folder / 'lqae'}", *(str(folder / name) for name in ("vqvae", "mae", "frozen"))]
    found = cells("--model", *models, "--untrained", "--out", str(tmp_path / "out"))
    words = ("sentence encoder", "language model, all layers", "language model, last layer", "bag of words")
    codes = ("sentence encoder", "bag of words")
    linear = ("words", "untrained words", "vqvae", "untrained vqvae", "mae", "untrained mae")
    rows = list(dict.fromkeys((cell["classifier"].split(", tiny")[0], cell["scorer"]) for cell in found))
    assert [row for row in rows if "rozen" not in row[0]] == [
        *((f"{name}, {kind}", "nearest") for name in ("words", "untrained words") for kind in words),
        *((f"{name}, {kind}", "nearest") for name in ("vqvae", "untrained vqvae") for kind in codes),
        *((f"{name}, encoder + linear", "linear") for name in linear),
        ("pixels, 64 x 64", "nearest"),
        ("chance", "exact"),
    ]
    assert [scorer for name, scorer in rows if "rozen" in name] == ["strict", "likelihood"] * 2
    assert {(cell["setting"]["ways"], cell["setting"]["shots"]) for cell in found} == {(2, 1), (2, 3)}
    assert all(cell["num_failed"] == 0 for cell in found)
    files = {"results.json", "table.md", "report.html", "accuracy.png", "episodes-2-way.png", "answers.jsonl"}
    assert {path.name for path in (tmp_path / "out").iterdir()} >= files


def test_episodes_are_shared(tmp_path: Path, cells: Any, folder: Path, capsys: Any) -> None:
    """The files of one run asked in another give its numbers; options are taken by their earlier names."""
    earlier, base = ([option, "pixels", "--names", "nonsense"] for option in ("--answerers", "--classifiers"))
    first = cells(*earlier, "--keep-share", "1", "--seed", "4", "--out", str(tmp_path / "one"))
    files = ["--episode-files", str(tmp_path / "one" / "episodes")]
    assert cells(*base, *files, "--out", str(tmp_path / "two")) == first
    (tmp_path / "empty").mkdir()
    wrong = ["--episode-files", str(tmp_path / "empty"), "--out", str(tmp_path / "three")]
    assert main(command(folder, *base, *wrong)) == 2
    assert "no .json file of episodes" in capsys.readouterr().err


def test_a_language_model_gives_rows(
    folder: Path, tmp_path: Path, cells: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    client = FakeClient(says=" camel")

    def connect(options: LLMOptions, say: object) -> FakeClient:
        given.update(vars(options))
        return client

    monkeypatch.setattr(llm, "connect", connect)
    asked = [
        "--model", str(folder / "lqae"), "--classifiers", "--llm", "some-model", "--llm-url", "http://host/v1",
        "--template", "frozen", "v2l", "--scorer", "strict", "--llm-max-cost", "2", "--llm-input-price", "1",
        "--llm-output-price", "1", "--out", str(tmp_path),
    ]  # fmt: skip
    found = cells(*asked)
    assert [(cell["classifier"], cell["scorer"]) for cell in found[::2]] == [
        (f"lqae, fake model, {template} prompt", "strict") for template in ("frozen", "v2l")
    ]
    assert (given["model"], given["base_url"], given["max_cost"]) == ("some-model", "http://host/v1", 2.0)
    sent = len(client.sent)
    assert sent == 2 * 2 * 5
    assert cells(*asked) == found
    assert len(client.sent) == sent


def test_names_alone_and_examples_from_elsewhere(
    folder: Path, tmp_path: Path, cells: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an example who compares names answers, others say what they need; classes of one name meet."""
    labeled(tmp_path / "support", per_class=3, classes=("camel", "pig", "yak", "zebra"), seed=1)
    asked = ["--support", str(tmp_path / "support"), "--settings", "0/0", "3/0", "--ascii"]
    asked += ["--classifiers", "sentence", "pixels", "chance", "--model", str(folder / "cbvila")]
    found = cells(*asked, "--out", str(tmp_path / "out"))
    answered = {(one["classifier"], one["setting"]["shots"]): one["does_not_fit"][:16] for one in found}
    needy = {name for name, said in answered.items() if said == "needs an example"}
    assert needy == {("pixels, 64 x 64", 0)}
    assert {said for name, said in answered.items() if name not in needy} == {""}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| pixels, 64 x 64 | nearest | needs an example |" in table
    assert cells(*asked, "--out", str(tmp_path / "out")) == found
    files = ["--episode-files", str(tmp_path / "out" / "episodes"), "--out", str(tmp_path / "again")]
    assert cells(*asked, *files) == found
    line = [*command(folder, *asked, "--out", str(tmp_path / "loud")), "--debug"]
    assert main([one for one in line if one != "--quiet"]) == 0
    said = capsys.readouterr().err
    assert f"3 classes of {folder / 'images'} and 1 classes of {tmp_path / 'support'} are left out" in said


def test_large_models_are_asked_one_after_the_other(
    folder: Path, tmp_path: Path, cells: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows stand with the words that they read, and no two are in memory."""
    alive: list[weakref.ref[FakeClient]] = []

    class Client(FakeClient):
        __hash__ = object.__hash__

    def connect(options: LLMOptions, say: object) -> FakeClient:
        gc.collect()
        assert [one() for one in alive if one() is not None] == []
        client = Client(name=Path(options.model).name, identity=options.model)
        alive.append(weakref.ref(client))
        return client

    monkeypatch.setattr(llm, "connect", connect)
    (tmp_path / "other").symlink_to(folder / "causal")
    models = [str(folder / "causal"), str(tmp_path / "other")]
    asked = [
        "--model",
        str(folder / "lqae"),
        "--ascii",
        "--classifiers",
        "bag",
        "chance",
        "--scorer",
        "strict",
    ]
    found = cells(*asked, "--llm", *models, models[0], "--out", str(tmp_path / "out"))
    assert [cell["classifier"] for cell in found[::2]] == [
        *(f"lqae, {row}" for row in ("bag of words", "causal, frozen prompt", "other, frozen prompt")),
        *(f"ASCII 64x64, {row}" for row in ("bag of words", "causal, frozen prompt", "other, frozen prompt")),
        "chance",
    ]
    assert len(alive) == 2
    assert cells(*asked, "--llm", models[1], "--out", str(tmp_path / "out"))[2:4] == found[4:6]
    # Of fewer questions it is asked the first ones.
    few = cells(*asked, "--llm", models[1], "--llm-episodes", "1", "--out", str(tmp_path / "out"))
    assert few[:2] == found[:2]
    assert {cell["num_episodes"] for cell in few[2:4]} == {1}


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ([], "nothing to read images with"),
        (["--classifiers", "chance", "--settings", "0/1"], "repeats must be 0 where no image is shown"),
        (
            ["--classifiers", "chance", "--settings", "0/0", "--names", "nonsense"],
            "nonsense names say nothing",
        ),
        (["--classifiers", "pixels", "--support", "$FOLDER/images"], "could be shown are asked about"),
        (
            ["--classifiers", "pixels", "--support", "embedded:digits:test"],
            "no class of $FOLDER/images (6, such",
        ),
        (
            ["--classifiers", "pixels", "--data", "$FOLDER/images?label=x"],
            "has no columns: ?label=COLUMN is for",
        ),
        (
            ["--ascii", "--llm", "$FOLDER/causal", "$FOLDER/no-such"],
            "$FOLDER/no-such holds no language model",
        ),
        (["--ascii", "--llm", "$FOLDER/causal", "$FOLDER/images/../causal"], "would have one name"),
        (
            ["--model", "$FOLDER/frozen", "--llm", "$FOLDER/causal"],
            "--llm reads images as words, which no --model",
        ),
        (["--model", "m=$FOLDER/lqae", "m=$FOLDER/vqvae"], "two models are called 'm'"),
        (["--classifiers", "pixels", "--settings", "5/0"], "class 'camel' has 4 images, but 5 shots"),
        (["--classifiers", "pixels", "--open-ended", "x"], "leave out --data"),
        (["--classifiers", "poetry"], "invalid choice: 'poetry'"),
    ],
)
def test_what_it_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rest: list[str], message: str
) -> None:
    rest = [one.replace("$FOLDER", str(folder)) for one in rest]
    assert main(command(folder, "--out", str(tmp_path / "out"), *rest)) == 2
    assert message.replace("$FOLDER", str(folder)) in capsys.readouterr().err


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_an_endpoint_that_says_nothing_of_use(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reasoning alone, refusals, no text: counted and said beside the number; nowhere is the key."""
    pytest.importorskip("openai")
    key = "sk-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    message: dict[str, Any] = {"content": None, "reasoning_content": f"hm {key}"}
    refused = json.dumps({"error": {"message": f"flagged, key {key}"}}).encode()

    def fault(text: str, times: int) -> Any:
        if "Q: What is this?" not in text:
            return None
        if text.count("This is a") > 4:
            return 403, refused
        choice = {"message": message, "finish_reason": "length"}
        return json.dumps({"choices": [choice]}).encode()

    tiny = SlowModel(folder / "causal")
    asked = ["--model", str(folder / "lqae"), "--classifiers", "--llm", "tiny", "--scorer", "strict"]
    asked += ["--keep-share", "0.1", "--out", str(tmp_path / "out"), "--debug", "--episodes", "3"]
    with serving(Endpoint(tiny, abilities=frozenset({"chat"}), context=10_000)) as endpoint:
        endpoint.fault = fault
        line = [*command(folder, *asked), "--llm-url", endpoint.url]
        assert main([one for one in line if one != "--quiet"]) == 0
    said = capsys.readouterr()
    assert "no answer, 3 failed, 3 CUT OFF OR EMPTY | no answer, 3 failed |" in said.out
    assert "--llm-answer-tokens" in said.err
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"answers.jsonl", "answers.sqlite", "report.html"} <= {path.name for path in written}
    assert key not in said.out + said.err
    assert not any(key.encode() in path.read_bytes() for path in written)


Outcome = tuple[int, str, str]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and test images of three classes."""
    folder = tmp_path_factory.mktemp("images")
    return write_classes(folder / "train", 12), write_classes(folder / "test", 5, seed=1)


@pytest.fixture
def probe(call: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Outcome]:
    """`probe(*arguments)` returns exit code, stdout and stderr of the command."""
    return lambda *given: call("evaluate", "linear-probe", *given, "--out", tmp_path / "out")


def refused(outcome: Outcome, code: int = 2) -> str:
    assert outcome[:2] == (code, ""), outcome[2]
    return outcome[2].splitlines()[-1].removeprefix("pixlex: error: ")


def test_a_table_of_models_and_features(
    probe: Callable[..., Outcome], models: Path, probed: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pixlex.report.tables.draw_confusion", lambda row, names, path: path.touch())
    arguments: tuple[Any, ...] = (
        "--model", models / "lqae", models / "vqvae", "--data", probed[0], "--test", probed[1], "--features",
        "layers", "codes", "pixels", "--untrained", "--per-layer", "--cache", tmp_path / "cache",
    )  # fmt: skip
    code, out, err = probe(*arguments, "--json")
    assert code == 0, err
    values = json.loads(out)
    rows = {row["name"]: row for row in values["rows"]}
    assert list(rows) == [
        "lqae, layers", "lqae, codes", "lqae, pixels", "lqae, layer 0", "lqae, layer 1",
        "lqae, untrained, layers", "lqae, untrained, codes", "lqae, untrained, layer 0",
        "lqae, untrained, layer 1", "vqvae, codes x 8", "vqvae, untrained, codes x 8",
    ]  # fmt: skip
    assert rows["lqae, layers"]["width"] == rows["vqvae, codes x 8"]["width"] == 64
    assert rows["lqae, layers"]["num_train"] == 36
    assert rows["lqae, pixels"]["top1"] == 1.0
    assert any("r copies act as one column" in note for note in values["notes"])
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["rows"] == values["rows"]
    assert "pixlex evaluate linear-probe" in (tmp_path / "out" / "report.html").read_text()
    assert "lqae, training: 100%" in err


def test_sets_limits_and_broken_images(
    probe: Callable[..., Outcome], models: Path, probed: tuple[Path, Path], tmp_path: Path
) -> None:
    """A validation set that is given; what is broken is skipped, counted and listed."""
    broken = Path(shutil.copytree(probed[0], tmp_path / "broken"))
    (broken / "red" / "3.png").write_bytes(b"no image")
    validation = write_classes(tmp_path / "validation", 4, seed=2)
    arguments = ("--model", models / "vqvae", "--data", broken, "--test", probed[1])
    code, out, err = probe(*arguments, "--validation", validation, "--test-limit", 9, "--json")
    row, codewords = json.loads(out)["rows"]
    assert (row["name"], codewords["name"]) == ("vqvae, encoder", "vqvae, codes")
    assert (code, row["num_train"], row["num_validation"], row["num_test"]) == (0, 35, 9, 9)
    assert [one["key"] for one in row["skipped"]] == ["red/3.png"]
    assert "pixlex: skipped red/3.png: not an image" in err
    assert "red/3.png" in refused(probe(*arguments, "--max-broken-fraction", 0.01), code=1)
    code, out, err = probe(*arguments, "--limit", 18, "--quiet")
    assert (code, "39.7 % (published, not comparable" in out) == (0, True)


def test_what_a_probe_refuses(
    probe: Callable[..., Outcome], models: Path, probed: tuple[Path, Path], tmp_path: Path
) -> None:
    (train, test), model = probed, ("--model", models / "vqvae")
    flat = write_classes(tmp_path / "flat", 3) / "red"
    few = write_classes(tmp_path / "few", 1, seed=3)
    for given, message in (
        (("--data", flat, "--test", test), "expected labeled images"),
        (("--data", train, "--test", flat), "expected labeled images"),
        (("--data", train, "--test", train), "--allow-overlap"),
        (("--data", few, "--test", test), "at least 2 readable images"),
    ):
        assert message in refused(probe(*model, *given))
    message = refused(probe(*model, models / "vqvae", "--data", train, "--test", test))
    assert "expected different models" in message
    assert not (tmp_path / "out").exists()
