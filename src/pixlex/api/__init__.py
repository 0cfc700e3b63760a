"""What programs use: trained models as tokenizers of images, and as something that is asked about them."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi, snapshot_download
from jaxtyping import Float, Int
from torch import Tensor

from pixlex.api.pictures import (
    Codes,
    Images,
    OneImage,
    are_codes,
    are_texts,
    batches_of,
    codes_of,
    images_of,
    texts_of,
)
from pixlex.data.text import clean_caption, clean_question
from pixlex.distributed import pick_device
from pixlex.eval.evaluate import autocast
from pixlex.eval.gradcam import ExplainedAnswer, explain_answer
from pixlex.messages import quoted
from pixlex.models import JointModel, PassSizes, checkpoint, compute_rows, computing
from pixlex.models.baselines import DualEncoder
from pixlex.models.cbvila import CBViLA
from pixlex.models.checkpoint import Tokenizer
from pixlex.models.finetuned import Reasoner
from pixlex.models.initialization import CARD, CONFIG, WEIGHTS, released
from pixlex.nn.bert import EMBEDDED, Words
from pixlex.nn.vocabulary import Namer, RankedWord, Vocabulary, as_text

__all__ = [
    "Answer",
    "ImageReasoner",
    "ImageTokenizer",
    "Images",
    "OneImage",
    "Precision",
    "RankedWord",
    "load",
    "load_reasoner",
]

_HUB = ("token", "cache_dir", "force_download", "local_files_only")
# ALBEF keeps so many words of a question in testing.
MOST_WORDS = 50

Precision = Literal["auto", "fp32", "bf16"]


def load(
    name_or_dir: str | os.PathLike[str],
    *,
    language_model: str | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    revision: str | None = None,
    words: Sequence[str] | None = None,
    top_k: int | None = None,
) -> ImageTokenizer:
    """Load a trained model.

    Args:
        name_or_dir: a model directory, a run folder, or a repository on the hub; one of transformers that compares
            images and texts (CLIP, SigLIP) names images by `words`.
        language_model: where the frozen language model lies now, if not under the name it was trained with.
        device: auto (a GPU where there is one), cpu, cuda, cuda:N or mps.
        precision: fp32, or bf16 for mixed precision; auto is fp32 (see `ImageTokenizer`).
        revision: branch, tag or commit of a repository on the hub.
        words, top_k: see `ImageTokenizer`.

    Raises:
        ValueError: no such model, damaged files, another vocabulary than it was trained with, no such device.
    """
    place, name = pick_device(device), os.fspath(name_or_dir)
    model = checkpoint.load_any(name, language_model=language_model, revision=revision)
    if not isinstance(model, DualEncoder):
        model = checkpoint.require_codes(model, name)
    trained_on = checkpoint.read_config(name, revision).get("trained_on", [])
    how: dict[str, Any] = {"device": place, "precision": precision, "words": words, "top_k": top_k}
    tokenizer = ImageTokenizer(model, card=_card_beside(Path(name)), trained_on=trained_on, **how)
    tokenizer.place = str(device)
    tokenizer.source = {
        "name_or_dir": _absolute(name), "language_model": _absolute(language_model), "revision": revision
    }  # fmt: skip
    return tokenizer


def _absolute(name: str | None) -> str | None:
    """Return a path that holds in any working directory; a name that is none as it is."""
    return os.path.abspath(name) if name and name != EMBEDDED and Path(name).exists() else name


class ImageTokenizer:
    """A trained model as a tokenizer of images.

    `tokenizer(images)`, `tokenizer.encode(images)` and `tokenizer.tokenize(images)` are one method.
    Everything that comes back lies on the CPU. The codes of an image do not depend on the images beside it or on
    their number, on a CPU not on `batch_size` either (see `compute_rows`). bf16 gives other codes than fp32 for
    some patches, and differs more from machine to machine: `auto` is fp32.

    Its pickle is small: the directory or name it was loaded from and its fingerprint, which is compared when it is
    loaded again; of one built in memory the model directory, without the frozen language model. So `datasets.map`
    finds what it computed before, with any load of the same model.

    Args:
        model: is put into evaluation mode on `device`.
        precision: fp32, bf16, or auto for fp32.
        card: the model card, Markdown, that `save` and `push_to_hub` put beside the model.
        trained_on: descriptions of the data of all trainings, which `save` writes down again.
        words: words or phrases that a model which compares images and texts names images by, in the place of those
            it was stored with.
        top_k: most words that it gives an image; None for 8, or all of a shorter list.

    Attributes:
        family: the kind of model: "lqae", "vqvae", "cbvila", or "dual_encoder" for CLIP and alike, without codes.
        image_size: side of the square images in pixels.
        num_words: codes of an image.
        grid: codes along one side of an image, num_words = grid x grid; 0 where they belong to no place and come
            the nearest first.
        num_codewords: K; also `vocab_size` and `len(tokenizer)`.
        has_words: whether codes are words of a language model.
        names_images: whether `to_words` names what is there: of a CB-ViLA trained with contrast, CLIP and alike.

    Raises:
        ValueError: an unknown precision, words for a model that takes none, or an empty list of them.
    """

    def __init__(
        self,
        model: Tokenizer | DualEncoder,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        card: str | None = None,
        trained_on: Sequence[str] = (),
        words: Sequence[str] | None = None,
        top_k: int | None = None,
    ) -> None:
        self.precision = _decided(precision)
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.card, self.trained_on = card, tuple(trained_on)
        self.family, self.image_size = model.family, model.config.image_size
        self.num_words, self.grid, self.num_codewords = model.num_words, model.word_grid, model.num_codewords
        self.has_words = model.vocabulary is not None
        self.words, self.top_k = None if words is None else texts_of(words), top_k
        compares = isinstance(model, JointModel) and model.compares
        joint = self._joint if compares or words is not None else None
        self.names_images = joint is not None and bool(self.words or joint.caption_words)
        self._sizes: dict[str, PassSizes] = {}
        self.place = str(device)
        self.source: dict[str, str | None] | None = None

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str], *, revision: str | None = None, **how: Any
    ) -> ImageTokenizer:
        """Call `pixlex.load`, by the names of the Hugging Face Hub's mixin.

        `how` is that of `pixlex.load`, and token, cache_dir, force_download, local_files_only of
        `huggingface_hub.snapshot_download`, whose errors are raised then; otherwise as `pixlex.load`.
        """
        name = os.fspath(pretrained_model_name_or_path)
        hub = {key: how.pop(key) for key in _HUB if key in how}
        if any(hub.values()) and not Path(name).exists():
            name = snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD], **hub)
        return load(name, revision=revision, **how)

    def __repr__(self) -> str:
        name = "in memory" if self.source is None else repr(self.source["name_or_dir"])
        return (
            f"ImageTokenizer({name}, family={self.family!r}, image_size={self.image_size}, "
            f"num_words={self.num_words}, vocab_size={self.vocab_size}, device='{self.device}', "
            f"precision={self.precision!r})"
        )

    def __len__(self) -> int:
        return self.num_codewords

    def __bool__(self) -> bool:
        return True  # without codes, too

    @property
    def vocab_size(self) -> int:
        """K, the number of codewords; 0 for a model without codes."""
        return self.num_codewords

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what comes of an image: weights, words, sizes, precision."""
        return checkpoint.fingerprint(self.model, precision=self.precision)

    def to(self, device: str | torch.device) -> ImageTokenizer:
        """Compute on another device from now on, auto, cpu, cuda, cuda:N or mps; return the tokenizer itself.

        Raises:
            ValueError: no such device.
        """
        self.device, self.place = pick_device(device), str(device)
        self.model.to(self.device)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        how = {"device": self.place, "precision": self.precision, "words": self.words, "top_k": self.top_k}
        if self.source is not None:
            return _loaded_again, ({**self.source, **how}, self.fingerprint)
        if self.model.text_identity is not None:
            how["language_model"] = _absolute(self.model.text_identity[0])
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        return _unpacked, (files, how)

    def tokenize(self, images: Images, *, batch_size: int = 64) -> Int[Tensor, "B N"]:
        """Return the codes of images, integers in [0, K), rows of the grid first.

        Args:
            images: one or several, see `batches_of`: paths, bytes, PIL images, arrays (H, W, C), tensors
                (C, H, W).
            batch_size: images at a time, see `compute_rows`.

        Raises:
            ValueError: pixels of another shape, type or range; `UnreadableImage` for a file that is none.
        """
        return self._in_batches("tokenize", images, batch_size, self.coder.tokenize)

    __call__ = encode = tokenize

    def decode(self, codes: Codes | str | Iterable[str], *, batch_size: int = 64) -> Float[Tensor, "B 3 H W"]:
        """Return the images that codes or words stand for, pixels in [0, 1].

        Args:
            codes: of one image or of several: integers in [0, K), whatever holds them (see `codes_of`); or words.

        Raises:
            ValueError: codes out of range, a wrong number of codes or words, an unknown word, no image.
        """
        coder = self.coder
        if isinstance(codes, Iterator):
            codes = list(codes)
        matrix = (
            self.from_words(codes)
            if are_texts(codes)
            else codes_of(codes, self.num_words, self.num_codewords)
        )
        if len(matrix) == 0:
            raise ValueError("expected the codes of at least one image, got none")
        return self._compute("decode", matrix, coder.decode, batch_size)

    def reconstruct(self, images: Images, *, batch_size: int = 64) -> Float[Tensor, "B 3 H W"]:
        """Return what is left of images after they were words: `decode(tokenize(images))`."""
        return self.decode(self.tokenize(images, batch_size=batch_size), batch_size=batch_size)

    def to_words(self, images_or_codes: Images | Codes, *, batch_size: int = 64) -> list[str]:
        """Return the words of images, or of codes: one text for each image, on one line.

        Whole words are joined by single spaces; with vocabulary "all" the language model's tokenizer decodes them.
        Of a CB-ViLA, CLIP or alike those of `rank_words`, `top_k` at most, each once; phrases give their words.

        Raises:
            ValueError: the model has no words; otherwise as `tokenize`, `decode` and `rank_words`.
        """
        if isinstance(self.model, JointModel) and not are_codes(images_or_codes):
            return [as_text(one) for one in self.rank_words(images_or_codes, batch_size=batch_size)]
        vocabulary = self._vocabulary()
        if are_codes(images_or_codes):
            codes = codes_of(images_or_codes, self.num_words, self.num_codewords)
        else:
            codes = self.tokenize(images_or_codes, batch_size=batch_size)
        return [vocabulary.to_text(row) for row in codes.tolist()]

    def rank_words(self, images: Images, *, batch_size: int = 64) -> list[list[RankedWord]]:
        """Return the words whose vectors are nearest to those of images, without near-duplicates; see `Namer`.

        Raises:
            ValueError: the model compares no images with texts, or was not trained to; no words to choose from, or
                fewer than `top_k`; otherwise as `tokenize`.
        """
        return self.namer.rank(self.encode_image(images, batch_size=batch_size))

    def encode_image(self, images: Images, *, batch_size: int = 64) -> Float[Tensor, "B D"]:
        """Return the vectors of images, of length 1, that are compared with those of texts (CLIP, ALBEF).

        Raises:
            ValueError: the model compares no images with texts, or was not trained to; otherwise as `tokenize`.
        """
        return self._in_batches("compare", images, batch_size, self._joint.joint_images)

    def encode_text(self, texts: str | Iterable[str]) -> Float[Tensor, "C D"]:
        """Return the vectors of texts, of length 1; to a CB-ViLA they are cleaned as captions are.

        Raises:
            ValueError: as `encode_image`, or a text without a word.
        """
        return self._joint.joint_texts(self._captions(texts))

    def similarity(
        self, images: Images, texts: str | Iterable[str], *, batch_size: int = 64
    ) -> Float[Tensor, "B C"]:
        """Return the cosine of each image and each text; raises as `encode_image` and `encode_text`."""
        return self.encode_image(images, batch_size=batch_size) @ self.encode_text(texts).T

    def zero_shot(
        self,
        images: Images,
        names: str | Iterable[str],
        *,
        templates: str | Sequence[str] = "{}",
        batch_size: int = 64,
    ) -> Float[Tensor, "B C"]:
        """Return the probability of each class for each image, by its name (Radford et al. 2021, section 3.1).

        Args:
            images, batch_size: as in `tokenize`.
            names: of the classes, in the order of the columns.
            templates: one or several texts with a place for the name, such as "a photo of a {}"; a class has the
                mean of its vectors.

        Raises:
            ValueError: a template without a place for the name, or none; otherwise as `similarity`.
        """
        forms = [templates] if isinstance(templates, str) else list(templates)
        if not forms or any(one.count("{}") != 1 for one in forms):
            raise ValueError(f"expected templates with one {{}} each, for the name, got {templates!r:.80}")
        joint, several = self._joint, texts_of(names)
        each = [self.encode_text([one.replace("{}", name) for name in several]) for one in forms]
        classes = F.normalize(torch.stack(each).mean(0), dim=-1)
        cosines = self.encode_image(images, batch_size=batch_size) @ classes.T
        return F.softmax(cosines / joint.temperature, dim=1)

    def score(
        self, images: Images, texts: str | Iterable[str], *, batch_size: int = 64
    ) -> Float[Tensor, "B C"]:
        """Return the probability that each text belongs to each image, by the fusion encoder (equation 5).

        Slower than `similarity` by the number of texts, and better at telling near ones apart: for a shortlist.

        Raises:
            ValueError: the model has no fusion encoder; otherwise as `encode_text`.
        """
        refusal = f"a {self.family} has no fusion encoder that images and texts are matched by"
        model, states = checkpoint.require(CBViLA, self.model, refusal), []
        for text in self._captions(texts):
            words = model.tokenize_texts([text], model.config.text.positions).to(self.device)
            with computing(self.device, self.precision):
                states.append(model.encode_text(words.word_ids, words.key_padding)[0])

        def match(batch: Tensor) -> Tensor:
            context = model.image_context(model.encode_image(batch))
            return torch.stack([model.match(context, text).softmax(1)[:, 1] for text in states], 1)

        return self._in_batches("match", images, batch_size, match)

    def _captions(self, texts: str | Iterable[str]) -> list[str]:
        """Return texts as the model's captions were cleaned."""
        several = texts_of(texts)
        cleaned = [clean_caption(one) if self.model.fuses else one.strip() for one in several]
        if not all(cleaned):
            bad = several[cleaned.index("")]
            raise ValueError(f"expected a text with a word in it, got {quoted(bad)}")
        return cleaned

    def from_words(self, text: str | Iterable[str]) -> Int[Tensor, "B N"]:
        """Return the codes of one text or several; the inverse of `to_words`, except with vocabulary "all".

        There the language model's tokenizer reads the text, mostly as other words than were written, and as
        more or fewer: keep the codes to decode.

        Raises:
            ValueError: the model has no words, a wrong number of words, or one that is no codeword.
        """
        vocabulary, each = self._vocabulary(), self.num_words
        texts = [] if isinstance(text, list | tuple) and not text else texts_of(text)
        rows = []
        for number, one in enumerate(texts):
            where = f"image {number}: " if len(texts) > 1 else ""
            expected = f"{where}expected {each} words{self.layout}, got"
            if vocabulary.is_exact and (count := len(one.split())) != each:
                raise ValueError(f"{expected} {count}")
            try:
                rows.append(vocabulary.from_text(one))
            except ValueError as fault:
                raise ValueError(f"{where}{fault}") from fault
            if len(rows[-1]) != each:
                raise ValueError(
                    f"{expected} {len(rows[-1])} as the tokenizer divides the text, which is not exact with "
                    "vocabulary 'all': decode codes (codes, jsonl or parquet files)"
                )
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), each)

    def embed(
        self, images: Images, *, layer: Literal["last", "all"] = "last", batch_size: int = 64
    ) -> Float[Tensor, "B D"]:
        """Return one vector for each image: the mean over its patches.

        Args:
            images, batch_size: as in `tokenize`.
            layer: of LQAE, the hidden states to average, nothing masked: those of the language model's last
                layer, or of its embedding layer and every layer, one mean after the other. Others have their
                codewords alone, "last".

        Raises:
            ValueError: an unknown layer; otherwise as `tokenize`.
        """
        if layer not in (("last", "all") if self.has_words else ("last",)):
            expected = "last or all" if self.has_words else f"last (a {self.family} has no further layers)"
            raise ValueError(f"layer must be {expected}, got {layer!r}")

        model = self.coder

        def pooled(batch: Tensor) -> Tensor:
            values = model.quantize(batch).values
            if model.vocabulary is None:
                return values.float().mean(1)
            language = model.encode_text(values, all_states=layer == "all")
            states = language.hidden_states if layer == "all" else (language.last,)
            return torch.cat([state.float().mean(1) for state in states], dim=1)

        return self._in_batches(f"embed {layer}", images, batch_size, pooled)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        bits: Literal[32, 16, 8] = 32,
        **hub: Any,
    ) -> str | None:
        """Write a model directory that `pixlex.load` reads; where asked to, upload it and return the address.

        Args:
            save_directory: made if missing.
            repo_id: None for the directory's name.
            bits: of each weight of a matrix; 16 or 8 make a model of half or a quarter of the size. It is another
                model: patches between two codewords change sides, some in a hundred with 8 bits where training
                has set codewords apart, many after a few steps. Measure it.
            hub: as for `push_to_hub`.
        """
        folder = Path(save_directory)
        checkpoint.save(self.coder, folder, trained_on=self.trained_on, bits=bits)
        if self.card is not None:
            (folder / CARD).write_text(self.card, encoding="utf-8")
        return self.push_to_hub(repo_id or folder.name, bits=bits, **hub) if push_to_hub else None

    save = save_pretrained

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        card: str | None = None,
        branch: str | None = None,
        bits: Literal[32, 16, 8] = 32,
        **upload: Any,
    ) -> str:
        """Upload the model directory to the Hugging Face Hub; return the address of the repository.

        Args:
            repo_id: `owner/name`; made if missing.
            private: whether a new repository is private; None as the owner's settings say.
            token: access token; None takes the one that `hf auth login` stored.
            card: the model card, Markdown; None takes the one that lies beside the model, if any.
            branch: made if missing; None for the main one.
            bits: as for `save_pretrained`.
            upload: of `HfApi.upload_folder`, such as commit_message and create_pr.
        """
        if self.model.vocabulary is not None and Path(self.model.language.name).is_dir():
            warnings.warn(
                f"the language model is the local directory {self.model.language.name!r}: whoever loads "
                f"{repo_id} has to say where it lies (language_model=)",
                stacklevel=2,
            )
        hub = HfApi(token=token)
        address = hub.create_repo(repo_id, private=private, exist_ok=True)
        if branch is not None:
            hub.create_branch(repo_id, branch=branch, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save(folder, bits=bits)
            if card is not None:
                (folder / CARD).write_text(card, encoding="utf-8")
            upload = {"commit_message": "Upload a pixlex model", "revision": branch, **upload}
            hub.upload_folder(repo_id=repo_id, folder_path=folder, **upload)
        return str(address)

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write encoder and codebook as a graph, FILE.onnx or FILE.pt2; see `pixlex.api.export.export`."""
        from pixlex.api.export import export

        return export(self, Path(path))

    @property
    def layout(self) -> str:
        """How the codes of an image lie, for messages."""
        return f" ({self.grid} x {self.grid})" if self.grid else ""

    @property
    def coder(self) -> Tokenizer:
        """The model, if it writes codes; raises `ValueError` for one that names images alone."""
        if not self.model.has_codes:
            raise ValueError(f"a {self.family} writes no codes and is not stored: it names images (to_words)")
        return self.model

    def _vocabulary(self) -> Vocabulary:
        if self.model.vocabulary is None:
            raise ValueError(f"a {self.family} has no words: its codes are rows of a learned codebook")
        return self.model.vocabulary

    @property
    def _joint(self) -> JointModel:
        if not isinstance(self.model, JointModel):
            raise ValueError(f"a {self.family} names no images by words: it compares no images with texts")
        if not self.model.compares:
            raise ValueError(
                f"a {self.family} trained without contrast names no images by words: its similarities are "
                "those of random maps"
            )
        return self.model

    @cached_property
    def namer(self) -> Namer:
        """What names images; raises `ValueError` as `rank_words` does."""
        return self._joint.namer(self.words, top_k=self.top_k)

    def _in_batches(
        self, use: str, images: Images, batch_size: int, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        batches = batches_of(images, batch_size, self.image_size, self.model.config.resize_mode)
        return torch.cat([self._compute(use, batch, compute, batch_size) for batch in batches])

    def _compute(
        self, use: str, inputs: Tensor, compute: Callable[[Tensor], Tensor], batch_size: int
    ) -> Tensor:
        """Compute one row for each row of the inputs, so that it depends on no other."""
        return compute_rows(
            inputs, compute, grid=self.model.grid, device=self.device, precision=self.precision,
            batch_size=batch_size, sizes=self._sizes.setdefault(use, PassSizes()),
        )  # fmt: skip


def _loaded_again(where: dict[str, Any], fingerprint: str) -> ImageTokenizer:
    """Load a pickled tokenizer from where it was loaded; raise `ValueError` where another one lies there now."""
    tokenizer = load(**where)
    if (found := tokenizer.fingerprint) != fingerprint:
        raise ValueError(
            f"expected the model {fingerprint[:12]} that was pickled in {where['name_or_dir']}, found "
            f"{found[:12]}: it was replaced there, or changed after it was loaded (write it by save_pretrained, "
            "and load that, before it is pickled)"
        )
    return tokenizer


def _unpacked(files: dict[str, bytes], how: dict[str, Any]) -> ImageTokenizer:
    """Load a pickled tokenizer that had been built in memory from its model directory."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        tokenizer = load(folder, **how)
    tokenizer.source = None
    return tokenizer


def _decided(precision: Precision) -> Literal["fp32", "bf16"]:
    """Return the precision that a model computes in: auto is fp32."""
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be auto, fp32 or bf16, got {precision!r}")
    return "bf16" if precision == "bf16" else "fp32"


def _card_beside(folder: Path) -> str | None:
    """Return the model card of a model directory or a run folder."""
    folder = released().get(str(folder), folder)
    for path in (folder / CARD, folder / "model" / CARD):
        if (path.parent / CONFIG).is_file() and path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    return None


def load_reasoner(
    name_or_dir: str | os.PathLike[str],
    *,
    language_model: str | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    revision: str | None = None,
) -> ImageReasoner:
    """Load a model that `pixlex finetune` made for questions, sentences or hypotheses; arguments as for `load`.

    Raises:
        ValueError: no such model, one that answers nothing, damaged files, or no such device.
    """
    model = checkpoint.load_any(os.fspath(name_or_dir), language_model=language_model, revision=revision)
    refusal = (
        f"{name_or_dir} holds a model of family {model.family}, which answers nothing: fine-tune a CB-ViLA "
        "first, with pixlex finetune"
    )
    model = checkpoint.require(Reasoner, model, refusal)
    return ImageReasoner(model, device=pick_device(device), precision=precision)


@dataclass(frozen=True)
class Answer:
    """An answer to a question, or a class of a sentence.

    Attributes:
        probability: among those that were ranked; 1 where it was written freely.
    """

    text: str
    probability: float


class ImageReasoner:
    """A fine-tuned model as something that is asked.

    Args:
        model: is put into evaluation mode on `device`.
        precision: fp32, or bf16 for mixed precision; auto is fp32.

    Attributes:
        task: what the model was fine-tuned to: "vqa", "nlvr2", "entailment" or "assignment".
        num_images: images that each text speaks of.
        answers: the classes, or the answers that are picked from.
    """

    def __init__(
        self,
        model: Reasoner,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> None:
        self.precision = _decided(precision)
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.task, self.num_images = model.config.task, model.config.num_images
        self.answers = model.config.answers

    def answer(
        self,
        images: Images,
        texts: str | Iterable[str],
        *,
        top_k: int = 5,
        shortlist: int = 128,
        batch_size: int = 32,
    ) -> list[list[Answer]]:
        """Return the likeliest answers to each text about its images, the best first, with probabilities.

        Args:
            images: see `batches_of`: paths, bytes, PIL images, arrays (H, W, C), tensors (C, H, W). The
                `num_images` images of a text follow each other, or stand in a list of their own. Where there are
                as many as one text needs, all texts are about them.
            texts: questions, sentences or hypotheses.
            shortlist: answers of the list whose whole likelihood is computed.

        Raises:
            ValueError: another number of images than the texts need, a text without a word, a number below 1, and
                as `batches_of`.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        found: list[list[Answer]] = []
        for pixels, words, image_index in self._batches(images, texts, batch_size):
            with autocast(self.device, self.precision):
                ranked = self.model.rank(pixels, words, image_index=image_index, shortlist=shortlist)
            rows = zip(ranked.numbers.tolist(), ranked.probabilities.tolist(), strict=True)
            for numbers, probabilities in rows:
                best = list(zip(numbers, probabilities, strict=True))[:top_k]
                found.append([Answer(self.answers[number], one) for number, one in best])
        return found

    ask = answer

    def write(self, images: Images, texts: str | Iterable[str], *, batch_size: int = 32) -> list[str]:
        """Return the answers that the decoder writes freely; arguments as for `answer`.

        Raises:
            ValueError: the task is not "vqa"; otherwise as `answer`.
        """
        if self.task != "vqa":
            raise ValueError(
                f"answers are written freely for the task vqa alone, this model's is {self.task}"
            )
        written: list[str] = []
        for batch in self._batches(images, texts, batch_size):
            with autocast(self.device, self.precision):
                written += self.model.generate(*batch)
        return written

    def explain(
        self, images: Images, text: str, *, answer: str | None = None, layer: int | None = None
    ) -> ExplainedAnswer:
        """Say which places of the images of one text speak for an answer.

        Args:
            images: those of the one text, as for `answer`.
            answer: None for the model's own.
            layer: of the fusion encoder, counted from 1; None for the one that localizes best.

        Raises:
            ValueError: as `answer` and `explain_answer`.
        """
        config, several = self.model.config, images_of(images)
        pixels = torch.cat(
            list(batches_of(several, max(1, len(several)), config.image_size, config.resize_mode))
        )
        if len(texts := self._cleaned(text)) != 1:
            raise ValueError(f"expected one text to explain an answer to, got {len(texts)}")
        with autocast(self.device, self.precision):
            return explain_answer(self.model, pixels, texts[0], answer=answer, layer=layer)

    def _cleaned(self, texts: str | Iterable[str]) -> list[str]:
        """Return texts as the model's training texts were cleaned."""
        several = texts_of(texts)
        clean = clean_question if self.task == "vqa" else clean_caption
        cleaned = [clean(text, MOST_WORDS) for text in several]
        if not all(cleaned):
            bad = several[cleaned.index("")]
            raise ValueError(f"expected a question or a sentence with a word in it, got {quoted(bad)}")
        return cleaned

    def _batches(
        self, images: Images, texts: str | Iterable[str], batch_size: int
    ) -> Iterator[tuple[Tensor, Words, Tensor | None]]:
        """Yield images, read when their turn comes, with their texts, and which image each text looks at."""
        cleaned = self._cleaned(texts)
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        config, each = self.model.config, self.num_images
        several = images_of(images)
        if len(several) not in (each, len(cleaned) * each):
            raise ValueError(
                f"expected {each} images for each of {len(cleaned)} texts, or {each} for all, got "
                f"{len(several)} images"
            )
        are_shared = len(several) == each
        pixels = batches_of(
            several, each if are_shared else batch_size * each, config.image_size, config.resize_mode
        )
        shared = next(pixels).to(self.device) if are_shared else None
        for first in range(0, len(cleaned), batch_size):
            words = self.model.tokenize_texts(cleaned[first : first + batch_size], config.body.text.positions)
            asked = words.to(self.device)
            if shared is None:
                yield next(pixels).to(self.device), asked, None
            else:
                yield shared, asked, torch.zeros(len(asked.word_ids), dtype=torch.long, device=self.device)
