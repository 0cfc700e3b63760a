"""What can be typed after `pixlex index` and `pixlex search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixlex.cli.options import (
    DATA,
    add_command,
    batch_options,
    broken_option,
    folder_path,
    machine_options,
    model_options,
    picture_path,
    positive,
    zero_or_more,
)


def search_commands(commands: Any) -> None:
    """Add `index` and `search`."""
    index = add_command(
        commands, "index", "searching:index", "make pictures searchable, or bring their index up to date"
    )
    index.add_argument("data", metavar="SOURCE", help=f"the images: {DATA}")
    model_options(index)
    index.add_argument(
        "--out", type=folder_path, required=True, metavar="INDEX", help="folder of the index; made if missing"
    )
    index.add_argument(
        "--moved", action="store_true", help="the images of this index lie at SOURCE now, under the same keys"
    )
    batch_options(index)
    broken_option(index)
    index.set_defaults(max_broken_share=0.5)
    machine_options(index)
    search = add_command(
        commands, "search", "searching:search", "find indexed pictures by text or by picture"
    )
    search.add_argument("words", nargs="*", metavar="TEXT", help="what the pictures show")
    search.add_argument("--index", type=Path, required=True, metavar="INDEX", help="what pixlex index wrote")
    search.add_argument("--image", type=Path, metavar="FILE", help="search by a picture instead of a text")
    search.add_argument("--top-k", type=positive, default=10, metavar="K", help="hits; default %(default)s")
    search.add_argument(
        "--rerank",
        type=zero_or_more,
        default=0,
        metavar="N",
        help="read the N best again and rank them by the matching head; texts only; default %(default)s",
    )
    search.add_argument(
        "--score",
        choices=("matching", "matching+contrastive"),
        default="matching",
        help="what --rerank ranks by; default %(default)s",
    )
    search.add_argument(
        "--approximate",
        action="store_true",
        help="search a graph (HNSW), made at the first such search, instead of all vectors",
    )
    search.add_argument("--sheet", type=picture_path, metavar="FILE.png", help="draw the hits")
    search.add_argument("--model", metavar="M", help="where the model lies now; default where it was")
    search.add_argument("--revision", help="branch, tag or commit of a hub repository")
    search.add_argument("--language-model", metavar="M", help="where its tokenizer lies now")
    search.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default %(default)s")
    machine_options(search)
