"""Real viewers in Chromium, and where on the screen what they draw lies in the patient.

Knows how OHIF is served, opened and asked what it shows, and how drawn pixels compare with a mask
whose truth is known. Nothing of how the objects that are shown were made.
"""

import base64
import io
import mimetypes
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from conftest import missing
from numpy.typing import NDArray
from orthanc_server import Orthanc
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, Route, sync_playwright
from scipy import ndimage

CHROMIUM = Path("/usr/bin/chromium")
OHIF_VERSION: Final = "3.13.2"
OHIF = Path(sys.prefix) / f"ohif-{OHIF_VERSION}"
SOFTWARE_GL: Final = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
PATIENCE_MS: Final = 90_000
COLOURED: Final = 12  # between the channels of one pixel; an image of CT has none
CONFIG: Final = """window.config = {
  routerBasename: '/', extensions: [], modes: [], showStudyList: false,
  maxNumberOfWebWorkers: 2, showWarningMessageForCrossOrigin: false, showCPUFallbackMessage: false,
  investigationalUseDialog: {option: 'never'}, defaultDataSourceName: 'orthanc',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'orthanc',
    configuration: {
      friendlyName: 'Orthanc', name: 'orthanc', wadoUriRoot: '/wado', qidoRoot: '/dicom-web',
      wadoRoot: '/dicom-web', imageRendering: 'wadors', thumbnailRendering: 'wadors',
      supportsWildcard: true, omitQuotationForMultipartRequest: true,
      bulkDataURI: {enabled: true},
    },
  }],
};"""
VIEWPORT: Final = "cornerstone.getEnabledElements()[0].viewport"

RGB = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's Chromium with WebGL by software."""
    if not CHROMIUM.exists():
        missing(f"{CHROMIUM} (apt: chromium)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *SOFTWARE_GL]
        )
        yield launched
        launched.close()


@contextmanager
def window(browser: Browser) -> Iterator[Page]:
    with browser.new_context(
        viewport={"width": 1400, "height": 900}, service_workers="block"
    ) as context:
        yield context.new_page()


@dataclass(frozen=True)
class Truth:
    """Values of a patient (slices, rows, columns) whose middle is where all axes are 0.

    Slices go to the head, rows to the back, columns to the left; so it is with `patients.series`.
    """

    values: NDArray[Any]
    spacing_mm: tuple[float, float, float]

    def at(self, places_mm: NDArray[np.float64]) -> NDArray[Any]:
        """Return the values at places (..., left posterior head); 0 where nothing is known."""
        shape = np.array(self.values.shape)
        index = np.rint(places_mm[..., ::-1] / self.spacing_mm + (shape - 1) / 2).astype(int)
        inside = ((index >= 0) & (index < shape)).all(axis=-1)
        slices, rows, columns = np.moveaxis(np.clip(index, 0, shape - 1), -1, 0)
        found = self.values[slices, rows, columns]
        return np.asarray(np.where(inside, found, found.dtype.type(0)))

    def head_mm(self, index: int) -> float:
        """Return where a slice lies, in mm towards the head."""
        return (index - (len(self.values) - 1) / 2) * self.spacing_mm[0]

    def index(self, head_mm: float) -> int:
        """Return which slice lies there."""
        return round(head_mm / self.spacing_mm[0] + (len(self.values) - 1) / 2)

    @property
    def mirrored(self) -> "Truth":
        """The same with left and right changed."""
        return Truth(self.values[:, :, ::-1], self.spacing_mm)

    @property
    def largest_parts(self) -> "Truth":
        """The same with but the largest connected part of each slice."""
        return Truth(np.stack([_largest_part(each) for each in self.values]), self.spacing_mm)


def _largest_part(mask: Mask) -> Mask:
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(mask & (parts == sizes.argmax()))


def dice(one: Mask, other: Mask) -> float:
    """Return twice what is shared over what both have together; 0 if both are empty."""
    together = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / together if together else 0.0


def coloured(picture: RGB) -> Mask:
    """Tell which pixels are not grey."""
    found: Mask = np.ptp(picture.astype(int), axis=-1) > COLOURED
    return found


def hue(colour: NDArray[Any]) -> float:
    """Return the hue of a colour (red, green, blue), in degrees."""
    red, green, blue = colour.astype(float)
    return float(np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360)


