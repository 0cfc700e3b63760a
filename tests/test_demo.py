"""The page: what it shows, that a browser gets it, that users do not see each other, that nothing is kept."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.test_image_names import naming
from tests.tiny import english_words, tiny_cbvila, tiny_reasoner, write_images

import pixlex
from pixlex import demo
from pixlex.api import ImageTokenizer
from pixlex.api.pictures import batches_of
from pixlex.models import checkpoint
from pixlex.search import ImageIndex

NAMES = tuple(f"{number}.png" for number in range(5))
NO_IMAGE = "the file: not an image in a format that is read"
WAIT = 60_000  # milliseconds; on busy cores


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, language: Path, models: Path) -> Path:
    """Directories of a model that names pictures, of two that answer; pictures and their index."""
    folder = tmp_path_factory.mktemp("shown")
    checkpoint.save(naming(language), folder / "pairs")
    checkpoint.save(tiny_reasoner(language), folder / "vqa")
    checkpoint.save(tiny_reasoner(language, "nlvr2"), folder / "nlvr2")
    (folder / "lqae").symlink_to(models / "lqae")
    write_images(folder / "photos", NAMES)
    index = ImageIndex.open(folder / "index", folder / "pairs", device="cpu", create=True)
    index.update(str(folder / "photos"), progress=False)
    return folder


@pytest.fixture
def index(shown: Path) -> ImageIndex:
    return ImageIndex.open(shown / "index", device="cpu")


@pytest.fixture
def tokenizer(shown: Path) -> ImageTokenizer:
    return pixlex.load(shown / "lqae", device="cpu")


def pixels_of(path: Path) -> torch.Tensor:
    return next(batches_of(path, 1, 32, "center"))


def texts(page: str) -> list[str]:
    """What a part of the page says, a line for each caption or bar."""
    found = re.findall(r"<(figcaption|p)>(.*?)</\1>", page)
    return [re.sub(r"<[^>]+>", "", text) for _, text in found]


def sources(page: str) -> list[str]:
    return re.findall(r'src="([^"]+)"', page)


def test_words_give_the_picture_that_they_were_read_from(tokenizer: ImageTokenizer, shown: Path) -> None:
    """Unchanged words give the same page; another word another picture."""
    pixels = pixels_of(shown / "photos/0.png")
    text, page = demo.words_of(tokenizer, pixels)
    assert text.split() == tokenizer.to_words(pixels)[0].split()
    assert [len(line.split()) for line in text.splitlines()] == [4, 4, 4, 4]
    assert demo.picture_of(tokenizer, text) == page
    first, *rest = text.split()
    other = next(word for word in tokenizer.to_words(torch.arange(16))[0].split() if word != first)
    changed = demo.picture_of(tokenizer, " ".join([other, *rest]))
    assert len(sources(page)) == len(sources(changed)) == 2
    assert not set(sources(page)) & set(sources(changed))
    with pytest.raises(ValueError, match=r"expected 16 words \(4 x 4\), got 15"):
        demo.picture_of(tokenizer, " ".join(rest))
    with pytest.raises(ValueError, match="the word 'qqq' is not one of the"):
        demo.picture_of(tokenizer, " ".join(["qqq", *rest]))


def test_names_are_those_of_the_model_or_those_given(shown: Path) -> None:
    tokenizer, pixels = pixlex.load(shown / "pairs", device="cpu"), pixels_of(shown / "photos/0.png")
    own = [f"{one.text} {one.similarity:.2f}" for one in tokenizer.rank_words(pixels)[0]]
    assert re.findall(r"<b>(.*?)</p>", demo.names_of(tokenizer, pixels, " ")) == [
        one.replace(" ", "</b> ") for one in own
    ]
    given = english_words(300)[5:8]
    page = demo.names_of(tokenizer, pixels, f"{given[0]}, {given[1]},{given[2]}, {given[0]},")
    order = tokenizer.zero_shot(pixels, given)[0].argsort(descending=True).tolist()
    assert re.findall(r"<b>(\w+)</b>", page) == [given[one] for one in order]


def test_pictures_are_found_by_text_and_by_picture(index: ImageIndex, shown: Path, tmp_path: Path) -> None:
    page = demo.hits_of(index, images=pixels_of(shown / "photos/3.png"))
    assert texts(page)[0] == "1. similarity 1.000: 3.png"
    assert len(sources(page)) == len(NAMES)
    query = " ".join(english_words(300)[5:9])
    hits = index.search(texts=query, top_k=5)[0].hits
    assert [one.split(": ")[1] for one in texts(demo.hits_of(index, texts=query))] == [
        hit.key for hit in hits
    ]
    assert all("matching" in one for one in texts(demo.hits_of(index, texts=query, rerank=40)))
    with pytest.raises(ValueError, match="expected a text to search by, got ''"):
        demo.hits_of(index, texts=[""])


def test_a_picture_that_is_gone_leaves_its_line_and_names_are_no_html(language: Path, tmp_path: Path) -> None:
    name = "<b onclick=x>{{1}}.png"
    write_images(tmp_path / "photos", [name, "other.png"])
    index = ImageIndex.open(tmp_path / "index", tiny_cbvila(language), create=True)
    index.update(str(tmp_path / "photos"), progress=False)
    pixels = pixels_of(tmp_path / "photos" / name)
    (tmp_path / "photos/other.png").unlink()
    page = demo.hits_of(index, images=pixels)
    assert len(sources(page)) == 1
    assert "<b" not in page
    assert "&lt;b onclick=x&gt;" in page
    assert any("other.png: the file does not exist" in one for one in texts(page))


@pytest.mark.parametrize(("name", "count"), [("vqa", 1), ("nlvr2", 2)])
def test_answers_are_explained_for_each_word_and_picture(shown: Path, name: str, count: int) -> None:
    reasoner = pixlex.load_reasoner(shown / name, device="cpu")
    pictures = [pixels_of(shown / "photos" / one) for one in NAMES[:count]]
    words = english_words(300)[5:8]
    answers, why = demo.answer_of(reasoner, " ".join(words), *pictures)
    (found,) = reasoner.answer(torch.cat(pictures), " ".join(words))
    assert re.findall(r"<b>(.*?)</b>", answers) == [one.text for one in found]
    said, *panels = texts(why)
    assert said.startswith(f"What speaks for {found[0].text}: ")
    marks = [""] if count == 1 else [", picture 1", ", picture 2"]
    assert panels == [f"{word}{mark}" for mark in marks for word in ("the whole text", *words)]
    assert len(set(sources(why))) == len(panels)


def test_tabs_are_those_of_what_is_given(shown: Path, models: Path) -> None:
    names = [str(shown / one) for one in ("lqae", "pairs", "vqa", "nlvr2")]
    with pytest.MonkeyPatch.context() as patch:
        opened = []
        patch.setattr(demo.ImageIndex, "open", lambda *given, **more: opened.append((given, more)))
        tabs = demo.load_tabs(names, str(shown / "index"), device="cpu")
        assert list(tabs) == ["Words: lqae", "Names: pairs", "Ask: vqa", "Ask: nlvr2", "Search"]
        ((given, more),) = opened
        assert isinstance(given[1], ImageTokenizer)
        assert more["name"] == names[1]
    assert list(demo.load_tabs([], str(shown / "index"), device="cpu")) == ["Search"]
    with pytest.raises(ValueError, match="vqvae holds a model of family vqvae with nothing to show"):
        demo.load_tabs([str(models / "vqvae")], None, device="cpu")
    with pytest.raises(ValueError, match=r"cbvila with nothing to show: .* a CB-ViLA trained with contrast"):
        demo.load_tabs([str(models / "cbvila")], None, device="cpu")


def test_released_models_are_the_default(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "released", lambda: {str(shown / "lqae"): shown / "lqae"})
    assert list(demo.load_tabs([], None, device="cpu")) == ["Words: lqae"]


@pytest.fixture
def page(shown: Path) -> Any:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'pixlex[demo]'")
    names = [str(shown / one) for one in ("lqae", "pairs", "vqa")]
    return demo.build_page(demo.load_tabs(names, str(shown / "index"), device="cpu"))


def test_what_is_wrong_is_told_in_a_sentence(page: Any) -> None:
    """Of broken files, of empty ones, of pictures beyond all reason; of a question without a picture."""
    import gradio

    events = list(page.fns.values())
    takes = [
        one.fn for one in events if one.fn and [kind.get_block_name() for kind in one.inputs] == ["file"]
    ]
    assert len(takes) == 4
    huge = io.BytesIO()
    Image.new("L", (1, 1)).save(huge, "PNG")
    header = bytearray(huge.getvalue())
    header[16:24] = np.array([50_000, 50_000], ">u4").tobytes()
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    faults = {
        b"no image": NO_IMAGE,
        b"": "the file: the file is empty",
        bytes(header): "exceeds? (the )?limit",
    }
    for data, message in faults.items():
        with pytest.raises(gradio.Error, match=message):
            takes[0](data)
    ask = [one for one in events if one.fn and one.inputs[0].label == "A question"]
    assert len(ask) == 2
    with pytest.raises(gradio.Error, match="expected a picture first: drop one"):
        ask[0].fn("what", None)


def test_one_piece_of_work_at_a_time_and_no_way_around_the_page(page: Any) -> None:
    work = [one for one in page.fns.values() if one.fn]
    assert {(one.concurrency_id, one.concurrency_limit) for one in work} == {("models", 1)}
    assert {one.api_visibility for one in page.fns.values()} == {"private"}


def test_command(call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Models may be named one by one; without gradio it says what to install."""
    code, _, said = call("demo", "--port", "70000")
    assert code == 2
    assert "--port: expected a port, 1 to 65535, got '70000'" in said
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "load_tabs", lambda models, *_, **more: asked.append(models) or {})
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, said = call("demo", "--model", "a", "--model", "b", "c")
    assert (code, said) == (1, "pixlex: error: the page needs gradio: pip install 'pixlex[demo]'\n")
    assert asked == [("a", "b", "c")]


