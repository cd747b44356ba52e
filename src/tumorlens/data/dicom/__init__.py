"""DICOM: pixels of one file, series of slices, media with a DICOMDIR."""
