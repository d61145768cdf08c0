"""What is asked of which exam, and how answers become DICOM objects."""
