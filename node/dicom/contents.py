"""What kind of picture an image is, by what scanners write about it. Tables; modality.py applies them.

A picture that is not what a scanner measured at one place must never be enhanced: a map has units, a
projection mixes slices, a tile wall has neighbours that are none. DERIVED or SECONDARY in Image Type alone
proves nothing (PS3.3 C.7.6.1.1.2): much good anatomy is re-made and says so.

Sources: PS3.3 C.8.2.1.1.1 and C.8.3.1.1.1 (Image Type of CT and MR), C.8.16.1 and C.8.13.3.1 (of enhanced
objects), CID 7203 and 4033 (derivation), conformance statements and real headers of GE, Siemens, Philips,
Canon/Toshiba, UIH and Hitachi/Fujifilm.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NamedTuple


class Bar(StrEnum):
    """Why an instance is not enhanced, as far as its siblings are concerned."""

    STRANGER = "stranger"
    """Another kind of picture: the rest of the series has no hole without it."""
    DEFECT = "defect"
    """One of the slices, but one that cannot be processed: without it the rest has a hole."""
    OURS = "ours"
    """A Luminode made it."""
    DENOISED = "denoised"
    """Already denoised; config may allow it."""


class Verdict(NamedTuple):
    bar: Bar
    reason: str


LOCALIZER: Final = Verdict(Bar.STRANGER, "It is a localizer, made to plan the scan and not to be read.")
DOSE: Final = Verdict(Bar.STRANGER, "It is a dose report or protocol page, a picture of text.")
SCREEN: Final = Verdict(Bar.STRANGER, "It is a saved screen, not what a scanner measured.")
MONITORING: Final = Verdict(
    Bar.STRANGER,
    "It is a contrast monitoring run: one position over time, measured to start the scan and not to be read.",
)
PROJECTION: Final = Verdict(
    Bar.STRANGER,
    "It is a projection or rendering of a volume (MIP, VRT ...): enhance its source series instead.",
)
REFORMAT: Final = Verdict(
    Bar.STRANGER, "It is a reformat of a volume (MPR, CPR ...): enhance its source series and reformat that."
)
SUBTRACTION: Final = Verdict(Bar.STRANGER, "It is a difference of images (subtraction).")
MAP: Final = Verdict(
    Bar.STRANGER,
    "It is a calculated map whose values are measurements (diffusion, perfusion, relaxation ...).",
)
MATERIAL: Final = Verdict(
    Bar.STRANGER, "It is a spectral or material image whose values are no plain Hounsfield units."
)
PHASE: Final = Verdict(
    Bar.STRANGER, "It is a phase, real, imaginary or velocity image; only magnitude images are enhanced."
)
RATIO: Final = Verdict(
    Bar.STRANGER, "It is a ratio of images (MP2RAGE UNI), whose noise is not that of an image."
)
TILED: Final = Verdict(
    Bar.STRANGER,
    "It shows many slices as tiles of one image (mosaic), and neighbours across a tile are none.",
)
COLOUR: Final = Verdict(Bar.STRANGER, "It is a colour image.")
SEGMENTED: Final = Verdict(Bar.STRANGER, "It is a segmentation or an edited volume.")
DENOISED: Final = Verdict(
    Bar.DENOISED,
    "It is already denoised, by deep learning or a post-processor (see enhance_vendor_denoised).",
)

_ANYWHERE: Final[tuple[tuple[str, Verdict], ...]] = (
    (r"LOCALI[SZ]ER|SCOUT|TOPOGRAM|SURVIEW|SURVEY|SCANOGRAM|SCANOSCOPE|PILOT|SOM\d+ TOP", LOCALIZER),
    (r"DOSE ?(INFO|REPORT|RECORD|PAGE|SHEET|SR)|SOM\d+ PROT|PATIENT PROTOCOL|EXAM SUMMARY", DOSE),
    (r"SCREEN ?(SAVE|SHOT|CAPTURE|DUMP)|SNAPSHOT", SCREEN),
    (r"SOM\d+ (PRE ?)?MON(ITORING)?|SMART ?PREP|SURE ?START|BOLUS TRACK(ING|ER)|T(EST ?)?BOLUS", MONITORING),
    (r"MIP|MIN ?IP|MNIP|MAX ?IP|AVE? ?IP|VRT|SSD|RAY ?SUM|MPVR|3D EDITOR|PROJECTION IMAGE", PROJECTION),
    (r"(VOLUME|SURFACE) ?REND(ER|ERED|ERING)|VOLREN", PROJECTION),
    (r"MPR|CPR|REFORMAT(TED)?|CURVED", REFORMAT),
    (r"SUBTRACT(ED|ION)?|DIFFERENCE|DSA", SUBTRACTION),
    (r"MOSAIC|VFRAME|TILED", TILED),
    (r"PHASE (MAP|MASK)|VELOCITY MAP|FILT PHA(SE)?", PHASE),
    (r"MAPS?|PARAMETRIC|APPARENT DIFFUSION|FRACTIONAL ANISO.*|TENSOR|TRACTOGRAPHY", MAP),
    (r"(REL|R|C)?(CBF|CBV|MTT|TTP)|TMAX|K ?TRANS|KEP|I?AUC|T ?TEST|Z ?SCORE|STD ?DEV(IATION)?", MAP),
    (r"PDFF|(FAT|WATER) ?FRACTION|[TBR][0-2] ?MAP|ECV|G ?FACTOR|STIFFNESS|ELASTICITY", MAP),
    (r"R[12] ?STAR|T2 STAR UNSPECI.*|QSM", MAP),
    (r"IODINE|VNC|VIRTUAL NON ?CONTRAST|Z ?EFF|EFFECTIVE Z|ELECTRON DENSITY|MATERIAL|PBV", MATERIAL),
    (r"MAT (SPECIFIC|REMOVED|FRACTIONAL|MODIFIED|VALUE BASED)|EFF ATOMIC NUM", MATERIAL),
    (r"DEEP RESOLVE|AICE|PIQE|DLIR|DLR", DENOISED),
)
"""Words of one value of Image Type, among others."""

_ALONE: Final[tuple[tuple[str, Verdict], ...]] = (
    (r"DOSE", DOSE),
    (r"SUBT?|BSI", SUBTRACTION),
    (r"PHASE|REAL|IMAGINARY", PHASE),
    (r"(PROC )?E?ADC( UNSPECI.*)?|FA|COL ?FA|PBP|GBP|AIF|FF", MAP),
    (r"RHO Z|EFF Z", MATERIAL),
    (r"UNI", RATIO),
    (r"DR[BGS]", DENOISED),
)
"""What means something else beside other words: IN PHASE, LOW DOSE."""

_TOKENS: Final = (
    *((re.compile(rf"(?:.* )?(?:{words})(?: .*)?"), verdict) for words, verdict in _ANYWHERE),
    *((re.compile(words), verdict) for words, verdict in _ALONE),
)

_COMPONENTS: Final = frozenset({"P", "R", "I"})
"""What MR scanners write for phase, real and imaginary; M is magnitude."""

NOT_MAGNITUDE: Final = frozenset({"PHASE", "REAL", "IMAGINARY", "MIXED"}) | _COMPONENTS

PLAIN_CONTRASTS: Final = frozenset(
    {
        *("", "NONE", "MEAN", "ADDITION", "RESAMPLED", "FILTERED", "ENERGY_PROP_WT", "VMI"),
        *("WATER", "FAT", "IN_PHASE", "OPP_PHASE", "OUT_PHASE", "W", "F", "IP", "OP"),
        *("DIFFUSION", "TRACEW", "TRACE"),
    }
)
"""Values 4 of Image Type of a DERIVED enhanced object that leave it an image (C.8.16.1.4).

