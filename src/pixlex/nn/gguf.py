"""Causal language models as GGUF files: found, put together, unpacked once; what loading a model takes."""

from __future__ import annotations

import gc
import hashlib
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from pixlex.files import cache_folder
from pixlex.messages import not_installed, quoted

# How a GGUF is divided: by llama.cpp into files with some of the tensors each, or by anybody into pieces of bytes.
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_PIECE = re.compile(r"(?P<stem>.+\.gguf)\.part-?(?P<number>\d+)")
# A file with so many bytes a weight is not quantized: its weights are kept as they are.
_PLAIN = 1.9


def gguf_files(name: str) -> list[Path]:
    """Return the files of a GGUF in order; none where the name is that of another model.

    The name is that of the file, of its first part, or of the folder with nothing else to load; or
    OWNER/REPOSITORY:FILE.gguf on the hub.

    Raises:
        ValueError: several models in the folder, a part that is missing, or a file that cannot be had.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        files = [one for one in sorted(path.glob("*.gguf*")) if _is_gguf(one)]
        models = list(dict.fromkeys(tuple(_parts(one)) for one in files))
        if len(models) > 1:
            found = ", ".join(parts[0].name for parts in models)
            raise ValueError(f"{quoted(name)} holds several language models, name one of {found}")
        return list(models[0]) if models else []
    if path.is_file():
        return _parts(path) if _is_gguf(path) else []
    repository, colon, file = name.rpartition(":")
    if not (colon and file.endswith(".gguf")):
        return []
    from transformers.utils.hub import cached_file

    try:
        cached = cached_file(repository, file)
    except (OSError, ValueError) as fault:
        raise ValueError(f"language model {quoted(name)} cannot be loaded: {fault}") from fault
    return [Path(str(cached))]


def unpacked(name: str, say: Callable[[str], object]) -> str:
    """Return the directory of a model: its name, or the directory into which its GGUF was unpacked, now or before.

    It lies in the cache folder (`PIXLEX_CACHE`) under size, time and place of the files. Errors as of `gguf_files`
    and `unpack`.
    """
    files = gguf_files(name)
    if not files:
        return name
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    folder = cache_folder() / "gguf" / hashlib.sha256(f"{facts}".encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            unpack(files, folder, say)
    return str(folder)


def unpack(files: Sequence[Path], folder: Path, say: Callable[[str], object] = print) -> None:
    """Write a GGUF as a model directory, whole or not at all, which is read in seconds and needs no `gguf`.

    Weights of a quantized file are unpacked by transformers' reader and rounded to bfloat16, whose error of 0.2 %
    is far below that of their quantization; those of any other file keep their values.

    Args:
        files: the file, or its parts in order.
        folder: the directory, which is not there yet; beside it lies meanwhile what is not finished.
        say: is told what memory it takes.

    Raises:
        ModuleNotFoundError: gguf or accelerate is missing.
        ValueError: a file that transformers cannot read.
    """
    try:
        import accelerate  # type: ignore[import-not-found, unused-ignore] # noqa: F401
        import gguf  # noqa: F401
    except ImportError as fault:
        raise not_installed("a GGUF file", f"{fault.name}", "gguf") from fault
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as room:
        whole = files[0] if len(files) == 1 else _joined(files, Path(room, "model.gguf"))
        place: dict[str, Any] = {"gguf_file": whole.name, "local_files_only": True}
        try:
            config = AutoConfig.from_pretrained(whole.parent, **place)
            sizes = weights_of(config)
            # In float32, the largest matrix three times while it is unpacked, and what else is in a process.
            most = 4 * (sum(sizes) + 3 * max(sizes)) + 400_000_000
            say(
                f"{files[0].name}: {sum(sizes) / 1e6:,.0f} million weights, unpacked once into {folder}; "
                f"{_gigabytes(most)} of memory meanwhile"
            )
            AutoTokenizer.from_pretrained(whole.parent, **place).save_pretrained(Path(room, "model"))
            gc.collect()  # what read the words holds half a gigabyte of their pieces, in circles
            model: Any = AutoModelForCausalLM.from_pretrained(
                whole.parent, config=config, dtype=torch.float32, **place
            )
        except (OSError, ValueError, LookupError, struct.error, ImportError, NotImplementedError) as fault:
            raise ValueError(f"{quoted(str(files[0]))} cannot be read as a GGUF: {fault}") from fault
        # transformers refuses to save what it read from a GGUF, though nothing is quantized any more.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        if whole.stat().st_size < _PLAIN * sum(sizes):
            model.to(torch.bfloat16)
        model.save_pretrained(Path(room, "model"))
        Path(room, "model").replace(folder)


def weights_of(config: Any) -> list[int]:
    """Return the number of weights of each matrix of a causal language model, counted without making them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return [weight.numel() for weight in network.parameters()]


def memory(config: Any, dtype: torch.dtype) -> str:
    """Return in words what a causal language model of a directory or the hub takes in memory."""
    count, stored = sum(weights_of(config)), getattr(config, "dtype", None) or torch.float32
    needed = count * dtype.itemsize
    # The file is mapped: what was read of it counts until somebody else needs the room.
    most = needed + count * stored.itemsize
    kind = f"{dtype}".removeprefix("torch.")
    return (
        f"{count / 1e6:,.0f} million weights in {kind}, {_gigabytes(needed)} of memory, "
        f"{_gigabytes(most)} while they are loaded"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" or _PIECE.fullmatch(path.name) is not None


def _parts(path: Path) -> list[Path]:
    """Return all parts of which one was named, in order; the file alone where it is whole."""
    form = _SPLIT if _SPLIT.fullmatch(path.name) else _PIECE
    named = form.fullmatch(path.name)
    if named is None:
        return [path]
    found: dict[int, Path] = {}
    for one in path.parent.iterdir():
        match = form.fullmatch(one.name)
        if match and match.groupdict() | {"number": ""} == named.groupdict() | {"number": ""}:
            found[int(match["number"])] = one
    # Pieces count from 0 or 1, and do not say how many they are.
    numbers = range(min(1, *found), int(named.groupdict().get("count") or max(found)) + 1)
    if missing := sorted(set(numbers) - found.keys()):
        raise ValueError(
            f"{quoted(str(path))}: expected {len(numbers)} parts, number {missing[0]} is missing"
        )
    return [found[number] for number in numbers]


def _joined(files: Sequence[Path], to: Path) -> Path:
    if _PIECE.fullmatch(files[0].name):
        with to.open("wb") as whole:
            for file in files:
                with file.open("rb") as piece:
                    shutil.copyfileobj(piece, whole, 1 << 24)
        return to
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    readers = [GGUFReader(file) for file in files]
    fields = readers[0].fields
    writer = GGUFWriter(to, fields["general.architecture"].contents())
    for name, field in fields.items():
        if not name.startswith(("GGUF.", "split.", "general.architecture")):
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in (tensor for reader in readers for tensor in reader.tensors):
        writer.add_tensor(tensor.name, tensor.data, raw_shape=tensor.data.shape, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to
