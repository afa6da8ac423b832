"""Attributes that tell who the patient is: no rule may look at them, no log line may hold them.

They are left out of ``InstanceHeader.attributes`` (dicom/read.py), so a rule on one of them could never
match; config refuses such a rule instead of letting it be silently dead.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from pydicom.datadict import dictionary_VR, keyword_dict

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
    ("AE", "AS", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO")
    + ("SH", "SL", "SS", "ST", "SV", "TM", "UI", "UL", "US", "UV")
)
"""Value representations short enough for a rule to look at (dicom/read.py reads no others)."""

LIFTED_SEQUENCES: Final[frozenset[str]] = frozenset(
    {"AnatomicRegionSequence", "DerivationCodeSequence", "MeasurementUnitsCodeSequence"}
)
"""Code sequences that a rule may name nevertheless: their values are the Code Values of their items."""


@cache
def vr_of(keyword: str) -> str:
    """The value representation (PS3.6) of a keyword; empty if there is no such attribute.

    Of a choice (``US or SS``) it is the first.
    """
    tag = keyword_dict.get(keyword)
    return "" if tag is None else dictionary_VR(tag).split(" ")[0]


def why_not(keyword: str) -> tuple[str, str]:
    """Why no rule may name this keyword, and what to do instead; two empty texts if it may."""
    vr = vr_of(keyword)
    if not vr:
        hint = did_you_mean(keyword, keyword_dict, "write a keyword of PS3.6, for example SeriesDescription")
        return f"{quote(keyword)} is no DICOM keyword", hint
    if keyword in DIRECT_IDENTIFIERS or vr == "PN":
        return f"{keyword} identifies a patient: rules never see it", "name an attribute of the series"
    if vr not in VISIBLE_VRS and keyword not in LIFTED_SEQUENCES:
        what = "a sequence" if vr == "SQ" else f"of VR {vr}, too long for a rule"
        return f"{keyword} is {what}: rules see short values only", "name an attribute with short values"
    return "", ""
