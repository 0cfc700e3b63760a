"""Images found by texts or by images, over an index on the disk that can be brought up to date."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from pixlex.api import ImageTokenizer
from pixlex.api.pictures import Images, batches_of, texts_of
from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource
from pixlex.distributed import pick_device
from pixlex.eval.evaluate import evaluating
from pixlex.models import pretrained
from pixlex.models.cbvila import CBViLA
from pixlex.models.inference import Precision, compute_rows, computing
from pixlex.search.nearest import Graph, nearest
from pixlex.search.originals import Originals
from pixlex.search.parts import DamagedIndex, Entry
from pixlex.search.queries import lasting_description, query_text
from pixlex.search.rerank import first_stage, second_stage
from pixlex.search.results import SCORES, Score, SearchResult
from pixlex.search.store import Head, Store, is_fresh, read_head, write_head, writing
from pixlex.search.update import UpdateResult, update_store

# Longest text in words (tokens), as `pixlex evaluate retrieval` takes them.
_MOST_WORDS = 64

# Images embedded at a time, of queries too: on a GPU vectors are those of a number of images (see `compute_rows`).
_BATCH_SIZE = 64


class ImageIndex:
    """An index of images and the model that it was made with; made by `ImageIndex.open`.

    Args:
        folder: of the index.
        head: what it is of.
        model: that model, where it computes.

    Attributes:
        folder: of the index.
        head: what it is of.
    """

    def __init__(self, folder: Path, head: Head, model: CBViLA) -> None:
        self.folder, self.head, self.model = folder, head, model
        self._store = Store(folder, head.width)
        self._originals: Originals | None = None
        self._graph: Graph | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: CBViLA | ImageTokenizer | str | os.PathLike[str] | None = None,
        *,
        name: str = "the model given",
        precision: Precision | None = None,
        revision: str | None = None,
        language_model: str | None = None,
        device: str | torch.device = "auto",
        create: bool = False,
    ) -> ImageIndex:
        """Open an index, or make an empty one.

        Args:
            path: its folder.
            model: the model that it was made with, on the device where it is to compute; or where it lies: a model
                directory, a run folder or a repository on the hub; None where the index says it does.
            name: where a model that is given lies; remembered by a new index, and named in errors.
            precision: of the vectors; bf16 computes under autocast; None: that of the index, fp32 of a new one.
            revision: of the model on the hub; remembered by a new index.
            language_model: where the model's tokenizer lies; remembered by a new index.
            device: where a model that is loaded here computes: auto (a GPU, if any), cpu, cuda or cuda:N.
            create: make an empty index where the folder is missing or empty.

        Raises:
            ValueError: the folder is no index, or one of another model; `DamagedIndex` for a damaged file.
        """
        folder = Path(path)
        fresh = create and is_fresh(folder)
        if fresh and model is None:
            raise ValueError(f"{folder} is to become an index: expected the model that makes its vectors")
        known = None if fresh else read_head(folder)
        if model is None and known is not None:
            model, revision = known.model, revision or known.revision
        if isinstance(model, str | os.PathLike):
            name = os.fspath(model)
            language_model = language_model or (known.language_model if known is not None else None)
            model = pretrained.load_cbvila(name, language_model=language_model, revision=revision)
            model = model.to(pick_device(device))
        network = model.model if isinstance(model, ImageTokenizer) else model
        refusal = f"expected a CB-ViLA, which compares texts and images, got {type(network).__name__}"
        network = pretrained.require(CBViLA, network, refusal)
        precision = precision or (known.precision if known is not None else "fp32")
        digest = pretrained.fingerprint(network, precision=precision)
        if known is None:
            folder.mkdir(parents=True, exist_ok=True)
            width = network.config.contrastive_dim
            with writing(folder):
                if is_fresh(folder):  # two commands may begin at once
                    write_head(folder, Head(name, digest, precision, width, None, revision, language_model))
        head = read_head(folder)
        if head.fingerprint != digest:
            changed = " (it has changed since, or this version describes it otherwise)"
            raise ValueError(
                f"{folder} was made with {head.model} (fingerprint {head.fingerprint[:12]}, {head.precision}), "
                f"got {name} (fingerprint {digest[:12]}, {precision}){changed if name == head.model else ''}: "
                "vectors of different models cannot be compared; give the model it was made with, or index into "
                "another folder"
            )
        return cls(folder, head, network)

    def __len__(self) -> int:
        return len(self._store)

    def update(
        self,
        source: str | ImageSource,
        *,
        moved: bool = False,
        batch_size: int = 64,
        max_broken_share: float = 0.5,
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
            max_broken_share: share of images that cannot be read, in [0, 1], above which the pass stops.
            progress: show a bar with rate and time left.

        Raises:
            ValueError: another source, a number out of range, or another process is writing the index.
            TooManyBroken: more images cannot be read than allowed.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        described = lasting_description(source) if isinstance(source, str) else None
        opened = open_source(source) if isinstance(source, str) else source
        with writing(self.folder), evaluating(self.model):
            self.head = read_head(self.folder)
            if described is not None and self.head.source not in (None, described) and not moved:
                raise ValueError(
                    f"{self.folder} is an index of {self.head.source}, got {described}: index it into another "
                    "folder; if these are the same images at another place, say so with --moved"
                )
            if described is not None and self.head.source != described:
                self.head = replace(self.head, source=described)
                write_head(self.folder, self.head)
            self._originals = Originals(opened)
            self._store = Store(self.folder, self.head.width)
            return update_store(
                self._store, opened, partial(self._image_vectors, batch_size=batch_size), config=self.model.config,
                batch_size=batch_size, max_broken_share=max_broken_share, progress=progress,
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
            approximate: search a graph instead of all vectors; see `pixlex.search.nearest.Graph`.

        Raises:
            ValueError: no query, both kinds, an empty text, a number out of range, an empty index, an index with
                parts missing; `UnreadableImage` for a query that is no image.
            ModuleNotFoundError: faiss is not installed.
        """
        if (texts is None) == (images is None):
            raise ValueError("expected texts or images to search by, one of the two")
        self._ready(top_k, rerank, score)
        if images is not None and rerank:
            raise ValueError("rerank must be 0 for images: the matching head compares a text with an image")
        with evaluating(self.model):
            if images is not None:
                config = self.model.config
                batches = batches_of(images, _BATCH_SIZE, config.image_size, config.cut)
                vectors = torch.cat([self._image_vectors(batch) for batch in batches])
                return [first_stage(found, top_k) for found in self._nearest(vectors, top_k, approximate)]
            read, key_padding = self._read(texts_of(texts or ()))
            with computing(read.device, self.head.precision):
                vectors = self.model.text_vectors(read)
            candidates = self._nearest(vectors, max(top_k, rerank), approximate)
            if not rerank:
                return [first_stage(found, top_k) for found in candidates]
            return [
                second_stage(
                    self.model, read[number], key_padding[number], found, self._source(),
                    rerank=rerank, score=score, top_k=top_k, precision=self.head.precision,
                )
                for number, found in enumerate(candidates)
            ]  # fmt: skip

    def picture(self, key: str) -> Image.Image:
        """Return an image of the index as it is now in its source, RGB.

        Raises:
            UnreadableImage: it is gone or cannot be read.
            ValueError: the index does not know where its images are.
        """
        return self._source().read(key)

    def _source(self) -> Originals:
        if self._originals is None:
            if self.head.source is None:
                raise ValueError(
                    f"{self.folder} does not remember where its images are: update it with a description of them"
                )
            self._originals = Originals(open_source(self.head.source))
        return self._originals

    def _current_graph(self) -> Graph:
        if self._graph is None or self._graph.state != self._store.state:
            self._graph = Graph(self._store)
        return self._graph

    def _image_vectors(
        self, images: Float[Tensor, "B 3 H W"], batch_size: int = _BATCH_SIZE
    ) -> Float[Tensor, "B e"]:
        """Return vectors on the CPU, each of which depends on its image alone."""
        place = next(self.model.parameters()).device

        def compute(some: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b e"]:
            return self.model.image_vectors(self.model.encode_image(some))

        return compute_rows(
            images, compute, grid=self.model.grid, device=place, precision=self.head.precision,
            batch_size=batch_size,
        )  # fmt: skip

    def _read(self, texts: Sequence[str]) -> tuple[Float[Tensor, "Q T D"], Bool[Tensor, "Q T"]]:
        """Return the words of queries after the text encoder, and which of them are padding."""
        most = min(_MOST_WORDS, self.model.config.text.positions)
        words = self.model.tokenize_texts([query_text(text) for text in texts], most)
        place = next(self.model.parameters()).device
        key_padding = words.key_padding.to(place)
        with computing(place, self.head.precision):
            return self.model.encode_text(words.word_ids.to(place), key_padding), key_padding

    def _ready(self, top_k: int, rerank: int, score: str) -> None:
        """Raise `ValueError` for what cannot be searched, or not so."""
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        if rerank < 0:
            raise ValueError(f"rerank must be 0 or more, got {rerank}")
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        if self._store.missing:
            numbers = ", ".join(str(number) for number in self._store.missing)
            raise DamagedIndex(
                f"{self.folder} has lost its parts {numbers}: run `pixlex index SOURCE --out {self.folder}` again"
            )
        if len(self) == 0:
            raise ValueError(
                f"{self.folder} holds no image yet: run `pixlex index SOURCE --out {self.folder}`"
            )

    def _nearest(
        self, queries: Float[Tensor, "Q e"], count: int, approximate: bool
    ) -> list[list[tuple[Entry, float]]]:
        """Return the best images of each query with their similarities, ties by key."""
        vectors = queries.cpu().numpy()
        if approximate:
            rows, products = self._current_graph().nearest(vectors, count)
        else:
            rows, products = nearest(vectors, self._store.blocks(), count)
        found = []
        for some, similarities in zip(rows.tolist(), products.tolist(), strict=True):
            pairs = [
                (self._store.entry(row), one) for row, one in zip(some, similarities, strict=True) if row >= 0
            ]
            found.append(sorted(pairs, key=lambda pair: (-pair[1], pair[0].key)))
        return found
