"""Few-shot through a server that others wrote, `transformers serve`, with a local model behind it."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import transformers
from tests.eval.few_shot.fakes import TWO_WAY, FakeReader, labeled
from tests.eval.llm.tiny_causal import tiny_causal

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import sample_episodes
from pixlex.eval.few_shot.prompted import PromptedClassifier
from pixlex.eval.few_shot.run import run_few_shot
from pixlex.eval.llm import LLMOptions, connect
from pixlex.eval.llm.client import LanguageClient
from pixlex.eval.llm.endpoint import EndpointClient
from pixlex.eval.llm.sending import SpendingCapReached

MISSING = [
    name for name in ("openai", "fastapi", "uvicorn", "accelerate") if not importlib.util.find_spec(name)
]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"needs {MISSING}: pip install 'transformers[serving]' 'pixlex[llm]'"
    ),
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.timeout(900),
]
COUNT = 8


@contextmanager
def serve(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Serve a model while the block runs."""
    program = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", f"{port}", "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-c", program, "serve", str(folder), *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert server.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield server
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def images(tmp_path: Path) -> ImageSource:
    return labeled(tmp_path / "images")


def few_shot(client: LanguageClient, images: ImageSource, folder: Path) -> list[tuple[str, float | None]]:
    """Return what a client answers to the episodes, kept in a folder."""
    episodes = sample_episodes(images, TWO_WAY, count=COUNT, seed=0)
    classifier = PromptedClassifier(FakeReader(), client, template="line", scorer="strict", answer_tokens=12)
    (cell,) = run_few_shot([classifier], [episodes], images, folder, progress=False)
    return [(answer.text, answer.credit) for answer in cell.answers]


def test_few_shot_with_a_kill_in_the_middle(tmp_path: Path, images: ImageSource) -> None:
    """Completions and chat as the same model in this process; a budget; killed, started again, finished."""
    folder = tiny_causal(tmp_path / "tiny")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "[{{ messages[0]['content'] }}] answer:"
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    local = {mode: connect(LLMOptions(model=str(folder), mode=mode)) for mode in ("completions", "chat")}
    expected = {mode: few_shot(one, images, tmp_path / f"local {mode}") for mode, one in local.items()}

    def client(**settings: object) -> EndpointClient:
        options = {
            "cache": tmp_path / "cache",
            "concurrency": 1,
            "retries": 1,
            "tokenizer": str(folder),
            **settings,
        }
        found = connect(LLMOptions(model=str(folder), base_url=f"http://127.0.0.1:{port}/v1", **options))
        assert isinstance(found, EndpointClient)
        return found

    with serve(folder, port) as server:
        asked = client(mode="chat")
        assert (asked.facts.path, asked.abilities) == ("chat/completions", {"generate"})
        assert few_shot(asked, images, tmp_path / "chat") == expected["chat"]
        # It ignores `echo` and `logprobs`, so that there are no likelihoods, and neither choice.
        asked = client()
        assert (asked.facts.path, asked.abilities) == ("completions", {"generate"})
        asked = client(max_tokens=200, tokenizer=str(folder))
        with pytest.raises(SpendingCapReached):
            few_shot(asked, images, tmp_path / "capped")
        assert 0 < asked.budget.spent.total <= 200
        asked = client()
        send = asked._sender.send

        def dying(*given: object) -> object:
            answer = send(*given)  # type: ignore[arg-type]
            server.kill()
            server.wait()
            return answer

        asked._sender.send = dying  # type: ignore[assignment, method-assign]
        with pytest.raises(ValueError, match=r"is down|cannot be reached"):
            few_shot(asked, images, tmp_path / "killed")
    with serve(folder, port):
        assert few_shot(client(), images, tmp_path / "killed") == expected["completions"]
    # All of it is kept: nothing is asked any more.
    shutil.rmtree(tmp_path / "killed")
    assert few_shot(client(max_tokens=0), images, tmp_path / "killed") == expected["completions"]
