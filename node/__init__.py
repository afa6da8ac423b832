"""Luminode: a DICOM node that enhances CT and MR series on their way from the scanner to PACS."""

__version__ = "0.1.0"
