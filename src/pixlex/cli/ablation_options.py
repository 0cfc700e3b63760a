"""What can be typed after `pixlex ablate`; free of torch, as all that help needs."""

from __future__ import annotations

from typing import Any

from pixlex.cli.few_shot_options import SCORERS, TEMPLATES
from pixlex.cli.options import (
    DATA,
    add_command,
    folder_path,
    machine_options,
    positive,
    training_options,
)


def ablate_command(commands: Any) -> None:
    """Add `ablate`."""
    parser = add_command(
        commands, "ablate", "ablating:ablate", "train and measure a recipe with one change at a time"
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="of LQAE or CB-ViLA: file or name")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings of every row")
    parser.add_argument(
        "--out", type=folder_path, metavar="DIR", help="one folder for all; the same one goes on"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="ROW",
        help="letters of LQAE's Table 3 (A B D E F G I), mask-ratio (Figure 5), IV (of CB-ViLA), or names; "
        "default all. Rows that DIR holds finished stand in the table as well",
    )
    parser.add_argument("--list", action="store_true", help="list the rows and what they change")
    probe = parser.add_argument_group("linear probe of every row")
    probe.add_argument(
        "--probe", nargs=2, metavar=("TRAIN", "TEST"), help=f"labeled images of the same classes: {DATA}"
    )
    probe.add_argument("--probe-limit", type=positive, metavar="N", help="most training images; default all")
    probe.add_argument("--probe-test-limit", type=positive, metavar="N", help="most test images; default all")
    parser.add_argument_group("retrieval by every row of CB-ViLA").add_argument(
        "--retrieval",
        metavar="PAIRS",
        help="held-out images with captions; default the recipe's data.validation",
    )
    few_shot = parser.add_argument_group("few-shot classification by every row's words")
    few_shot.add_argument("--few-shot", metavar="DATA", help="labeled images of classes not trained on")
    few_shot.add_argument("--ways", type=positive, nargs="+", default=[2, 5], help="default 2 5")
    few_shot.add_argument(
        "--settings", nargs="+", default=["1/0", "5/0"], metavar="S", help="shots/repeats; default 1/0 5/0"
    )
    few_shot.add_argument("--episodes", type=positive, default=500, help="default %(default)s a setting")
    few_shot.add_argument(
        "--llm",
        nargs="+",
        default=[],
        metavar="M",
        help="language models to prompt besides the sentence encoder, a column each (row H): directories or hub "
        "repositories, or names of the endpoint's models with --llm-url",
    )
    few_shot.add_argument("--llm-url", metavar="URL", help="OpenAI-compatible endpoint")
    few_shot.add_argument("--template", choices=TEMPLATES, default="frozen", help="default %(default)s")
    few_shot.add_argument("--scorer", choices=SCORERS, default="likelihood", help="default %(default)s")
    training_options(parser)
    machine_options(parser)
