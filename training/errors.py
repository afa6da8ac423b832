"""Errors of training, by what a person should do.

::

    TrainingError
      RecipeError      the recipe is wrong: line, key and what is wanted are in the message
      DataError        images, labels or tables cannot be read or do not fit together
      SplitError       a split would leak a patient, or is not the one that a checkpoint was trained with
      CheckpointError  a checkpoint cannot be used with this recipe
      Diverged         a loss, a gradient or a weight is no number any more; what was kept before still is
      ExportError      a network cannot be exported, or its export disagrees with it
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of all; ``hint`` says what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(TrainingError):
    pass


class DataError(TrainingError):
    pass


class SplitError(TrainingError):
    pass


class CheckpointError(TrainingError):
    pass


class Diverged(TrainingError):
    pass


class ExportError(TrainingError):
    pass
