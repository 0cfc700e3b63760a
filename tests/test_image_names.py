"""Words that say what is there: by CB-ViLA's captions or a list, by CLIP and SigLIP; codewords with names."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from tests.tiny import IMAGE_SIZE, english_words, tiny_cbvila, tiny_language, tiny_vqvae, write_images

import pixlex
from pixlex.api import ImageTokenizer
from pixlex.data.images import open_source
from pixlex.encoding.encode import encode_source
from pixlex.encoding.files import check_kind, read_codes, read_lines
from pixlex.eval.few_shot.readers import model_reader
from pixlex.models import checkpoint
from pixlex.models.baselines import DualEncoder
from pixlex.models.cbvila import CBViLA
from pixlex.nn.vocabulary import Namer, RankedWord, as_text, content_words, naming_words, words_in
from pixlex.report.progress import codeword_names

Call = Callable[..., tuple[int, str, str]]
WORDS = tuple(english_words(300)[::10])
IMAGES = torch.rand(5, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(3))
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
DUAL = {
    "clip": (transformers.CLIPConfig, transformers.CLIPModel),
    "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
}


def naming(language: Path, words: Sequence[str] = WORDS) -> CBViLA:
    """A CB-ViLA whose words are told apart, as if contrast had been trained."""
    model = tiny_cbvila(language, caption_words=tuple(words))
    with torch.no_grad():
        model.log_scale.add_(0.1)
        model.text_encoder.words.weight.mul_(20)
    return model


def dual(kind: str, folder: Path) -> Path:
    """Write a tiny random CLIP or SigLIP of 28 px images, with tokenizer and preprocessing."""
    config, model = DUAL[kind]
    tiny_language(folder)
    text = {**SIZES, "vocab_size": 305, "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2}
    vision = {**SIZES, "image_size": 28, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = model(config(text_config={**text, "pad_token_id": 0}, vision_config=vision)).eval()
        for one in built.parameters():
            one.data.mul_(8)
        built.save_pretrained(folder)
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said | {"do_center_crop": kind == "clip"}))
    return folder


def test_nearest_words_without_what_repeats() -> None:
    """The definition, by hand: a near-duplicate and a plural are passed over, the nearer of two stays."""
    angles = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.5])
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    namer = Namer(("dog", "hound", "dogs", "ice cream", "sky"), vectors, top_k=3, distinct=0.9)
    (found,) = namer.rank(torch.tensor([[1.0, 0.0]]))
    assert [one.text for one in found] == ["dog", "ice cream", "sky"]
    assert [one.similarity for one in found] == [round(float(angles[place].cos()), 4) for place in (0, 3, 4)]
    assert as_text(found) == "dog ice cream"
    assert (
        as_text([RankedWord(one, 0.5) for one in ("face with tongue", "faces", "of the")]) == "face tongue of"
    )
    (found,) = namer.rank(vectors[2:3])  # the plural is nearest here
    assert [one.text for one in found] == ["dogs", "ice cream", "sky"]
    (found,) = Namer(namer.words, vectors, top_k=5, distinct=0.1).rank(vectors[:1])
    assert found == [RankedWord("dog", 1.0), RankedWord("sky", round(float(angles[4].cos()), 4))]
    for other in (("berry", "berries"), ("box", "boxes")):
        assert len(Namer(other, torch.eye(2), top_k=2).rank(torch.eye(2))[0]) == 1
    with pytest.raises(ValueError, match=r"top_k must lie in \[1, 5\], the number of words .* got 6"):
        Namer(namer.words, vectors, top_k=6)
    with pytest.raises(ValueError, match=r"distinct must lie in \(0, 1\], got 0"):
        Namer(namer.words, vectors, top_k=1, distinct=0.0)


def test_words_depend_on_the_image_alone(language: Path) -> None:
    """Not on those beside it, the batch, or the order of the list; ranked by the cosine of the two towers."""
    tokenizer = ImageTokenizer(naming(language), top_k=6)
    texts, ranked = tokenizer.to_words(IMAGES), tokenizer.rank_words(IMAGES)
    assert texts == [as_text(one) for one in ranked]
    assert len(set(texts)) > 1
    assert [tokenizer.to_words(image)[0] for image in IMAGES] == texts
    assert tokenizer.rank_words(IMAGES, batch_size=2) == ranked
    one, among = (naming(language).joint_texts(texts) for texts in (WORDS[:1], ("about it", *WORDS)))
    assert torch.equal(one[0], among[1])
    assert ImageTokenizer(naming(language, WORDS[::-1]), top_k=6).rank_words(IMAGES) == ranked
    assert [one[:3] for one in ranked] == ImageTokenizer(naming(language), top_k=3).rank_words(IMAGES)
    model = naming(language)
    words = model.tokenize_texts([one.text for one in ranked[0]], 16)
    with torch.no_grad():
        images = model.image_vectors(model.encode_image(IMAGES[:1]))
        vectors = model.text_vectors(model.encode_text(words.word_ids, words.key_padding), words.key_padding)
    similarities = [one.similarity for one in ranked[0]]
    assert (images @ vectors.T)[0].tolist() == pytest.approx(similarities, abs=1e-4)
    assert similarities == sorted(similarities, reverse=True)
    closeness = (vectors @ vectors.T).fill_diagonal_(0)
    assert closeness.max() < 0.9


def test_words_are_stored_with_the_model(language: Path, tmp_path: Path) -> None:
    """And change no fingerprint; a list takes their place; a model of before has none, and takes a list."""
    model = naming(language)
    checkpoint.save(model, tmp_path / "model")
    loaded = pixlex.load(tmp_path / "model")
    assert loaded.names_images
    assert loaded.namer.words == WORDS
    assert loaded.to_words(IMAGES) == ImageTokenizer(model).to_words(IMAGES)
    listed = pixlex.load(tmp_path / "model", words=["about  it", "other", "other", " "], top_k=2)
    assert {word for one in listed.to_words(IMAGES) for word in one.split()} <= {"about", "it", "other"}
    bare = naming(language, ())
    assert checkpoint.fingerprint(bare) == checkpoint.fingerprint(model)
    assert not ImageTokenizer(bare).names_images
    with pytest.raises(ValueError, match="this cbvila brings no words: expected a list of words"):
        ImageTokenizer(bare).to_words(IMAGES)
    assert ImageTokenizer(bare, words=WORDS).to_words(IMAGES) == loaded.to_words(IMAGES)


def test_what_has_no_words(language: Path) -> None:
    untrained = tiny_cbvila(language, caption_words=WORDS)
    assert not ImageTokenizer(untrained).names_images
    with pytest.raises(ValueError, match="trained without contrast names no images by words"):
        ImageTokenizer(untrained).to_words(IMAGES)
    with pytest.raises(ValueError, match="trained without contrast"):
        ImageTokenizer(untrained, words=["dog"])
    with pytest.raises(
        ValueError, match="a vqvae names no images by words: it compares no images with texts"
    ):
        ImageTokenizer(tiny_vqvae(), words=["dog"])
    tokenizer = ImageTokenizer(naming(language))
    with pytest.raises(ValueError, match="a cbvila has no words: its codes are rows of a learned codebook"):
        tokenizer.to_words(tokenizer.tokenize(IMAGES))
    with pytest.raises(
        ValueError, match="a cbvila's words are names, which nothing is drawn from, got 'a dog'"
    ):
        list(read_lines([b"key\ta dog"], "words", tokenizer))
    with pytest.raises(ValueError, match="expected a text or several, got none"):
        ImageTokenizer(naming(language), words=[])
    with pytest.raises(ValueError, match="the list of words is empty"):
        ImageTokenizer(naming(language), words=[" "]).to_words(IMAGES)
    with pytest.raises(ValueError, match=r"top_k must lie in \[1, 2\]"):
        ImageTokenizer(naming(language), words=["dog", "cat"], top_k=3).to_words(IMAGES)


@pytest.mark.parametrize("kind", DUAL)
def test_published_encoders_name_images(kind: str, tmp_path: Path, call: Call) -> None:
    """As transformers' own features compare them, preprocessing honored; encode and few-shot take it by name."""
    folder = dual(kind, tmp_path / kind)
    model = checkpoint.load_any(str(folder))
    assert isinstance(model, DualEncoder)
    assert (model.config.image_size, model.config.resize_mode) == (
        28,
        "center" if kind == "clip" else "squash",
    )
    tokenizer = pixlex.load(folder, words=WORDS, top_k=4)
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    network = DUAL[kind][1].from_pretrained(folder)
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
        3, 1, 1
    )
    padding = {"padding": "max_length", "max_length": 12} if kind == "siglip" else {"padding": True}
    words = reader(list(WORDS), return_tensors="pt", **padding)
    given = {"input_ids": words.input_ids}
    if kind == "clip":
        given["attention_mask"] = words.attention_mask
    with torch.no_grad():
        seen = torch.nn.functional.normalize(network.get_image_features(pixel_values=pixels).pooler_output)
        read = torch.nn.functional.normalize(network.get_text_features(**given).pooler_output)
    best = (seen @ read.T).max(dim=1)
    ranked = tokenizer.rank_words(images)
    assert [one[0].text for one in ranked] == [WORDS[place] for place in best.indices]
    assert [one[0].similarity for one in ranked] == pytest.approx(best.values.tolist(), abs=2e-4)
    longer = "about it and all of that"
    assert torch.equal(model.joint_texts([WORDS[0]])[0], model.joint_texts([longer, *WORDS])[1])
    for use in (tokenizer.tokenize, tokenizer.embed):
        with pytest.raises(ValueError, match="a dual_encoder writes no codes"):
            use(images)

    write_images(tmp_path / "pictures", ["a.png", "b.png"])
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    arguments = ("encode", tmp_path / "pictures", "--model", folder, "--quiet")
    code, out, _ = call(*arguments, "--words", tmp_path / "words.txt", "--top-k", 3)
    expected = pixlex.load(folder, words=WORDS, top_k=3).to_words(sorted((tmp_path / "pictures").iterdir()))
    assert (code, out.splitlines()) == (
        0,
        [f"{name}\t{text}" for name, text in zip(("a.png", "b.png"), expected, strict=True)],
    )
    code, _, remarks = call(*arguments)
    assert (code, "this dual_encoder brings no words" in remarks) == (2, True)
    code, _, remarks = call(*arguments, "--to", "codes")
    assert (code, "writes no codes" in remarks) == (2, True)
    for number, name in enumerate(("light/0.png", "light/1.png", "dark/0.png", "dark/1.png")):
        write_images(tmp_path / "classes", [name], seed=number)
    few = (
        "evaluate",
        "few-shot",
        "--data",
        tmp_path / "classes",
        "--classifiers",
        "bag",
        "similarity",
        "--ways",
        2,
        "--episodes",
        2,
    )
    where = (
        "--settings",
        "1/0",
        "--out",
        tmp_path / "few",
        "--model",
        f"{kind}={folder}",
        "--untrained",
        "--quiet",
    )
    code, out, remarks = call(*few, *where, "--words", tmp_path / "words.txt")
    assert code == 0, remarks
    assert f"| {kind} (captions seen), bag of words |" in out
    assert f"| untrained {kind} (captions seen), bag of words |" in out
    assert f"| {kind}, images and names compared |" in out
    fresh = checkpoint.untrained_copy(model, images)
    assert not torch.allclose(fresh.joint_images(images), model.joint_images(images), atol=1e-2)


