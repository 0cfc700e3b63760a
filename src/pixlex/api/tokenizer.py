"""One object for everything a trained model does: images -> codes -> words -> codes -> images."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import HfApi
from jaxtyping import Float, Int
from torch import Tensor

from pixlex.api.pictures import Codes, Images, are_codes, are_texts, batches_of, codes_of, texts_of
from pixlex.distributed import pick_device
from pixlex.models import checkpoint
from pixlex.models.checkpoint import Tokenizer
from pixlex.models.inference import SmallPasses, compute_rows
from pixlex.models.initialization import CONFIG
from pixlex.nn.vocabulary import Vocabulary

CARD = "README.md"

Precision = Literal["auto", "fp32", "bf16"]


def load(
    name_or_dir: str | os.PathLike[str],
    *,
    language_model: str | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    revision: str | None = None,
) -> ImageTokenizer:
    """Load a trained model.

    Args:
        name_or_dir: a model directory, a run folder, or a repository on the hub.
        language_model: where the frozen language model lies now, if not under the name it was trained with.
        device: auto (a GPU where there is one), cpu, cuda or cuda:N.
        precision: fp32, or bf16 for mixed precision; auto is fp32 (see `ImageTokenizer`).
        revision: branch, tag or commit of a repository on the hub.

    Raises:
        ValueError: no such model, damaged files, another vocabulary than the model was trained with, or no
            such device.
    """
    place = pick_device(device)
    model = checkpoint.load(os.fspath(name_or_dir), language_model=language_model, revision=revision)
    return ImageTokenizer(
        model,
        device=place,
        precision=precision,
        card=_card_beside(Path(name_or_dir)),
        trained_on=checkpoint.read_config(os.fspath(name_or_dir), revision).get("trained_on", []),
    )


class ImageTokenizer:
    """A trained model as a tokenizer of images.

    Everything that comes back lies on the CPU. The codes of an image do not depend on the images beside it or on
    their number, on a CPU not on `batch_size` either (see `compute_rows`). bf16 gives other codes than fp32 for
    some patches, and differs more from machine to machine: `auto` is fp32.

    Args:
        model: is put into evaluation mode on `device`.
        device: where to compute.
        precision: fp32, bf16, or auto for fp32.
        card: the model card, Markdown, that `save` and `push_to_hub` put beside the model.
        trained_on: descriptions of the data of all trainings, which `save` writes down again.

    Raises:
        ValueError: an unknown precision.
    """

    def __init__(
        self,
        model: Tokenizer,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        card: str | None = None,
        trained_on: Sequence[str] = (),
    ) -> None:
        if precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be auto, fp32 or bf16, got {precision!r}")
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.precision: Literal["fp32", "bf16"] = "bf16" if precision == "bf16" else "fp32"
        self.card = card
        self.trained_on = tuple(trained_on)
        self._small: dict[str, SmallPasses] = {}

    from_pretrained = staticmethod(load)

    @property
    def family(self) -> str:
        """The kind of model: "lqae", "vqvae" or "cbvila"."""
        return self.model.family

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.model.config.image_size

    @property
    def grid(self) -> int:
        """Codes along one side of an image; an image has grid x grid of them."""
        return self.model.grid

    @property
    def num_codewords(self) -> int:
        """K, the number of codewords."""
        return self.model.num_codewords

    @property
    def has_words(self) -> bool:
        """Whether codes are words of a language model."""
        return self.model.vocabulary is not None

    def tokenize(self, images: Images, *, batch_size: int = 64) -> Int[Tensor, "B N"]:
        """Return the codes of images, rows of the grid first.

        Args:
            images: one or several, see `batches_of`: paths, bytes, PIL images, arrays (H, W, C), tensors
                (C, H, W).
            batch_size: images at a time, see `compute_rows`.

        Returns:
            Integers in [0, K).

        Raises:
            ValueError: pixels of another shape, type or range; `UnreadableImage` for a file that is none.
        """
        return self._in_batches("tokenize", images, batch_size, self.model.tokenize)

    def decode(self, codes: Codes | str | Iterable[str], *, batch_size: int = 64) -> Float[Tensor, "B 3 H W"]:
        """Return the images that codes or words stand for.

        Args:
            codes: of one image or of several: integers in [0, K), whatever holds them (see `codes_of`); or words.
            batch_size: images at a time, see `compute_rows`.

        Returns:
            Pixels in [0, 1].

        Raises:
            ValueError: codes out of range, a wrong number of codes or words, an unknown word, no image.
        """
        if isinstance(codes, Iterator):
            codes = list(codes)
        matrix = self.from_words(codes) if are_texts(codes) else self._codes(codes)
        if len(matrix) == 0:
            raise ValueError("expected the codes of at least one image, got none")
        return self._compute("decode", matrix, self.model.decode, batch_size)

    def reconstruct(self, images: Images, *, batch_size: int = 64) -> Float[Tensor, "B 3 H W"]:
        """Return what is left of images after they were words: `decode(tokenize(images))`."""
        return self.decode(self.tokenize(images, batch_size=batch_size), batch_size=batch_size)

    def to_words(self, images_or_codes: Images | Codes, *, batch_size: int = 64) -> list[str]:
        """Return the words of images, or of codes: one text for each image, on one line.

        Whole words are joined by single spaces; with vocabulary "all" the language model's tokenizer decodes them.

        Raises:
            ValueError: the model has no words; otherwise as `tokenize` and `decode`.
        """
        vocabulary = self._vocabulary()
        if are_codes(images_or_codes):
            codes = self._codes(images_or_codes)
        else:
            codes = self.tokenize(images_or_codes, batch_size=batch_size)
        return [vocabulary.to_text(row) for row in codes.tolist()]

    def from_words(self, text: str | Iterable[str]) -> Int[Tensor, "B N"]:
        """Return the codes of words; the inverse of `to_words`, except with vocabulary "all".

        There the language model's tokenizer reads the text, mostly as other words than were written, and as
        more or fewer: keep the codes to decode.

        Args:
            text: the words of one image, or several such texts.

        Raises:
            ValueError: the model has no words, a wrong number of words, or one that is no codeword.
        """
        vocabulary = self._vocabulary()
        texts = [] if isinstance(text, list | tuple) and not text else texts_of(text)
        rows = []
        for number, one in enumerate(texts):
            where = f"image {number}: " if len(texts) > 1 else ""
            expected = f"{where}expected {self.grid**2} words ({self.grid} x {self.grid}), got"
            if vocabulary.is_exact and (count := len(one.split())) != self.grid**2:
                raise ValueError(f"{expected} {count}")
            try:
                rows.append(vocabulary.from_text(one))
            except ValueError as fault:
                raise ValueError(f"{where}{fault}") from fault
            if len(rows[-1]) != self.grid**2:
                raise ValueError(
                    f"{expected} {len(rows[-1])} as the tokenizer divides the text, which is not exact with "
                    "vocabulary 'all': decode codes (codes, jsonl or parquet files)"
                )
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), self.grid**2)

    def embed(
        self, images: Images, *, layer: Literal["last", "all"] = "last", batch_size: int = 64
    ) -> Float[Tensor, "B D"]:
        """Return one vector for each image: the mean over its patches.

        Args:
            images: as in `tokenize`.
            layer: of LQAE, the hidden states to average, nothing masked: those of the language model's last
                layer, or of its embedding layer and every layer, one mean after the other. Others have their
                codewords alone, "last".
            batch_size: images at a time, see `compute_rows`.

        Raises:
            ValueError: an unknown layer; otherwise as `tokenize`.
        """
        if layer not in (("last", "all") if self.has_words else ("last",)):
            expected = "last or all" if self.has_words else f"last (a {self.family} has no further layers)"
            raise ValueError(f"layer must be {expected}, got {layer!r}")

        def pooled(batch: Tensor) -> Tensor:
            values = self.model.quantize(batch).values
            if self.model.vocabulary is not None:
                language = self.model.encode_text(values, all_states=layer == "all")
                states = language.hidden_states if layer == "all" else (language.last,)
                return torch.cat([state.float().mean(1) for state in states], dim=1)
            return values.float().mean(1)

        return self._in_batches(f"embed {layer}", images, batch_size, pooled)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a model directory that `pixlex.load` reads."""
        checkpoint.save(self.model, Path(folder), trained_on=self.trained_on)
        if self.card is not None:
            (Path(folder) / CARD).write_text(self.card, encoding="utf-8")

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, card: str | None = None
    ) -> str:
        """Upload the model directory to the Hugging Face Hub.

        Args:
            repo_id: `owner/name`; made if missing.
            private: whether a new repository is private.
            token: access token; None takes the one that `hf auth login` stored.
            card: the model card, Markdown; None takes the one that lies beside the model, if any.

        Returns:
            The address of the repository.
        """
        if self.model.vocabulary is not None and Path(self.model.language.name).is_dir():
            warnings.warn(
                f"the language model is the local directory {self.model.language.name!r}: whoever loads "
                f"{repo_id} has to say where it lies (language_model=)",
                stacklevel=2,
            )
        hub = HfApi(token=token)
        address = hub.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save(folder)
            if card is not None:
                (folder / CARD).write_text(card, encoding="utf-8")
            hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a pixlex model")
        return str(address)

    def _vocabulary(self) -> Vocabulary:
        """Return the words, or say that there are none."""
        if self.model.vocabulary is None:
            raise ValueError(f"a {self.family} has no words: its codes are rows of a learned codebook")
        return self.model.vocabulary

    def _in_batches(
        self, use: str, images: Images, batch_size: int, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Join what `compute` makes of images."""
        batches = batches_of(images, batch_size, self.image_size, self.model.config.cut)
        return torch.cat([self._compute(use, batch, compute, batch_size) for batch in batches])

    def _compute(
        self, use: str, inputs: Tensor, compute: Callable[[Tensor], Tensor], batch_size: int
    ) -> Tensor:
        """Compute one row for each row of the inputs, so that it depends on no other."""
        return compute_rows(
            inputs,
            compute,
            grid=self.grid,
            device=self.device,
            precision=self.precision,
            batch_size=batch_size,
            small=self._small.setdefault(use, SmallPasses()),
        )

    def _codes(self, codes: Codes) -> Int[Tensor, "B N"]:
        return codes_of(codes, self.grid**2, self.num_codewords)


def _card_beside(folder: Path) -> str | None:
    """Return the model card of a model directory or a run folder."""
    for path in (folder / CARD, folder / "model" / CARD):
        if (path.parent / CONFIG).is_file() and path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    return None
