"""Where images come from: public data sets and any folder, as scans that know their patient only as a hash.

``records`` what every loader returns; ``folder`` any DICOM or NIfTI tree; ``lidc``, ``ixi``, ``mayo`` the data
sets as they are distributed; ``split`` who is trained on and who is kept apart; ``lookalike`` small trees of
the same layout, for tests and for trying things out.
"""
