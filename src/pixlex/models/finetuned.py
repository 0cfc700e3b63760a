"""CB-ViLA with a head: questions answered by a decoder, statements and hypotheses by classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex.batch import Words
from pixlex.config.cbvila import CBViLAConfig, ReasonerConfig
from pixlex.config.fields import Cut
from pixlex.config.run import describe_fields, value_at
from pixlex.messages import quoted, renamed
from pixlex.models import ImageModel
from pixlex.models.cbvila import CBViLA, MaskedWordHead
from pixlex.models.initialization import resampled
from pixlex.nn.bert import AnswerDecoder, Context
from pixlex.nn.tokenizer import TextTokenizer, load_tokenizer
from pixlex.nn.transformer import initializer, initializing

# Parameters with a row for each patch -> the number of rows in front of those.
_ON_GRID = {"image_encoder.positions": 1, "query.positions": 0, "class_patch_head.positions": 0}
# What no shape depends on.
_NO_SHAPE = ("image_size", "cut", "dropout_rate")
# Positions of answers whose logits over all words exist at the same time.
_POSITIONS_AT_ONCE = 2048


@dataclass(frozen=True)
class RankedAnswers:
    """Answers out of a list, the best first.

    Attributes:
        numbers: rows of the list.
        log_likelihoods: of the whole answer, its end included, in nats; for classes the log-probability.
        probabilities: among those shown.
    """

    numbers: Int[Tensor, "B k"]
    log_likelihoods: Float[Tensor, "B k"]
    probabilities: Float[Tensor, "B k"]


class Reasoner(ImageModel):
    """A vision-language model with a head for one task (Guo et al. 2022, section IV-D; Li et al. 2021, section 4).

    Texts look at images in the fusion encoder. For `vqa` a decoder of as many layers, which start as those of
    the fusion encoder, looks at what comes of it and writes the answer. For the others the vectors of the text's
    start, one for each image, go side by side through two linear maps (NLVR2: two passes, as ViLT and
    BEiT-3, in place of ALBEF's doubled layers).

    Args:
        config: shapes of the networks, and the answers.
        tokenizer: what texts are read with.
    """

    family: ClassVar[str] = "reasoning"
    has_codes: ClassVar[Literal[False]] = False
    speaks: ClassVar[Literal[False]] = False
    fuses: ClassVar[Literal[True]] = True

    config: ReasonerConfig

    def __init__(self, config: ReasonerConfig, tokenizer: TextTokenizer) -> None:
        super().__init__()
        if not config.answers:
            raise ValueError(f"expected answers for the task {config.task}, got none")
        self.config, self.tokenizer = config, tokenizer
        self.body = CBViLA(config.body, tokenizer)
        text, depth = config.body.text, config.body.fusion.depth
        self.decoder: AnswerDecoder | None = None
        self.word_head: MaskedWordHead | None = None
        self.class_head: nn.Sequential | None = None
        if config.task == "vqa":
            self.decoder = AnswerDecoder(
                text.width, depth, text.heads, text.mlp_ratio, config.body.dropout_rate
            )
            self.word_head = MaskedWordHead(text.width, tokenizer.vocab_size)
        else:
            self.class_head = nn.Sequential(
                nn.Linear(config.num_images * text.width, text.width),
                nn.ReLU(),
                nn.Linear(text.width, len(config.answers)),
            )
            self.class_head.apply(initializer(text.width))

    @classmethod
    def build(cls, config: ReasonerConfig, *, initialize: bool = True) -> Reasoner:
        """Build the model with fresh weights."""
        with initializing(initialize):
            return cls(config, load_tokenizer(config.body.text.tokenizer))

    @classmethod
    def start(cls, config: ReasonerConfig, body: CBViLA, before: Reasoner | None = None) -> Reasoner:
        """Build the model on a trained body; the decoder starts as fusion encoder and head for hidden words.

        Args:
            config: shapes of the networks, and the answers.
            body: of the configuration's shape.
            before: if given, a fine-tuned model; its head goes on where it is the same: a decoder, or one for the
                same classes and number of images.

        Raises:
            ValueError: the body's weights do not fit the configuration.
        """
        with initializing(False):
            model = cls(config, body.tokenizer)
        if model.class_head is not None:
            model.class_head.apply(initializer(config.body.text.width))
        try:
            model.body.load_state_dict(body.state_dict())
        except RuntimeError as error:
            raise ValueError(f"the pretrained body does not fit the configuration: {error}") from error
        if model.decoder is not None and model.word_head is not None:
            model.decoder.load_state_dict(body.fusion.state_dict())
            model.word_head.load_state_dict(body.masked_word_head.state_dict())
        if before is not None and _head(before.config) == _head(config):
            heads = {name: one for name, one in before.state_dict().items() if not name.startswith("body.")}
            model.load_state_dict(heads, strict=False)
        return model

    @property
    def text_identity(self) -> tuple[str, str]:
        """Name and fingerprint of the tokenizer."""
        return self.tokenizer.name, self.tokenizer.fingerprint

    @property
    def task(self) -> str:
        """What it was fine-tuned to."""
        return self.config.task

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B I"]:
        """Return the class vector of images, in float32; `images` holds pixels in [0, 1]."""
        return self.body.embed(images)

    encode_texts = renamed("encode_texts", "tokenize_texts")

    def tokenize_texts(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts as the text encoder reads them, each cut to so many words (tokens)."""
        return self.tokenizer.encode(texts, max_words)

    @cached_property
    def answer_words(self) -> Words:
        """The answers as the decoder reads them: start, words, end."""
        return self.tokenizer.encode(self.config.answers, self.config.max_answer_words)

    def fuse(
        self,
        images: Float[Tensor, "R 3 H W"],
        word_ids: Int[Tensor, "B T"],
        key_padding: Bool[Tensor, "B T"],
        looks_at: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B n T D"]:
        """Return the words of each text after they have looked at each of its images.

        Args:
            images: RGB pixels in [0, 1]; the n images of a text follow each other.
            word_ids: rows of the word embedding; anything where padded.
            key_padding: True = padding.
            looks_at: which group of n images each text looks at; the i-th text at the i-th group when None.
        """
        body, num_images = self.body, self.config.num_images
        context = body.image_context(body.encode_image(images))
        if looks_at is not None:
            each = torch.arange(num_images, device=images.device)
            context = context.rows((looks_at.unsqueeze(1) * num_images + each).flatten())
        text = body.encode_text(word_ids, key_padding).repeat_interleave(num_images, dim=0)
        fused: Tensor = body.fusion(text, context, key_padding.repeat_interleave(num_images, dim=0))
        return fused.view(-1, num_images, *fused.shape[1:])

    def class_logits(
        self,
        images: Float[Tensor, "R 3 H W"],
        word_ids: Int[Tensor, "B T"],
        key_padding: Bool[Tensor, "B T"],
        looks_at: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C"]:
        """Return the logits of the classes; arguments as for `fuse`."""
        return self.head_logits(self.fuse(images, word_ids, key_padding, looks_at))

    def head_logits(self, fused: Float[Tensor, "B n T D"]) -> Float[Tensor, "B C"]:
        """Return the logits of the classes of texts that have looked at their images."""
        assert self.class_head is not None
        logits: Tensor = self.class_head(fused[:, :, 0].flatten(1))
        return logits.float()

    def look_at_question(
        self,
        images: Float[Tensor, "R 3 H W"],
        word_ids: Int[Tensor, "B T"],
        key_padding: Bool[Tensor, "B T"],
        looks_at: Int[Tensor, " B"] | None = None,
    ) -> Context:
        """Return questions about images as the decoder looks at them; arguments as for `fuse`."""
        assert self.decoder is not None
        return self.decoder.project(self.fuse(images, word_ids, key_padding, looks_at)[:, 0], key_padding)

    def write(self, word_ids: Int[Tensor, "A T"], context: Context) -> Float[Tensor, "A T D"]:
        """Return what is compared with word embeddings to find the word behind each word of answers.

        Args:
            word_ids: answers, the start first.
            context: questions; answer i is to question i modulo their number.
        """
        assert self.decoder is not None
        assert self.word_head is not None
        decoded = self.decoder(self.body.text_encoder.embed(word_ids), context)
        vectors: Tensor = self.word_head(decoded)
        return vectors

    def word_logits(self, vectors: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """Return the logits of all words, in float32."""
        assert self.word_head is not None
        return F.linear(vectors, self.body.text_encoder.words.weight, self.word_head.bias).float()

    def log_likelihoods(
        self, answers: Words, context: Context, first: Float[Tensor, " A"] | None = None
    ) -> Float[Tensor, " A"]:
        """Return how likely the decoder writes answers, their ends included, in nats.

        Args:
            answers: start, words, end; padded.
            context: questions; answer i is to question i modulo their number.
            first: log-probabilities of the first words, which are then not computed anew.
        """
        vectors, targets = self.write(answers.word_ids[:, :-1], context), answers.word_ids[:, 1:]
        said = ~answers.key_padding[:, 1:]
        if first is not None:
            said[:, 0] = False
        # Logits over all words are most of the work: none are made where nothing is said.
        logits = self.word_logits(vectors[said])
        found = logits.gather(1, targets[said].unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
        total = found.new_zeros(targets.shape).masked_scatter(said, found).sum(1)
        return total if first is None else total + first

    @torch.no_grad()
    def rank(
        self,
        images: Float[Tensor, "R 3 H W"],
        words: Words,
        *,
        looks_at: Int[Tensor, " B"] | None = None,
        shortlist: int = 128,
        first_token_twice: bool = False,
    ) -> RankedAnswers:
        """Return answers of the list, the best first: all classes, or for `vqa` a shortlist by the first word.

        The first word's probability picks the shortlist, the likelihood of the whole answer ranks it (Li et al.
        2021, section 4.2). ALBEF's code counts the first word in both.

        Args:
            images: RGB pixels in [0, 1]; the n images of a text follow each other.
            words: one text for each item.
            looks_at: see `fuse`.
            shortlist: answers ranked, 1 or more; 128 in ALBEF.
            first_token_twice: count the first word twice, for comparison with ALBEF's numbers.

        Raises:
            ValueError: a shortlist below 1.
        """
        if shortlist < 1:
            raise ValueError(f"shortlist must be 1 or more, got {shortlist}")
        if self.class_head is not None:
            logits = self.class_logits(images, words.word_ids, words.key_padding, looks_at).log_softmax(-1)
            scores, numbers = logits.sort(dim=1, descending=True)
            return RankedAnswers(numbers, scores, scores.exp())
        context = self.look_at_question(images, words.word_ids, words.key_padding, looks_at)
        numbers, first = self._shortlist(context, len(words.word_ids), shortlist)
        scores = self._likelihoods(context, numbers, first)
        if first_token_twice:
            scores = scores + first
        order = scores.argsort(dim=1, descending=True)
        scores = scores.gather(1, order)
        return RankedAnswers(numbers.gather(1, order), scores, scores.softmax(-1))

    def _shortlist(self, context: Context, size: int, shortlist: int) -> tuple[Tensor, Tensor]:
        """Return the answers whose first words are likeliest, with the log-probabilities of those."""
        device = self.body.text_encoder.words.weight.device
        starts = torch.full((size, 1), self.tokenizer.start_id, device=device)
        logits = self.word_logits(self.write(starts, context)[:, 0]).log_softmax(-1)
        first = logits[:, self.answer_words.word_ids[:, 1].to(device)]
        values, numbers = first.topk(min(shortlist, first.shape[1]), dim=1)
        return numbers, values

    def _likelihoods(
        self, context: Context, numbers: Int[Tensor, "B k"], first: Float[Tensor, "B k"]
    ) -> Float[Tensor, "B k"]:
        """Return the log-likelihood of each question's answers, their ends included."""
        answers, padding = self.answer_words.word_ids.to(numbers.device), self.answer_words.key_padding
        padding = padding.to(numbers.device)
        columns = max(1, _POSITIONS_AT_ONCE // (len(numbers) * answers.shape[1]))
        found = []
        # What looks at the same question stands together.
        for part, begun in zip(torch.split(numbers.T, columns), torch.split(first.T, columns), strict=True):
            rows = part.flatten()
            ids, hidden = answers[rows], padding[rows]
            length = int((~hidden).sum(1).max())
            words = Words(ids[:, :length], hidden[:, :length])
            found.append(self.log_likelihoods(words, context, begun.flatten()).view(part.shape))
        return torch.cat(found).T

    @torch.no_grad()
    def generate(
        self,
        images: Float[Tensor, "R 3 H W"],
        words: Words,
        looks_at: Int[Tensor, " B"] | None = None,
    ) -> list[str]:
        """Return the answers that the decoder writes freely, word by word, always the likeliest one.

        Args:
            images: RGB pixels in [0, 1].
            words: questions.
            looks_at: see `fuse`.
        """
        context = self.look_at_question(images, words.word_ids, words.key_padding, looks_at)
        tokenizer = self.tokenizer
        written = torch.full((len(words.word_ids), 1), tokenizer.start_id, device=words.word_ids.device)
        ended = torch.zeros(len(written), dtype=torch.bool, device=written.device)
        for _ in range(self.config.max_answer_words - 1):
            following = self.word_logits(self.write(written, context)[:, -1]).argmax(-1)
            ended = ended | (following == tokenizer.end_id)
            written = torch.cat([written, following.unsqueeze(1)], dim=1)
            if ended.all():
                break
        return [tokenizer.text(row) for row in written.cpu()]


def _head(config: ReasonerConfig) -> object:
    """Return what a head's shape and meaning depend on."""
    return config.task if config.task == "vqa" else (config.num_images, config.answers)


_Fusing = TypeVar("_Fusing", bound=CBViLA | Reasoner)


def resized(model: _Fusing, image_size: int | None = None, cut: Cut | None = None) -> _Fusing:
    """Return a model for images of another size or resize mode, in evaluation mode; itself where nothing changes.

    Args:
        model: the network, pretrained or fine-tuned.
        image_size: side of the images in pixels; the patches keep theirs, which must divide it. None keeps it.
        cut: how images become square; None keeps it.

    Raises:
        ValueError: the patch size does not divide the image size.
    """
    whole: Any = model
    body: CBViLA = whole if model.task is None else whole.body
    size, mode = image_size or body.config.image_size, cut or body.config.cut
    config = dataclasses.replace(body.config, image_size=size, cut=mode)
    if config == body.config:
        return model
    moved: Any = started(config, body)
    if model.task is not None:
        moved = Reasoner.start(dataclasses.replace(whole.config, body=config), moved, whole)
    place = next(model.parameters())
    placed: _Fusing = moved.to(place.device).eval().requires_grad_(place.requires_grad)
    return placed


def started(config: CBViLAConfig, model: CBViLA) -> CBViLA:
    """Return a network of a configuration with the weights of a trained model.

    Args:
        config: that of the model but for the size of the images and dropout.
        model: the trained model.

    Raises:
        ValueError: they differ in something else.
    """
    wanted, there = _shape(config), _shape(model.config)
    if wanted != there:
        names = ", ".join(
            f"{key} {quoted(there[key])} -> {quoted(wanted[key])}"
            for key in wanted
            if wanted[key] != there[key]
        )
        raise ValueError(f"the model to start from is of another shape: {names}")
    with initializing(False):
        fresh = CBViLA(config, model.tokenizer)
    weights = model.state_dict()
    if config.grid != model.grid:
        for name, before in _ON_GRID.items():
            if name in weights:
                shape = weights[name].shape
                rows = weights[name].view(-1, shape[-1])
                moved = resampled(rows[before:].unsqueeze(0), config.grid)[0]
                weights[name] = torch.cat([rows[:before], moved]).view(*shape[:-2], -1, shape[-1])
    fresh.load_state_dict(weights)
    return fresh


def _shape(config: CBViLAConfig) -> dict[str, object]:
    """Return what the shapes of the weights depend on, by dotted names."""
    values = dataclasses.asdict(config)
    names = [name for name, _, _ in describe_fields(type(config)) if name.split(".")[0] not in _NO_SHAPE]
    return {
        name: value_at(values, name) for name in names if not name.endswith((".pretrained", ".tokenizer"))
    }
