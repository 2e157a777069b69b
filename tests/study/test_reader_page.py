"""The reader's page in a real browser: a study read by keyboard, in spite of everything."""

import io
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from serving import (
    NUM_SLICES,
    STEP_TO_RIGHT,
    level,
    make_readable_study,
    serving,
    serving_here,
    tokens,
)

from anatogen.study import niivue
from anatogen.study.store import (
    DATABASE_NAME,
    Study,
    all_readers,
    answers_of,
    items_of,
    open_study,
)

# WebGL without a graphics card.
_OPTIONS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
MIDDLE = NUM_SLICES // 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed: `apt-get install chromium` gives one")
    if not niivue.is_there():
        pytest.skip(f"NiiVue is not there: `{niivue.COMMAND}` fetches it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser of one reader; what any of its pages complains about, or asks elsewhere, fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 640})
    complaints: list[str] = []
    hosts: set[str] = set()
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("console", lambda message: complaints.append(message.text) if _is_bad(message) else None)
    context.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    yield context
    context.close()
    assert complaints == []
    assert len({host for host in hosts if host}) == 1


def _is_bad(message: Any) -> bool:
    # That the server is away, or refuses, is what some tests are about.
    meant = any(part in message.text for part in ("net::ERR_", "status of 422", "CONTEXT_LOST"))
    return message.type in ("error", "warning") and not meant


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[Study, str]]]:
    """Makes a study of these protocols and serves it; gives the address too."""
    with ExitStack() as running:

        def start(*protocols: str) -> tuple[Study, str]:
            study = _make(tmp_path, *protocols)
            return study, running.enter_context(serving_here(study))

        yield start


def _make(folder: Path, *protocols: str) -> Study:
    return make_readable_study(folder / "study", readers=("ada",), protocols=protocols)


def _open(context: BrowserContext, study: Study, url: str) -> Page:
    page = context.new_page()
    page.goto(f"{url}/r/{tokens(study)['ada']}")
    return page


def _begin(page: Page) -> None:
    page.locator("dialog[open]").wait_for()
    page.keyboard.press("Enter")
    _wait(page)


def _wait(page: Page) -> None:
    """Until the volume is drawn."""
    page.locator("#panes[aria-busy=false]").wait_for()
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def _state(page: Page, state: str) -> None:
    page.locator(f"#state[data-state={state}]").wait_for()


