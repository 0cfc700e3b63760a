"""Tiny causal language models, and what they say the slow way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.eval.llm.server import Endpoint, serving
from tests.eval.llm.slow import SlowModel
from tests.eval.llm.tiny_causal import tiny_causal


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def causal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny causal language model."""
    return tiny_causal(tmp_path_factory.mktemp("causal") / "tiny", family=request.param)


@pytest.fixture(scope="session")
def slow(causal: Path) -> SlowModel:
    """The same model, asked the slow way."""
    return SlowModel(causal)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> SlowModel:
    """A tiny GPT-2, for tests of everything but the model."""
    return SlowModel(tiny_causal(tmp_path_factory.mktemp("gpt2") / "tiny"))


@pytest.fixture
def texts(gpt2: SlowModel) -> Iterator[Endpoint]:
    """An endpoint that continues texts, and nothing else."""
    with serving(Endpoint(gpt2, abilities=frozenset({"completions"}))) as endpoint:
        yield endpoint


@pytest.fixture
def chats(gpt2: SlowModel) -> Iterator[Endpoint]:
    """An endpoint that chats, and nothing else."""
    with serving(Endpoint(gpt2, abilities=frozenset({"chat"}))) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let openai's client wait a fiftieth of its time before it sends again."""
    base = pytest.importorskip("openai._base_client")
    monkeypatch.setattr(base, "INITIAL_RETRY_DELAY", 0.01)
