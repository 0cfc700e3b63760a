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
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers import ViTConfig, ViTModel

from pixlex.nn.vit import sine_positions
from probe_cells import CellProbe, labeled

REPORT_EVERY = 100


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
    probe = CellProbe(options.width)
    learned = [*encoder.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=options.learning_rate)
    right: list[list[float]] = []
    for step in tqdm(range(options.steps)):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 50) * (1 - step / options.steps)
        images, labels = labeled(step, options.size)
        with torch.autocast("cpu", torch.bfloat16):
            logits = probe(encoder(2 * images - 1).last_hidden_state)
        pairs = [(one.flatten(0, 1), each.flatten()) for one, each in zip(logits, labels, strict=True)]
        loss = sum((F.cross_entropy(one, each, ignore_index=-1) for one, each in pairs), torch.zeros(()))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learned, 5.0)
        optimizer.step()
        optimizer.zero_grad()
        right.append([float((one.argmax(1) == each)[each >= 0].float().mean()) for one, each in pairs])
        if (step + 1) % REPORT_EVERY == 0:
            color, shape = torch.tensor(right[-REPORT_EVERY:]).mean(0).tolist()
            tqdm.write(f"{step + 1} steps: {color:.1%} of the colors right, {shape:.1%} of the shapes")
    encoder.save_pretrained(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
