"""The demo page is one well-formed, self-contained file that escapes whatever it shows."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anatogen.dataset.manifest import Grid
from anatogen.workflow.demo_page import write_demo_page

GRID = Grid(
    shape=(8, 10, 12),
    spacing_mm=(4.0, 3.0, 3.0),
    affine=[[0, 0, 3, 0], [0, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 1]],
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class _Page(HTMLParser):
    """Collects images and checks that every element is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _content(**changed: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    volumes = [generator.uniform(-1, 1, GRID.shape).astype(np.float32) for _ in range(2)]
    history = [{"step": step, "minutes": step / 60, "loss": 1 / (1 + step)} for step in range(30)]
    content: dict[str, Any] = {
        "real": volumes,
        "reconstructed": volumes,
        "synthetic": volumes,
        "grid": GRID,
        "timings": {"Prepare": 3.2, "Train <b>both</b>": 125.0},
        "histories": {"Autoencoder": history, "Diffusion": history, "Not trained": []},
        "numbers": {"PSNR & more": "30.1 dB"},
        "commands": ["# <script>alert(1)</script>", "anatogen prepare 'a&b' out"],
        "next_steps": ["anatogen doctor my-scans"],
    }
    return content | changed


def test_page_is_well_formed_self_contained_and_escaped(tmp_path: Path) -> None:
    path = write_demo_page(tmp_path / "demo", **_content())
    assert path == tmp_path / "demo" / "index.html"
    assert [entry.name for entry in path.parent.iterdir()] == ["index.html"]
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert len(page.images) == 3
    for image in page.images:
        assert image["alt"]
        data = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"), validate=True)
        assert Image.open(io.BytesIO(data)).width > 200
    assert not {"script", "link", "iframe"} & set(page.seen)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    for shown in (
        "Train &lt;b&gt;both",
        "PSNR &amp; more",
        "# &lt;script&gt;",
        "a&amp;b",
        "2 min 05 s",
        "my-scans",
    ):
        assert shown in text
    assert "Not trained" not in text


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first = write_demo_page(tmp_path / "one", **_content())
    second = write_demo_page(tmp_path / "two", **_content())
    assert first.read_bytes() == second.read_bytes()


def test_what_was_not_done_is_left_out(tmp_path: Path) -> None:
    bare = _content(reconstructed=[], timings={}, histories={}, numbers={}, commands=[], next_steps=[])
    text = write_demo_page(tmp_path, **bare).read_text(encoding="utf-8")
    assert "Reconstructed" not in text
    assert "What was run" not in text
    assert "<table>" not in text
    assert "In 0.0 s" not in text


@pytest.mark.parametrize("synthetic", [[np.zeros((8, 10, 11))], [np.zeros((8, 10))]])
def test_volumes_of_another_shape_are_refused(tmp_path: Path, synthetic: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="grid's shape"):
        write_demo_page(tmp_path, **_content(synthetic=synthetic))
