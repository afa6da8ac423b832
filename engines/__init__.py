"""Enhancement engines: arrays and physics, never DICOM."""
