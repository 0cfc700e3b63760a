"""Sources of images into files of words or codes, such files back into pictures; resumable at any moment."""

from __future__ import annotations

from pixlex.encoding.decode import DecodingResult, decode_codes, decode_file, picture_names
from pixlex.encoding.encode import EncodingResult, encode_images, encode_source
from pixlex.encoding.files import EncodedImage, Kind, check_kind, format_line, read_codes, read_lines
from pixlex.encoding.parts import PartsResult, encode_parts

__all__ = [
    "DecodingResult",
    "EncodedImage",
    "EncodingResult",
    "Kind",
    "PartsResult",
    "check_kind",
    "decode_codes",
    "decode_file",
    "encode_images",
    "encode_parts",
    "encode_source",
    "format_line",
    "picture_names",
    "read_codes",
    "read_lines",
]
