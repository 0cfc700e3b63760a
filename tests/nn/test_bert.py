"""BERT's layers against transformers' BERT with copied weights; the fusion encoder: nothing causal, no copies."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers import BertConfig, BertModel

from pixlex.config.cbvila import CBViLAConfig, FusionConfig, ImageTowerConfig, TextTowerConfig
from pixlex.models.cbvila import MaskedWordHead
from pixlex.models.initialization import initialize_towers
from pixlex.nn import bert as tokenizer_module
from pixlex.nn.bert import (
    BertLayer,
    CachedTexts,
    FusionEncoder,
    TextEncoder,
    TextTokenizer,
    WordDraws,
    load_tokenizer,
    mask_words,
    padded,
    padding_bias,
)
from pixlex.nn.transformer import ClassTokenEncoder

WIDTH, HEADS = 32, 4


def _random(module: nn.Module, std: float = 0.2) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def _fusion(depth: int = 2) -> FusionEncoder:
    torch.manual_seed(0)
    fusion = _random(FusionEncoder(WIDTH, depth, HEADS))
    assert isinstance(fusion, FusionEncoder)
    return fusion


def test_text_and_fusion_equal_the_bert_that_they_start_from(tmp_path: Path) -> None:
    """Layers 0 and 1 in the text encoder, 2 and 3 in the fusion encoder: without cross-attention they are BERT."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, max_position_embeddings=20, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    reference = _random(BertModel(config, add_pooling_layer=False))
    reference.save_pretrained(tmp_path)
    text, fusion = TextEncoder(60, 20, WIDTH, 2, HEADS), _fusion()
    image = ImageTowerConfig(width=8, depth=1, heads=1)
    words = TextTowerConfig(width=WIDTH, depth=2, heads=HEADS, positions=20, pretrained=str(tmp_path))
    start = FusionConfig(depth=2, pretrained=str(tmp_path))
    config = CBViLAConfig(image_size=16, patch_size=8, image=image, text=words, fusion=start)
    encoder, head = ClassTokenEncoder(16, 8, 8, 1, 1, 1.0), MaskedWordHead(WIDTH, 60)
    initialize_towers(encoder, text, fusion, head, config)
    word_ids = torch.randint(60, (3, 9))
    key_padding = torch.arange(9) >= torch.tensor([[9], [6], [4]])
    expected = reference(input_ids=word_ids, attention_mask=(~key_padding).long(), output_hidden_states=True)
    found = text(word_ids, key_padding)
    torch.testing.assert_close(
        found[~key_padding], expected.hidden_states[2][~key_padding], rtol=1e-5, atol=1e-5
    )
    # Cross-attention that adds nothing, and a norm of what is normed already, leave BERT's own layer.
    for layer in fusion.layers:
        nn.init.zeros_(layer.cross_attention.output.weight)
        nn.init.zeros_(layer.cross_attention.output.bias)
        layer.cross_attention_norm = nn.Identity()
    context = fusion.project(torch.randn(3, 5, WIDTH))
    fused = fusion(found, context, key_padding)
    torch.testing.assert_close(
        fused[~key_padding], expected.last_hidden_state[~key_padding], rtol=1e-4, atol=1e-4
    )


def test_every_query_sees_every_other_and_all_of_the_context() -> None:
    """Never causal: the first vector moves with the last query and with the last of the context."""
    fusion = _fusion()
    queries, context = torch.randn(2, 5, WIDTH), torch.randn(2, 4, WIDTH)
    before = fusion(queries, fusion.project(context))[:, 0]
    moved = queries.clone()
    moved[:, 4] += 1
    assert (fusion(moved, fusion.project(context))[:, 0] - before).abs().max() > 1e-3
    looked = context.clone()
    looked[:, 3] += 1
    assert (fusion(queries, fusion.project(looked))[:, 0] - before).abs().max() > 1e-3


def test_padding_of_queries_and_context_is_not_seen() -> None:
    """Whatever stands where padding is, the other vectors stay to rounding."""
    fusion = _fusion()
    queries, context = torch.randn(2, 5, WIDTH), torch.randn(2, 4, WIDTH)
    of_queries = torch.tensor([[False] * 4 + [True], [False] * 5])
    of_context = torch.tensor([[False] * 4, [False] * 3 + [True]])
    before = fusion(queries, fusion.project(context, of_context), of_queries)
    queries[0, 4], context[1, 3] = 7.0, -7.0
    after = fusion(queries, fusion.project(context, of_context), of_queries)
    torch.testing.assert_close(after[~of_queries], before[~of_queries])


