"""Sources of images into files of words or codes, such files back into pictures; resumable at any moment."""

from __future__ import annotations

from pixlex.encoding.decode import DecodingResult, decode_codes, picture_names
from pixlex.encoding.encode import EncodingResult, encode_images, encode_parts, encode_source
from pixlex.encoding.files import EncodedImage, Kind, check_kind, format_line, read_codes, read_lines

__all__ = [
    "DecodingResult",
    "EncodedImage",
    "EncodingResult",
    "Kind",
    "check_kind",
    "decode_codes",
    "encode_images",
    "encode_parts",
    "encode_source",
    "format_line",
    "picture_names",
    "read_codes",
    "read_lines",
]
