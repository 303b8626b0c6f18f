"""The world: an endless, seeded generator of documents in all modalities with known truth, and a judge of drawings and films."""

from pollux.data.world.checker import Verdict, judge, look, watch
from pollux.data.world.render import render
from pollux.data.world.scene import COLOURS, HELD_OUT, SHAPES, Scene, SceneConfig, Thing, sample_scene, stream
from pollux.data.world.tasks import EVALUATIONS, TASKS, Item, World, WorldConfig

__all__ = [
    "COLOURS",
    "EVALUATIONS",
    "HELD_OUT",
    "SHAPES",
    "TASKS",
    "Item",
    "Scene",
    "SceneConfig",
    "Thing",
    "Verdict",
    "World",
    "WorldConfig",
    "judge",
    "look",
    "render",
    "sample_scene",
    "stream",
    "watch",
]
