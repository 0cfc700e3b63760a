"""What every test shares: shape checks, one thread, the data folder."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

# Before any module of pixlex is imported: a module that is already there would stay unchecked.
jaxtyping.install_import_hook("pixlex", "beartype.beartype")

# Workers of pytest-xdist share the cores; more threads than cores make the suite slower.
torch.set_num_threads(1)

# What children of tests run; they inherit imports.
FORKED = [
    "tests.training.running",
    "tests.search.test_update",
    "tests.eval.few_shot.test_run",
    "tests.eval.test_evaluate",
]
CHECKOUT = Path(__file__).resolve().parent.parent
# The longest files, longest first: a worker that began one last would go on alone.
FIRST = (
    "train/test_processes.py", "train/test_loop.py", "recipes/test_recipes.py", "train/test_layers.py",
    "test_finetune.py", "test_cbvila.py", "readme/test_readme.py", "golden/test_golden.py", "test_ablations.py",
    "eval/test_evaluate.py", "search/test_update.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files be first."""
    place = {CHECKOUT / "tests" / name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(FIRST)))


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept between starts lies apart from what whoever runs the tests keeps; processes inherit it."""
    os.environ["PIXLEX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    multiprocessing.get_context("forkserver").set_forkserver_preload(FORKED)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the source tree."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped by name where it is absent."""
    named = os.environ.get("PIXLEX_SHARED_DATA")
    folder = Path(named) if named else CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: set PIXLEX_SHARED_DATA or put it at shared/data beside the checkout")
    return folder


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Calls inside the test are not checked by jaxtyping: they meet the errors that a user would meet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random language model; a test that changes it builds its own."""
    from tests.tiny import tiny_language

    return tiny_language(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def causal_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random causal language model."""
    from tests.eval.llm.tiny_causal import tiny_causal

    return tiny_causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, language: Path, causal_language: Path) -> Path:
    """Directories of one tiny model of each kind: lqae, vqvae, mae, frozen, cbvila; no test changes them."""
    from tests import tiny

    from pixlex.models import checkpoint

    folder = tmp_path_factory.mktemp("models")
    checkpoint.save(tiny.tiny_lqae(language, search="raw"), folder / "lqae")
    checkpoint.save(tiny.tiny_vqvae(), folder / "vqvae")
    checkpoint.save(tiny.tiny_mae(seed=1), folder / "mae")  # not the seed of untrained copies
    checkpoint.save(tiny.tiny_frozen(causal_language, seed=1), folder / "frozen")
    checkpoint.save(tiny.tiny_cbvila(language), folder / "cbvila")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file of twenty random pictures."""
    from tests.training.running import write_pictures

    return write_pictures(tmp_path_factory.mktemp("pictures") / "noise.parquet")


@pytest.fixture(scope="module")
def without_curves() -> Iterator[None]:
    """Runs draw no curves, which take longer than all else in small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pixlex.run.curves", lambda *_: None)
        yield


@pytest.fixture
def rounded_products() -> Iterator[None]:
    """The user lets float32 products be computed from factors rounded to bfloat16 (to TF32 on CUDA)."""
    cpu, cuda = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = cpu.fp32_precision, cuda.fp32_precision
    cpu.fp32_precision, cuda.fp32_precision = "bf16", "tf32"
    yield
    cpu.fp32_precision, cuda.fp32_precision = before


@pytest.fixture(scope="session", autouse=True)
def drafts() -> None:
    """Only tests of pages draw plots: a run of two steps would spend most of its time on them."""
    from matplotlib.figure import Figure
    from PIL import Image

    savefig = Figure.savefig

    def draft(figure: Figure, path: Path, **settings: object) -> None:
        if "tests/report/" in os.environ["PYTEST_CURRENT_TEST"]:
            savefig(figure, path, **settings)
        else:
            Image.new("RGB", (256, 256)).save(path, "PNG")

    Figure.savefig = draft


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line: exit code, what was printed, what was remarked."""
    from pixlex.cli import main  # behind the import hook

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(one) for one in arguments])
        return code, *capsys.readouterr()

    return run
