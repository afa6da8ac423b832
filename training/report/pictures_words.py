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
        weights={"ct-cnn": "225ab37ed34d"},
        text="Fissures, vessels down to one or two pixels and the bronchial walls are where they were, as "
        "sharp as before, and the background of the lung is calmer. The difference is noise in the soft "
        "tissue and between the vessels, without an outline of any of them; right around the large "
        "vessels, the fissure and the ribs next to nothing is taken. Not good enough: there the noise is "
        "as strong as before, and the lung looks a little patchy when one knows where to look.",
    ),
    "chest-soft": Words(
        weights={"ct-cnn": "225ab37ed34d"},
        text="Heart, aorta and the hilar vessels gain most: the grain is half as strong, and the outline of "
        "the aorta and the low-contrast step to the fat around it are easier to see. Not good enough: "
        "along the left border of the heart the difference still shows a thin double line, an edge that "
        "was blurred by motion and is a little smoother now, and the fine vertical streaks in the aorta "
        "and the heart are weaker, but remain, coarser than the grain that hid them.",
    ),
    "abdomen": Words(
        weights={"ct-cnn": "225ab37ed34d"},
        text="The horizontal streaks in the liver are half as strong, vessels in the liver stand out better, "
        "and the borders of aorta, crus and adrenal are kept, without a trace in the difference. What it "
        "takes in the vertebra is finer and weaker, and looks like noise, not like trabeculae. Not good "
        "enough: the longest streaks remain as faint, wide bands, now without the grain that hid them, so "
        "the liver looks a little cloudy, and the smallest dots in it at the level of the noise are "
        "weaker.",
    ),
    "head": Words(
        weights={"ct-cnn": "225ab37ed34d"},
        text="The large dark area (an old infarct, by its look), the calcified pineal gland and the border of "
        "grey and white matter are clearer, and the difference is noise alone, without a trace of the "
        "ventricles, the calcifications or the gyri. In the skull next to nothing is taken, which is as "
        "it should be. Not good enough: in this narrow window (80 HU) the brain begins to look smooth and "
        "a little cloudy; a reader who is used to grain may want ct-gan, or a strength of 0.4, for heads.",
    ),
    "t1": Words(
        weights={"mr-cnn": "f2e8801b6be1"},
        text="Thalamus, capsule and the border of cortex and white matter are kept. The difference is noise "
        "that follows the strength of the coil, without outlines. Not good enough: white matter and "
        "thalamus become flat where their texture was at the level of the noise.",
    ),
    "t2": Words(
        weights={"mr-cnn": "f2e8801b6be1"},
        text="In the deep nuclei, where the coil is weakest, a good third of the noise is gone; small vessels and the "
        "fornix are unchanged. Around the bright ventricles the difference holds fine waves that run "
        "beside the edges: Gibbs ringing of the interpolated matrix, of which the engine takes a little. "
        "Not good enough: the cortex, which has little noise, gains nothing that one can see.",
    ),
    "families-ct": Words(
        weights={
            "ct-cnn": "225ab37ed34d",
            "ct-gan": "ed66595f7562",
            "ct-autoencoder": "839c2410ef66",
            "ct-nlm": "5084ad2121c0",
        },
        text="ct-cnn is the calmest that keeps outlines. ct-gan can now be told from it: its difference is the "
        "same noise at two thirds of the strength, finer grain stays in the liver, and nothing of an "
        "outline is taken. ct-nlm does as well in the flat liver, but takes nothing at all around bone, "
        "so the noise there stays, and its streaks are turned into short strokes. ct-autoencoder is not "
        "good enough: the outlines of vertebra, crus and aorta stand in its difference, fainter than "
        "before it was told to believe itself less, and the noise around them stays.",
    ),
    "families-mr": Words(
        weights={
            "mr-cnn": "f2e8801b6be1",
            "mr-gan": "381694e0a0be",
            "mr-autoencoder": "50af26331ab0",
            "mr-nlm": "1cc7240c66af",
        },
        text="mr-cnn and mr-gan take the same noise, as much of it, and both leave faint ringing beside the "
        "ventricles in their differences. mr-nlm takes more in flat brain and nothing "
        "within several pixels of an edge, with a visible border between the two. mr-autoencoder is not "
        "good enough: contours run around the ventricles in its difference, so edges lost a little.",
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
