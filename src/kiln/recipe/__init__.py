"""What to do: typed, frozen sections of settings, read from YAML, flags and Python alike. Layer 0, no torch."""

from kiln.recipe.duration import Duration
from kiln.recipe.recipe import FIELDS, Recipe
from kiln.recipe.sections import (
    SECTIONS,
    Augment,
    Checkpoint,
    Data,
    Loss,
    Model,
    Optim,
    RunPlace,
    Schedule,
    Section,
    Task,
    Training,
)

__all__ = [
    "Recipe", "Duration", "FIELDS", "SECTIONS", "Section",
    "Data", "Model", "Task", "Augment", "Loss", "Optim", "Schedule", "Training", "Checkpoint", "RunPlace",
]  # fmt: skip
