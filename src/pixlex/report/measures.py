"""How the names of the log are said to people: label, unit, which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """A measure in words.

    Attributes:
        label: what stands in a table or over a curve.
        unit: of the value; "%" means that a share in [0, 1] is shown in percent, "" that there is none.
        better: which way is better, where there is one.
    """

    label: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""

    def text(self, value: float) -> str:
        """Return a value with its unit, four digits of it."""
        if not math.isfinite(value):
            return str(value)
        scaled = 100 * value if self.unit == "%" else value
        digits = f"{scaled:,.0f}" if scaled == round(scaled) or abs(scaled) >= 1000 else f"{scaled:.4g}"
        return f"{digits} {self.unit}".rstrip()


MEASURES = {
    "total": Measure("loss", "", "lower"),
    "reconstruction": Measure("reconstruction error", "MSE", "lower"),
    "commitment": Measure("commitment", "MSE", "lower"),
    "codebook": Measure("codebook loss", "MSE", "lower"),
    "masked_language": Measure("cross-entropy of hidden words", "nats", "lower"),
    "entropy": Measure("entropy regularization", "nats", "lower"),
    "masked_patches": Measure("error of hidden patches", "MSE", "lower"),
    "flat_patches": Measure("for comparison: each hidden patch in its own mean", "MSE"),
    "caption": Measure("cross-entropy of captions, per word", "nats", "lower"),
    "other_image_caption": Measure("for comparison: with another image", "nats"),
    "image_text_contrastive": Measure("contrast of images and texts", "nats", "lower"),
    "image_text_matching": Measure("matching of images and texts", "nats", "lower"),
    "masked_image": Measure("cross-entropy of hidden codes", "nats", "lower"),
    "masked_image_gain": Measure("entropy of the codes less cross-entropy of hidden ones", "nats", "higher"),
    "pixel": Measure("error of normalized pixels", "MSE", "lower"),
    "quantization_error_share": Measure("quantization error over variance", "%", "lower"),
    "temperature": Measure("temperature of the contrast"),
    "churn": Measure("patches whose code has changed", "%"),
    "hidden_mse": Measure("error of hidden patches", "MSE", "lower"),
    "visible_mse": Measure("error of visible patches", "MSE", "lower"),
    "recall": Measure("recall", "%", "higher"),
    "text_recall_at_1": Measure("image to text, recall at 1", "%", "higher"),
    "text_recall_at_5": Measure("image to text, recall at 5", "%", "higher"),
    "text_recall_at_10": Measure("image to text, recall at 10", "%", "higher"),
    "image_recall_at_1": Measure("text to image, recall at 1", "%", "higher"),
    "image_recall_at_5": Measure("text to image, recall at 5", "%", "higher"),
    "image_recall_at_10": Measure("text to image, recall at 10", "%", "higher"),
    "codeword_purity": Measure("patches of the most frequent class of their codeword", "%", "higher"),
    "codeword_shuffled_purity": Measure("for comparison: classes dealt anew", "%"),
    "codeword_information": Measure("what a codeword tells of the class", "nats", "higher"),
    "codeword_shuffled_information": Measure("for comparison: classes dealt anew", "nats"),
    "num_scenes": Measure("scenes"),
    "num_words": Measure("words"),
    "pointed": Measure("words whose hottest patch lies on their object", "%", "higher"),
    "pointed_low": Measure("95 % interval from", "%"),
    "pointed_high": Measure("to", "%"),
    "pointed_whole": Measure("for comparison: the hottest patch of the whole text", "%"),
    "pointed_chance": Measure("for comparison: any patch", "%"),
    "pointed_center": Measure("for comparison: the middle of the image", "%"),
    "any_object": Measure("words whose hottest patch lies on some object", "%"),
    "any_object_chance": Measure("for comparison: any patch", "%"),
    "num_several": Measure("scenes whose words name several objects"),
    "own_word": Measure("there: words whose hottest patch lies on their object", "%", "higher"),
    "other_word": Measure("there, for comparison: the map of another object's word", "%"),
    "preference": Measure("own word less other word", "%", "higher"),
    "preference_low": Measure("95 % interval from", "%"),
    "preference_high": Measure("to", "%"),
    "mean_recall": Measure("mean of the recalls", "%", "higher"),
    "answer": Measure("cross-entropy of answers", "nats", "lower"),
    "num_items": Measure("items"),
    "accuracy": Measure("accuracy", "%", "higher"),
    "consistency": Measure("sentences all of whose items are right", "%", "higher"),
    "majority_accuracy": Measure("for comparison: the most frequent answer", "%"),
    "text_alone_accuracy": Measure("for comparison: a linear classifier on the text alone", "%"),
    "learning_rate": Measure("learning rate"),
    "gradient_norm": Measure("norm of the gradient"),
    "norm_z": Measure("length of patch vectors"),
    "norm_codeword": Measure("length of their codewords"),
    "cosine": Measure("cosine of patch vectors and codewords", "", "higher"),
    "restarted": Measure("codewords restarted"),
    "images": Measure("speed", "images/s", "higher"),
    "images_per_second": Measure("speed", "images/s", "higher"),
    "operations": Measure("products of matrices, convolutions, attention", "TFLOP/s", "higher"),
    "utilization": Measure("operations, of what a large product reaches", "%", "higher"),
    "peak": Measure("peak memory", "MiB", "lower"),
    "wait": Measure("time spent waiting for data", "%", "lower"),
    "num_images": Measure("images"),
    "words_per_image": Measure("words per image"),
    "mse": Measure("reconstruction error", "MSE", "lower"),
    "psnr": Measure("PSNR", "dB", "higher"),
    "ssim": Measure("SSIM", "", "higher"),
    "masked_mse": Measure("reconstruction error, part of the words hidden", "MSE", "lower"),
    "mean_image_mse": Measure("for comparison: the mean image", "MSE"),
    "mean_color_mse": Measure("for comparison: each image's mean color", "MSE"),
    "distinct_codewords": Measure("distinct codewords", "", "higher"),
    "codebook_usage": Measure("codewords used, of all", "%", "higher"),
    "perplexity": Measure("perplexity of the codewords", "", "higher"),
    "most_frequent_share": Measure("share of the most frequent codeword", "%", "lower"),
    "distinct_words_per_image": Measure("distinct words per image"),
    "masked_word_accuracy": Measure("hidden words guessed by the language model", "%"),
    "pseudo_perplexity": Measure("pseudo-perplexity of the words"),
    "text_round_trip_rate": Measure("images whose words survive as text", "%", "higher"),
    "word_round_trip_rate": Measure("words that survive as text", "%", "higher"),
    "tokenizer_round_trip_rate": Measure("the same through the language model's tokenizer", "%", "higher"),
    "rfid": Measure("rFID", "", "lower"),
    "lpips": Measure("LPIPS", "", "lower"),
}


def measure_of(key: str) -> Measure:
    """Return the measure behind a key of the log (`phase/term`, `eval/metric`), or its bare name."""
    name = key.rpartition("/")[2]
    return MEASURES.get(name, Measure(name.replace("_", " ")))
