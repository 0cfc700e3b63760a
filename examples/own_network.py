"""A codebook of pixlex.nn in a network and a loop of one's own.

    python own_network.py
    python own_network.py --data PICTURES --codewords 512 --steps 5000

`LearnedCodebook` takes vectors (B, N, D) or maps (B, D, H, W), and unpacks as vector-quantize-pytorch's do.
"""

import argparse

import torch
from torch import Tensor, nn

from pixlex.api.pictures import batches_of
from pixlex.data.images import open_source
from pixlex.nn import LearnedCodebook
from pixlex.nn.codebook import count_codes, perplexity


class Autoencoder(nn.Module):
    """Patches of 8 x 8 pixels as one of K codewords each, and back."""

    def __init__(self, num_codewords: int, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, width, kernel_size=8, stride=8)
        self.codebook = LearnedCodebook(num_codewords, width)
        self.decoder = nn.ConvTranspose2d(width, 3, kernel_size=8, stride=8)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rebuilt images (B, 3, H, W), codes (B, H / 8, W / 8), and the loss of the codebook."""
        quantized, codes, loss = self.codebook(self.encoder(images))  # the gradient passes straight through
        return self.decoder(quantized), codes, loss


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="embedded:photographs:test", help="images, default %(default)s")
    parser.add_argument("--codewords", type=int, default=64, help="K, default %(default)s")
    parser.add_argument("--steps", type=int, default=300, help="default %(default)s")
    args = parser.parse_args()

    torch.manual_seed(0)
    source = open_source(args.data)
    pictures = (source.read(number).data for number in range(len(source)))
    images = torch.cat(list(batches_of(pictures, batch_size=64, size=64, resize_mode="crop")))
    model = Autoencoder(args.codewords)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, args.steps + 1):
        batch = images[torch.randint(len(images), (32,))]
        rebuilt, codes, codebook_loss = model(batch)
        error = (rebuilt - batch).square().mean()
        optimizer.zero_grad()
        (error + 0.25 * codebook_loss).backward()
        optimizer.step()

        used = count_codes(codes, args.codewords)
        model.codebook.note_usage(used > 0)
        dead = model.codebook.dead(idle_limit=20).nonzero()[:, 0]  # restarted on patches of this batch
        vectors = model.encoder(batch).movedim(1, -1).flatten(0, 2)
        model.codebook.place(dead, vectors[torch.randint(len(vectors), (len(dead),))])
        if step % 50 == 0 or step == args.steps:
            print(f"step {step}: error {error:.4f}, {perplexity(used):.1f} codewords in even use")


if __name__ == "__main__":
    main()
