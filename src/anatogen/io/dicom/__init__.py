"""DICOM: which files belong together, their pixels, their geometry, and new series."""
