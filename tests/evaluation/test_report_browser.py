"""The pages that commands leave behind, opened in a real browser: whole, readable, and silent."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Page, browser_page
from report_example import example_report
from scipy import ndimage

from anatogen.api.scans import doctor
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

IMAGES = "Array.from(document.images, image => [image.complete, image.naturalWidth, image.naturalHeight])"
WIDTHS = "[document.documentElement.scrollWidth, window.innerWidth]"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed: `apt-get install chromium` gives one")
    with browser_page(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_report(tmp_path_factory.mktemp("report") / "report")


def test_a_page_that_calls_home_is_seen(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text('<!DOCTYPE html><img src="http://elsewhere.invalid/pixel.png"><img src="none.png">')
    page.requests.clear()
    page.open(path)
    assert page.requests == ["http://elsewhere.invalid/pixel.png"]
    assert all(width == 0 for _, width, _ in page.evaluate(IMAGES))


def test_every_figure_of_a_report_has_loaded_and_no_request_leaves(page: Page, report: Path) -> None:
    # Alone in its folder, as if it had been mailed.
    alone = report.parent.parent / "mailed" / "page.html"
    alone.parent.mkdir()
    shutil.copy(report, alone)
    page.requests.clear()
    page.open(alone)
    images = page.evaluate(IMAGES)
    assert len(images) == len(list((report.parent / "figures").glob("*.png"))) == 5
    assert all(complete and width > 200 and height > 50 for complete, width, height in images)
    assert page.requests == []
    assert page.evaluate("document.querySelectorAll('script, link, iframe, object').length") == 0
    assert page.evaluate("document.querySelectorAll('article').length") == 3
    assert page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0


def test_what_a_report_shows_stays_text(page: Page, report: Path) -> None:
    page.open(report)
    text = page.evaluate("document.body.innerText")
    assert "<script>alert(1)</script>" in text
    assert "Kernel distance <b>&</b> more" in text
    assert "it stays in your institution" in text
    assert "undefined" not in text and "None" not in text


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_a_report_fits_its_window(page: Page, report: Path, width: int) -> None:
    page.open(report, width)
    content, window = page.evaluate(WIDTHS)
    assert window == width and content <= window


@pytest.fixture(scope="module")
def doctor_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scans, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("doctor")
    generator = np.random.default_rng(0)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = [1, -1, -1, 1]
    for number in range(7):
        noise = ndimage.gaussian_filter(generator.standard_normal((20, 24, 22)), 2) * 1e4
        name = (
            "<b>bold & [red]</b>.nii.gz" if number == 0 else f"a_rather_long_name_of_a_scan_{number}.nii.gz"
        )
        write_nifti(Volume(noise.astype(np.float32), affine), scans / name.replace("/", "-"))
    (scans / "broken.nii").write_bytes(b"no scan")
    doctor(scans, out, progress=False)
    return out / "doctor.html"


def test_the_doctors_page_loads_alone_and_asks_for_nothing(
    page: Page, doctor_page: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "page.html"
    shutil.copy(doctor_page, alone)
    page.requests.clear()
    page.open(alone)
    images = page.evaluate(IMAGES)
    assert len(images) == 2
    assert all(complete and width > 200 and height > 50 for complete, width, height in images)
    assert page.requests == []
    assert page.evaluate("document.querySelectorAll('script, link, iframe, object, b').length") == 0
    text = page.evaluate("document.body.innerText")
    assert "<b>bold & [red]<-b>.nii.gz" in text
    assert "it stays with you" in text and "undefined" not in text and "None" not in text
    for width in (360, 800, 1280):
        page.open(alone, width)
        content, window = page.evaluate(WIDTHS)
        assert window == width and content <= window