The standard has no words for the parts of a Dixon series and for trace-weighted diffusion: those are the
classic ones, which scanners write in enhanced objects, too.
"""

DERIVATIONS: Final[dict[str, Verdict]] = {
    **dict.fromkeys(("113074", "113075", "113078", "113079"), PROJECTION),
    **dict.fromkeys(("113072", "113073"), REFORMAT),
    **dict.fromkeys(("113062", "113047"), SUBTRACTION),
    **dict.fromkeys(("113076", "113077"), SEGMENTED),
    **dict.fromkeys(("113041", "113044", "113045", "113046", "113050", "113052", "113054", "113055"), MAP),
    "113058": MAP,
    **dict.fromkeys(("113056", "113057", "113059", "113060", "113061", "113063", "113064", "113065"), MAP),
    **dict.fromkeys(("113066", "113067", "113068", "113069", "113071", "129104", "129105", "129106"), MAP),
    "113070": PHASE,
    "113087": DENOISED,
    "113088": DENOISED,
}
"""DCM codes of Derivation Code Sequence (CID 7203, 4033) that say what an image is."""

_DENOISERS: Final = re.compile(
    r"\b(AiCE|PIQE|DLIR|DLR|TrueFidelity|Deep ?Resolve|AIR ?Recon ?DL|ARDL|Precise ?Image|AIIR|iQMR"
    r"|SmartSpeed ?(AI|Precise)|ClariCT|ClariPi|Subtle(HD|MR|PET|GAD)|SwiftMR|PixelShine|Deep ?Recon)\b",
    re.IGNORECASE,
)
_MR_LOCALIZER: Final = re.compile(
    r"locali[sz]er|scout|\bsurvey\b|\blocator\b|\b(3|three|tri) ?pl(ane)?\b|\bloc\b|\bpilot\b", re.IGNORECASE
)
_DERIVED_WORDS: Final = tuple(
    (modalities.split(), re.compile(words, re.IGNORECASE), verdict)
    for modalities, words, verdict in (
        ("CT MR", r"\b[de]?ADC\b|apparent diffusion|fractional aniso|\bFA ?map\b|\b[TR][12]\*? ?map\b", MAP),
        ("CT MR", r"\b(rel|r|c)?(CBF|CBV)\b|\bMTT\b|\bTTP\b|\bTmax\b", MAP),
        ("CT MR", r"\b(cerebral|regional) blood (flow|volume)\b|\bmean transit\b|\btime to peak\b", MAP),
        ("CT MR", r"\bk ?trans\b|\bkep\b|\biAUC\b|\bfunctool\b|\bpermeability\b", MAP),
        ("CT MR", r"\bsub(tracted|traction)?\b(?! ?(mm|milli))", SUBTRACTION),
        ("CT MR", r"\bmi?n?ip\b|\bVRT?\b|\bMPVR\b", PROJECTION),
        ("CT MR", r"\breformat(ted)?\b|\bCPR\b", REFORMAT),
        ("MR", r"\bmaps?\b|\b(field|param\w*) ?map|\bmapping\b|\b(average|isotropic) DC\b|\bFA( \(|$)", MAP),
        ("MR", r"\bfat ?frac(tion)?\b|\bPDFF\b|\bR[12](\*| ?star)|\bQSM\b|\bECV\b|\bcT1\b", MAP),
        ("MR", r"\bstiffness\b|\belasto\w+|\bMRE wave|\bconfidence\b", MAP),
        ("MR", r"\bfilt pha(se)?\b", PHASE),
        ("MR", r"^(COL|PJN|PROJ) ?:", PROJECTION),
        (
            "CT",
            r"\biodine\b(?! ?\d)|\bVN[CU]\b|\bZ ?eff(ective)?\b|\brho ?z\b|\belectron density\b",
            MATERIAL,
        ),
        ("CT", r"\b(lung ?)?PBV\b|\buric acid\b|\bcalcium supp", MATERIAL),
        ("CT", r"\bMPR\b|\bcurved\b", REFORMAT),
        ("CT", r"\bbone ?remov", SEGMENTED),
    )
)
"""Of derived series. Among MR T2* and MPR are also the names of sequences (T2* weighted, MPRAGE), and
MRE is enterography."""
_MONITORING: Final = re.compile(
    r"smart ?prep|sure ?start|bolus|\b(pre ?)?monitoring\b|\btracker\b|\btracking\b", re.IGNORECASE
)


def by_token(token: str, modality: str) -> Verdict | None:
    """What one value of Image Type or Frame Type, from the third on, says."""
    word = " ".join(re.split(r"[\s_/-]+", token.upper())).strip()
    if modality == "MR" and word in _COMPONENTS:
        return PHASE
    for pattern, verdict in _TOKENS:
        if pattern.fullmatch(word):
            return verdict
    return None


def by_description(text: str, modality: str, *, derived: bool) -> Verdict | None:
    """What Series Description or Protocol Name says, where Image Type is known to be silent.

    MR headers do not mark localizers, and GE's derived MR series are all ``OTHER``. CT marks its localizers
    (C.8.2.1.1.1), so the name of a CT series is not asked for them. What is not DERIVED is no map,
    whatever it is called.
    """
    told = " ".join(re.split(r"[\s_.^/-]+", text)).strip()
    if modality == "MR" and _MR_LOCALIZER.search(told):
        return LOCALIZER
    if derived:
        for modalities, pattern, verdict in _DERIVED_WORDS:
            if modality in modalities and pattern.search(told):
                return verdict
    return None


def names_denoiser(text: str) -> bool:
    """Whether a text names a deep-learning reconstruction or a denoising product."""
    return _DENOISERS.search(" ".join(re.split(r"[\s_.^/-]+", text))) is not None


def names_monitoring(text: str) -> bool:
    """Whether a series is called like a contrast monitoring run."""
    return _MONITORING.search(" ".join(re.split(r"[\s_.^/-]+", text))) is not None
