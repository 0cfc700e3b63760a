"""A page to play with: words of pictures and back, names, search, answers and why; it keeps no files."""

from __future__ import annotations

import base64
import html
import io
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pixlex.api import ImageReasoner, ImageTokenizer
from pixlex.api.pictures import batches_of
from pixlex.data.decoding import IMAGE_SUFFIXES, MAX_FILE_BYTES, UnreadableImage, load_image
from pixlex.data.images import photograph
from pixlex.distributed import pick_device
from pixlex.messages import not_installed, printable
from pixlex.models import checkpoint
from pixlex.models.initialization import released
from pixlex.report.figures import enlarged, heated, panel_side, word_colors, word_panel
from pixlex.search import ImageIndex

# Sides in pixels of a cell with a word, of heat and of a picture that was found; hits, and how many are re-ranked.
_CELL, _HEATED, _FOUND, _HITS, _RERANKED = 80, 192, 448, 12, 40
_WAITING, _REMEMBERED = 64, 200  # calls that wait at once, and users whose picture is remembered
_CLEANED = (30, 300)  # seconds between looks for uploads to delete, and their age; two users may share a file
_STYLE = """
.gradio-container {width: 100%; max-width: 76rem !important; margin: auto}
.pixlex {display: flex; flex-wrap: wrap; gap: .75rem}
.pixlex figure {margin: 0; flex: 0 1 12rem; min-width: 8rem}
.pixlex figure.wide {flex: 1 1 20rem; max-width: 40rem}
.pixlex img {width: 100%; image-rendering: pixelated; border-radius: 4px}
.pixlex .photo img {image-rendering: auto; height: 12rem; object-fit: contain}
.pixlex figcaption {font-size: .85rem; overflow-wrap: anywhere} .words textarea {font-family: monospace}
.pixlex p {flex: 1 0 100%; position: relative; padding: .2rem .5rem; margin: 0}
.pixlex i {position: absolute; inset: 0 auto 0 0; background: var(--color-accent); opacity: .25}
"""

Fill = Callable[[], None]  # fills a tab


def load_tabs(
    models: Sequence[str],
    index: str | None,
    *,
    device: str = "auto",
    precision: Any = "fp32",
    **versions: Any,
) -> dict[str, Fill]:
    """Load what the page shows; return its tabs by their titles, one for each model and one for the index.

    Args:
        models: model directories, run folders or repositories on the hub; none for the released ones, words first.
        index: what `pixlex index` wrote; searched by the one CB-ViLA of the models, else that it was made by.
        device, precision, versions: as `pixlex.load` takes them; `language_model` and `revision` are versions.

    Raises:
        ValueError: a model with neither words nor names nor answers, or as `pixlex.load` and
            `ImageIndex.open`.
    """
    models = models or (sorted(released(), reverse=True) if index is None else ())
    tabs: dict[str, Fill] = {}
    joint: dict[str, ImageTokenizer] = {}  # without CLIP and alike, which make no index
    how: dict[str, Any] = {"device": pick_device(device), "precision": precision}
    for name in dict.fromkeys(models):
        model: Any = checkpoint.load_any(name, **versions)
        if model.fuses and not model.has_codes:
            title, fill = "Ask", partial(_ask_tab, ImageReasoner(model, **how))
        elif getattr(model, "compares", False):
            tokenizer = ImageTokenizer(model, **how)
            title, fill = "Names", partial(_names_tab, tokenizer)
            joint |= {name: tokenizer} if model.has_codes else {}
        elif model.has_codes and model.vocabulary is not None:
            title, fill = "Words", partial(_words_tab, ImageTokenizer(model, **how))
        else:
            raise ValueError(
                f"{name} holds a model of family {model.family} with nothing to show: expected an LQAE, a CB-ViLA "
                "trained with contrast, or what pixlex finetune made of one"
            )
        short = f"{title}: {Path(name).name}"
        tabs[f"{title}: {name}" if short in tabs else short] = fill
    if index is not None:
        ((name, own),) = joint.items() if len(joint) == 1 else (("", None),)
        opened = ImageIndex.open(index, own, name=name, device=how["device"], **versions)
        tabs["Search"] = partial(_search_tab, opened)
    return tabs


