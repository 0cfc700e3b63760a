"""Hashes that tell whether kept results belong to what is measured now."""

from __future__ import annotations

import hashlib

from pixlex.data.decoding import UnreadableImage
from pixlex.data.sources import ImageSource

# Images of a source whose bytes are looked at.
_SAMPLE = 16


def digest(*parts: str) -> str:
    """Return a hash of texts; where one ends and the next begins matters."""
    state = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    return state.hexdigest()


def source_identity(images: ImageSource) -> str:
    """Return a fingerprint of a source: its listing, and the bytes of up to 16 images spread over it.

    `ImageSource.identity` alone knows no bytes: two files of one name with as many rows and the same labels
    are one listing, though the pictures be of another size or another data set.
    """
    count = min(_SAMPLE, len(images))
    samples = [_content(images, number * len(images) // count) for number in range(count)]
    return digest(images.identity, *samples)


def _content(images: ImageSource, index: int) -> str:
    try:
        data = images.read(index).data
    except UnreadableImage:
        return ""
    return hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest()
