"""What programs use: trained models as tokenizers of images, and as something that is asked about them."""

from pixlex.api.pictures import Images, OneImage
from pixlex.api.reasoner import Answer, ImageReasoner, load_reasoner
from pixlex.api.tokenizer import ImageTokenizer, Precision, load

__all__ = [
    "Answer",
    "ImageReasoner",
    "ImageTokenizer",
    "Images",
    "OneImage",
    "Precision",
    "load",
    "load_reasoner",
]
