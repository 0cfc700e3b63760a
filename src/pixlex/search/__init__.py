"""Images found by texts or by images, over an index that is brought up to date as pictures come and go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from pixlex.api.pictures import Images, batches_of, texts_of
from pixlex.batch import Skipped
from pixlex.data.decoding import UnreadableImage, decode_record, evaluation_transform
from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource
from pixlex.data.text import clean_caption
from pixlex.distributed import pick_device
from pixlex.eval.evaluate import evaluating
from pixlex.messages import quoted
from pixlex.models import Precision, checkpoint, compute_rows, computing
from pixlex.models.cbvila import CBViLA
from pixlex.search.store import (
    DamagedIndex,
    Entry,
    Head,
    Store,
    is_fresh,
    is_url,
    read_head,
    write_head,
    writing,
)
from pixlex.search.update import UpdateResult, digest_of, update_store

if TYPE_CHECKING:
    from pixlex.api import ImageTokenizer

__all__ = [
    "DamagedIndex",
    "Head",
    "Hit",
    "ImageIndex",
    "Score",
    "SearchResult",
    "UpdateResult",
    "read_head",
]

Score = Literal["matching", "matching+contrastive"]

# Longest text in words (tokens), as `pixlex evaluate retrieval` takes them.
_MOST_WORDS = 64
# Images embedded at a time, of queries too: on a GPU vectors are those of a number of images (see `compute_rows`).
_BATCH_SIZE = 64
# Images that a text is compared with together.
_IMAGES_AT_ONCE = 16

# The best images with their similarities.
Found = Sequence[tuple[Entry, float]]


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        rank: 1 for the best.
        key: the stable name of the image inside its source.
        similarity: cosine of its vector and the query's, in [-1, 1].
        matching: what the second stage ranked it by, a logit (with `matching+contrastive` plus the similarity);
            None where it was not looked at. Those that were stand first.
    """

    rank: int
    key: str
    similarity: float
    matching: float | None


@dataclass(frozen=True)
class SearchResult:
    """What one query found.

    Attributes:
        hits: the best first.
        skipped: candidates that could not be read again for the second stage; they are ranked by their vectors,
            behind those that were.
    """

    hits: tuple[Hit, ...]
    skipped: tuple[Skipped, ...] = ()


