"""DICOM without network, database or clock."""

from pydicom import config

# pydicom's warnings about odd values quote them, and values are patients' data.
config.settings.reading_validation_mode = config.IGNORE
