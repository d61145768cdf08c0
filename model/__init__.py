"""M3D-LaMed: arrays and words in, words and masks out. Has never heard of DICOM."""
