"""Machines that differ: Windows, which lacks modules, and Apple's GPUs, which lack float64."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import tiny_frozen, tiny_lqae
from tests.training.running import IMAGE_SIZE, SERVER, run, settings
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pixlex import distributed
from pixlex.distributed import pick_device
from pixlex.eval import metrics
from pixlex.nn import transformer
from pixlex.nn.nearest import nearest_codewords
from pixlex.training.logging import METRICS, peak_memory, read_metrics
from pixlex.training.parallel import pick_precision

# What Windows has not: modules, and names of os and signal.
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog", "posix"}
NAMES = {
    "os": "fork getuid geteuid getgid sched_getaffinity statvfs sysconf killpg mkfifo uname getpgid setsid wait4 "
    "O_NONBLOCK O_CLOEXEC",
    "signal": "SIGALRM SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGQUIT SIGPIPE alarm setitimer",
}
IMPORTED = f"""
import builtins, importlib, pkgutil
plain = builtins.__import__

def of_windows(name, globals=None, *rest, **more):
    by = (globals or {{}}).get("__name__") or ""
    if by.partition(".")[0] == "pixlex" and name.partition(".")[0] in {MODULES}:
        raise ImportError(f"{{by}} imports {{name}}")
    return plain(name, globals, *rest, **more)

builtins.__import__ = of_windows
import pixlex
for one in pkgutil.walk_packages(pixlex.__path__, "pixlex."):
    if not one.name.endswith("__main__"):
        importlib.import_module(one.name)
        print(one.name)