def test_images_and_texts_are_compared(language: Path, tmp_path: Path) -> None:
    """By vectors, by names with templates, by the fusion encoder: each image and text as if they were alone."""
    model = naming(language)
    tokenizer, texts = ImageTokenizer(model), ["About, it!", "and all of that", "the class"]
    images, vectors = tokenizer.encode_image(IMAGES), tokenizer.encode_text(texts)
    for rows in (images, vectors):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    assert torch.equal(tokenizer.encode_text("about it"), vectors[:1])
    assert torch.equal(tokenizer.encode_image(IMAGES[1]), images[1:2])
    torch.testing.assert_close(tokenizer.similarity(IMAGES, texts), images @ vectors.T)
    names = tokenizer.zero_shot(IMAGES, ["class", "about"], templates=["the {}", "{} and it"])
    one = tokenizer.zero_shot(IMAGES, ["class", "about"], templates="the {}")
    assert torch.equal(one, tokenizer.zero_shot(IMAGES, ["class", "about"], templates=["the {}"]))
    both = [tokenizer.encode_text([f"the {one}", f"{one} and it"]).mean(0) for one in ("class", "about")]
    expected = images @ torch.nn.functional.normalize(torch.stack(both), dim=1).T * model.log_scale.exp()
    torch.testing.assert_close(names, expected.softmax(1))
    scores = tokenizer.score(IMAGES, texts)
    assert torch.equal(scores[2:3, 1:2], tokenizer.score(IMAGES[2], texts[1]))
    assert len(set(scores.flatten().tolist())) == scores.numel() == 15
    words = model.tokenize_texts(["the class"], 16)
    with torch.no_grad():
        text = model.encode_text(words.word_ids, words.key_padding)
        fused = model.fusion(text, model.image_context(model.encode_image(IMAGES[:1])), words.key_padding)
        belongs = model.matching_head(fused[:, 0]).softmax(1)[0, 1]
    torch.testing.assert_close(scores[0, 2], belongs)
    published = pixlex.load(dual("clip", tmp_path / "clip"))
    side = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(
        published.zero_shot(side, texts),
        (published.similarity(side, texts) * published.model.network.logit_scale.exp()).softmax(1),
    )
    with pytest.raises(ValueError, match="a dual_encoder has no fusion encoder"):
        published.score(side, texts)
    with pytest.raises(ValueError, match=r"expected a text with a word in it, got '\?!'"):
        tokenizer.encode_text(["about", "?!"])
    for templates in ("a photo", [], ["a photo"], ["{} {}"]):
        with pytest.raises(ValueError, match=r"expected templates with one \{\} each"):
            tokenizer.zero_shot(IMAGES, ["class"], templates=templates)
    with pytest.raises(ValueError, match="trained without contrast"):
        ImageTokenizer(tiny_cbvila(language)).encode_image(IMAGES)


