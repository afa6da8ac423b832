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


WORDS: Mapping[str, Words] = {
    "chest-lung": Words(
        weights={"ct-cnn": "cbe4627f847d"},
        text="Fissures, vessels down to one or two pixels and the bronchial walls are where they were, as "
        "sharp as before, and the background of the lung is calmer. The difference is noise in the soft "
        "tissue and in the lung between the vessels; around vessels, fissure and ribs nearly nothing is "
        "taken, so noise stays there: the lung looks a little patchy when one knows where to look. Not "
        "good enough: beside the large vessels the noise is as strong as before.",
    ),
    "chest-soft": Words(
        weights={"ct-cnn": "cbe4627f847d"},
        text="Heart, aorta and the hilar vessels gain most: the grain is half as strong and the outline of the "
        "aorta and the low-contrast step to the fat around it are easier to see. What is not good enough: "
        "along the left border of the heart the difference shows a thin double line, an edge that was "
        "blurred by motion and is now a little smoother still. Fine vertical streaks in the aorta and "
        "heart are weaker, but remain.",
    ),
    "abdomen": Words(
        weights={"ct-cnn": "cbe4627f847d"},
        text="The horizontal streaks in the liver are half as strong, vessels in the liver stand out better, "
        "and the borders of aorta, crus and adrenal are kept. The liver keeps a fine grain and does not "
        "look like plastic at this strength. Not good enough: the longest streaks remain as faint bands, "
        "now without the grain that hid them, and the smallest dots in the liver at the level of the "
        "noise are weaker, too.",
    ),
    "head": Words(
        weights={"ct-cnn": "cbe4627f847d"},
        text="The large dark area (an old infarct, by its look), the calcified pineal gland and the border of "
        "grey and white matter are clearer, and the difference is noise alone, without a trace of the "
        "ventricles or the gyri. Just inside the skull and at the calcifications nothing is taken, which "
        "is as it should be. Not good enough: in this narrow window (80 HU) the brain begins to look "
        "smooth; a reader who is used to grain may want a strength of 0.4 for heads.",
    ),
    "t1": Words(
        weights={"mr-cnn": "f4e44fc4a516"},
        text="Thalamus, capsule and the border of cortex and white matter are kept, and small perivascular "
        "spaces can still be told. The difference is noise that follows the strength of the coil, without "
        "outlines. Not good enough: white matter becomes flat where its texture was at the level of the "
        "noise.",
    ),
    "t2": Words(
        weights={"mr-cnn": "f4e44fc4a516"},
        text="In the deep nuclei, where the coil is weakest, the noise is nearly halved; small vessels and the "
        "fornix are unchanged. Around the bright ventricles, where the engine takes nothing, the "
        "difference holds faint waves that run beside the edges: Gibbs ringing of the interpolated matrix "
        "that is a little weaker than before. Not good enough: the cortex, which has little noise, gains "
        "nothing that one can see.",
    ),
    "families-ct": Words(
        weights={
            "ct-cnn": "cbe4627f847d",
            "ct-gan": "1ec31950068e",
            "ct-autoencoder": "839c2410ef66",
            "ct-nlm": "5084ad2121c0",
        },
        text="ct-cnn and ct-gan can hardly be told apart: the critic leaves a little more grain and costs "
        "nothing that one can see. ct-nlm does as well in the flat liver, but takes nothing at all around "
        "bone, so the noise there stays, and its streaks are turned into short strokes. ct-autoencoder is "
        "not good enough: the outlines of vertebra, crus and aorta stand in its difference, which means "
        "that it takes structure, though little at this strength.",
    ),
    "families-mr": Words(
        weights={
            "mr-cnn": "f4e44fc4a516",
            "mr-gan": "381694e0a0be",
            "mr-autoencoder": "50af26331ab0",
            "mr-nlm": "1cc7240c66af",
        },
        text="mr-cnn is the calmest without loss; mr-gan leaves more grain. mr-nlm takes as much in flat brain "
        "and nothing within several pixels of an edge, with a visible border between the two. mr- "
        "autoencoder is not good enough: contours run around the ventricles in its difference, so edges "
        "lost a little.",
    ),
    "twice-ct": Words(
        weights={"ct-sr2": "8bd3f252fc1c"},
        text="On this real chest the engine's slice and plain zero filling cannot be told apart by eye. What "
        "it adds is faint ripples across strong edges, the largest at a rib. It invents nothing here, and "
        "it shows nothing new: to call this more resolution would be wrong.",
    ),
    "twice-mr": Words(
        weights={"mr-sr2": "29abf4e70e15"},
        text="The two cannot be told apart by eye. The detail that is added lies along strong edges "
        "(ventricle, choroid) as faint ripples, weaker than a tenth of the window. Noise is as strong as "
        "before: denoise first if noise matters.",
    ),
}