def test_groups_of_queries_share_a_context_without_a_copy() -> None:
    """Three groups over two contexts give what three passes give, with the padding of the context."""
    fusion = _fusion()
    groups = [torch.randn(2, 5, WIDTH) for _ in range(3)]
    context = fusion.project(
        torch.randn(2, 4, WIDTH), torch.tensor([[False] * 4, [False, False, True, True]])
    )
    together = fusion(torch.cat(groups), context)
    for group, found in zip(groups, together.chunk(3), strict=True):
        torch.testing.assert_close(found, fusion(group, context))


def test_texts_longer_than_the_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 6 words \(tokens\), got 7"):
        TextEncoder(10, 6, 8, 1, 1)(torch.zeros(1, 7, dtype=torch.long), torch.zeros(1, 7, dtype=torch.bool))


def test_attention_is_dropped_in_training_as_in_bert() -> None:
    """The probabilities of both attentions, apart from what each part adds; nothing in evaluation."""
    layer = _random(BertLayer(WIDTH, HEADS, 2.0, 0.5, looks=True))
    assert isinstance(layer, BertLayer)
    queries, context = torch.randn(2, 5, WIDTH), layer.cross_attention.project(torch.randn(2, 7, WIDTH))
    for part, given in ((layer.attention, ()), (layer.cross_attention, (context,))):
        assert torch.equal(part(queries, *given), part(queries, *given))
        part.train()
        assert not torch.equal(part(queries, *given), part(queries, *given))


@pytest.fixture
def fusion() -> FusionEncoder:
    fusion = FusionEncoder(WIDTH, 3, HEADS)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.3)
    return fusion.eval().requires_grad_(False)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_both_ways_give_the_same(fusion: FusionEncoder, layer: int) -> None:
    """With padding on both sides and three groups of texts over two contexts."""
    queries = torch.randn(6, 5, WIDTH)
    key_padding = torch.arange(5) >= torch.tensor([5, 4, 3, 5, 2, 5]).unsqueeze(1)
    context = fusion.project(torch.randn(2, 7, WIDTH), torch.arange(7) >= torch.tensor([[7], [4]]))
    watched = fusion.watch(queries, context, key_padding, layer=layer)
    torch.testing.assert_close(watched.fused, fusion(queries, context, key_padding), rtol=1e-5, atol=1e-5)
    assert watched.probabilities.shape == (2, HEADS, 15, 7)
    torch.testing.assert_close(watched.probabilities.sum(-1), torch.ones(2, HEADS, 15))
    assert (watched.probabilities[1, ..., 4:] == 0).all()
    seen = queries
    bias = [padding_bias(one) for one in (key_padding, context.key_padding)]
    for one, keys_values in zip(fusion.layers, context.layers[: layer - 1], strict=False):
        seen = one(seen, bias[0], keys_values, bias[1])
    chosen, keys = fusion.layers[layer - 1], context.layers[layer - 1].keys
    seen = chosen.attention_norm(seen + chosen.attention(seen, bias[0]))
    heads = chosen.cross_attention.query(seen[:2]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    expected = (heads @ keys.mT * (WIDTH // HEADS) ** -0.5 + bias[1]).softmax(-1)
    torch.testing.assert_close(watched.probabilities[:, :, :5], expected, rtol=1e-4, atol=1e-6)


def test_watching_leaves_nothing_behind(fusion: FusionEncoder) -> None:
    """No gradient, no attribute: what comes afterwards is to the bit what came before."""
    queries, context = torch.randn(2, 5, WIDTH), fusion.project(torch.randn(2, 7, WIDTH))
    names = [sorted(vars(module)) for module in fusion.modules()]
    before = fusion(queries, context)
    watched = fusion.watch(queries, context, layer=2)
    torch.autograd.grad(watched.fused.square().sum(), watched.probabilities)
    assert torch.equal(fusion(queries, context), before)
    assert not fusion(queries, context).requires_grad
    assert [sorted(vars(module)) for module in fusion.modules()] == names
    assert all(parameter.grad is None for parameter in fusion.parameters())


def test_words_are_hidden_as_bert_hides_them() -> None:
    """15 % chosen, of which 80 % the mask word, 10 % any word, 10 % as they were; special words never."""
    word_ids = torch.full((500, 40), 7)
    special = torch.zeros(500, 40, dtype=torch.bool)
    special[:, 0] = special[:, 30:] = True
    draws = WordDraws.draw(500, 40, 1000, torch.Generator().manual_seed(0))
    masked = mask_words(word_ids, special, 0.15, 4, draws)
    assert not masked.mask[special].any()
    chosen = masked.mask[~special].double()
    assert abs(chosen.mean() - 0.15) < 5 * (0.15 * 0.85 / len(chosen)) ** 0.5
    shown = masked.word_ids[masked.mask]
    count = len(shown)
    for share, hit in ((0.8, shown == 4), (0.1, shown == 7)):
        assert abs(hit.double().mean() - share) < 5 * (share * (1 - share) / count) ** 0.5
    assert torch.equal(masked.word_ids[~masked.mask], word_ids[~masked.mask])


def test_padding_changes_no_draw() -> None:
    """A text in a longer batch, or in another process's part, is hidden alike."""
    draws = WordDraws.draw(6, 20, 100, torch.Generator().manual_seed(1))
    short, long = draws.part(2, 2, 8), draws.part(2, 2, 15)
    for one, other in zip(
        (short.hide, short.kind, short.words), (long.hide, long.kind, long.words), strict=True
    ):
        assert torch.equal(one, other[:, :8])
    assert torch.equal(short.hide[1], draws.hide[3, :8])


def test_texts_have_start_and_end_and_are_cut_before_their_end(language: Path) -> None:
    tokenizer = load_tokenizer(str(language))
    vocabulary = transformers.AutoTokenizer.from_pretrained(language)
    texts = ["about the class", "and", "about and the class about and the class"]
    words = tokenizer.encode(texts, 6)
    for row, padding, text in zip(words.word_ids, words.key_padding, texts, strict=True):
        bare = vocabulary(text, add_special_tokens=False).input_ids[:4]
        expected = [vocabulary.cls_token_id, *bare, vocabulary.sep_token_id]
        assert row[~padding].tolist() == expected
    assert words.word_ids.shape == (3, 6)
    special = tokenizer.special(words.word_ids, words.key_padding)
    assert special[1].tolist() == [True, False, True, True, True, True]
    assert tokenizer.words(words.word_ids[1][:2]) == ["[CLS]", "and"]


def test_threads_with_other_limits_do_not_cut_each_other(language: Path) -> None:
    """Texts are encoded ahead in a thread while a step encodes answers."""
    tokenizer = load_tokenizer(str(language))

    def lengths(limit: int) -> set[int]:
        texts = [["about and the class " * (8 + number) + "and " * limit] * 20 for number in range(40)]
        return {tokenizer.encode(some, limit).word_ids.shape[1] for some in texts}

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lengths, (30, 8))) == [{30}, {8}]


def test_another_vocabulary_has_another_fingerprint(language: Path) -> None:
    tokenizer, other = load_tokenizer(str(language)), load_tokenizer(str(language))
    assert tokenizer.fingerprint == other.fingerprint
    other.tokenizer.add_tokens(["xyzzy"])
    assert TextTokenizer(other.tokenizer, name="more").fingerprint != tokenizer.fingerprint


def test_what_is_no_tokenizer_of_a_bert_is_refused(causal_language: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a BERT's tokenizer .* found none for"):
        load_tokenizer(str(causal_language))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))


