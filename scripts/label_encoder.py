"""Train a vision transformer on labels of drawn scenes, as the paper's starts from DeiT, of ImageNet's labels.

Color and shape of the object in each cell are the labels, read off by the probe of `probe_cells.py`. What is
saved is a plain ViT of transformers, for `model.image.pretrained`.

    python scripts/label_encoder.py --out FOLDER [--size 96] [--patch-size 16] [--width 128] [--depth 4]
    pixlex train cbvila/tiny model.image.pretrained=FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import ViTConfig, ViTModel

from pixlex.nn.transformer import sine_positions
from probe_cells import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=options.size,
        patch_size=options.patch_size,
        hidden_size=options.width,
        num_hidden_layers=options.depth,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.width,
        attn_implementation="eager",
    )
    encoder = ViTModel(config, add_pooling_layer=False).train()
    positions = sine_positions(options.size // options.patch_size, options.width)
    encoder.embeddings.position_embeddings.data.copy_(positions)
    fit(
        lambda images: encoder(2 * images - 1).last_hidden_state,
        encoder.parameters(),
        options.width,
        options.size,
        options.steps,
        options.learning_rate,
    )
    encoder.save_pretrained(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
