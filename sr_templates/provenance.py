"""Who made this: one set of values, written wherever an object names its maker.

IHE AIR (Rev 1.3, 6.5.3.1) wants the algorithm in Contributing Equipment (109102) with a Device
UID that changes with the model, and the same values in the device observer (TID 1004), in the
algorithm identification (TID 4019) and in the SEG's own. They are the same because they are all
made here.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import highdicom as hd
from pydicom.sr.codedict import codes

from . import foreign
from .protocol import Code, TemplateError

# The name space of our UIDs (PS3.5 B.2, UUID-derived): changing it would change every UID.
NAMESPACE = uuid.UUID("7c9a1d7e-4a0f-5d0c-9d5b-3f1f6c1f2b61")
ARTIFICIAL_INTELLIGENCE = Code("DCM", "123110", "Artificial Intelligence")  # PS3.16 CID 7162
LONG_STRING = 64
DIGEST_LENGTH = 64
UNTRAINED = "UNTRAINED"


def uid(*parts: str) -> str:
    """Return a UID under 2.25 that depends on `parts` alone."""
    return f"2.25.{uuid.uuid5(NAMESPACE, '/'.join(parts)).int}"


@dataclass(frozen=True)
class Algorithm:
    """The model that answered, as its card describes it.

    `sha256` is the digest of the weights, 64 hexadecimal digits. `parameters` are the settings
    it was run with. An `untrained` model says so in its name wherever the name is written.
    """

    name: str
    version: str
    sha256: str
    family: Code = ARTIFICIAL_INTELLIGENCE
    manufacturer: str = "LaMed Node"
    untrained: bool = False
    parameters: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.sha256) != DIGEST_LENGTH or set(self.sha256) - set("0123456789abcdef"):
            raise TemplateError(f"sha256 must be 64 lower-case hex digits, not {self.sha256!r}")
        for key in ("name", "version", "manufacturer"):
            if not foreign.line(getattr(self, key)):
                raise TemplateError(f"an algorithm must have a {key}")

    @property
    def model(self) -> str:
        """Manufacturer's Model Name (0008,1090) and Algorithm Name (0066,0036), one value of LO."""
        if not self.untrained or UNTRAINED in self.name.upper():
            return foreign.line(self.name, LONG_STRING)
        return f"{UNTRAINED} {foreign.line(self.name, LONG_STRING - len(UNTRAINED) - 1)}"

    @property
    def source(self) -> str:
        """Manufacturer (0008,0070) and Algorithm Source (0024,0202)."""
        return foreign.line(self.manufacturer, LONG_STRING)

    @property
    def release(self) -> str:
        """Software Versions (0018,1020) and Algorithm Version (0066,0031)."""
        return foreign.line(self.version, LONG_STRING)

    @property
    def device_uid(self) -> str:
        """Device UID (0018,1002): other weights are another device."""
        return uid("weights", self.sha256)

    @property
    def settings(self) -> dict[str, str]:
        """What the result depends on besides the image, as short texts."""
        settings = {"weights_sha256": self.sha256}
        for key, value in self.parameters.items():
            # Comma and equals sign separate parameters in Algorithm Parameters (0066,0032).
            plain = foreign.line(str(value), 200).replace(",", ";").replace("=", ":")
            settings[foreign.line(key, 40).replace("=", ":")] = plain
        return settings


def equipment(algorithm: Algorithm, at: datetime) -> hd.ContributingEquipment:
    """Describe the algorithm as an item of Contributing Equipment Sequence (0018,A001)."""
    item = hd.ContributingEquipment(
        manufacturer=algorithm.source,
        purpose_of_reference=codes.DCM.ProcessingEquipment,  # 109102
        manufacturer_model_name=algorithm.model,
        software_versions=algorithm.release,
        device_serial_number=algorithm.sha256,
        contribution_datetime=at,
        contribution_description="AI draft, not for diagnostic use",
    )
    item.DeviceUID = algorithm.device_uid
    return item


def in_segmentation(algorithm: Algorithm) -> hd.AlgorithmIdentificationSequence:
    """Name the algorithm in a SEG (PS3.3 10.16)."""
    return hd.AlgorithmIdentificationSequence(
        name=algorithm.model,
        family=coded(algorithm.family),
        version=algorithm.release,
        source=algorithm.source,
        parameters=algorithm.settings,
    )


def in_report(algorithm: Algorithm) -> hd.sr.AlgorithmIdentification:
    """Name the algorithm in a measurement group (TID 4019)."""
    return hd.sr.AlgorithmIdentification(
        name=algorithm.model,
        version=algorithm.release,
        parameters=[f"{key}={value}" for key, value in algorithm.settings.items()],
        family=coded(algorithm.family),
        manufacturer=algorithm.source,
    )


def observer(algorithm: Algorithm) -> hd.sr.ObservationContext:
    """Name the algorithm as the one who observed, and the patient as whom (TID 1001, 1004, 1006).

    Who the patient is, and which study, is inherited: a name twice could become two names.
    """
    context = hd.sr.ObservationContext(observer_device_context=device(algorithm))
    context.append(
        hd.sr.CodeContentItem(
            name=codes.DCM.SubjectClass,
            value=codes.DCM.Patient,
            relationship_type=hd.sr.RelationshipTypeValues.HAS_OBS_CONTEXT,
        )
    )
    return context


def device(algorithm: Algorithm) -> hd.sr.ObserverContext:
    """Name the algorithm as a device that observes (TID 1002, 1004)."""
    attributes = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=algorithm.device_uid,
        name=algorithm.model,
        manufacturer_name=algorithm.source,
        model_name=algorithm.model,
    )
    return hd.sr.ObserverContext(
        observer_type=codes.DCM.Device, observer_identifying_attributes=attributes
    )


def coded(code: Code) -> hd.sr.CodedConcept:
    """Return the code as highdicom takes it."""
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)