# In a browser.


@pytest.fixture(scope="module")
def address(shown: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the command serves the page; when it is ended nothing is left of what was uploaded."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'pixlex[demo]'")
    folder = tmp_path_factory.mktemp("served")
    names = [str(shown / one) for one in ("lqae", "pairs", "vqa")]
    command = ["demo", "--model", *names, "--index", str(shown / "index"), "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-m", "pixlex", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n", line)
            yield line.split()[0]
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    assert code == 130
    assert list(folder.rglob("*")) == []


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright: pixlex[test]")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser: the page is looked at with Chromium (Debian's package chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def user(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """`user()` opens the page as somebody new; `user(390)` on a phone. It asks nothing of anybody else."""
    contexts, strangers = [], []

    def opened(width: int = 1280) -> Any:
        contexts.append(
            chromium.new_context(viewport={"width": width, "height": 844 if width < 600 else 900})
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda asked: strangers.append(asked.url))
        page.goto(address)
        page.get_by_role("tab", name="Words").wait_for()
        return page

    yield opened
    for one in contexts:
        one.close()
    assert [url for url in strangers if not url.startswith((address, "data:", "blob:"))] == []


def drop(page: Any, path: Path) -> None:
    """Choose a file at the first place to drop one that is visible."""
    shown = page.locator("[role=tabpanel]:visible")
    shown.locator("input[type=file]").first.set_input_files(path)


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def words_on(page: Any) -> str:
    """The words in their box, when there are some."""
    page.wait_for_function("() => document.querySelector('.words textarea')?.value")
    return str(page.locator(".words textarea").input_value())


def rebuilt(page: Any) -> str:
    return str(page.locator("figure.wide img").nth(1).get_attribute("src"))


def test_words_are_edited_in_a_browser(
    user: Callable[..., Any], shown: Path, tokenizer: ImageTokenizer
) -> None:
    page = user()
    drop(page, shown / "photos/0.png")
    expected, drawn = demo.words_of(tokenizer, pixels_of(shown / "photos/0.png"))
    assert words_on(page) == expected
    page.locator("figure.wide img").nth(1).wait_for()
    assert [one.get_attribute("src") for one in page.locator("figure.wide img").all()] == sources(drawn)
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    first, *rest = expected.split()
    other = next(word for word in tokenizer.to_words(torch.arange(16))[0].split() if word != first)
    box = page.locator(".words textarea")
    box.fill(" ".join(["qqq", *rest]))
    page.get_by_text("the word 'qqq' is not one of").wait_for()
    assert rebuilt(page) == sources(drawn)[1]
    changed = sources(demo.picture_of(tokenizer, " ".join([other, *rest])))[1]
    box.fill(" ".join([other, *rest]))
    page.locator(f'img[src="{changed}"]').wait_for()


def test_an_example_in_a_browser_needs_no_picture(user: Callable[..., Any], shown: Path) -> None:
    page = user()
    place = page.locator("[role=tabpanel]:visible")
    place.get_by_role("button", name="example").click()
    example = words_on(page)
    assert len(example.split()) == 16
    drop(page, shown / "photos/1.png")
    page.wait_for_function("old => document.querySelector('.words textarea').value != old", arg=example)
    place.get_by_role("button", name="example").click()
    page.wait_for_function("old => document.querySelector('.words textarea').value == old", arg=example)


def test_a_broken_file_is_told_in_a_browser_and_the_next_one_works(
    user: Callable[..., Any], shown: Path, tmp_path: Path
) -> None:
    page = user()
    (tmp_path / "broken.png").write_bytes(b"no image")
    drop(page, tmp_path / "broken.png")
    page.get_by_text(NO_IMAGE).wait_for()
    drop(page, shown / "photos/1.png")
    assert len(words_on(page).split()) == 16


def test_pictures_are_searched_in_a_browser(user: Callable[..., Any], shown: Path) -> None:
    page = user()
    tab(page, "Search")
    page.get_by_label("Or a text, to search 5 pictures by").fill(english_words(300)[7])
    page.get_by_role("button", name="Search").click()
    page.locator("figure.photo").nth(4).wait_for()
    drop(page, shown / "photos/2.png")
    page.get_by_text("1. similarity 1.000: 2.png").wait_for()


def test_questions_are_answered_in_a_browser(user: Callable[..., Any], shown: Path) -> None:
    page = user()
    tab(page, "Ask")
    page.get_by_label("A question").fill("about")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("expected a picture first").wait_for()
    drop(page, shown / "photos/2.png")
    page.locator("figcaption:visible", has_text="as the model takes it").first.wait_for()
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("What speaks for").wait_for()
    assert page.locator("figure:visible", has_text="the whole text").count() == 1


def test_two_users_at_once_see_their_own(
    user: Callable[..., Any], shown: Path, tokenizer: ImageTokenizer
) -> None:
    """Different pictures at once, then the same one, which is one file to the server."""
    for paths in ((shown / "photos/1.png", shown / "photos/2.png"), (shown / "photos/3.png",) * 2):
        users = [user(), user()]
        for page, path in zip(users, paths, strict=True):
            drop(page, path)
        for page, path in zip(users, paths, strict=True):
            assert words_on(page) == demo.words_of(tokenizer, pixels_of(path))[0]


def test_a_phone_shows_all_without_scrolling_sideways(user: Callable[..., Any], shown: Path) -> None:
    page = user(390)
    drop(page, shown / "photos/0.png")
    words_on(page)
    page.locator("figure.wide img").nth(1).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_no_file_of_the_machine_is_served(user: Callable[..., Any], address: str, shown: Path) -> None:
    page = user()
    for path in (shown / "photos/0.png", "/etc/hostname"):
        assert page.request.get(f"{address}gradio_api/file={path}").status in (403, 404)


@pytest.mark.enable_socket
def test_where_it_cannot_listen(shown: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """An address of another machine, a port that is taken: said at once."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'pixlex[demo]'")
    arguments = ["demo", "--model", shown / "lqae", "--device", "cpu"]
    code, _, complaint = call(*arguments, "--host", "192.0.2.1")
    assert code == 1
    assert "the page cannot listen at 192.0.2.1 (" in complaint
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, complaint = call(*arguments, "--port", port)
    assert code == 1
    assert f"the page cannot listen at 127.0.0.1, port {port} (Address already in use)" in complaint
