"""What leaves the solution: DICOM SEG, DICOM SR (the source of truth), and the sheet and JSON rendered from the SR."""
