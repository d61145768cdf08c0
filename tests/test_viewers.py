"""What radiologists see of our objects in real viewers: OHIF, Orthanc's viewer, DCMTK's page.

With PICTURES=FOLDER what each test sees is kept there; `viewers/README.md` tells of it.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import drafts
import numpy as np
import pytest
import viewer
from numpy.typing import NDArray
from orthanc_server import DICOMWEB, PLUGINS, Orthanc
from playwright.sync_api import Browser, expect
from pydicom import Dataset
from viewer import Ohif, Truth

from dicom_node.demo import patients, sample
from model.data.corpus.case import VIEWS, Case
from model.data.corpus.telling import report
from sr_templates import Finding, encode
from sr_templates.profile import GENERIC, KEY_IMAGES, PDF, PROFILES, Profile, chosen

pytestmark = [pytest.mark.orthanc, pytest.mark.chromium, pytest.mark.slow]

WEBVIEWER = PLUGINS / "libOrthancWebViewer.so"
PROTOCOL = drafts.PROTOCOLS["ct_chest"]
COLOURS = {each.target.label: each.target.colour_rgb for each in PROTOCOL.targets if each.target}
NOTICE = "AI DRAFT - NOT FOR DIAGNOSTIC USE - UNVERIFIED"
ASKED = PROFILES["ohif"].like(extras=(PDF, KEY_IMAGES))
SEED = 1  # a chest with a nodule and a mass
SAID = {
    "technique": "Yes, in the arterial phase.",
    "airways": "Yes.",
    "mass": "There is a nodule in the lower part of the left lung, and a mass in the upper part.",
}
ENOUGH = 0.95  # Dice of what is drawn and what is true
AIR_HU, LEVEL_HU, WIDTH_HU = -1000, 40, 400


@dataclass(frozen=True)
class Shown:
    """One patient as images, as objects of all profiles, and as what is true."""

    images: list[Dataset]
    objects: dict[str, Dataset]
    grey: Truth
    organs: dict[str, Truth]  # by label of the segment
    answers: dict[str, str]  # by id of the question

    @property
    def study_uid(self) -> str:
        return str(self.images[0].StudyInstanceUID)

    @property
    def busiest_mm(self) -> float:
        """Where the slice is on which the smallest segment is as large as can be."""
        areas = [each.values.sum(axis=(1, 2)) for each in self.organs.values()]
        return self.grey.head_mm(int(np.min(areas, axis=0).argmax()))

    def of(self, profile: Profile) -> list[Dataset]:
        return [self.objects[each] for each in chosen(profile, self.objects)]


@pytest.fixture(scope="module")
def shown() -> Shown:
    case = padded(Case.make(SEED, view=VIEWS[0]))
    images = patients.series(case)
    sources, volume = drafts.stack(images)
    order = [int(each.InstanceNumber) - 1 for each in sources]
    organs = {label: Truth(case.organ(label.lower()), case.spacing_mm) for label in COLOURS}
    answers = SAID | {"impression": report(case)}
    findings = [
        Finding(
            each,
            answers.get(each.id, "No."),
            volume.with_array(organs[each.target.label].values[order].astype(np.uint8))
            if each.target
            else None,
        )
        for each in PROTOCOL.questions
    ]
    objects = encode(
        PROTOCOL,
        sources,
        findings,
        drafts.ALGORITHM,
        job_id=drafts.JOB,
        image=volume,
        created_at=drafts.CREATED_AT,
        profiles=[GENERIC, ASKED],
    )
    return Shown(images, objects, Truth(windowed(case.voxels), case.spacing_mm), organs, answers)


def padded(case: Case) -> Case:
    """Add air until the columns come in eights, as those of scanners do.

    Orthanc 1.10 gives out no frame of a bit a voxel that has other columns.
    """
    room = ((0, 0), (0, 0), (0, -case.voxels.shape[2] % 8))
    return replace(
        case,
        voxels=np.pad(case.voxels, room, constant_values=AIR_HU),
        labels=np.pad(case.labels, room),
        planted=np.pad(case.planted, room),
    )


def windowed(hounsfield: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the grey values that the window of the series makes (PS3.3 C.11.2.1.2)."""
    shown = np.clip((hounsfield - LEVEL_HU) / WIDTH_HU + 0.5, 0, 1)
    return (shown * 255).astype(np.uint8)


