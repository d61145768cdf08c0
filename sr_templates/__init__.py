"""What is asked of which exam, and how answers become DICOM objects.

    load_protocols   TOML files -> Protocol: questions, targets, codes, all checked
    encode           answers -> SEG, Comprehensive 3D SR (TID 1500), Enhanced SR (TID 2000)
    as_text          an SR document as text

Knows the Standard; has never heard of the node or of the network that answers.
"""

from .document import Finding, Predecessor
from .encoding import encode
from .profile import GENERIC, PROFILES, Profile, chosen
from .protocol import Code, Protocol, Question, Target, TemplateError, load_protocols
from .provenance import Algorithm
from .reading import as_text

__all__ = [
    "GENERIC",
    "PROFILES",
    "Algorithm",
    "Code",
    "Finding",
    "Predecessor",
    "Profile",
    "Protocol",
    "Question",
    "Target",
    "TemplateError",
    "as_text",
    "chosen",
    "encode",
    "load_protocols",
]
