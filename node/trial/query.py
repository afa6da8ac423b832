"""Asking a PACS by C-FIND what it holds, as any workstation would."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from node.errors import PeerUnreachable

_PENDING = (0xFF00, 0xFF01)


def held_instances(host: str, port: int, ae_title: str, study_uid: str, series_uid: str) -> set[str]:
    """SOP Instance UIDs of one series that a PACS says it holds (PS3.4 C.4.1, IMAGE level).

    Raises
    ------
    PeerUnreachable
        The PACS did not answer, or answered with a failure.
    """
    ae = AE(ae_title="LUMINODE")
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = ae.associate(host, port, ae_title=ae_title)
    if not association.is_established:
        raise PeerUnreachable("the PACS does not answer queries")
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID = study_uid
    query.SeriesInstanceUID = series_uid
    query.SOPInstanceUID = ""
    held: set[str] = set()
    try:
        for status, found in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
            if not status or (status.Status not in _PENDING and status.Status != 0):
                raise PeerUnreachable("the PACS did not answer the query to its end")
            if found is not None:
                held.add(str(found.SOPInstanceUID))
    finally:
        association.release()
    return held