"""


def test_every_module_is_imported_where_there_is_no_posix(checkout: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTED], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    rooms = [path for path in (checkout / "src/pixlex").rglob("*.py") if path.stem != "__main__"]
    assert len(answer.stdout.split()) == len(rooms) - 1  # all but pixlex itself


def test_names_of_posix_are_not_used(checkout: Path) -> None:
    """`getattr` finds those that have a way around; `memory_of` catches the want of `sysconf`."""
    found = []
    for path in (checkout / "src/pixlex").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=ast.Name(id=module), attr=name) if (
                    name in NAMES.get(module, "").split()
                ):
                    found.append(f"{path.stem}: {module}.{name}")
    assert set(found) == {"memory: os.sysconf"}


def test_peak_memory_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7))
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    assert peak_memory(torch.device("cpu")) == 7


def test_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes its GPU, of one process, which multiplies no bfloat16; elsewhere it is not there."""
    apple = torch.device("mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("mps") == apple
    assert pick_precision("auto", apple) == "fp32"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'mps' is not there: expected one process on a Mac"):
        pick_device("mps")


class Apple(torch.Tensor):
    """A tensor of a device that computes on the CPU and refuses float64, as Apple's GPUs do."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Any:
        if raw.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"this device has no {raw.dtype}")
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device="apple:0",
        )  # fmt: skip
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


class OnApple(TorchDispatchMode):
    """Calls that make tensors on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


def _dispatched(func: Any, args: Any, kwargs: Any) -> Any:
    """Call with tensors of the CPU; results are of the device where it is named or was given."""
    given: dict[int, Apple] = {}
    strangers: list[torch.Tensor] = []

    def opened(one: Any) -> Any:
        if isinstance(one, Apple):
            given[id(one.raw)] = one
            return one.raw
        if isinstance(one, torch.Tensor) and one.ndim:
            strangers.append(one)
        return torch.device("cpu") if isinstance(one, torch.device) and one.type == "apple" else one

    def closed(one: Any) -> Any:
        there = kwargs["device"].type == "apple" if kwargs.get("device") is not None else bool(given)
        if not isinstance(one, torch.Tensor) or not there:
            return one
        return given[id(one)] if id(one) in given else Apple(one)

    plain = func(*tree_map(opened, args), **tree_map(opened, kwargs))
    # Copies go from one to the other, and places may lie on the CPU.
    if given and strangers and func.overloadpacket.__name__ not in ("copy_", "index", "index_put_"):
        raise TypeError(f"{func}: tensors of two devices")
    return tree_map(closed, plain)


def _apple() -> torch.device:
    """Give this process the device."""

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    backend_registration._setup_privateuseone_for_python_backend("apple", backend_module=Module())
    transformer.WITHOUT_FLOAT64.add("apple")
    plain = distributed.pick_device
    distributed.pick_device = lambda name: torch.device(name) if name == "apple:0" else plain(name)
    return torch.device("apple:0")


def _images() -> torch.Tensor:
    return torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


def _trained(folder: Path, pairs: Path, language: Path, device: str) -> torch.Tensor:
    torch.set_num_threads(1)
    steps = 6 if folder.name.startswith("cbvila") else 3
    objective = run(
        folder, pairs, folder.name.partition("-")[0], language, settings(steps=steps, device=device)
    )
    objective.eval()
    codes: torch.Tensor = objective.model.tokenize(_images().to(device)).cpu()
    return codes


def _train_there(folder: Path, pairs: Path, language: Path) -> None:
    _apple()
    with OnApple():
        torch.save(_trained(folder, pairs, language, "apple:0"), folder / "codes.pt")


@pytest.mark.parametrize("family", ["lqae", "cbvila", pytest.param("vqvae", marks=pytest.mark.campaign)])
def test_training_on_a_device_without_float64(
    family: str, tmp_path: Path, pairs: Path, language: Path
) -> None:
    """It computes what the CPU computes: losses, what is drawn, codes."""
    folders = tmp_path / f"{family}-cpu", tmp_path / f"{family}-apple"
    child = SERVER.Process(target=_train_there, args=(folders[1], pairs, language))
    child.start()
    codes = _trained(folders[0], pairs, language, "cpu")
    child.join(240)
    assert child.exitcode == 0
    # Attention takes another way there: weights agree to rounding, and patches between two words may change sides.
    same = torch.load(folders[1] / "codes.pt", weights_only=True) == codes
    assert same.float().mean() > 0.9
    here, there = (read_metrics(folder / METRICS) for folder in folders)
    for one, other in zip(here, there, strict=True):
        names = [name for name in one if name.partition("/")[0] not in ("speed", "memory", "data")]
        assert [other[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-4)


def _measured(place: torch.device, language: Path, causal: Path) -> Iterator[torch.Tensor]:
    """Yield what else is computed in float64."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(9, 8, generator=draw), torch.randn(30, 8, generator=draw)
    for metric in ("cosine", "euclidean"):
        found = nearest_codewords(z.to(place), codebook.to(place), metric, 3)
        assert found.device == place
        yield found
    for search in ("whitened", "raw"):
        yield from tiny_lqae(language, search=search).to(place).quantizer.scores()
    guess = metrics.MeanImage()
    guess.update(_images().to(place))
    yield torch.tensor(guess.mse())
    model = tiny_frozen(causal).to(place)
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]]).to(place)
    images = _images()[:2].to(place)
    prompt = model.prompt(model.prefix(images))
    padding = torch.tensor([[False] * 3, [False, False, True]]).to(place)
    # transformers' cache of keys and values makes tensors where no mode of torch sees it.
    model.language.following = lambda *given: model(images, *given[1:])
    yield model.score(prompt, ids, padding)


def _measure_there(path: Path, language: Path, causal: Path) -> None:
    place = _apple()
    with OnApple():
        torch.save([one.cpu() for one in _measured(place, language, causal)], path)


def test_measures_on_a_device_without_float64(tmp_path: Path, language: Path, causal_language: Path) -> None:
    child = SERVER.Process(target=_measure_there, args=(tmp_path / "there.pt", language, causal_language))
    child.start()
    expected = list(_measured(torch.device("cpu"), language, causal_language))
    child.join(240)
    assert child.exitcode == 0
    for one, other in zip(torch.load(tmp_path / "there.pt", weights_only=True), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
