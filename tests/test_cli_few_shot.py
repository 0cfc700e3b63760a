"""`pixlex evaluate few-shot`: what it leaves behind, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.eval.few_shot.fakes import FakeClient, labeled
from tests.eval.llm.server import Endpoint, serving
from tests.eval.llm.slow import SlowModel
from tests.eval.llm.tiny_causal import tiny_causal
from tests.tiny import tiny_frozen, tiny_language, tiny_lqae, tiny_mae, tiny_vqvae

from pixlex.api import ImageTokenizer
from pixlex.cli import main
from pixlex.eval import llm
from pixlex.eval.llm import LLMOptions
from pixlex.models import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled images, a language model, one of each kind of model."""
    place = tmp_path_factory.mktemp("few-shot")
    labeled(place / "images", per_class=4)
    language = tiny_language(place / "language")
    ImageTokenizer(tiny_lqae(language, search="raw")).save(place / "lqae")
    ImageTokenizer(tiny_vqvae()).save(place / "vqvae")
    checkpoint.save(tiny_mae(seed=1), place / "mae")
    checkpoint.save(tiny_frozen(tiny_causal(place / "causal"), seed=1), place / "frozen")
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
    rows = list(dict.fromkeys((cell["answerer"].split(", tiny")[0], cell["scorer"]) for cell in found))
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
    """The files of one run asked in another give its numbers, whatever its own settings are."""
    base = ["--answerers", "pixels", "--names", "nonsense"]
    first = cells(*base, "--seed", "4", "--out", str(tmp_path / "one"))
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

    def connect(options: LLMOptions) -> FakeClient:
        given.update(vars(options))
        return client

    monkeypatch.setattr(llm, "connect", connect)
    asked = [
        "--model", str(folder / "lqae"), "--answerers", "--llm", "some-model", "--llm-url", "http://host/v1",
        "--template", "frozen", "v2l", "--scorer", "strict", "--llm-max-cost", "2", "--llm-input-price", "1",
        "--llm-output-price", "1", "--out", str(tmp_path),
    ]  # fmt: skip
    found = cells(*asked)
    assert [(cell["answerer"], cell["scorer"]) for cell in found[::2]] == [
        (f"lqae, fake model, {template} prompt", "strict") for template in ("frozen", "v2l")
    ]
    assert (given["model"], given["base_url"], given["max_cost"]) == ("some-model", "http://host/v1", 2.0)
    sent = len(client.sent)
    assert sent == 2 * 2 * 5
    assert cells(*asked) == found
    assert len(client.sent) == sent


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ([], "nothing to read images with"),
        (["--model", "m=$FOLDER/lqae", "m=$FOLDER/vqvae"], "two models are called 'm'"),
        (["--answerers", "pixels", "--settings", "3"], "expected a setting like 3/0"),
        (["--answerers", "pixels", "--ways", "9"], "9-way episodes need 9 classes"),
        (["--answerers", "pixels", "--settings", "5/0"], "class 'camel' has 4 images, but 5 shots"),
        (["--answerers", "pixels", "--open-ended", "x"], "leave out --data"),
        (["--answerers", "poetry"], "invalid choice: 'poetry'"),
        (["--seed", "-1"], "expected an integer of 0 or more"),
    ],
)
def test_what_it_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rest: list[str], message: str
) -> None:
    rest = [one.replace("$FOLDER", str(folder)) for one in rest]
    assert main(command(folder, "--out", str(tmp_path / "out"), *rest)) == 2
    assert message in capsys.readouterr().err


def test_a_local_language_model_reads_the_words(
    folder: Path, tmp_path: Path, cells: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny random one: every scorer it can do gives a row, and too long a prompt is told before it is asked."""
    asked = ["--model", str(folder / "lqae"), "--ascii", "--answerers", "--llm", str(folder / "causal")]
    asked += ["--keep-share", "0.1"]
    every = cells(*asked, "--out", str(tmp_path / "out"))
    # A picture of characters is longer than the context, and no other row suffers for it.
    assert all(cell["does_not_fit"] for cell in every if cell["answerer"].startswith("ASCII"))
    assert "does not fit" in (tmp_path / "out" / "table.md").read_text()
    found = [cell for cell in every if not cell["does_not_fit"]]
    assert len(found) == len(every) // 2
    assert "first 10% of the words" in found[0]["answerer"]
    assert {cell["scorer"] for cell in found} == {"strict", "likelihood", "constrained"}
    assert all(cell["num_failed"] == 0 for cell in found)
    assert all(cell["accuracy"] <= 0.2 for cell in found if cell["scorer"] == "strict")
    asked = [*asked, "--llm-context", "30", "--out", str(tmp_path / "short")]
    assert main([one for one in command(folder, *asked) if one != "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out.count("does not fit") == 2 * 3 * 2
    assert "the longest prompt has" in said.err


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
    asked = ["--model", str(folder / "lqae"), "--answerers", "--llm", "tiny", "--scorer", "strict"]
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
