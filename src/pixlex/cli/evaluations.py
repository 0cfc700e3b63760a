"""What can be typed after `pixlex evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixlex.cli.explain_options import pointing_command
from pixlex.cli.few_shot_options import few_shot_command
from pixlex.cli.options import (
    DATA,
    PAIRS,
    add_command,
    batch_options,
    broken_option,
    folder_path,
    machine_options,
    model_options,
    positive,
    share,
    size_options,
    zero_or_more,
)
from pixlex.cli.reasoning_options import reasoning_commands


def evaluate_commands(commands: Any) -> None:
    """Add `evaluate` and the measures it knows."""
    evaluate = commands.add_parser("evaluate", help="measure a model", description="Measure a model.")
    measures = evaluate.add_subparsers(dest="measure", required=True, metavar="MEASURE")
    _reconstruction(measures)
    _linear_probe(measures)
    _retrieval(measures)
    _pretraining(measures)
    reasoning_commands(measures)
    pointing_command(measures)
    few_shot_command(measures)


def _reconstruction(measures: Any) -> None:
    reconstruction = add_command(
        measures,
        "reconstruction",
        "measures:evaluate",
        "how well images survive as words",
        processes="shared",
    )
    model_options(reconstruction)
    reconstruction.add_argument("--data", required=True, metavar="DATA", help=DATA)
    reconstruction.add_argument("--limit", type=positive, help="most images, evenly spaced; default all")
    reconstruction.add_argument(
        "--out",
        type=folder_path,
        metavar="DIR",
        help="write results.json, reconstruction.png and report.html there",
    )
    reconstruction.add_argument(
        "--mask-ratio", type=share, default=0.5, help="words hidden for masked_mse; default %(default)s"
    )
    reconstruction.add_argument(
        "--fid-features", type=Path, metavar="FILE", help="TorchScript network for rFID"
    )
    reconstruction.add_argument(
        "--lpips-network", type=Path, metavar="FILE", help="TorchScript network for LPIPS"
    )
    batch_options(reconstruction)
    broken_option(reconstruction)
    machine_options(reconstruction)


def _retrieval(measures: Any) -> None:
    retrieval = add_command(
        measures,
        "retrieval",
        "pair_measures:retrieval",
        "images found by texts and texts by images",
        processes="shared",
    )
    model_options(retrieval)
    retrieval.add_argument("--data", required=True, metavar="PAIRS", help=PAIRS)
    retrieval.add_argument(
        "--score",
        choices=("contrastive", "matching", "matching+contrastive"),
        default="matching",
        help="what pairs are ranked by; default %(default)s, among the best by contrast",
    )
    retrieval.add_argument(
        "--top-k",
        type=positive,
        metavar="K",
        help="captions of each image, and images of each caption, that matching scores; default 128, for COCO 256",
    )
    retrieval.add_argument("--limit", type=positive, help="most images, evenly spaced; default all")
    retrieval.add_argument(
        "--max-words",
        type=positive,
        help="longest caption in words (tokens); default 30, or as many as the model was trained with if more",
    )
    size_options(retrieval)
    retrieval.add_argument("--raw-captions", action="store_true", help="captions as they are, not cleaned")
    retrieval.add_argument(
        "--untrained",
        action="store_true",
        help="the same configuration untrained, from the same pretrained parts, seed 0",
    )
    retrieval.add_argument(
        "--out",
        type=folder_path,
        metavar="DIR",
        help="write results.json there; an interrupted evaluation goes on there",
    )
    batch_options(retrieval)
    broken_option(retrieval)
    machine_options(retrieval)


def _pretraining(measures: Any) -> None:
    pretraining = add_command(
        measures,
        "pretraining",
        "pair_measures:pretraining",
        "losses, codebook and rebuilt pixels of a CB-ViLA on pairs that it has not seen",
        processes="shared",
    )
    model_options(pretraining)
    pretraining.add_argument("--data", required=True, metavar="PAIRS", help=PAIRS)
    size_options(pretraining)
    pretraining.add_argument("--limit", type=positive, help="most images, evenly spaced; default all")
    pretraining.add_argument("--raw-captions", action="store_true", help="captions as they are, not cleaned")
    pretraining.add_argument(
        "--untrained",
        action="store_true",
        help="the same configuration untrained, from the same pretrained parts, seed 0",
    )
    pretraining.add_argument("--seed", type=int, default=0, help="of what is hidden; default %(default)s")
    pretraining.add_argument(
        "--out", type=folder_path, metavar="DIR", help="write results.json, pictures and report.html there"
    )
    batch_options(pretraining)
    broken_option(pretraining)
    machine_options(pretraining)


def _linear_probe(measures: Any) -> None:
    probe = add_command(
        measures,
        "linear-probe",
        "probing:linear_probe",
        "what a linear classifier reads from frozen features",
        processes="shared",
    )
    model_options(probe, several=True)
    probe.add_argument("--data", required=True, metavar="TRAIN", help=f"labeled training images: {DATA}")
    probe.add_argument(
        "--test", required=True, metavar="TEST", help="labeled test images of the same classes"
    )
    probe.add_argument(
        "--validation",
        metavar="VAL",
        help="labeled images that the strength of regularization is chosen on; default a fifth of TRAIN",
    )
    probe.add_argument(
        "--features",
        nargs="+",
        choices=("layers", "last", "encoder", "codes", "pixels"),
        help="default: layers of the language model; of a model without one, encoder and codes",
    )
    probe.add_argument("--per-layer", action="store_true", help="probe each layer of the language model too")
    probe.add_argument("--untrained", action="store_true", help="probe each model with fresh weights too")
    probe.add_argument(
        "--repeats",
        type=positive,
        metavar="R",
        help="how often encoder and codes stand side by side; default of a VQ-VAE: "
        "as wide as the first LQAE's layers",
    )
    probe.add_argument("--limit", type=positive, help="most training images, evenly spaced; default all")
    probe.add_argument("--test-limit", type=positive, metavar="LIMIT", help="most test and validation images")
    probe.add_argument(
        "--allow-overlap", action="store_true", help="go on when the same image is in two of the sets"
    )
    probe.add_argument(
        "--seed", type=zero_or_more, default=0, help="of the validation split; default %(default)s"
    )
    probe.add_argument(
        "--out",
        type=folder_path,
        required=True,
        metavar="DIR",
        help="write results.json, pictures and report.html there",
    )
    probe.add_argument(
        "--cache", type=folder_path, metavar="DIR", help="where features are kept; default OUT/features"
    )
    broken_option(probe)
    machine_options(probe)
