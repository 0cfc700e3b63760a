"""Episodes drawn from labeled images."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from pixlex.data.labels import Labels
from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episode_files import EpisodeSet
from pixlex.eval.few_shot.episodes import Episode, Setting, Shown
from pixlex.eval.few_shot.fingerprints import source_identity
from pixlex.messages import quoted

# Invented words, pronounceable and unlike each other; the first two are those of Tsimpoukelli et al. (2021).
NONSENSE_NAMES = (
    "dax", "blicket", "wug", "toma", "fep", "zorb", "kiki", "glorp", "perpo", "slation", "shously", "vonk",
    "tulver", "mibble", "quonk", "drassle", "yimp", "norvit", "plonder", "skraw", "hesk", "jubbin", "rimsy",
    "crelt",
)  # fmt: skip

# Sets the generator of the names apart from that of the images.
_NAMES = 1


@dataclass(frozen=True)
class _ClassOfImages:
    name: str
    images: tuple[int, ...]


def sample_episodes(images: ImageSource, setting: Setting, *, count: int, seed: int) -> EpisodeSet:
    """Draw episodes (LQAE, appendix B).

    Episode i is a function of images, seed, ways and i: its classes, their order and the image asked about
    are those of every setting with as many ways, and the support images of fewer shots are the first of more.
    So columns of a table differ by what is shown, not by luck. Every class is as likely to be asked about.

    Args:
        images: labeled images; classes are taken by label, and two of one name never meet in an episode.
        setting: ways, shots and names.
        count: how many episodes, 1 or more.
        seed: 0 or more.

    Raises:
        ValueError: no labels, a label without a name, too few classes, or a class with too few images.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"expected 1 or more episodes and a seed of 0 or more, got {count} and {seed}")
    classes = _classes(images, setting)
    if setting.naming == "nonsense" and setting.ways > len(NONSENSE_NAMES):
        raise ValueError(f"there are {len(NONSENSE_NAMES)} nonsense names, too few for {setting.ways} ways")
    return EpisodeSet(
        setting=setting,
        seed=seed,
        source=images.name,
        source_identity=source_identity(images),
        class_names=tuple(one.name for one in classes),
        episodes=tuple(_episode(classes, setting, seed, number) for number in range(count)),
    )


def _episode(classes: list[_ClassOfImages], setting: Setting, seed: int, number: int) -> Episode:
    generator = np.random.default_rng((seed, setting.ways, number))
    chosen: dict[str, _ClassOfImages] = {}
    for place in generator.permutation(len(classes)):
        one = classes[place]
        if len(chosen) < setting.ways:
            chosen.setdefault(one.name, one)
    answer = int(generator.integers(setting.ways))
    # The first image of each class is kept for the question, whatever the class that is asked about.
    drawn = [generator.permutation(one.images).tolist()[: setting.shots + 1] for one in chosen.values()]
    support = [
        Shown(image=drawn[name][1 + shot], name=name)
        for shot in range(setting.shots)
        for name in range(setting.ways)
    ]
    names = tuple(chosen)
    if setting.naming == "nonsense":
        dealt = np.random.default_rng((seed, setting.ways, number, _NAMES)).permutation(NONSENSE_NAMES)
        names = tuple(dealt[: setting.ways].tolist())
    return Episode(number=number, names=names, support=tuple(support), query=drawn[answer][0], answer=answer)


def _classes(images: ImageSource, setting: Setting) -> list[_ClassOfImages]:
    """Return the classes of a source, in the order of their labels, if episodes can be drawn from them."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels_of(images)):
        if label >= 0:
            found[label].append(position)
    if not found:
        raise ValueError(
            f"{images.name} has no labels: episodes need images with a label and a class_name, or a folder "
            "for each class"
        )
    names = images.class_names
    classes = []
    for label, positions in sorted(found.items()):
        name = names[label].strip() if label < len(names) else ""
        if not name:
            raise ValueError(f"{images.name}: label {label} has no name, and an answer is a name")
        classes.append(_ClassOfImages(name, tuple(positions)))
    distinct = len({one.name for one in classes})
    if distinct < setting.ways:
        raise ValueError(
            f"{setting.ways}-way episodes need {setting.ways} classes, {images.name} has {distinct}"
        )
    needed = setting.shots + 1
    small = [one for one in classes if len(one.images) < needed]
    if small:
        more = f", and so have {len(small) - 1} other classes too few" if len(small) > 1 else ""
        raise ValueError(
            f"{images.name}: class {quoted(small[0].name)} has {len(small[0].images)} images, but {setting.shots} "
            f"shots and the image asked about need {needed}{more}"
        )
    return classes


def labels_of(images: ImageSource) -> list[int]:
    """Return the class index of each image, -1 where unknown; images are read only where nothing else helps."""
    labels = getattr(images, "labels", None)
    if isinstance(labels, Labels):
        listed: list[int] = labels.indices.tolist()
        return listed
    return [images.read(position).label for position in range(len(images))]
