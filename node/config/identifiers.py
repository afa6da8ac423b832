"""Attributes that tell who the patient is: no rule may look at them, no log line may hold them.

They are left out of ``InstanceHeader.attributes`` (dicom/read.py), so a rule on one of them could never
match; config refuses such a rule instead of letting it be silently dead.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from functools import cache
from typing import Final

from pydicom.datadict import dictionary_VR, keyword_dict, keyword_for_tag

from node.config.values import did_you_mean, quote

DIRECT_IDENTIFIERS: Final[frozenset[str]] = frozenset(
    {
        # Patient (PS3.3 C.7.1.1, C.2.2, C.2.3): who it is, where they live, how to reach them
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "TypeOfPatientID",
        "IssuerOfPatientIDQualifiersSequence",
        "SourcePatientGroupIdentificationSequence",
        "GroupOfPatientsIdentificationSequence",
        "SubjectRelativePositionInImage",
        "PatientBirthDate",
        "PatientBirthTime",
        "PatientBirthDateInAlternativeCalendar",
        "PatientDeathDateInAlternativeCalendar",
        "OtherPatientIDs",
        "OtherPatientIDsSequence",
        "OtherPatientNames",
        "PatientBirthName",
        "PatientMotherBirthName",
        "PatientAddress",
        "PatientTelephoneNumbers",
        "PatientTelecomInformation",
        "CountryOfResidence",
        "RegionOfResidence",
        "MilitaryRank",
        "BranchOfService",
        "Occupation",
        "EthnicGroup",
        "PatientReligiousPreference",
        "PatientComments",
        "AdditionalPatientHistory",
        "MedicalRecordLocator",
        "ReferencedPatientPhotoSequence",
        "PatientInsurancePlanCodeSequence",
        "InsurancePlanIdentification",
        "ResponsiblePerson",
        "ResponsibleOrganization",
        "PersonName",
        "PersonAddress",
        "PersonTelephoneNumbers",
        "PersonTelecomInformation",
        # Animals and trial subjects are individuals too (C.7.1.1, C.7.1.3)
        "BreedRegistrationNumber",
        "ClinicalTrialSubjectID",
        "ClinicalTrialSubjectReadingID",
        # Numbers that lead to one person's file (C.7.2.1, C.3.4, C.4.10ff)
        "AccessionNumber",
        "IssuerOfAccessionNumberSequence",
        "StudyID",
        "AdmissionID",
        "IssuerOfAdmissionID",
        "ServiceEpisodeID",
        "IssuerOfServiceEpisodeID",
        "VisitComments",
        "RequestedProcedureID",
        "ScheduledProcedureStepID",
        "PerformedProcedureStepID",
        "PlacerOrderNumberImagingServiceRequest",
        "FillerOrderNumberImagingServiceRequest",
        "PlacerOrderNumberProcedure",
        "FillerOrderNumberProcedure",
        "PatientTransportArrangements",
        "CurrentPatientLocation",
        "PatientInstitutionResidence",
        # One instance, series or study: which patient's, in other words
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SOPInstanceUID",
    }
)
"""Keywords of direct identifiers. Every attribute of VR PN is one as well, whatever its name."""

VISIBLE_VRS: Final[frozenset[str]] = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "LO", "SH", "ST", "TM", "UI"}
    | {"FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"}
)
"""Value representations short enough for a rule to look at (dicom/read.py reads no others)."""

LIFTED_SEQUENCES: Final[frozenset[str]] = frozenset(
    {"AnatomicRegionSequence", "DerivationCodeSequence", "MeasurementUnitsCodeSequence"}
)
"""Code sequences that a rule may name nevertheless: their values are the Code Values of their items."""


PSEUDO: Final[Mapping[str, str]] = {"CallingAE": "AE", "CalledAE": "AE", "InstanceCount": "IS"}
"""What rules may name besides DICOM keywords, each with the VR that it compares as (node/route.py)."""


@cache
def vr_of(keyword: str) -> str:
    """The value representation (PS3.6) of a keyword; empty if there is no such attribute.

    Of a choice (``US or SS``) it is the first: they compare alike; unless one is OW, whose values are long.
    """
    if keyword in PSEUDO:
        return PSEUDO[keyword]
    tag = keyword_dict.get(keyword) if keyword else None  # some retired elements have an empty keyword
    vr = "" if tag is None else dictionary_VR(tag)
    return "OW" if "OW" in vr else vr.split(" ")[0]


def may_be_seen(keyword: str) -> bool:
    """True if headers carry this attribute and rules may name it."""
    vr = vr_of(keyword)
    if keyword in DIRECT_IDENTIFIERS or vr == "PN":
        return False
    return vr in VISIBLE_VRS or keyword in LIFTED_SEQUENCES


@cache
def keywords() -> tuple[str, ...]:
    """Every keyword that a rule may name."""
    return (*PSEUDO, *(each for each in keyword_dict if may_be_seen(each)))


def why_not(keyword: str) -> tuple[str, str]:
    """Why no rule may name this keyword, and what to do instead; two empty texts if it may."""
    if may_be_seen(keyword):
        return "", ""
    vr = vr_of(keyword)
    if not vr:
        return _unknown(keyword)
    if keyword in DIRECT_IDENTIFIERS or vr == "PN":
        return (
            f"{keyword} identifies a patient: rules never see it",
            "choose by what was scanned and how, for example BodyPartExamined",
        )
    what = "a sequence" if vr == "SQ" else f"of VR {vr}, too long for a rule"
    return f"{keyword} is {what}: rules see short values only", "name an attribute with short values"


def _unknown(keyword: str) -> tuple[str, str]:
    number = "".join(c for c in keyword if c not in "(), x-")
    if len(number) == 8 and all(c in string.hexdigits for c in number):
        known = keyword_for_tag(int(number, 16))
        hint = f"write {known}" if known else "private attributes cannot be used"
        return f"{quote(keyword)} is a tag, not a keyword", hint
    squeezed = "".join(c for c in keyword if c.isalnum())
    near = did_you_mean(squeezed, keywords(), "keywords are in PS3.6: Modality, SeriesDescription and so on")
    return f"{quote(keyword)} is no DICOM keyword", near
