"""A language model that is prompted: right, wrong, failed, tied, and told apart."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.eval.few_shot.fakes import TWO_WAY, FakeClient, FakeReader

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import sample_episodes
from pixlex.eval.few_shot.prompted import PromptedClassifier, combined, questions
from pixlex.eval.few_shot.prompts import (
    NUM_ORDERS,
    SCORERS,
    TEMPLATES,
    Answer,
    Episode,
    Scorer,
    Setting,
    Shown,
    Template,
    is_exactly,
    pieces,
    render,
)
from pixlex.eval.llm import LLMOptions, connect
from pixlex.eval.llm.client import Ability, Reply

COUNT = 12


def answers(
    images: ImageSource, client: FakeClient, scorer: Scorer, reader: FakeReader | None = None
) -> list[Answer]:
    episodes = sample_episodes(images, TWO_WAY, count=COUNT, seed=0).episodes
    answerer = PromptedClassifier(reader or FakeReader(), client, template="frozen", scorer=scorer)
    given = list(answerer.answer(TWO_WAY, episodes, images))
    assert sorted(one.episode for one in given) == list(range(COUNT))
    return given


@pytest.mark.parametrize("scorer", SCORERS)
def test_who_knows_is_right(images: ImageSource, scorer: Scorer) -> None:
    """Something else, and an answer that does not end, are wrong; equally likely names share the credit."""
    assert [one.credit for one in answers(images, FakeClient(), scorer)] == [1.0] * COUNT
    if SCORERS[scorer].ability == "score":
        assert {one.credit for one in answers(images, FakeClient(indifferent=True), scorer)} == {0.5}
    if scorer in ("strict", "constrained"):
        wrong = answers(images, FakeClient(says=" unicorn"), scorer)
        assert {(one.credit, one.text) for one in wrong} == {(0.0, " unicorn")}
    if scorer == "strict":
        assert {one.credit for one in answers(images, FakeClient(finish="length"), scorer)} == {0.0}


@pytest.mark.parametrize("induction", [True, False])
def test_v2l_asks_how_an_answer_begins(images: ImageSource, induction: bool) -> None:
    """Free without induction, as many tokens as its code writes; what follows a name does not count."""
    setting = replace(TWO_WAY, induction=induction)
    episodes = sample_episodes(images, setting, count=4, seed=0).episodes
    right = {episode.number: episode.names[episode.answer] for episode in episodes}
    client = FakeClient(says="{}fish and", finish="length")
    answerer = PromptedClassifier(FakeReader(), client, template="frozen", scorer="v2l")
    given = {one.episode: one for one in answerer.answer(setting, episodes, images)}
    assert {number: one.text for number, one in given.items()} == {
        number: f" {name}fish and" for number, name in right.items()
    }
    assert [one.credit for one in given.values()] == [1.0] * 4
    assert {(ability, stops) for ability, _, stops in client.asked} == {
        ("mix", ("\n", ".")) if induction else ("generate", ())
    }
    assert induction or client.asked[0][1] == 16
    assert not any(one.is_cut_off for one in given.values())


@pytest.mark.parametrize(
    ("text", "right"),
    [(" dax", True), ("dax.", True), (" dax \n", True), ("Dax", False), ("dax and", False), ("a dax", False),
     ("", False), ("dax..", False)],
)  # fmt: skip
def test_what_is_exactly_a_name(text: str, right: bool) -> None:
    assert is_exactly(text, "dax") is right


@pytest.mark.parametrize("scorer", SCORERS)
def test_failures_are_no_wrong_answers(images: ImageSource, scorer: Scorer) -> None:
    client = FakeClient(fails=frozenset((0, 7 * SCORERS[scorer].num_prompts)))
    given = {one.episode: one for one in answers(images, client, scorer)}
    assert len(client.sent) == COUNT * SCORERS[scorer].num_prompts
    assert [one.detail for one in given.values() if one.credit is None] == ["cut connection"] * 2


def test_an_image_that_cannot_be_read_fails_its_episodes_alone(images: ImageSource) -> None:
    episodes = sample_episodes(images, TWO_WAY, count=COUNT, seed=0).episodes
    broken = episodes[3].query
    concerned = {one.number for one in episodes if broken in one.images}
    client = FakeClient()
    given = answers(images, client, "strict", FakeReader(unreadable=frozenset((broken,))))
    assert {one.episode for one in given if one.credit is None} == concerned
    assert len(client.sent) == COUNT - len(concerned)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_client_without_the_ability_is_refused(scorer: Scorer) -> None:
    able: frozenset[Ability] = frozenset(("generate", "score", "choose", "mix")) - {SCORERS[scorer].ability}  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match=rf"scorer '{scorer}' needs .* but fake model can {', '.join(sorted(able))}"
    ):
        PromptedClassifier(FakeReader(), FakeClient(abilities=able), template="frozen", scorer=scorer)


def test_identities_tell_apart_what_decides_answers() -> None:
    variants = [
        PromptedClassifier(reader, client, template=template, scorer=scorer).identity
        for reader in (FakeReader(), FakeReader(identity="other"))
        for client in (FakeClient(), FakeClient(identity="other"))
        for template in ("frozen", "pixlex")
        for scorer in SCORERS
    ]
    assert len(set(variants)) == 2 * 2 * 2 * len(SCORERS)


def test_prompts_are_written_once_to_plan_and_once_to_ask(images: ImageSource) -> None:
    reader = FakeReader()
    episodes = sample_episodes(images, TWO_WAY, count=2, seed=0).episodes
    answerer = PromptedClassifier(reader, FakeClient(context_size=999), template="frozen", scorer="strict")
    assert answerer.estimate(TWO_WAY, episodes, images) is None
    asked = list(reader.asked)
    assert answerer.check(TWO_WAY, episodes, images) == answerer.check(TWO_WAY, episodes, images) == ""
    assert reader.asked == asked
    assert len(list(answerer.answer(TWO_WAY, episodes, images))) == 2
    assert reader.asked == asked * 2


def test_what_does_not_fit_is_told_with_its_numbers_and_not_sent(images: ImageSource) -> None:
    episodes = sample_episodes(images, TWO_WAY, count=2, seed=0).episodes

    def check(**settings: Any) -> str:
        client = FakeClient(**settings)
        answerer = PromptedClassifier(FakeReader(), client, template="frozen", scorer="strict")
        said = answerer.check(TWO_WAY, episodes, images)
        assert client.sent == []
        return said

    said = check(context_size=20)
    found = re.match(r"does not fit: 2-way, 1 shot.* has (\d+) tokens.* up to (\d+), but .* reads 20 ", said)
    assert found is not None
    needed = int(found[1]) + int(found[2])
    assert check(context_size=needed) == check(context_size=None) == ""
    assert check(context_size=needed - 1)
    # A bound on the number of tokens says nothing of what does not fit.
    assert check(context_size=9, counts_exactly=False) == ""


def test_room_for_thoughts_is_cut_at_the_stops_afterwards(images: ImageSource) -> None:
    """Nothing may stop a model that thinks in lines; what it says then ends at its first line."""
    episodes = sample_episodes(images, TWO_WAY, count=2, seed=0).episodes
    client = FakeClient(says="\n{}\nBecause", finish="length")
    answerer = PromptedClassifier(
        FakeReader(), client, template="frozen", scorer="strict", answer_tokens=2000
    )
    assert [one.credit for one in answerer.answer(TWO_WAY, episodes, images)] == [1.0, 1.0]
    assert client.asked[0] == ("generate", 2000, ())
    plain = PromptedClassifier(FakeReader(), client, template="frozen", scorer="strict")
    assert answerer.identity != plain.identity


EPISODE = Episode(
    number=0,
    names=("dax", "St. Bernard"),
    support=(Shown(image=4, name=0), Shown(image=7, name=1)),
    query=2,
    answer=1,
)


def text_of(image: int) -> str:
    return f"words of {image}"


def test_the_papers_prompt() -> None:
    prompt = render("frozen", TWO_WAY, EPISODE, text_of)
    assert prompt.text == (
        "Answer with dax or St. Bernard.\nwords of 4\nThis is a dax.\nwords of 7\nThis is a St. Bernard.\n"
        "words of 2\nQ: What is this?\nA: This is a"
    )
    assert prompt.candidates == (" dax", " St. Bernard")
    assert prompt.stops == ("\n",)  # a period would cut the second name


def test_the_prompt_of_v2l() -> None:
    """As its code writes it: names sorted, the stray brackets, nothing between a name and the next rule."""
    prompt = render("v2l", TWO_WAY, EPISODE, text_of)
    assert prompt.text == (
        "For each of the following input output pairs, output is one of ['St. Bernard' or ['dax']\n"
        "###\nInput: < words of 4 >\nOutput: dax###\nInput: < words of 7 >\nOutput: St. Bernard"
        "###\nInput: < words of 2 >\nOutput:"
    )
    assert prompt.candidates == (" dax", " St. Bernard")


def test_calibration_is_the_papers_by_hand() -> None:
    """p / mean of p_c, each among the names; what favors a name everywhere changes nothing."""
    prior, own = [[0.6, 0.4], [0.9, 0.1], [0.75, 0.25]], [0.7, 0.3]

    def values(factor: float) -> tuple[float, ...]:
        # Of all that could follow the names are a part, another one each time.
        rows = [[0.5 * factor * own[0], 0.5 * own[1]], *([0.1 * factor * a, 0.1 * b] for a, b in prior)]
        replies = [Reply(log_probabilities=tuple(map(math.log, row)), num_tokens=(1, 1)) for row in rows]
        return combined("calibrated", replies).log_probabilities

    ratios = [own[0] / (0.6 + 0.9 + 0.75), own[1] / (0.4 + 0.1 + 0.25)]
    assert values(1) == pytest.approx([math.log(one / sum(ratios)) for one in ratios])
    assert values(1)[1] > values(1)[0]
    # One content-free input alone: the factor cancels.
    prior = prior[:1] * 3
    assert values(1) == pytest.approx(values(20))


def test_orders_are_averaged_and_belong_to_the_question() -> None:
    setting = Setting(ways=2, shots=3, induction=False)
    support = tuple(Shown(number, number % 2) for number in range(6))
    episode = Episode(number=4, names=("a", "b"), support=support, query=9, answer=0)

    def asked(one: Episode) -> list[str]:
        return [prompt.text for prompt in questions("calibrated-orders", "line", setting, one, text_of)]

    texts = asked(episode)
    assert texts == asked(replace(episode, number=7)) != asked(replace(episode, query=8))
    assert texts[:4] == [prompt.text for prompt in questions("calibrated", "line", setting, episode, text_of)]
    shown = [text.splitlines()[:-1] for text in texts]
    assert len({tuple(lines) for lines in shown}) == NUM_ORDERS
    assert {tuple(sorted(lines)) for lines in shown} == {tuple(sorted(shown[0]))}
    assert [text.splitlines()[-1] for text in texts] == [
        *("words of 9 ->", "N/A ->", "[MASK] ->", " ->")
    ] * NUM_ORDERS
    rows = [(0.8, 0.2), *[(0.5, 0.5)] * 3] * 3 + [(0.4, 0.6), *[(0.5, 0.5)] * 3]
    replies = [Reply(log_probabilities=tuple(map(math.log, row)), num_tokens=(1, 1)) for row in rows]
    mean = combined("calibrated-orders", replies).log_probabilities
    assert mean == pytest.approx([math.log(0.7), math.log(0.3)])


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template(template: Template) -> None:
    """Induction is the first sentence and nothing else; a candidate continues as a shown name does."""
    bare = Setting(ways=2, shots=1, induction=False)
    without, induced = render(template, bare, EPISODE, text_of), render(template, TWO_WAY, EPISODE, text_of)
    assert induced.text.endswith(without.text)
    assert "dax" in induced.text.removesuffix(without.text)
    assert without.text == without.text.rstrip()
    # As shown: the characters before a name are those before a candidate.
    assert f"{without.text.split()[-1]} dax" in without.text


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("induction", [True, False])
def test_without_an_example_there_is_none_in_the_prompt(template: Template, induction: bool) -> None:
    """The query's words alone, and the names where a sentence lists them; no word of pictures before."""
    setting = Setting(ways=2, shots=0, induction=induction)
    episode = replace(EPISODE, support=())
    prompt = render(template, setting, episode, text_of)
    assert [piece for piece in pieces(template, setting, episode) if isinstance(piece, int)] == [2]
    assert prompt.text.count("words of") == prompt.text.count("words of 2") == 1
    assert ("dax" in prompt.text) == ("St. Bernard" in prompt.text) == induction
    assert "similar" not in prompt.text
    assert prompt.text == prompt.text.rstrip()
    calibrated = questions("calibrated", template, setting, episode, text_of)
    assert [one.text for one in calibrated] == [
        prompt.text.replace("words of 2", words) for words in ("words of 2", "N/A", "[MASK]", "")
    ]
    assert questions("calibrated-orders", template, setting, episode, text_of) == calibrated * NUM_ORDERS


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_random_model_names_pictures_without_an_example(
    images: ImageSource, causal_language: Path, scorer: Scorer
) -> None:
    setting = Setting(ways=3, shots=0)
    episodes = sample_episodes(images, setting, count=4, seed=0).episodes
    client = connect(LLMOptions(model=str(causal_language), device="cpu"))
    for template in TEMPLATES:
        answerer = PromptedClassifier(FakeReader(), client, template=template, scorer=scorer)
        assert answerer.check(setting, episodes, images) == ""
        given = {one.episode: one.credit for one in answerer.answer(setting, episodes, images)}
        assert sorted(given) == [0, 1, 2, 3]
        assert all(one is not None for one in given.values())


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_repeats_show_the_whole_sequence_again(template: Template, repeats: int) -> None:
    setting = Setting(ways=2, shots=1, repeats=repeats)
    images = [piece for piece in pieces(template, setting, EPISODE) if isinstance(piece, int)]
    assert images == [4, 7] * (repeats + 1) + [2]