def words_of(tokenizer: ImageTokenizer, pixels: Float[Tensor, "1 3 H W"]) -> tuple[str, str]:
    """Return the words of a picture, a row of the grid in each line, and what they stand for."""
    codes, grid = tokenizer.tokenize(pixels), tokenizer.grid
    text = tokenizer.to_words(codes)[0]
    if grid and len(words := text.split()) == grid**2:
        text = "\n".join(" ".join(words[first : first + grid]) for first in range(0, grid**2, grid))
    return text, picture_of(tokenizer, text, codes)


def picture_of(tokenizer: ImageTokenizer, text: str, codes: Tensor | None = None) -> str:
    """Return the picture that words, or their codes, stand for; raises as `ImageTokenizer.from_words`."""
    rebuilt = tokenizer.decode(text if codes is None else codes)[0]
    words = text.split()
    grid = tokenizer.grid if len(words) == tokenizer.num_words else 0
    panel = word_panel(words, word_colors(rebuilt, len(words), grid), _CELL * panel_side(len(words), grid))
    caption = "its words, on the colors of the picture that they stand for" if grid else "its words"
    return _figures(
        _figure(panel, caption, alt=text, kind="wide"),
        _figure(enlarged(rebuilt, 1), "the picture, rebuilt from the words alone", kind="wide"),
    )


def names_of(tokenizer: ImageTokenizer, pixels: Float[Tensor, "1 3 H W"], names: str) -> str:
    """Return how well names fit a picture: those given, separated by commas, or the nearest of the model's own."""
    several = list(dict.fromkeys(one.strip() for one in names.split(",") if one.strip()))
    if several:
        probabilities = tokenizer.zero_shot(pixels, several)[0].tolist()
        ranked = sorted(zip(probabilities, several, strict=True), key=lambda one: -one[0])
        return _bars([(name, f"{100 * one:.1f} %", one) for one, name in ranked])
    (found,) = tokenizer.rank_words(pixels)
    return _bars([(one.text, f"{one.similarity:.2f}", one.similarity) for one in found])


def hits_of(index: ImageIndex, **query: Any) -> str:
    """Return the pictures found by a query, and how well they fit it; arguments as for `ImageIndex.search`."""
    (result,), shown = index.search(top_k=_HITS, **query), []
    for hit in result.hits:
        value = f"similarity {hit.similarity:.3f}" if hit.matching is None else f"matching {hit.matching:.2f}"
        caption = f"{hit.rank}. {value}: {hit.key}"
        try:
            shown.append(_figure(index.picture(hit.key), caption, kind="photo"))
        except UnreadableImage as fault:
            shown.append(f"<p>{_safe(f'{caption}: {fault.reason}')}</p>")
    return _figures(*shown)