class ImageIndex:
    """An index of images and the model that it was made with; made by `ImageIndex.open`.

    Args:
        path: of the index, a folder or a URL.
    """

    def __init__(self, path: str, model: CBViLA) -> None:
        self.path, self.model = path, model
        self._source: ImageSource | None = None

    @cached_property
    def _store(self) -> Store:
        return Store(self.path)  # when it is needed: `update` can also begin it anew

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: CBViLA | ImageTokenizer | str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        precision: Precision | None = None,
        revision: str | None = None,
        language_model: str | None = None,
        device: str | torch.device = "auto",
        create: bool = False,
    ) -> ImageIndex:
        """Open an index, or make an empty one.

        Args:
            path: its folder, or a URL of object storage (`s3://BUCKET/index`; extra `remote`).
            model: the model that it was made with, on the device where it is to compute; or where it lies: a model
                directory, a run folder or a repository on the hub; None where the index says it does.
            name: where a model that is given lies; remembered by a new index, and named in errors. None for where
                `pixlex.load` found it.
            precision: of the vectors; bf16 computes under autocast; None: that of the index, fp32 of a new one.
            revision: of the model on the hub; remembered by a new index.
            language_model: where the model's tokenizer lies; remembered by a new index.
            device: where a model that is loaded here computes: auto (a GPU, if any), cpu, cuda, cuda:N or mps.
            create: make an empty index where the folder is missing or empty.

        Raises:
            ValueError: the folder is no index, or one of another model; `DamagedIndex` for a damaged file.
        """
        place = os.fspath(path)
        known = None if create and is_fresh(place) else read_head(place)
        if known is None and model is None:
            raise ValueError(f"{place} is to become an index: expected the model that makes its vectors")
        if model is None and known is not None:
            model, revision = known.model, revision or known.revision
        if isinstance(model, str | os.PathLike):
            name = os.fspath(model)
            language_model = language_model or (known.language_model if known is not None else None)
            model = checkpoint.load_cbvila(name, language_model=language_model, revision=revision)
            model = model.to(pick_device(device))
        found = getattr(model, "source", None) or {}  # of an ImageTokenizer that was loaded
        name = name or found.get("name_or_dir") or "the model given"
        revision, language_model = (
            revision or found.get("revision"),
            language_model or found.get("language_model"),
        )
        network = getattr(model, "model", model)
        refusal = f"expected a CB-ViLA, which compares texts and images, got {type(network).__name__}"
        network = checkpoint.require(CBViLA, network, refusal)
        precision = precision or (known.precision if known is not None else "fp32")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
        digest = checkpoint.fingerprint(network, precision=precision)
        if known is None:
            if not is_url(place):
                Path(place).mkdir(parents=True, exist_ok=True)
            width = network.config.contrastive_dim
            with writing(place):
                if is_fresh(place):  # two commands may begin at once
                    write_head(place, Head(name, digest, precision, width, None, revision, language_model))
        head = read_head(place)
        if head.fingerprint != digest:
            changed = " (it has changed since, or this version describes it otherwise)"
            raise ValueError(
                f"{place} was made with {head.model} (fingerprint {head.fingerprint[:12]}, {head.precision}), "
                f"got {name} (fingerprint {digest[:12]}, {precision}){changed if name == head.model else ''}: "
                "vectors of different models cannot be compared; give the model it was made with, or index into "
                "another folder"
            )
        return cls(place, network)

    @property
    def head(self) -> Head:
        """What the index is of."""
        return self._store.head

    def __len__(self) -> int:
        return len(self._store)

    def update(
        self,
        source: str | ImageSource,
        *,
        moved: bool = False,
        batch_size: int = 64,
        max_broken_fraction: float = 0.5,
        progress: bool = True,
    ) -> UpdateResult:
        """Bring the index up to date with a source.

        New and changed images are embedded, those that are gone are dropped, all others stay. A file has
        changed when its size or time has and its bytes have; images that are no files of their own are read
        to compare their bytes. Whatever ends a pass, the next one goes on from there, and what an image's vector
        is depends on that image alone.

        Args:
            source: a description for `open_source`, which is remembered, or a source.
            moved: the images lie elsewhere now; otherwise another description than the remembered one is
                refused, because what it does not list would be dropped.
            batch_size: images at a time, see `compute_rows`.
            max_broken_fraction: fraction of images that cannot be read, in [0, 1], above which the pass stops.

        Raises:
            ValueError: another source, a number out of range, or another process is writing the index.
            TooManyBroken: more images cannot be read than allowed.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        described = _lasting(source) if isinstance(source, str) else None
        opened = open_source(source) if isinstance(source, str) else source
        with writing(self.path), evaluating(self.model):
            store = Store(self.path, writes=True)
            if described is not None and store.head.source not in (None, described) and not moved:
                raise ValueError(
                    f"{self.path} is an index of {store.head.source}, got {described}: index it into another "
                    "folder; if these are the same images at another place, say so with --moved"
                )
            if described is not None and store.head.source != described:
                store.set_source(described)
            self._store, self._source = store, opened
            self.__dict__.pop("_numbers", None)
            return update_store(
                store, opened, partial(self._image_vectors, batch_size=batch_size), config=self.model.config,
                batch_size=batch_size, max_broken_fraction=max_broken_fraction, progress=progress,
            )  # fmt: skip

    def search(
        self,
        *,
        texts: str | Iterable[str] | None = None,
        images: Images | None = None,
        top_k: int = 10,
        rerank: int = 0,
        score: Score = "matching",
        approximate: bool = False,
    ) -> list[SearchResult]:
        """Return the best images for each query.

        Args:
            texts: one query or several, cleaned as captions are (`clean_caption`); this or `images`.
            images: one query or several, see `batches_of`: paths, bytes, PIL images, arrays, tensors.
            top_k: hits of each query, fewer where the index has fewer; 1 or more.
            rerank: so many of the best are read again and ranked by the matching head; 0 = none. Texts only.
            score: what the second stage ranks by.
            approximate: walk a graph instead of comparing all vectors; made at the first such search.

        Raises:
            ValueError: no query, both kinds, an empty text, a number out of range, an empty or a damaged index;
                `UnreadableImage` for a query that is no image.
            ModuleNotFoundError: lancedb is not installed.
        """
        if (texts is None) == (images is None):
            raise ValueError("expected texts or images to search by, one of the two")
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        if rerank < 0:
            raise ValueError(f"rerank must be 0 or more, got {rerank}")
        if score not in get_args(Score):
            raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
        if len(self) == 0:
            raise ValueError(f"{self.path} holds no image yet: run `pixlex index SOURCE --out {self.path}`")
        if images is not None and rerank:
            raise ValueError("rerank must be 0 for images: the matching head compares a text with an image")
        if approximate:
            self._store.build_graph()

        def nearest(vectors: Float[Tensor, "Q e"], count: int) -> list[Found]:
            return [self._store.nearest(one, count, approximate=approximate) for one in vectors.numpy()]

        with evaluating(self.model):
            if images is not None:
                config = self.model.config
                batches = batches_of(images, _BATCH_SIZE, config.image_size, config.resize_mode)
                vectors = torch.cat([self._image_vectors(batch) for batch in batches])
                return [_result(found, top_k) for found in nearest(vectors, top_k)]
            text, key_padding = self._encode_texts(texts_of(texts or ()))
            with computing(text.device, self.head.precision):
                vectors = self.model.text_vectors(text, key_padding).cpu()
            results = []
            for number, found in enumerate(nearest(vectors, max(top_k, rerank))):
                words = text[number][~key_padding[number]]
                logits, skipped = self._matching_logits(words, [entry for entry, _ in found[:rerank]])
                results.append(_result(found, top_k, logits, score, skipped))
            return results

    def picture(self, key: str, digest: bytes | None = None) -> Image.Image:
        """Return an image of the index as it is in its source, RGB.

        Args:
            digest: SHA-256 of what is expected; None takes what is there now.

        Raises:
            UnreadableImage: it is gone, cannot be read, or is another one than expected.
            ValueError: the index does not know where its images are.
        """
        number, source = self._numbers.get(key), self._source
        assert source is not None
        if number is None:
            raise UnreadableImage(key, f"it is no longer in {source.name}")
        record = source.read(number)
        if digest is not None and digest_of(record) != digest:
            raise UnreadableImage(key, "it has changed since it was indexed")
        return decode_record(record)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Where the images of the source are, by their keys; of several of one key the first, as in the index."""
        if self._source is None:
            if self.head.source is None:
                raise ValueError(
                    f"{self.path} does not remember where its images are: update it with a description of them"
                )
            self._source = open_source(self.head.source)
        return {self._source.key(number): number for number in reversed(range(len(self._source)))}

    def _image_vectors(
        self, images: Float[Tensor, "B 3 H W"], batch_size: int = _BATCH_SIZE
    ) -> Float[Tensor, "B e"]:
        """Return vectors on the CPU, each of which depends on its image alone."""

        def compute(some: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b e"]:
            return self.model.image_vectors(self.model.encode_image(some))

        return compute_rows(
            images, compute, grid=self.model.grid, device=self._device, precision=self.head.precision,
            batch_size=batch_size,
        )  # fmt: skip

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _encode_texts(self, texts: Sequence[str]) -> tuple[Float[Tensor, "Q T D"], Bool[Tensor, "Q T"]]:
        """Return the words of queries after the text encoder, and which of them are padding."""
        most = min(_MOST_WORDS, self.model.config.text.positions)
        words = self.model.tokenize_texts([_query(text) for text in texts], most).to(self._device)
        with computing(self._device, self.head.precision):
            return self.model.encode_text(words.word_ids, words.key_padding), words.key_padding

    def _matching_logits(
        self, text: Float[Tensor, "T D"], candidates: Sequence[Entry]
    ) -> tuple[list[float | None], tuple[Skipped, ...]]:
        """Return the logit of "belongs" of an encoded text and each candidate, None where its image is skipped."""
        model = self.model
        logits: list[float | None] = [None] * len(candidates)
        skipped: list[Skipped] = []
        for first in range(0, len(candidates), _IMAGES_AT_ONCE):
            pixels: dict[int, Tensor] = {}
            for number, entry in enumerate(candidates[first : first + _IMAGES_AT_ONCE], start=first):
                try:
                    image = self.picture(entry.key, entry.digest)
                    pixels[number] = evaluation_transform(
                        image, model.config.image_size, model.config.resize_mode
                    )
                except UnreadableImage as fault:
                    skipped.append(Skipped(fault.key, fault.reason))
            if not pixels:
                continue
            with computing(self._device, self.head.precision):
                seen = model.encode_image(torch.stack(list(pixels.values())).to(self._device))
                found: list[float] = model.match(model.image_context(seen), text)[:, 1].tolist()
            for number, logit in zip(pixels, found, strict=True):
                logits[number] = logit
        return logits, tuple(skipped)


def _result(
    found: Found,
    top_k: int,
    logits: Sequence[float | None] = (),
    score: Score = "matching",
    skipped: tuple[Skipped, ...] = (),
) -> SearchResult:
    """Rank candidates, given best first: those that have logits by them, behind them the rest as they were."""
    scored, rest = [], []
    for number, (entry, similarity) in enumerate(found):
        logit = logits[number] if number < len(logits) else None
        if logit is None:
            rest.append((entry.key, similarity, None))
        else:
            plus = similarity if score == "matching+contrastive" else 0.0
            scored.append((entry.key, similarity, logit + plus))
    scored.sort(key=lambda one: (-one[2], one[0]))
    ranked = enumerate([*scored, *rest][:top_k], start=1)
    return SearchResult(tuple(Hit(rank, *one) for rank, one in ranked), skipped)


def _query(text: str) -> str:
    """Return a text as captions are cleaned; raise `ValueError` where nothing is left of it."""
    cleaned = clean_caption(text)
    if not cleaned:
        why = "" if not text.strip() else ": it holds punctuation alone"
        raise ValueError(f"expected a text to search by, got {quoted(text)}{why}")
    return cleaned


def _lasting(source: str) -> str:
    """Return the description of a source such that it can be opened from any folder."""
    source = source.strip()
    if source.startswith(("embedded:", "hf:")) or is_url(source):
        return source
    return str(Path(source).expanduser().absolute())
