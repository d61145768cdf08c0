"""The one error of the model package. Knows no torch, no DICOM."""


class ModelError(Exception):
    """The network, its folder or a question cannot be used; the message says expected and got."""
