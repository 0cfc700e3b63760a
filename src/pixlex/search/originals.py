"""The stored images behind an index, read again by their keys."""

from __future__ import annotations

from functools import cached_property

from PIL import Image

from pixlex.data.decoding import UnreadableImage, decode_record
from pixlex.data.sources import ImageSource
from pixlex.search.changes import digest_of


class Originals:
    """Images of a source by their keys.

    Args:
        source: where they are.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    @cached_property
    def _places(self) -> dict[str, int]:
        # Backwards, so that of several of one key the first stays, as in the index.
        return {self.source.key(index): index for index in reversed(range(len(self.source)))}

    def read(self, key: str, digest: bytes | None = None) -> Image.Image:
        """Return an image as RGB.

        Args:
            key: of the image.
            digest: of what the index knows; None takes what is there now.

        Raises:
            UnreadableImage: it is gone, cannot be read, or is another one than the index knows.
        """
        place = self._places.get(key)
        if place is None:
            raise UnreadableImage(key, f"it is no longer in {self.source.name}")
        record = self.source.read(place)
        if digest is not None and digest_of(record) != digest:
            raise UnreadableImage(key, "it has changed since it was indexed")
        return decode_record(record)
