"""Backbones out of run folders and files, and into files that other programs read."""

from sce_fast.export.formats import FORMATS, export
from sce_fast.export.source import METADATA, Backbone, Description, Foreign, ForeignNetwork, Student, open_backbone

__all__ = [
    "FORMATS",
    "METADATA",
    "Backbone",
    "Description",
    "Foreign",
    "ForeignNetwork",
    "Student",
    "export",
    "open_backbone",
]