class Ohif:
    """OHIF as it is built and published, with the studies of one Orthanc.

    Its files are given to the browser under Orthanc's own address, so nothing stands between the
    viewer and DICOMweb, and nothing goes to the outside: what would is in `strangers`.
    """

    def __init__(self, page: Page, url: str) -> None:
        if not (OHIF / "index.html").exists():
            missing(f"{OHIF} (make test fetches it)")
        self.page, self.url = page, url
        self.strangers: list[str] = []
        page.context.route("**/*", self._answer)

    def open(self, study_uid: str) -> None:
        """Open a study and wait until its first image is drawn."""
        self.page.goto(f"{self.url}/viewer?StudyInstanceUIDs={study_uid}", timeout=PATIENCE_MS)
        self.wait_for_image()
        tour = self.page.get_by_text("Skip all")
        if tour.count():
            tour.click()

    def wait_for_image(self) -> None:
        """Wait until there is an image in the first viewport, and not a black one."""
        self.page.wait_for_function(
            """() => {
              const canvas = document.querySelector('canvas.cornerstone-canvas');
              if (!canvas || !canvas.width || !window.cornerstone) return false;
              const {data} = canvas.getContext('2d').getImageData(
                0, 0, canvas.width, canvas.height);
              let bright = 0;
              for (let at = 0; at < data.length; at += 4) bright += data[at] > 20;
              return bright > data.length / 4 / 20;
            }""",
            timeout=PATIENCE_MS,
            polling=250,
        )

    def series(self) -> list[str]:
        """Give what is written beside each series, in the viewer's order."""
        return [" ".join(each.split()) for each in self._thumbnails().all_inner_texts()]

    def show(self, words: str) -> None:
        """Open the only series with these words beside it, as a person does."""
        self._thumbnails().filter(has_text=words).dblclick()

    def load_segmentation(self) -> None:
        """Confirm that what is previewed is to be loaded, and wait until it is."""
        self.page.locator('[data-cy="yes-hydrate-btn"]').click(timeout=PATIENCE_MS)
        self.page.wait_for_function(
            "() => services.segmentationService.getSegmentations().length > 0",
            timeout=PATIENCE_MS,
        )
        self.wait_for_image()

    def segments(self) -> dict[str, int]:
        """Give the number of each loaded segment by its label."""
        told: dict[str, int] = self.page.evaluate(
            """() => Object.fromEntries(services.segmentationService.getSegmentations()
              .flatMap(each => Object.values(each.segments))
              .map(each => [each.label, each.segmentIndex]))"""
        )
        return told

    def peel(self) -> Iterator[tuple[str, Mask, NDArray[Any]]]:
        """Hide the loaded segments one by one; give where each of them is, and its colour.

        Afterwards all of them are hidden.
        """
        whole = self.picture()
        for label, number in self.segments().items():
            self.hide(number)
            without = self.picture()
            where = coloured(whole) & ~coloured(without)
            yield label, where, whole[where].mean(axis=0)
            whole = without

    def hide(self, number: int) -> None:
        """Hide a loaded segment of which something is drawn."""
        before = self._canvas()
        self.page.evaluate(
            """number => {
              const service = services.segmentationService;
              const {segmentationId} = service.getSegmentations()[0];
              const viewport = services.viewportGridService.getActiveViewportId();
              const [{type}] = service.getSegmentationRepresentations(viewport, {segmentationId});
              service.setSegmentVisibility(viewport, segmentationId, number, false, type);
            }""",
            number,
        )
        self.settle(unlike=before)

    def jump(self, head_mm: float) -> None:
        """Go to the slice nearest to a place along the patient's axis."""
        self.page.evaluate(
            f"""async head => {{
              const viewport = {VIEWPORT}, ids = viewport.getImageIds();
              const places = ids.map(
                id => cornerstone.metaData.get('imagePlaneModule', id).imagePositionPatient[2]);
              const far = places.map(each => Math.abs(each - head));
              await cornerstone.utilities.jumpToSlice(
                viewport.element, {{imageIndex: far.indexOf(Math.min(...far))}});
            }}""",
            head_mm,
        )
        self.settle()

    def settle(self, *, unlike: str = "") -> None:
        """Wait until what is drawn, and not `unlike` it, is the same twice with a pause between."""
        before, now = unlike, self._canvas()
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while now in (unlike, "") or before != now:
            assert time.monotonic() < deadline, "the viewport never came to rest"
            self.page.wait_for_timeout(300)
            before, now = now, self._canvas()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something holds of what is drawn; fail if it never does."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not is_so():
            assert time.monotonic() < deadline, "what was expected was never drawn"
            self.page.wait_for_timeout(300)

    def picture(self) -> RGB:
        """Give what is drawn of image and segments, without texts and lines: (height, width, 3)."""
        return _pixels(self._canvas())

    def places(self) -> NDArray[np.float64]:
        """Give where the middle of each drawn pixel is in the patient: (height, width, 3), mm."""
        width, height, start, right, down = self.page.evaluate(
            f"""() => {{
              const viewport = {VIEWPORT}, {{width, height}} = viewport.canvas;
              return [width, height, ...[[0, 0], [width, 0], [0, height]].map(
                at => Array.from(viewport.canvasToWorld(at)))];
            }}"""
        )
        origin = np.array(start)
        across = (np.arange(width) + 0.5)[None, :, None] * (np.array(right) - origin) / width
        along = (np.arange(height) + 0.5)[:, None, None] * (np.array(down) - origin) / height
        return np.asarray(origin + across + along)

    def open_panel(self) -> None:
        """Open the list of segments or measurements on the right."""
        self.page.locator('[data-cy="side-panel-header-right"]').click()

    def rows(self) -> list[str]:
        """Give the titles in the panel on the right."""
        return list(self.page.locator('[data-cy="data-row-title"]').all_inner_texts())

    def contour(self, words: str) -> Mask:
        """Wait for a measurement with these words beside it; give what its line encloses."""
        self.page.locator("svg.svg-layer g", has_text=words).wait_for(timeout=PATIENCE_MS)
        self.settle()
        points = self.page.locator("svg.svg-layer polyline").first.get_attribute("points")
        height, width, _ = self.picture().shape
        plate = Image.new("1", (width, height))
        corners = [
            tuple(map(float, each.split(",")))
            for each in re.findall(r"[-0-9.]+, [-0-9.]+", points or "")
        ]
        ImageDraw.Draw(plate).polygon(corners, fill=1)
        return np.asarray(plate)

    def next_measurement(self) -> None:
        """Go to the next measurement of the report that is shown."""
        self.page.locator('[data-cy="viewport-action-arrows-right"]').click()

    def document(self) -> bytes:
        """Wait for a document that the browser's own reader shows, and give its bytes."""
        shown = self.page.locator("object[type='application/pdf']")
        shown.wait_for(timeout=PATIENCE_MS)
        data = self.page.evaluate(
            """async url => {
              const read = new FileReader(), blob = await (await fetch(url)).blob();
              await new Promise(done => { read.onload = done; read.readAsDataURL(blob); });
              return read.result;
            }""",
            shown.get_attribute("data"),
        )
        return base64.b64decode(data.partition(",")[2])

    def wait_for_paper(self) -> None:
        """Wait until half of what the browser's own reader shows is white."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        shown = self.page.locator("object[type='application/pdf']")
        while True:
            picture = np.asarray(Image.open(io.BytesIO(shown.screenshot())).convert("L"))
            if (picture > 250).mean() > 0.3:
                return
            assert time.monotonic() < deadline, "no page of paper came"
            self.page.wait_for_timeout(300)

    def text(self) -> str:
        """Give what can be read on the page, in one line."""
        return " ".join(self.page.inner_text("body").split())

    def _thumbnails(self) -> Any:
        return self.page.locator('[data-cy^="study-browser-thumbnail"]')

    def _canvas(self) -> str:
        return str(self.page.evaluate(f"() => {VIEWPORT}.canvas.toDataURL()"))

    def _answer(self, route: Route) -> None:
        asked = urlsplit(route.request.url)
        if asked.scheme.startswith("chrome"):  # Chromium's own reader of PDF
            route.continue_()
        elif f"{asked.scheme}://{asked.netloc}" != self.url:
            self.strangers.append(route.request.url)
            route.abort()
        elif asked.path.startswith(("/dicom-web/", "/wado")):
            route.continue_()
        elif asked.path == "/app-config.js":
            route.fulfill(body=CONFIG, content_type="text/javascript")
        else:
            found = OHIF / asked.path.lstrip("/")
            path = found if found.is_file() else OHIF / "index.html"
            kind, _ = mimetypes.guess_type(path.name)
            route.fulfill(path=path, content_type=kind or "application/octet-stream")


class OrthancsOwn:
    """The viewer of Orthanc's Web viewer plugin, which shows one series at a time."""

    def __init__(self, page: Page, orthanc: Orthanc) -> None:
        self.page, self.orthanc = page, orthanc

    def open(self, series_uid: str) -> None:
        """Open a series and wait until its first image is drawn."""
        series = self.orthanc.find(series_uid)
        self.page.goto(f"{self.orthanc.url}/web-viewer/app/viewer.html?series={series}")
        self.page.wait_for_function(
            "() => /Zoom: *[0-9]/.test(document.body.innerText)", timeout=PATIENCE_MS
        )
        self.page.wait_for_timeout(500)

    def picture(self) -> NDArray[np.uint8]:
        """Give what is drawn: (height, width)."""
        data = self.page.evaluate("() => document.querySelector('canvas').toDataURL()")
        return _pixels(data)[..., 0]

    def magnified(self, values: NDArray[Any]) -> NDArray[Any]:
        """Give what of a slice (rows, columns) lies under each drawn pixel; 0 beside it."""
        width, height, start, end = self.page.evaluate(
            """() => {
              const canvas = document.querySelector('canvas'), {width, height} = canvas;
              const at = (x, y) => cornerstone.canvasToPixel(canvas.parentElement, {x, y});
              return [width, height, at(0.5, 0.5), at(width - 0.5, height - 0.5)];
            }"""
        )
        columns = np.floor(np.linspace(start["x"], end["x"], width)).astype(int)[None]
        rows = np.floor(np.linspace(start["y"], end["y"], height)).astype(int)[:, None]
        inside = (rows >= 0) & (rows < len(values)) & (columns >= 0) & (columns < values.shape[1])
        found = values[np.clip(rows, 0, len(values) - 1), np.clip(columns, 0, values.shape[1] - 1)]
        return np.asarray(np.where(inside, found, values.dtype.type(0)))


def keep(page: Page, name: str) -> None:
    """With PICTURES=FOLDER, keep there what is seen now."""
    if folder := os.environ.get("PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def _pixels(url: str) -> RGB:
    """Read what a canvas gives as the URL of its data."""
    data = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
