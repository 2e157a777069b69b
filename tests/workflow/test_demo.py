"""The demo goes the whole way, ends with one self-contained page, and can be called again."""

import importlib.util
import re
from html.parser import HTMLParser

import pytest
from synthetic_dataset import TINY_FLOW

from anatogen.config.presets import training_settings
from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import WaveletFlowSettings
from anatogen.core.errors import UserError
from anatogen.workflow import demo

if importlib.util.find_spec("nilearn") is None:
    pytest.skip("the demo needs nilearn: pip install 'anatogen[demo]'", allow_module_level=True)


class _Page(HTMLParser):
    """Collects elements and pictures, and checks that every element is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_demo_ends_with_a_page_and_a_second_call_changes_nothing(tmp_path, monkeypatch, capsys):
    small = [text for text in TINY_FLOW if not text.startswith("flow_training.steps")]
    own = parse_overrides([*small, "training.check_steps=2"], WaveletFlowSettings)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(demo, "NUM_SCANS", 12)
    monkeypatch.setattr(demo, "NUM_SAMPLES", 2)
    monkeypatch.setattr(demo, "_NUM_SHOWN", 2)
    monkeypatch.setattr(
        demo, "training_settings", lambda minutes: training_settings(overrides=own, minutes=minutes)
    )
    page = demo.run_demo(tmp_path, minutes=0.05)
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "index.html"
    for part in (
        "Real scans",
        "Synthetic scans",
        "Synthetic scans after a longer training",
        "brains-mr",
        "anatogen prepare",
        "anatogen train",
        "Generator",
        "Training steps",
        "data:image/png",
    ):
        assert part in text
    parsed = _Page()
    parsed.feed(text)
    parsed.close()
    assert text.startswith("<!DOCTYPE html>") and parsed.open == []
    # Planes, and the curves of the training.
    assert [bool(image["alt"]) for image in parsed.images] == [True] * 2
    assert not {"script", "link", "iframe"} & parsed.seen
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert "anatogen sample" in capsys.readouterr().out
    written = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    demo.run_demo(tmp_path, minutes=0.05)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == written


def test_a_demo_of_no_time_is_refused(tmp_path):
    with pytest.raises(UserError, match="minutes is 0"):
        demo.run_demo(tmp_path / "demo", minutes=0)
    assert not (tmp_path / "demo").exists()
