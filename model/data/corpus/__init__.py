"""The anatomy corpus: patients that never were, with everything that is true of them.

    shapes   solids in template millimetres      space      a patient's own, bent space
    torso    organs of chest and abdomen         head       organs of the head
    findings what is planted                     paint      labels -> intensities of a modality
    case     one seeded patient                  telling    reports, questions, answers

Everything follows from a seed. Nobody's images are in it, and nothing diagnostic can be learnt
from it: it teaches a small network to look, and shows whether it does.
"""
