"""What was seen in the pictures, by the name of the picture, and of which weights it was said.

Words are of a person's (or a reader's) look and do not follow from figures: look again when weights change, and edit
this file. The page says so where the weights are others than those that were looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A judgement, and the first 12 digits of the weights' digests that it was made of, by engine."""

    text: str
    weights: Mapping[str, str]


WORDS: Mapping[str, Words] = {}
