"""A report as Basic Text SR (PS3.3 A.35.1), for systems that know no other.

It differs from Enhanced SR in what it may not hold: no codes as findings, no numbers and no
coordinates. The writer of the tree sees to that, and this to the class.
"""

from typing import Any

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage


def basic_text_sr(**arguments: Any) -> Dataset:  # noqa: ANN401 - those of highdicom's EnhancedSR
    """Make a Basic Text SR of a tree of texts and references to images.

    The modules are those of Enhanced SR, and highdicom has no class for it.
    """
    made: Dataset = hd.sr.EnhancedSR(**arguments)
    made.SOPClassUID = BasicTextSRStorage
    made.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    return made
