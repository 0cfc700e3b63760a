"""Where a model's files lie: a directory, a run folder, or a repository on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def find_model(
    name: str, what: str, *, needs: Sequence[str], files: Sequence[str], revision: str | None = None
) -> Path:
    """Return the directory that holds a model; one on the hub is downloaded, or taken from its cache.

    Args:
        name: a directory, a run folder (its `model` is taken), or a repository on the hub.
        what: what to call its contents in an error, such as "pretrained weights".
        needs: names of files, one of which the directory must hold.
        files: names or patterns of all files that are read.
        revision: branch, tag or commit of a repository on the hub.

    Raises:
        ValueError: no such directory or repository, or it cannot be reached.
    """
    for folder in (Path(name), Path(name) / "model"):
        if any((folder / one).is_file() for one in needs):
            return folder
    expected = " or ".join(needs)
    if Path(name).exists() or name.startswith((".", "/")) or name.count("/") > 1:
        raise ValueError(f"{name} holds no {what}: expected {expected} in it")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"no {what} {name!r}: neither a directory with {expected} nor a repository on the hub ({error})"
        ) from error
