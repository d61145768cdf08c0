"""M3D-LaMed (arXiv 2404.00578): arrays and words in, words and masks out.

    lamed        LaMed.read: one volume, many questions       preprocess  the grid, and the way back
    checkpoint   folders, verified                            tokenizer   text to ids and back
    network/     the torch modules                            tiny        the untrained checkpoint

Has never heard of DICOM.
"""

from .card import Card
from .checkpoint import load
from .errors import ModelError
from .lamed import Answer, Box, LaMed, Mask, Question

__all__ = ["Answer", "Box", "Card", "LaMed", "Mask", "ModelError", "Question", "load"]