def unlikeness(picture: NDArray[np.uint8], grey: NDArray[np.uint8]) -> float:
    """Return how far two pictures are from each other, as grey values of 255 on average."""
    return float(np.abs(picture.astype(float) - grey).mean())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with viewer.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def ohif(
    tmp_path_factory: pytest.TempPathFactory, browser: Browser, shown: Shown
) -> Iterator[Ohif]:
    """OHIF with the study as a destination of its profile gets it, opened."""
    folder = tmp_path_factory.mktemp("ohif")
    with Orthanc(folder, plugins=[DICOMWEB]) as orthanc, viewer.window(browser) as page:
        orthanc.upload(sample.write([*shown.images, *shown.of(ASKED)], folder / "files"))
        opened = Ohif(page, orthanc.url)
        opened.open(shown.study_uid)
        opened.open_panel()
        yield opened
        assert opened.strangers == []


def test_ohif_draws_the_images_where_they_are(ohif: Ohif, shown: Shown) -> None:
    ohif.show("CT CHEST")
    ohif.wait_for_image()
    ohif.jump(shown.busiest_mm)
    places = ohif.places()
    # A slice that is not loaded yet is black, and black is at rest.
    ohif.wait_until(lambda: unlikeness(ohif.picture()[..., 0], shown.grey.at(places)) < 3)
    viewer.keep(ohif.page, "ohif-ct")
    picture = ohif.picture()[..., 0]
    assert unlikeness(picture, shown.grey.mirrored.at(places)) > 10


def test_ohif_draws_each_segment_on_its_organ(ohif: Ohif, shown: Shown) -> None:
    ohif.show("AI DRAFT segmentation")
    ohif.load_segmentation()
    ohif.jump(shown.busiest_mm)
    expect(ohif.page.locator('[data-cy="data-row-title"]')).to_have_text(list(COLOURS))
    viewer.keep(ohif.page, "ohif-seg")
    places = ohif.places()
    for label, where, colour in ohif.peel():
        organ = shown.organs[label]
        assert viewer.dice(where, organ.at(places)) >= ENOUGH, label
        # The measure can fail: a mirrored mask is far from what is drawn.
        assert viewer.dice(where, organ.mirrored.at(places)) < 0.7, label
        assert viewer.hue(colour) == pytest.approx(viewer.hue(np.array(COLOURS[label])), abs=5), (
            label
        )


def test_ohif_reads_the_draft(ohif: Ohif, shown: Shown) -> None:
    ohif.show("AI DRAFT report:")
    for words in ("CT Chest Report", NOTICE, "Findings", "Impressions", *shown.answers.values()):
        expect(ohif.page.get_by_text(words).first).to_be_visible(timeout=viewer.PATIENCE_MS)
    viewer.keep(ohif.page, "ohif-draft")


def test_ohif_shows_the_key_images(ohif: Ohif, shown: Shown) -> None:
    ohif.show("AI DRAFT key images")
    expect(ohif.page.locator("[data-cy=viewport-overlay-top-left]")).to_contain_text("key images")
    ohif.wait_for_image()
    ohif.settle()
    viewer.keep(ohif.page, "ohif-key-images")
    made = shown.objects["key-images.1"].pixel_array
    # Where there is no patient, places are those of the picture's own pixels.
    columns, rows = np.rint(ohif.places()[..., :2]).astype(int).transpose(2, 0, 1)
    height, width, _ = made.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    assert inside.mean() > 0.8
    assert unlikeness(ohif.picture()[inside], made[rows[inside], columns[inside]]) < 5


