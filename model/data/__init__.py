"""M3D-Data: published folders and raw downloads in, samples and tokens out.

    sample     one question with its true answer      tokens   a sample as the network gets it
    published  what the published tables share        cap, vqa, seg, refseg   the readers
    prompts    questions and answers in our words     terms    the dictionary of structures
    studies    one raw study, prepared                prepare  many, in processes, across kills
    raw        pictures, sparse arrays, NIfTI         grid     arrays onto the network's grid
    shelf      files that are whole or not there      splits   by patient, and what leaks
    generation questions that a language model writes on reports, checked twice
    commands   the command line `lamed-model data`    corpus/  patients that never were

Knows arrays, words and files. Has never heard of DICOM.
"""

from .sample import DataError, Sample, Task

__all__ = ["DataError", "Sample", "Task"]