class Letters:
    """A tokenizer whose words are letters; knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, some: Sequence[str], **options: object) -> SimpleNamespace:
        self.asked += some
        return SimpleNamespace(input_ids=[[ord(letter) for letter in text] for text in some])


def _letters(some: Sequence[str]) -> list[list[int]]:
    return [[ord(letter) for letter in text] for text in some]


def test_each_text_is_taken_apart_once_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long ones are not kept."""
    tokenizer, long = Letters(), "a" * 501
    words = CachedTexts(tokenizer)
    for some in (["ab", "c", "ab"], ["c", "", "ab"], ["d"], ["d", "", "c"]):
        assert [list(row) for row in words(some)] == _letters(some)
    assert tokenizer.asked == ["ab", "c", "", "d"]
    monkeypatch.setattr(tokenizer_module, "_MOST", 2)
    tokenizer = Letters()
    words = CachedTexts(tokenizer)
    for some in ([long, "a"], [long, "b"], ["c", "a"], ["c", "b"]):
        assert [list(row) for row in words(some)] == _letters(some)
    assert tokenizer.asked == [long, "a", long, "b", "c", "c"]


def test_padding() -> None:
    words = padded([[5, 6], [], [7]], start=(1,), end_id=2, pad_id=0)
    assert words.word_ids.tolist() == [[1, 5, 6, 2], [1, 2, 0, 0], [1, 7, 2, 0]]
    assert words.key_padding.tolist() == [[False] * 4, [False, False, True, True], [False] * 3 + [True]]
    assert words.word_ids.dtype == torch.int64
    bare = padded([[5], [6, 7]], end_id=2, pad_id=2)
    assert bare.word_ids.tolist() == [[5, 2, 2], [6, 7, 2]]
    assert bare.key_padding.tolist() == [[False, False, True], [False] * 3]