def answer_of(reasoner: ImageReasoner, text: str, *pictures: Float[Tensor, "1 3 H W"]) -> tuple[str, str]:
    """Return the likeliest answers, and where in the pictures is what speaks for the first one (Grad-CAM)."""
    pixels = torch.cat(pictures)
    (found,) = reasoner.answer(pixels, text)
    why = reasoner.explain(pixels, text, answer=found[0].text)
    side = -(-_HEATED // pixels.shape[-1]) * pixels.shape[-1]
    figures = [
        _figure(heated(image, heat, side), f"{word}, picture {number}" if len(pixels) > 1 else word)
        for number, (image, one) in enumerate(zip(pixels, why.images, strict=True), start=1)
        for word, heat in (("the whole text", one.whole), *zip(one.words, one.maps, strict=True))
    ]
    said = (
        f"What speaks for {_safe(why.answer)}: where each word looks (Grad-CAM), each panel in its own scale."
    )
    bars = _bars([(one.text, f"{100 * one.probability:.1f} %", one.probability) for one in found])
    return bars, _figures(f"<p>{said}</p>", *figures)


def _safe(text: object) -> str:
    return html.escape(printable(text))


def _figure(picture: Image.Image, caption: str, *, alt: str = "", kind: str = "") -> str:
    """Return a picture as a part of the page itself: no file is left for it."""
    stream, form = io.BytesIO(), "png"
    if kind == "photo":
        picture, form = picture.copy(), "jpeg"
        picture.thumbnail((_FOUND, _FOUND))
    picture.save(stream, form)
    data = base64.b64encode(stream.getvalue()).decode()
    image = f'<img alt="{_safe(alt or caption)}" src="data:image/{form};base64,{data}">'
    return f'<figure class="{kind}">{image}<figcaption>{_safe(caption)}</figcaption></figure>'


def _figures(*figures: str) -> str:
    return f'<div class="pixlex">{"".join(figures)}</div>'


def _bars(rows: Sequence[tuple[str, str, float]]) -> str:
    """Return lines of names and values, each on a bar as long as its last number, in [0, 1]."""
    bar = '<p><i style="width: {:.0f}%"></i><b>{}</b> {}</p>'
    return _figures(*(bar.format(100 * max(length, 0), _safe(name), value) for name, value, length in rows))


def serve(tabs: Mapping[str, Fill], *, host: str, port: int | None, say: Callable[[str], None]) -> None:
    """Serve the page until it is interrupted, at the first free port from 7860 on if at none; `say` is told where.

    Raises:
        ModuleNotFoundError: gradio is not installed.
        OSError: no such address, or the port is taken.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads go, however it ends
    with tempfile.TemporaryDirectory(prefix="pixlex-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # read when gradio is imported
        gr = _gradio()
        _require_free(host, port)
        page = build_page(tabs).queue(max_size=_WAITING)
        try:
            _, url, _ = page.launch(
                server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
                inbrowser=False, ssr_mode=False, run_history=False, enable_monitoring=False, footer_links=[],
                max_file_size=MAX_FILE_BYTES, state_session_capacity=_REMEMBERED, css=_STYLE,
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )  # fmt: skip
            say(url)
            while page.is_running:  # `block_thread` would swallow the interruption
                time.sleep(0.2)
        finally:
            page.close(verbose=False)


def _require_free(host: str, port: int | None) -> None:
    """Raise `OSError` where the page cannot listen; the server would say so and wait for nothing."""
    try:
        (family, kind, _, _, place), *_ = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as fault:
        wanted = host if port is None else f"{host}, port {port}"
        raise OSError(
            f"the page cannot listen at {wanted} ({fault.strerror}): expected a --host of this machine and "
            "a free --port"
        ) from fault


def build_page(tabs: Mapping[str, Fill]) -> Any:
    """Return the page, a `gradio.Blocks`."""
    gr = _gradio()
    with gr.Blocks(title="pixlex", analytics_enabled=False, delete_cache=_CLEANED) as page:
        gr.Markdown("# pixlex\nPictures, and words for them.")
        with gr.Tabs():
            for title, fill in tabs.items():
                with gr.Tab(title), gr.Row():
                    fill()
    return page


def _words_tab(tokenizer: ImageTokenizer) -> None:
    gr, (pixels, dropped) = _gradio(), _drop("A picture", tokenizer.model.config)
    codes = torch.linspace(0, tokenizer.num_codewords - 1, tokenizer.num_words).long()
    some = tokenizer.to_words(codes)[0].split()[:: max(1, tokenizer.num_words // 16)]
    known = f"Any of {tokenizer.num_codewords:,} words, such as {_safe(' '.join(some))}"
    with gr.Column(scale=3, min_width=320):
        drawn = gr.HTML()
        text = gr.Textbox(label="Its words: change one", lines=max(2, tokenizer.grid), elem_classes="words")
        note = gr.HTML(known)

    def redraw(words: str) -> tuple[Any, str]:
        try:
            return picture_of(tokenizer, words), known
        except ValueError as fault:  # a word that is half typed is no reason for an alarm
            return gr.skip(), _safe(fault)

    _on(dropped, partial(words_of, tokenizer), pixels, [text, drawn])
    _on(text.change, redraw, text, [drawn, note], show_progress="hidden")  # `input` misses what is pasted


def _names_tab(tokenizer: ImageTokenizer) -> None:
    gr, (pixels, dropped) = _gradio(), _drop("A picture", tokenizer.model.config)
    with gr.Column(scale=3, min_width=320):
        names = gr.Textbox(label="Names to choose from, separated by commas; none for the model's own words")
        button, found = gr.Button("Name it"), gr.HTML()
    for event in (dropped, names.submit, button.click):
        _on(event, partial(names_of, tokenizer), [pixels, names], found)


def _search_tab(index: ImageIndex) -> None:
    gr, (pixels, dropped) = _gradio(), _drop("A picture", index.model.config)
    with gr.Column(scale=3, min_width=320):
        text = gr.Textbox(label=f"Or a text, to search {len(index):,} pictures by")
        rerank = gr.Checkbox(label=f"compare the best {_RERANKED} with the text again: slower, better")
        button, found = gr.Button("Search"), gr.HTML()
    for event in (text.submit, button.click):
        _on(
            event,
            lambda one, more: hits_of(index, texts=[one], rerank=_RERANKED * more),
            [text, rerank],
            found,
        )
    _on(dropped, lambda one: hits_of(index, images=one), pixels, found)


def _ask_tab(reasoner: ImageReasoner) -> None:
    gr, several = _gradio(), range(1, reasoner.num_images + 1)
    labels = [f"Picture {number}" for number in several] if len(several) > 1 else ["A picture"]
    pictures = [_drop(label, reasoner.model.config)[0] for label in labels]
    with gr.Column(scale=3, min_width=320):
        text = gr.Textbox(label="A question" if reasoner.task == "vqa" else "A sentence")
        button, answers, why = gr.Button("Ask"), gr.HTML(), gr.HTML()
    for event in (text.submit, button.click):
        _on(event, partial(answer_of, reasoner), [text, *pictures], [answers, why])


def _drop(label: str, config: Any) -> tuple[Any, Any]:
    """Make a place to drop pictures on; return where the last one is kept, as a model takes it, and the event."""
    gr = _gradio()
    with gr.Column(scale=1, min_width=220):
        upload = gr.File(label=label, file_types=sorted(IMAGE_SUFFIXES), type="binary", height=140)
        example, shown, pixels = gr.Button("or take an example", size="sm"), gr.HTML(), gr.State()

    def take(data: bytes | None) -> tuple[Tensor, str]:
        picture = photograph("coffee") if data is None else load_image(data, "the file")
        taken = next(batches_of(picture, 1, config.image_size, config.resize_mode))
        return taken, _figures(_figure(enlarged(taken[0], 1), "the picture, as the model takes it"))

    event = _on(partial(gr.on, [upload.upload, example.click]), take, upload, [pixels, shown], complete=False)
    for after in (event.success, event.failure):  # free for the next one
        after(None, None, upload, js="() => null")
    return pixels, event.success


def _on(
    event: Callable[..., Any],
    work: Callable[..., Any],
    inputs: Any,
    outputs: Any,
    *,
    complete: bool = True,
    **more: Any,
) -> Any:
    """Let an event do some work, on `complete` inputs; what is wrong with what was given is told in a sentence.

    One piece of work at a time, whoever asks: models and memory are those of one machine. Others wait their turn.
    """

    def told(*given: Any) -> Any:
        try:
            if complete and any(one is None for one in given):
                raise ValueError("expected a picture first: drop one")
            return work(*given)
        except (ValueError, ModuleNotFoundError) as fault:
            raise _gradio().Error(_safe(fault), print_exception=False) from fault

    settings = {"concurrency_limit": 1, "api_visibility": "private", "show_progress": "minimal", **more}
    return event(told, inputs, outputs, concurrency_id="models", **settings)


def _gradio() -> Any:
    """Import gradio, which takes seconds."""
    try:
        import gradio
    except ModuleNotFoundError as fault:
        raise not_installed("the page", "gradio", "demo") from fault
    return gradio