def _pixels(page: Page, pane: int = 0) -> np.ndarray:
    """uint8 (H, W), what is seen of a pane."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    picture = page.locator(".pane canvas").nth(pane).screenshot()
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"))


def _slice_seen(page: Page, pane: int = 0) -> int:
    """Which of the phantom's slices fills the middle of the pane, in both halves."""
    pixels = _pixels(page, pane).astype(int)
    rows, columns = pixels.shape
    # As radiologists hang it: the patient's right, which is darker, on the left.
    right, left = pixels[rows // 2, columns * 2 // 5], pixels[rows // 2, columns * 3 // 5]
    assert left - right == pytest.approx(STEP_TO_RIGHT, abs=2)
    found = [index for index in range(NUM_SLICES) if abs(level(index) - left) <= 2]
    assert len(found) == 1, left
    assert page.locator("#slice-text").inner_text() == f"{found[0] + 1} of {NUM_SLICES}"
    return found[0]


def _stored(study: Study) -> dict[tuple[int, str], int]:
    """What the study holds, by position and question."""
    again = open_study(study.folder)
    with again.session() as session:
        reader = next(reader for reader in all_readers(session) if reader.name == "ada")
        positions = {item.id: item.position for item in items_of(session, reader)}
        answers = answers_of(session, reader)
    return {(positions[item], question): answer.value for (item, question), answer in answers.items()}


def _rows(study: Study) -> list[tuple[str, int]]:
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        return connection.execute("SELECT client_id, revision FROM answer").fetchall()


def test_the_right_slice_is_drawn(context: BrowserContext, serve: Callable[..., Any]) -> None:
    study, url = serve("paper")
    page = _open(context, study, url)
    _begin(page)
    assert _slice_seen(page) == MIDDLE
    page.keyboard.press("ArrowDown")
    assert _slice_seen(page) == MIDDLE + 1
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    assert _slice_seen(page) == MIDDLE - 2
    page.keyboard.press("Home")
    assert _slice_seen(page) == 0
    page.keyboard.press("ArrowUp")
    assert _slice_seen(page) == 0
    page.keyboard.press("End")
    assert _slice_seen(page) == NUM_SLICES - 1
    page.mouse.move(400, 400)
    page.mouse.wheel(0, -120)
    assert _slice_seen(page) == NUM_SLICES - 2
    page.locator("#slice").fill("3")
    assert _slice_seen(page) == 2
    # Dragging down goes on through the stack.
    page.mouse.move(400, 300)
    page.mouse.down()
    page.mouse.move(400, 317)
    page.mouse.up()
    assert _slice_seen(page) == 4
    # The graphics card starts anew, as after sleep.
    with page.expect_navigation():
        page.evaluate(
            "void document.querySelector('.pane canvas').getContext('webgl2')"
            ".getExtension('WEBGL_lose_context').loseContext()"
        )
    _begin(page)
    assert _slice_seen(page) == MIDDLE


def test_window_zoom_and_planes(context: BrowserContext, serve: Callable[..., Any]) -> None:
    study, url = serve("paper")
    page = _open(context, study, url)
    _begin(page)
    before = _pixels(page)
    page.mouse.move(400, 300)
    page.mouse.down(button="right")
    page.mouse.move(400, 230)
    page.mouse.up(button="right")
    assert _pixels(page).mean() > before.mean() + 10, "dragged up it is brighter"
    page.keyboard.press("r")
    assert np.array_equal(_pixels(page), before)
    page.keyboard.press("w")
    assert page.locator("#preset").input_value() == "More contrast"
    assert not np.array_equal(_pixels(page), before)
    page.keyboard.press("r")
    page.keyboard.press("-")
    assert (_pixels(page) > 30).mean() < 0.8 * (before > 30).mean(), "zoomed out there is less of it"
    page.keyboard.press("r")
    page.keyboard.press("v")
    planes = _pixels(page)
    # Across the slices all levels are seen at once.
    levels = [level(index) for index in range(NUM_SLICES)]
    assert all((abs(planes.astype(int) - value) <= 2).sum() > 200 for value in levels)
    page.keyboard.press("c")
    assert not np.array_equal(_pixels(page), planes), "the crosshair goes"


def test_a_whole_study_by_keyboard_with_a_reload_and_a_lost_server(
    context: BrowserContext, tmp_path: Path
) -> None:
    study = _make(tmp_path, "paper", "turing", "2afc")
    with serving(study.folder) as server:
        page = _open(context, study, server.url)
        _begin(page)
        expected: dict[tuple[int, str], int] = {}
        questions = ["realistic_image_appearance", "consistency_between_slices", "anatomic_correctness"]
        for position in range(4):
            _wait(page)
            assert page.locator("#count").inner_text() == f"Case {position + 1} of 12"
            # Enter alone does not pass over questions.
            page.keyboard.press("Enter")
            assert page.locator("#count").inner_text() == f"Case {position + 1} of 12"
            for place, question in enumerate(questions):
                if (position, question) in expected:
                    continue
                value = (position + place) % 4 + 1
                page.keyboard.press(str(value))
                expected[position, question] = value
            if position == 1:
                # In the middle of a study, the second case answered but not left.
                _state(page, "saved")
                page.reload()
                _wait(page)
                assert page.locator("#count").inner_text() == "Case 3 of 12"
                page.keyboard.press("Backspace")
                _wait(page)
                shown = page.locator(".question").nth(2).locator("[aria-checked=true]").inner_text()
                assert shown.split("\n")[0] == str(expected[1, questions[2]])
                # Back, and another answer.
                page.keyboard.press("1")
                expected[1, questions[2]] = 1
            if position == 2:
                _state(page, "saved")
                server.kill()
                page.keyboard.press("2")
                expected[2, questions[2]] = 2
                _state(page, "lost")
                assert "Not saved yet: 1 answer" in page.locator("#state").inner_text()
            page.keyboard.press("Enter")
            if position == 2:
                # The next volume was there already: reading goes on without the server.
                _wait(page)
                page.keyboard.press("1")
                expected[3, questions[0]] = 1
                assert "Not saved yet: 2 answers" in page.locator("#state").inner_text()
                # That the one after it does not come is no matter yet.
                page.wait_for_timeout(500)
                assert page.locator("#message").is_hidden()
                server.start()
                _state(page, "saved")
        _begin(page)
        for position in range(4, 8):
            _wait(page)
            for key in ["1", *str(70 + position)]:
                page.keyboard.press(key)
            expected |= {(position, "real_or_synthetic"): 1, (position, "confidence"): 70 + position}
            if position == 5:
                # By arrows, too.
                page.keyboard.press("ArrowLeft")
                expected[position, "confidence"] -= 1
            page.keyboard.press("Enter")
        _begin(page)
        for position in range(8, 12):
            _wait(page)
            assert page.locator(".pane:visible").count() == 2
            page.keyboard.press("ArrowDown")
            assert _slice_seen(page, 0) == _slice_seen(page, 1) == MIDDLE + 1
            page.keyboard.press("2")
            expected[position, "which_is_real"] = 1
            page.keyboard.press("Enter")
        page.get_by_text("All cases are answered").wait_for()
        page.get_by_text("Everything is saved").wait_for()
        assert _stored(study) == expected
        clients = [client for client, _ in _rows(study)]
        assert len(clients) == len(set(clients))


def test_answers_outlive_a_page_that_dies_without_a_server(context: BrowserContext, tmp_path: Path) -> None:
    study = _make(tmp_path, "2afc")
    with serving(study.folder) as server:
        page = _open(context, study, server.url)
        _begin(page)
        server.kill()
        page.keyboard.press("2")
        _state(page, "lost")
        page.close()
        server.start()
        page = _open(context, study, server.url)
        _wait(page)
        assert page.locator("#count").inner_text() == "Case 2 of 4"
        _state(page, "saved")
        assert _stored(study) == {(0, "which_is_real"): 1}
        # What was sent is not sent again.
        page.reload()
        _wait(page)
        assert len(_rows(study)) == 1


def test_an_answer_whose_acknowledgement_is_lost_is_stored_once(
    context: BrowserContext, serve: Callable[..., Any]
) -> None:
    study, url = serve("2afc")
    page = _open(context, study, url)
    _begin(page)
    swallowed = []

    def swallow(route: Any) -> None:
        if not swallowed:
            swallowed.append(route.fetch().status)
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/api/answers", swallow)
    page.keyboard.press("1")
    _state(page, "lost")
    _state(page, "saved")
    assert swallowed == [200]
    assert len(_rows(study)) == 1


def test_only_the_study_acknowledges_an_answer(context: BrowserContext, serve: Callable[..., Any]) -> None:
    study, url = serve("2afc")
    page = _open(context, study, url)
    _begin(page)
    # As a proxy's page that asks to log in.
    login = {"status": 200, "content_type": "text/html", "body": "<h1>Log in</h1>"}
    page.route("**/api/answers", lambda route: route.fulfill(**login), times=1)
    page.keyboard.press("1")
    _state(page, "lost")
    _state(page, "saved")
    assert _stored(study) == {(0, "which_is_real"): 0}


def test_a_refused_answer_is_shown_and_does_not_hold_up_the_others(
    context: BrowserContext, serve: Callable[..., Any]
) -> None:
    study, url = serve("2afc")
    page = _open(context, study, url)
    _begin(page)
    refuse = {"status": 422, "content_type": "application/json", "body": '{"detail": "no such question"}'}
    page.route("**/api/answers", lambda route: route.fulfill(**refuse), times=1)
    page.keyboard.press("1")
    _state(page, "refused")
    assert "1 answer could not be saved: no such question" in page.locator("#state").inner_text()
    page.keyboard.press("Enter")
    _wait(page)
    page.keyboard.press("2")
    _until(lambda: _stored(study) == {(1, "which_is_real"): 1})


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come")


def test_a_volume_that_stops_coming_is_asked_for_again(
    context: BrowserContext, serve: Callable[..., Any]
) -> None:
    study, url = serve("turing")
    page = context.new_page()
    page.clock.install()
    # As a connection that died while the laptop slept: no answer, and no error.
    page.route("**/api/items/**", lambda route: None, times=1)
    page.goto(f"{url}/r/{tokens(study)['ada']}")
    page.locator("dialog[open]").wait_for()
    page.keyboard.press("Enter")
    page.clock.run_for(31_000)
    page.get_by_text("No connection to the study. Trying again…").wait_for()
    page.clock.run_for(1_000)
    page.locator("#panes[aria-busy=false]").wait_for()


def test_time_away_is_counted_apart(context: BrowserContext, serve: Callable[..., Any]) -> None:
    study, url = serve("2afc")
    page = context.new_page()
    page.clock.install()
    page.goto(f"{url}/r/{tokens(study)['ada']}")
    page.locator("dialog[open]").wait_for()
    page.clock.run_for(60_000)
    page.keyboard.press("Enter")
    page.clock.run_for(100)
    page.locator("#panes[aria-busy=false]").wait_for()
    page.clock.run_for(10_000)
    page.keyboard.press("ArrowDown")
    # A closed laptop: no timer runs meanwhile.
    page.clock.fast_forward(3_600_000)
    page.keyboard.press("p")
    page.clock.fast_forward(600_000)
    page.keyboard.press("Enter")
    page.locator("dialog[open]").wait_for(state="detached")
    # In real time: the page is told a moment later that the sheet is closed.
    page.wait_for_timeout(200)
    page.clock.run_for(5_000)
    page.keyboard.press("1")
    _until(lambda: len(_rows(study)) == 1)
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        [(active, idle)] = connection.execute("SELECT seconds_active, seconds_idle FROM answer").fetchall()
    # 10 s, half a minute after the key, 5 s; not the instructions nor the pause.
    assert active == pytest.approx(45, abs=3)
    assert idle == pytest.approx(3570, abs=3)
    # What is spent after the answer is sent when the case is left.
    page.clock.run_for(20_000)
    page.keyboard.press("Enter")
    _until(lambda: len(_rows(study)) == 2)
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        rows = connection.execute("SELECT seconds_active, value, revision FROM answer ORDER BY id").fetchall()
    assert rows[1] == (pytest.approx(65, abs=3), 0, 0)


def test_a_clock_that_is_set_back_makes_no_reading_time(
    context: BrowserContext, serve: Callable[..., Any]
) -> None:
    study, url = serve("2afc")
    page = context.new_page()
    page.clock.install(time=1_800_000_000)
    page.goto(f"{url}/r/{tokens(study)['ada']}")
    page.locator("dialog[open]").wait_for()
    page.keyboard.press("Enter")
    page.clock.run_for(100)
    page.locator("#panes[aria-busy=false]").wait_for()
    page.clock.set_system_time(1_800_000_000 - 3600)
    page.clock.run_for(120_000)
    page.keyboard.press("1")
    _until(lambda: len(_rows(study)) == 1)
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        [(active, idle)] = connection.execute("SELECT seconds_active, seconds_idle FROM answer").fetchall()
    assert active == pytest.approx(30, abs=3)
    assert idle == pytest.approx(90, abs=3)


def _change_first_case_elsewhere(context: BrowserContext, study: Study, url: str, keys: str) -> None:
    """Presses keys at the first case, answered or not, on another device."""
    assert context.browser is not None
    tablet = context.browser.new_context()
    other = _open(tablet, study, url)
    if not _rows(study):
        _begin(other)
        other.keyboard.press(keys[0])
        _state(other, "saved")
        keys = keys[1:]
    _wait(other)
    other.keyboard.press("Backspace")
    other.get_by_text("Case 1 of 4", exact=True).wait_for()
    _wait(other)
    for key in keys:
        other.keyboard.press(key)
        _state(other, "saved")
    tablet.close()


def test_time_at_a_case_never_undoes_a_change_that_was_made_elsewhere(
    context: BrowserContext, serve: Callable[..., Any]
) -> None:
    study, url = serve("2afc")
    page = _open(context, study, url)
    _begin(page)
    page.keyboard.press("1")
    _state(page, "saved")
    _change_first_case_elsewhere(context, study, url, "2")
    assert _stored(study) == {(0, "which_is_real"): 1}
    # Here the page knows the first answer alone, and sends the time since with it.
    page.wait_for_timeout(1200)
    before = len(_rows(study))
    page.keyboard.press("Enter")
    _until(lambda: len(_rows(study)) > before)
    assert _stored(study) == {(0, "which_is_real"): 1}


def test_a_choice_counts_after_another_device_has_changed_it_twice(
    context: BrowserContext, serve: Callable[..., Any]
) -> None:
    study, url = serve("2afc")
    page = _open(context, study, url)
    _begin(page)
    page.keyboard.press("1")
    _state(page, "saved")
    _change_first_case_elsewhere(context, study, url, "21")
    _until(lambda: len(_rows(study)) == 3)
    # This page knows the first of these three alone.
    page.keyboard.press("2")
    _until(lambda: _stored(study) == {(0, "which_is_real"): 1})
    _state(page, "saved")
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        revisions = connection.execute("SELECT revision FROM answer ORDER BY id").fetchall()
    assert revisions == [(0,), (1,), (2,), (1,), (3,)]
    # From there it goes on as ever.
    page.keyboard.press("1")
    _until(lambda: _stored(study) == {(0, "which_is_real"): 0})
    assert len(_rows(study)) == 6


def test_a_choice_that_waited_overrules_nothing(context: BrowserContext, serve: Callable[..., Any]) -> None:
    """Made without a server, it says nothing of what another device has changed since."""
    study, url = serve("2afc")
    page = _open(context, study, url)
    _begin(page)
    page.clock.install()
    page.route("**/api/answers", lambda route: route.abort("connectionfailed"))
    page.keyboard.press("1")
    _state(page, "lost")
    _change_first_case_elsewhere(context, study, url, "12")
    _until(lambda: _stored(study) == {(0, "which_is_real"): 1})
    page.unroute("**/api/answers")
    page.clock.fast_forward(90_000)
    _state(page, "saved")
    assert len(_rows(study)) == 3
    assert _stored(study) == {(0, "which_is_real"): 1}


def test_a_link_is_read_in_one_window_at_a_time(context: BrowserContext, serve: Callable[..., Any]) -> None:
    study, url = serve("turing")
    page = _open(context, study, url)
    _begin(page)
    page.keyboard.press("1")
    page.keyboard.press("7")
    newer = _open(context, study, url)
    page.locator("dialog[open]").get_by_text("another window").wait_for()
    # What was being typed in the older one is kept.
    _wait(newer)
    _until(lambda: _stored(study) == {(0, "real_or_synthetic"): 1, (0, "confidence"): 7})
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    newer.locator("dialog[open]").get_by_text("another window").wait_for()
    _wait(page)
    assert len(_stored(study)) == 2


def test_a_paused_reader_stays_paused(context: BrowserContext, serve: Callable[..., Any]) -> None:
    study, url = serve("2afc")
    page = _open(context, study, url)
    _begin(page)
    page.keyboard.press("p")
    page.get_by_role("heading", name="Paused").wait_for()
    page.keyboard.press("1")
    _until(lambda: _paused(study))
    page.reload()
    page.get_by_role("heading", name="Paused").wait_for()
    page.keyboard.press("Enter")
    _until(lambda: not _paused(study))
    _begin(page)
    assert _rows(study) == []


def _paused(study: Study) -> bool:
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        return bool(connection.execute("SELECT paused FROM reader").fetchone()[0])


def test_everything_is_reached_and_named_without_a_mouse(
    context: BrowserContext, serve: Callable[..., Any]
) -> None:
    study, url = serve("turing")
    page = _open(context, study, url)
    _begin(page)
    names = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(() => { const e = document.activeElement; return e.ariaLabel || e.labels?.[0]?.innerText ||"
            " document.getElementById(e.getAttribute('aria-labelledby'))?.innerText || e.innerText })()"
        )
        if name in names:
            break
        names.append(name)
    shown = " ".join(names)
    for control in [
        "Pause",
        "Stack",
        "Planes",
        "Window",
        "Zoom in",
        "Reset",
        "Slice",
        "Real",
        "Back",
        "Next",
    ]:
        assert control in shown, names
    assert all(name.strip() for name in names)
    # Chosen with Tab and Space as well.
    page.get_by_role("radio", name="Synthetic").focus()
    page.keyboard.press("Space")
    page.get_by_role("slider", name="How sure are you?").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    _until(lambda: _stored(study) == {(0, "real_or_synthetic"): 0, (0, "confidence"): 52})
    assert page.locator("#live[aria-live]").inner_text().startswith("Case 1 of 4, question 2 of 2")
    assert page.locator("#live-state[aria-live]").inner_text() == "All answers saved"


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1024, 768), (768, 1024)])
def test_everything_fits_the_screen(
    browser: Browser, serve: Callable[..., Any], width: int, height: int
) -> None:
    study, url = serve("paper")
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 1280)
    page = _open(context, study, url)
    _begin(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") <= height
    for index in range(3):
        box = page.locator(".option").last.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= height
        page.locator(".option").nth(index).click()
    next_button = page.locator("#next").bounding_box()
    assert next_button is not None
    assert next_button["y"] + next_button["height"] <= height
    assert _pixels(page).std() > 10
    context.close()


def test_the_organisers_page(context: BrowserContext, serve: Callable[..., Any]) -> None:
    study, url = serve("2afc")
    page = context.new_page()
    page.goto(f"{url}/o/{tokens(study)['']}")
    page.get_by_text("0 of 1 readers are done.").wait_for()
    assert page.locator("#download").is_disabled()
    page.get_by_label("I want them before all readers are done").check()
    with page.expect_download() as download:
        page.locator("#download").click()
    assert Path(download.value.path()).read_text().startswith("reader,position,protocol,case")
