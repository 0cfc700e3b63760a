"""CB-ViLA with a head: questions answered by a decoder, statements and hypotheses by classes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex.batch import ReasoningBatch
from pixlex.messages import quoted
from pixlex.models.cbvila import CBViLA, MaskedWordHead, TextModel, load_text_tokenizer
from pixlex.models.initialization import resampled
from pixlex.nn.bert import Context, FusionEncoder, TextTokenizer, Words
from pixlex.nn.transformer import initializer, initializing

if TYPE_CHECKING:
    from pixlex.config.cbvila import CBViLAConfig, ReasonerConfig
    from pixlex.config.fields import ResizeMode

# Parameters with a row for each patch -> the number of rows in front of those.
_ON_GRID = {"image_encoder.positions": 1, "query.positions": 0, "class_patch_head.positions": 0}
# What no shape of a weight depends on.
_NO_SHAPE = {"image_size", "resize_mode", "dropout_rate", "pretrained", "tokenizer", "caption_words"}
# Positions of answers whose logits over all words exist at the same time.
_POSITIONS_AT_ONCE = 2048


class AnswerDecoder(FusionEncoder):
    """A causal fusion encoder: each query attends to itself and those before it.

    The decoder of ALBEF's question answering (Li et al. 2021, section 4.2); its layers have the shapes of the
    fusion encoder's, from which they start.
    """

    def _bias(
        self, queries: Float[Tensor, "B N D"], key_padding: Bool[Tensor, "B N"] | None
    ) -> Float[Tensor, "B 1 _ N"] | None:
        length = queries.shape[1]
        later = torch.full((1, 1, length, length), -torch.inf, device=queries.device).triu(1)
        # Padding stands on the right, behind all that counts: nothing before it attends to it.
        return later.expand(len(queries), -1, -1, -1)


@dataclass(frozen=True)
class RankedAnswers:
    """Answers out of a list, the best first.

    Attributes:
        numbers: Rows of the list.
        log_likelihoods: Of the whole answer, its end included, in nats; for classes the log-probability.
        probabilities: Among those shown.
    """

    numbers: Int[Tensor, "B k"]
    log_likelihoods: Float[Tensor, "B k"]
    probabilities: Float[Tensor, "B k"]


class Reasoner(TextModel):
    """A vision-language model with a head for one task (Guo et al. 2022, section IV-D; Li et al. 2021, section 4).

    Texts look at images in the fusion encoder. For `vqa` a decoder of as many layers, which start as those of
    the fusion encoder, looks at what comes of it and writes the answer. For the others the vectors of the text's
    start, one for each image, go side by side through two linear maps (NLVR2: two passes, as ViLT and
    BEiT-3, in place of ALBEF's doubled layers).
    """

    family: ClassVar[str] = "reasoning"
    has_codes: ClassVar[Literal[False]] = False
    config: ReasonerConfig

    def __init__(self, config: ReasonerConfig, tokenizer: TextTokenizer) -> None:
        super().__init__(config)
        if not config.answers:
            raise ValueError(f"expected answers for the task {config.task}, got none")
        self._frozen = (tokenizer,)
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
            return cls(config, load_text_tokenizer(config.body.text))

    @classmethod
    def start(cls, config: ReasonerConfig, body: CBViLA, before: Reasoner | None = None) -> Reasoner:
        """Build the model on a trained body; the decoder starts as fusion encoder and head for hidden words.

        Args:
            body: Of the configuration's shape.
            before: If given, a fine-tuned model; its head goes on where it is the same: a decoder, or one for the
                same classes and number of images.

        Raises:
            ValueError: The body's weights do not fit the configuration.
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
    def task(self) -> str:
        """What it was fine-tuned to."""
        return self.config.task

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B I"]:
        """Return the class vector of images, in float32; `images` holds pixels in [0, 1]."""
        return self.body.embed(images)

    @cached_property
    def answer_words(self) -> Words:
        """The answers as the decoder reads them: start, words, end."""
        return self.tokenizer.encode(self.config.answers, self.config.max_answer_words)

    def fuse(
        self,
        images: Float[Tensor, "R 3 H W"],
        words: Words | ReasoningBatch,
        image_index: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B n T D"]:
        """Return the words of each text after they have looked at each of its images.

        Args:
            images: RGB pixels in [0, 1]; the n images of a text follow each other.
            image_index: Which group of n images each text looks at; the i-th text at the i-th group when None.
        """
        body, num_images = self.body, self.config.num_images
        context = body.image_context(body.encode_image(images))
        if image_index is not None:
            each = torch.arange(num_images, device=images.device)
            context = context.rows((image_index.unsqueeze(1) * num_images + each).flatten())
        text = body.encode_text(words.word_ids, words.key_padding).repeat_interleave(num_images, dim=0)
        fused: Tensor = body.fusion(text, context, words.key_padding.repeat_interleave(num_images, dim=0))
        return fused.view(-1, num_images, *fused.shape[1:])

    def class_logits(self, fused: Float[Tensor, "B n T D"]) -> Float[Tensor, "B C"]:
        """Return the logits of the classes of texts that have looked at their images."""
        assert self.class_head is not None
        logits: Tensor = self.class_head(fused[:, :, 0].flatten(1))
        return logits.float()

    def look_at_question(
        self,
        images: Float[Tensor, "R 3 H W"],
        words: Words | ReasoningBatch,
        image_index: Int[Tensor, " B"] | None = None,
    ) -> Context:
        """Return questions about images as the decoder looks at them; arguments as for `fuse`."""
        assert self.decoder is not None
        return self.decoder.project(self.fuse(images, words, image_index)[:, 0], words.key_padding)

    def write(self, word_ids: Int[Tensor, "A T"], context: Context) -> Float[Tensor, "A T D"]:
        """Return what is compared with word embeddings to find the word behind each word of answers.

        Args:
            word_ids: Answers, the start first.
            context: Questions; answer i is to question i modulo their number.
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
            answers: Start, words, end; padded.
            context: As for `write`.
            first: Log-probabilities of the first words, which are then not computed anew.
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
        image_index: Int[Tensor, " B"] | None = None,
        shortlist: int = 128,
        first_token_twice: bool = False,
    ) -> RankedAnswers:
        """Return answers of the list, the best first: all classes, or for `vqa` a shortlist by the first word.

        The first word's probability picks the shortlist, the likelihood of the whole answer ranks it (Li et al.
        2021, section 4.2). ALBEF's code counts the first word in both.

        Args:
            images: RGB pixels in [0, 1]; the n images of a text follow each other.
            image_index: See `fuse`.
            shortlist: Answers ranked, 1 or more; 128 in ALBEF.
            first_token_twice: Count the first word twice, for comparison with ALBEF's numbers.

        Raises:
            ValueError: A shortlist below 1.
        """
        if shortlist < 1:
            raise ValueError(f"shortlist must be 1 or more, got {shortlist}")
        if self.class_head is not None:
            logits = self.class_logits(self.fuse(images, words, image_index)).log_softmax(-1)
            scores, numbers = logits.sort(dim=1, descending=True)
            return RankedAnswers(numbers, scores, scores.exp())
        context = self.look_at_question(images, words, image_index)
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
        answers = self.answer_words.to(numbers.device)
        columns = max(1, _POSITIONS_AT_ONCE // (len(numbers) * answers.word_ids.shape[1]))
        found = []
        # What looks at the same question stands together.
        for part, begun in zip(torch.split(numbers.T, columns), torch.split(first.T, columns), strict=True):
            rows = part.flatten()
            ids, hidden = answers.word_ids[rows], answers.key_padding[rows]
            length = int((~hidden).sum(1).max())
            words = Words(ids[:, :length], hidden[:, :length])
            found.append(self.log_likelihoods(words, context, begun.flatten()).view(part.shape))
        return torch.cat(found).T

    @torch.no_grad()
    def generate(
        self,
        images: Float[Tensor, "R 3 H W"],
        words: Words,
        image_index: Int[Tensor, " B"] | None = None,
    ) -> list[str]:
        """Return the answers that the decoder writes freely, word by word, always the likeliest one."""
        context = self.look_at_question(images, words, image_index)
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


def resized(model: _Fusing, image_size: int | None = None, resize_mode: ResizeMode | None = None) -> _Fusing:
    """Return a model for images of another size or resize mode, in evaluation mode; itself where nothing changes.

    Args:
        image_size: Side of the images in pixels; the patches keep theirs. None keeps it.
        resize_mode: How images become square; None keeps it.

    Raises:
        ValueError: The patch size does not divide the image size.
    """
    whole: Any = model
    body: CBViLA = whole if model.task is None else whole.body
    size, mode = image_size or body.config.image_size, resize_mode or body.config.resize_mode
    config = dataclasses.replace(body.config, image_size=size, resize_mode=mode)
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

    Raises:
        ValueError: The configurations differ in more than the size of the images, how they become square, dropout.
    """
    wanted, there = _shape(dataclasses.asdict(config)), _shape(dataclasses.asdict(model.config))
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
        for name in _ON_GRID.keys() & weights.keys():
            before, shape = _ON_GRID[name], weights[name].shape
            rows = weights[name].view(-1, shape[-1])
            moved = resampled(rows[before:].unsqueeze(0), config.grid)[0]
            weights[name] = torch.cat([rows[:before], moved]).view(*shape[:-2], -1, shape[-1])
    fresh.load_state_dict(weights)
    return fresh


def _shape(values: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Return what the shapes of the weights depend on, by dotted names."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _shape(value, f"{prefix}{name}.")
        elif name not in _NO_SHAPE:
            found[prefix + name] = value
    return found
