"""What the objects of one job share: whom they are about, who made them, when, and their UIDs.

Knows the modules that every object has (PS3.3 C.7, C.12) and nothing of what is inside one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from . import foreign
from .protocol import LANGUAGES, Protocol, Question, TemplateError
from .provenance import LONG_STRING, UNTRAINED, Algorithm, equipment, uid

DRAFT = "AI DRAFT"
NOTICE = f"{DRAFT} - NOT FOR DIAGNOSTIC USE - UNVERIFIED"
NO_KNOWLEDGE = (
    f"{UNTRAINED} MODEL. Its weights were never trained: every answer, outline and number in this "
    "draft is meaningless. It serves to test the connection and must not be read as findings."
)
# Body parts of PS3.16 table L-1 of which there is one.
UNPAIRED = (
    "ABDOMEN ABDOMENPELVIS BLADDER BRAIN CHEST CHESTABDOMEN CHESTABDPELVIS CSPINE HEAD HEADNECK "
    "HEART LIVER LSPINE MEDIASTINUM NECK PANCREAS PELVIS PROSTATE SKULL SPINE SPLEEN STOMACH "
    "TRACHEA TSPINE UTERUS WHOLEBODY"
)


@dataclass(frozen=True)
class Finding:
    """A question and what the model made of it.

    `text` is the model's, unchecked. `mask` is bool or 0/1 on the source grid, slices in the
    source's order; None: nothing was outlined. `confidence` decides where outlines overlap; None
    ranks below every number. `probability` makes what the mask was cut from, float32 0 to 1 on the
    same grid; it is called only if a destination wants it, and None where there is none.
    """

    question: Question
    text: str
    mask: hd.Volume | None = None
    confidence: float | None = None
    probability: Callable[[], hd.Volume] | None = None


@dataclass(frozen=True)
class Predecessor:
    """An object that a new one takes the place of (PS3.3 C.17.2.2)."""

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_uid: str


@dataclass(frozen=True)
class Kind:
    """One of the objects made for a job."""

    name: str
    title: str
    series_number: int


SEG = Kind("seg", "segmentation", 9001)
MEASUREMENTS = Kind("measurements", "measurements", 9002)
REPORT = Kind("draft", "report", 9003)
PDF = Kind("pdf", "report page", 9004)
KEY_IMAGES = Kind("key-images", "key images", 9005)
PRESENTATION = Kind("presentation", "outlines", 9006)
KEY_OBJECTS = Kind("key-objects", "key slices", 9007)


@dataclass(frozen=True)
class Document:
    """One job's sources and provenance; `sources[0]` has a header that is fit to inherit from.

    `predecessors` are the objects of an earlier job that those of this one replace, by label;
    `caveat` is what was wrong with the images as a whole, as a sentence: empty if nothing was.
    """

    protocol: Protocol
    sources: tuple[Dataset, ...]
    algorithm: Algorithm
    job_id: str
    created_at: datetime
    predecessors: Mapping[str, Predecessor] = field(default_factory=dict)
    caveat: str = ""

    @classmethod
    def about(
        cls,
        protocol: Protocol,
        sources: Sequence[Dataset],
        algorithm: Algorithm,
        job_id: str,
        created_at: datetime,
        predecessors: Mapping[str, Predecessor] | None = None,
    ) -> "Document":
        """Make the document of a job; local time of this machine if `created_at` has a zone."""
        if not sources or not job_id:
            raise TemplateError("expected at least one source image and a job's id")
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
            found = {str(each.get(keyword) or "") for each in sources}
            if len(found) > 1:
                raise TemplateError(f"expected images of one {keyword}, got {len(found)}")
        if created_at.tzinfo:
            # The study's times are local, without a zone; ours stand beside them.
            created_at = created_at.astimezone().replace(tzinfo=None)
        clean = (foreign.header(sources[0]), *sources[1:])
        return cls(protocol, clean, algorithm, job_id, created_at, predecessors or {})

    @property
    def notice(self) -> str:
        """What must stand beside every word of the model; fits a value of LO."""
        return f"{NOTICE} - {UNTRAINED} MODEL" if self.algorithm.untrained else NOTICE

    @property
    def voice(self) -> str:
        """Whose words an answer is, for lists that show one item without the rest."""
        return f"AI ({UNTRAINED})" if self.algorithm.untrained else "AI"

    @property
    def series_uid(self) -> str:
        """Series Instance UID of the images that were read."""
        return str(self.sources[0].SeriesInstanceUID)

    @property
    def slices(self) -> int:
        """How many slices were read: frames, if the source is multi-frame."""
        return int(self.sources[0].get("NumberOfFrames") or len(self.sources))

    @property
    def language(self) -> hd.sr.LanguageOfContentItemAndDescendants:
        """Language of content (TID 1204)."""
        key = self.protocol.language
        return hd.sr.LanguageOfContentItemAndDescendants(
            hd.sr.CodedConcept(key, "RFC5646", LANGUAGES[key])
        )

    def description(self, kind: Kind) -> str:
        """Series Description: what it is worth comes first, and fits where lists are narrow."""
        mark = f"{DRAFT} {UNTRAINED}" if self.algorithm.untrained else DRAFT
        return foreign.line(f"{mark} {kind.title}: {self.protocol.title}", LONG_STRING)

    def sop_uid(self, label: str) -> str:
        """SOP Instance UID: the same job makes the same, so a repeat replaces and adds no twin."""
        return uid(self.job_id, label, "instance")

    def modules(self, kind: Kind, label: str = "", *, number: int = 0) -> dict[str, Any]:
        """Return highdicom's arguments for series, equipment and SOP common of one object.

        Parameters
        ----------
        label
            What the UIDs follow from; the name of the kind if it is the only one.
        number
            Of an object that shares its series with others of its kind, from 1 on; 0: it is alone.
        """
        date, time = self.created_at.date(), self.created_at.time()
        label = label or kind.name
        instance = f"{label}.{number}" if number else label
        return {
            "series_instance_uid": uid(self.job_id, label, "series"),
            "series_number": kind.series_number,
            "sop_instance_uid": self.sop_uid(instance),
            "instance_number": number or 1,
            "manufacturer": self.algorithm.source,
            "manufacturer_model_name": self.algorithm.model,
            "software_versions": self.algorithm.release,
            "device_serial_number": self.algorithm.sha256,
            "series_description": self.description(kind),
            "series_date": date,
            "series_time": time,
            "content_date": date,
            "content_time": time,
            "specific_character_set": "ISO_IR 192",
            "transfer_syntax_uid": ExplicitVRLittleEndian,
        }

    def sign(self, made: Dataset) -> Dataset:
        """Write who made the object and when, in place of what the library says of itself."""
        made.ContributingEquipmentSequence = [equipment(self.algorithm, self.created_at)]
        made.InstanceCreatorUID = self.algorithm.device_uid
        made.InstanceCreationDate = DA(self.created_at.date())
        made.InstanceCreationTime = TM(self.created_at.time())
        return made

    def locate(self, made: Dataset) -> Dataset:
        """Write which part of the body a series of pictures shows, as the source has it.

        Of a part that there are two of, or may be, the side is told, if only as unknown
        (PS3.3 C.7.3.1).
        """
        source = self.sources[0]
        for keyword in ("BodyPartExamined", "Laterality"):
            if source.get(keyword):
                made[keyword] = source[keyword]
        if source.get("BodyPartExamined") not in UNPAIRED.split() and "Laterality" not in made:
            made.Laterality = ""
        return made

    def report(
        self,
        kind: Kind,
        storage: Callable[..., Dataset],
        evidence: Sequence[Dataset],
        root: Dataset,
        *,
        label: str = "",
    ) -> Dataset:
        """Make an SR of the tree at `root`: complete, unverified, preliminary (PS3.3 C.17.2).

        With a caveat it is partial, and says why.
        """
        made = self.sign(
            storage(
                evidence=evidence,
                content=root,
                is_complete=not self.caveat,
                is_final=False,
                is_verified=False,
                **self.modules(kind, label),
            )
        )
        if self.caveat:
            made.CompletionFlagDescription = foreign.line(self.caveat, LONG_STRING)
        before = self.predecessors.get(label or kind.name)
        if before:
            made.PredecessorDocumentsSequence = [_reference(before)]
        return made


def _reference(before: Predecessor) -> Dataset:
    """Make an item of SOP Instance Reference Macro's hierarchy (PS3.3 table C.17-3)."""
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID = before.sop_class_uid
    instance.ReferencedSOPInstanceUID = before.sop_uid
    series.SeriesInstanceUID = before.series_uid
    series.ReferencedSOPSequence = [instance]
    study.StudyInstanceUID = before.study_uid
    study.ReferencedSeriesSequence = [series]
    return study
