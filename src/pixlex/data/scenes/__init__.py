"""Drawn scenes of colored shapes, and what is said of them: what callers use is named here."""

from pixlex.data.scenes.captions import captions
from pixlex.data.scenes.drawing import draw, object_boxes
from pixlex.data.scenes.entailment import Entailment, entailment
from pixlex.data.scenes.questions import Question, question
from pixlex.data.scenes.scene import Scene, SceneObject, Split, make_scene, split_of
from pixlex.data.scenes.source import ScenesSource, open_scenes
from pixlex.data.scenes.statements import Statement, statement
from pixlex.data.scenes.tasks import SceneEntailment, SceneItem, ScenePairs, SceneQuestions

__all__ = [
    "Entailment",
    "Question",
    "Scene",
    "SceneEntailment",
    "SceneItem",
    "SceneObject",
    "ScenePairs",
    "SceneQuestions",
    "ScenesSource",
    "Split",
    "Statement",
    "captions",
    "draw",
    "entailment",
    "make_scene",
    "object_boxes",
    "open_scenes",
    "question",
    "split_of",
    "statement",
]
