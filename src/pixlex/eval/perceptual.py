"""Measures of images that need a trained network, which the user brings: rFID and LPIPS."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pixlex import distributed

# Published values are of 50,000 images; fewer give larger ones.
IMAGES_OF_PUBLISHED_FID = 50_000

# What torchmetrics keeps of the features.
_SUMS = tuple(
    f"{kind}_features_{name}" for kind in ("real", "fake") for name in ("sum", "cov_sum", "num_samples")
)


class FrechetDistance:
    """Distance between originals and reconstructions as Gaussians of features, rFID (Heusel et al. 2017).

    Args:
        path: A TorchScript network that takes RGB images (B, 3, H, W) as uint8 of any size, resizes them itself
            and returns features (B, F): the Inception networks that are passed around as
            `inception-2015-12-05.pt` do. A network whose forward has the argument `return_features` is called
            with `return_features=True`.
        device: Where to run it.

    Raises:
        ValueError: No such file, no TorchScript, or a network that does not take such images.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        features = _Features(_load_network(path, device))
        try:
            size = features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device)).shape[1]
        except RuntimeError as reason:
            raise ValueError(
                f"{path.name} does not turn uint8 images (B, 3, H, W) into features: {reason}"
            ) from reason
        features.num_features = size
        # Not synchronized by torchmetrics, which would wait for all processes where one evaluates alone.
        self._distance = FrechetInceptionDistance(feature=features, sync_on_compute=False).to(device)

    @torch.no_grad()
    def update(self, images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> None:
        """Take in a batch, pixels in [0, 1]."""
        for batch, real in ((images, True), (reconstructions, False)):
            self._distance.update((batch * 255).round().clamp(0, 255).byte(), real=real)

    def gather(self) -> None:
        """Take in what other processes have: sums in float64 of features and their products, and counts."""
        for name in _SUMS:
            own: Tensor = getattr(self._distance, name)
            setattr(self._distance, name, distributed.all_sum(own.cpu()).to(own.device))

    def compute(self) -> float | None:
        """Return the distance, 0 or more (within rounding); None of fewer than two images."""
        several = int(self._distance.real_features_num_samples) > 1
        return float(self._distance.compute()) if several else None


class _Features(nn.Module):
    """Calls a feature network the way it asks to be called."""

    num_features: int

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self._settings = {"return_features": True} if "return_features" in _arguments(network) else {}

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        features: Tensor = self.network(images, **self._settings)
        return features.flatten(1)


class PerceptualDistance:
    """Distance between an image and its reconstruction in a network's features, LPIPS (Zhang et al. 2018).

    Args:
        path: A TorchScript network of one of two kinds: it takes two batches of RGB images in [-1, 1] and returns
            one distance for each pair (a traced `lpips.LPIPS`); or its forward has the argument `return_lpips`,
            takes images in [0, 255] and returns features whose squared distance is LPIPS (`vgg16.pt` of
            StyleGAN).
        device: Where to run it.

    Raises:
        ValueError: No such file, or no TorchScript.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._name = path.name
        self._network = _load_network(path, device)
        self._gives_features = "return_lpips" in _arguments(self._network)

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Return the distance of each pair; pixels in [0, 1].

        Raises:
            ValueError: The network does not take such images, or does not return one number for each pair.
        """
        try:
            distances = self._distances(images, reconstructions)
        except RuntimeError as reason:
            raise ValueError(f"{self._name} cannot compare images: {reason}") from reason
        if distances.numel() != len(images):
            raise ValueError(
                f"{self._name}: expected {len(images)} distances, got {tuple(distances.shape)} numbers"
            )
        return distances.flatten().float()

    def _distances(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        if not self._gives_features:
            distances: Tensor = self._network(images * 2 - 1, reconstructions * 2 - 1)
            return distances
        first, second = (
            self._network(batch * 255, resize_images=False, return_lpips=True).flatten(1)
            for batch in (images, reconstructions)
        )
        squared: Tensor = (first - second).square().sum(dim=1)
        return squared


def perceptual_notes(num_images: int, *, has_fid: bool, has_lpips: bool) -> list[str]:
    """Return what a reader must know of the two measures."""
    notes = []
    if not has_fid:
        notes.append(
            "rFID was not computed: it needs an Inception network as a TorchScript file (fid_features)"
        )
    elif num_images < IMAGES_OF_PUBLISHED_FID:
        notes.append(
            f"rFID of {num_images} images: published values are of {IMAGES_OF_PUBLISHED_FID}, and fewer "
            "images give larger ones"
        )
    if not has_lpips:
        notes.append("LPIPS was not computed: it needs its network as a TorchScript file (lpips_network)")
    return notes


def _load_network(path: Path, device: torch.device) -> Any:
    """Load a TorchScript network, which runs in its own interpreter: no Python of the file is run."""
    if not path.is_file():
        raise ValueError(f"no network at {path}: expected a TorchScript file")
    with warnings.catch_warnings():
        # torch recommends torch.export for new files; those that people have are TorchScript.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
        except RuntimeError as reason:
            raise ValueError(f"{path.name} is not a TorchScript file: {reason}") from reason


def _arguments(network: Any) -> set[str]:
    """Names of the arguments of a TorchScript network's forward."""
    return {argument.name for argument in network.forward.schema.arguments}