def test_ohif_shows_the_report_page(ohif: Ohif, shown: Shown) -> None:
    ohif.show("AI DRAFT report page")
    assert ohif.document() == shown.objects["pdf"].EncapsulatedDocument
    ohif.wait_for_paper()
    viewer.keep(ohif.page, "ohif-pdf")


def test_ohif_draws_each_measurement_around_its_organ(ohif: Ohif, shown: Shown) -> None:
    ohif.show("AI DRAFT measurements")
    for index, question in enumerate(PROTOCOL.targets):
        assert question.target is not None
        if index:
            ohif.next_measurement()
        enclosed = ohif.contour(question.target.type.meaning)
        if index == 0:
            viewer.keep(ohif.page, "ohif-measurements")
        organ = shown.organs[question.target.label].largest_parts
        places = ohif.places()
        assert viewer.dice(enclosed, organ.at(places)) >= ENOUGH, question.id
        assert viewer.dice(enclosed, organ.mirrored.at(places)) < 0.7, question.id


def test_dcmtk_makes_a_page_of_the_draft_that_reads_well(
    browser: Browser, shown: Shown, tool: Callable[[str], str], tmp_path: Path
) -> None:
    (path,) = sample.write([shown.objects["draft"]], tmp_path)
    subprocess.run([tool("dsr2html"), path, tmp_path / "draft.html"], check=True, timeout=60)
    with viewer.window(browser) as page:
        page.goto((tmp_path / "draft.html").as_uri())
        viewer.keep(page, "dsr2html-draft")
        expect(page.get_by_role("heading", name="CT Chest Report")).to_be_visible()
        for words in (NOTICE, "Findings", "Impressions", *shown.answers.values()):
            expect(page.get_by_text(words).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, shown: Shown) -> Iterator[Orthanc]:
    """An Orthanc with its own viewer, and what a destination gets of which nothing is known."""
    folder = tmp_path_factory.mktemp("webviewer")
    with Orthanc(folder, plugins=[WEBVIEWER]) as started:
        started.upload(sample.write([*shown.images, *shown.of(GENERIC)], folder / "files"))
        yield started


def test_orthancs_viewer_draws_the_images(orthanc: Orthanc, browser: Browser, shown: Shown) -> None:
    with viewer.window(browser) as page:
        own = viewer.OrthancsOwn(page, orthanc)
        own.open(str(shown.images[0].SeriesInstanceUID))
        viewer.keep(page, "orthanc-ct")
        lowest = shown.grey.values[0]
        assert unlikeness(own.picture(), own.magnified(lowest)) < 5
        assert unlikeness(own.picture(), own.magnified(lowest[:, ::-1])) > 10


def test_orthancs_viewer_draws_the_frames_of_the_segmentation(
    orthanc: Orthanc, browser: Browser, shown: Shown
) -> None:
    made = shown.objects["seg"]
    first = made.PerFrameFunctionalGroupsSequence[0]
    number = first.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    organ = shown.organs[made.SegmentSequence[number - 1].SegmentLabel]
    mask = organ.values[organ.index(first.PlanePositionSequence[0].ImagePositionPatient[2])]
    with viewer.window(browser) as page:
        own = viewer.OrthancsOwn(page, orthanc)
        own.open(str(made.SeriesInstanceUID))
        viewer.keep(page, "orthanc-seg")
        assert viewer.dice(own.picture() > 127, own.magnified(mask)) >= ENOUGH
        assert viewer.dice(own.picture() > 127, own.magnified(mask[:, ::-1])) < 0.7


def test_the_page_of_what_was_seen_names_the_viewer_and_has_its_pictures() -> None:
    folder = Path(__file__).parent / "viewers"
    page = (folder / "README.md").read_text()
    assert f"OHIF {viewer.OHIF_VERSION} " in page
    shown = set(re.findall(r"\((\S+\.png)\)", page))
    assert shown == {each.name for each in folder.glob("*.png")}
