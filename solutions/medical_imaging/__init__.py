"""Lung-nodule detection in chest CT: from a DICOM series to files that a clinician can sign. Not a medical device."""
