"""What programs use: trained models as tokenizers of images, and as something that is asked about them."""

from pixlex.api.models import Answer, ImageReasoner, ImageTokenizer, Precision, load, load_reasoner
from pixlex.api.pictures import Images, OneImage

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