def test_what_has_no_text_tower(language: Path, tmp_path: Path) -> None:
    sizes = {**SIZES, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(tmp_path)
    expected = r"holds no model of ours, .*: a dinov2 has no text tower and image tower that are compared"
    with pytest.raises(ValueError, match=expected):
        pixlex.load(tmp_path)
    with pytest.raises(ValueError, match="a bert has no text tower and image tower"):
        checkpoint.load_any(str(language))


def test_encode_writes_words_and_scores(language: Path, tmp_path: Path, call: Call) -> None:
    """Codes by default, words where asked; jsonl and Parquet have codes, words, scores, and are read back."""
    write_images(tmp_path / "pictures", [f"{number}.png" for number in range(3)])
    checkpoint.save(naming(language), tmp_path / "model")
    tokenizer, source = pixlex.load(tmp_path / "model"), open_source(str(tmp_path / "pictures"))
    files = sorted((tmp_path / "pictures").iterdir())
    ranked, codes = tokenizer.rank_words(files), tokenizer.tokenize(files).tolist()
    arguments = ("encode", tmp_path / "pictures", "--model", tmp_path / "model", "--quiet")
    assert call(*arguments)[1] == "".join(
        f"{n}.png\t{' '.join(map(str, row))}\n" for n, row in enumerate(codes)
    )
    assert call(*arguments, "--to", "words")[1] == "".join(
        f"{number}.png\t{as_text(one)}\n" for number, one in enumerate(ranked)
    )
    rows = [json.loads(line) for line in call(*arguments, "--to", "jsonl")[1].splitlines()]
    encode_source(tokenizer, source, tmp_path / "out.parquet", "parquet", progress=False)
    for found in (rows, pq.read_table(tmp_path / "out.parquet").to_pylist()):
        assert [row["codes"] for row in found] == codes
        assert [row["words"] for row in found] == [as_text(one) for one in ranked]
        assert [row["ranked"] for row in found] == [[asdict(word) for word in one] for one in ranked]
    assert [list(row) for _, row in read_codes(tmp_path / "out.parquet", tokenizer)] == codes
    with pytest.raises(ValueError, match="this cbvila brings no words"):
        check_kind("words", ImageTokenizer(naming(language, ())))
    (tmp_path / "words.txt").write_text("dog\n")
    code, _, remarks = call(*arguments, "--to", "codes", "--words", tmp_path / "words.txt")
    assert (code, "leave out --to codes, or --words" in remarks) == (2, True)
    (tmp_path / "words.txt").write_text("\n")
    code, _, remarks = call(*arguments, "--words", tmp_path / "words.txt")
    assert (code, "expected a text or several, got none" in remarks) == (2, True)


def test_an_unfinished_file_of_other_words_is_not_gone_on_with(language: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures", ["0.png", "1.png", "2.png"])
    source = open_source(str(tmp_path / "pictures"))
    model, out = naming(language), tmp_path / "words.txt"
    (tmp_path / "pictures/2.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        encode_source(ImageTokenizer(model), source, out, "words", progress=False, max_broken_fraction=0.0)
    with pytest.raises(ValueError, match="unfinished work of another model"):
        encode_source(ImageTokenizer(model, top_k=2), source, out, "words", progress=False)
    result = encode_source(
        ImageTokenizer(model), source, out, "words", progress=False, max_broken_fraction=1.0
    )
    assert (result.num_images, result.num_resumed) == (2, 2)
    texts = [line.split("\t")[1] for line in out.read_text().splitlines()]
    assert texts == ImageTokenizer(model).to_words([tmp_path / "pictures/0.png", tmp_path / "pictures/1.png"])


def test_few_shot_reads_ranked_words(language: Path, tmp_path: Path) -> None:
    """Named for what they are, the first fraction of them, of a list too; else codes are rendered."""
    write_images(tmp_path, [f"{number}.png" for number in range(3)])
    source, model = open_source(str(tmp_path)), naming(language)
    texts = ImageTokenizer(model).to_words(sorted(tmp_path.iterdir()))
    reader = model_reader(model, "drawings")
    assert reader.name == "drawings (captions seen)"
    assert reader.read(source, [2, 0]) == {0: texts[0], 2: texts[2]}
    half = model_reader(model, "drawings", keep_ratio=0.5)
    assert half.name == "drawings (captions seen), first 50% of the words"
    assert half.read(source, [1]) == {1: " ".join(texts[1].split()[:4])}
    listed = model_reader(model, "drawings", word_list=("dog", "about"))
    assert set(listed.read(source, [0])[0].split()) <= {"dog", "about"}
    assert listed.identity != reader.identity
    rendered = model_reader(naming(language, ()), "drawings", words=[f"w{number}" for number in range(16)])
    assert (rendered.name, len(rendered.read(source, [0])[0].split())) == ("drawings", 16)
    fresh = checkpoint.untrained_copy(model, IMAGES)
    assert model_reader(fresh, "untrained").read(source, [0])[0] != texts[0]
    with pytest.raises(ValueError, match="bare was trained without contrast"):
        model_reader(tiny_cbvila(language), "bare", word_list=("dog",))


def test_content_words() -> None:
    captions = [
        ("A dog, the Dog's ball!", "two dogs"),
        ("a dog on fire",),
        ("ball of fire 7x",),
        ("Zürich",),
        (),
    ]
    assert words_in(captions[0]) == ["dog", "ball", "two", "dogs"]
    assert content_words(captions) == ("dog", "ball", "fire")
    assert content_words(captions, most=1) == ("dog",)
    assert "zürich" in content_words(captions, least=1)


def test_names_are_captions_that_images_share() -> None:
    """Where most images have one; sentences give words. What is not shared, or long, is no name."""
    named = [("red dog", "dog, animal, pet, four legs"), ("red dog",), ("sun",), ("sun",), ("blue cat",)]
    assert naming_words(named) == ("red dog", "sun")
    assert naming_words(named, most=1) == ("red",)  # the one name is that of two images of five
    assert naming_words([("a red dog runs",), ("a red sun rises",), ("a dog sleeps now",)]) == ("red", "dog")


def test_codewords_are_named_by_captions() -> None:
    """The word that comes with a codeword in more images than chance has it; a rare one does not win by rarity."""
    codes = torch.tensor([[0, 1], [0, 0], [0, 2], [2, 2], [1, 3], [3, 3]])
    captions = [("a red dog",), ("red cat",), ("red sun",), ("blue sun",), ("blue dog",), ("blue cat",)]
    assert codeword_names(codes, captions) == {0: ("red", 3), 1: ("dog", 2), 2: ("sun", 2), 3: ("blue", 2)}
    assert codeword_names(codes, [("red",)] * 6) == {}  # what all have says nothing
    assert codeword_names(codes, [(str(number),) for number in range(6)]) == {}
