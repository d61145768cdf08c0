"""M3D-Data: published folders and raw downloads in, samples and tokens out.

    sample     one question with its true answer        tokens   a sample as the network gets it
    published  what the published tables share          prompts  our templates   terms  our words
    cap vqa seg refseg   the readers                    splits   by patient, and what leaks
    prepare    raw downloads -> what the readers read   raw      PNG, NIfTI, arrays   grid   0..1
    commands   the command line `lamed-model data`      corpus/  patients that never were

Knows arrays, words and files. Has never heard of DICOM.
"""

from .sample import DataError, Sample, Task

__all__ = ["DataError", "Sample", "Task"]
