"""In a browser: a notebook's sliders move its picture, a person draws and saves, the site fits a phone.

Screenshots are left in ``runs/browser/`` to be looked at.
"""

import contextlib
import functools
import http.server
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure
from playwright.sync_api import expect, sync_playwright

from alutils.lab import frames
from alutils.lab.frames import show_frames

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "runs" / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ALONE = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SECONDS = 1000  # Playwright counts milliseconds
DONE = re.compile(r"\[\d+\]:")  # the prompt of a cell that has run
NOTEBOOKS = ("05_partial_annotation", "05b_partial_loop", "08_annotate")
TINY = "{n_synthetic: [32, 8, 8], cold_start: 8, query_size: 8, n_queries: 2, epochs: 2}"
DRAWING = """
import numpy as np, PIL.Image, torch
from pathlib import Path
from alutils.lab.annotator import Annotator
from alutils.lab.drawing import Request
y, x = np.mgrid[:768, :1024]
far = np.hypot((x - 560) / 250, (y - 360) / 190) + 0.08 * np.sin(5 * np.arctan2(y - 360, x - 560))
noise = np.random.default_rng(0).normal(0, 6, (768, 1024, 1))
skin, lesion = np.array([225, 180, 160]), np.array([120, 70, 60])
share = 1 / (1 + np.exp(-12 * (far - 1)))[..., None]
photo = PIL.Image.fromarray(np.clip(lesion + share * (skin - lesion) + noise, 0, 255).astype(np.uint8))
Path("photos").mkdir(exist_ok=True)
small = np.asarray(photo.resize((512, 512))).transpose(2, 0, 1)
band = np.abs(np.asarray(PIL.Image.fromarray(far).resize((512, 512)))[None] - 1) < 0.3
inner = np.asarray(PIL.Image.fromarray(far).resize((512, 512)))[None] < 0.7
for i in range(3):
    photo.save(f"photos/lesion{i}.jpg", quality=95)
requests = [Request(f"lesion{i}", small, band, inner) for i in range(3)]
Annotator(requests, "drawn", "photos")
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, for instance Debian's package chromium")


@pytest.fixture(scope="module")
def browser():
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ALONE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address and the folder of a JupyterLab that has copies of the notebooks, without outputs, with less to do."""
    folder = tmp_path_factory.mktemp("lab")
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
                cell.source = cell.source.replace('overrides = ""', f'overrides = "{TINY}"')
        nbformat.write(notebook, folder / f"{name}.ipynb")
    drawing = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(DRAWING)])
    drawing.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(drawing, folder / "drawing.ipynb")
    shutil.copy(ROOT / "welcome.md", folder)
    (folder / "lab").mkdir()
    shutil.copy(ROOT / "notebooks" / "01_data.ipynb", folder / "lab")
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, seen or not
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    }
    for name, values in settings.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = {
        **os.environ,
        **{f"JUPYTER_{name}": str(folder / place) for name, place in places.items()},
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_CONFIG_PATH": str(ROOT / "workflow" / "jupyter"),  # as make lab does
        "ALUTILS_RUNS": str(folder / "runs"),
    }
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=", "--ip=127.0.0.1"]
    command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"]
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, server, folder / "lab.log")
        yield address, folder
    finally:
        server.terminate()
        server.wait()


def wait_for(address, server, log):
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api").close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def page_of(browser, lab):
    """A function of a notebook's name: its page in JupyterLab after all its cells were run."""
    address, _ = lab
    run = functools.cache(lambda name: run_notebook(browser, address, name, {"width": 1400, "height": 1000}))
    yield run
    for name in NOTEBOOKS:
        run(name).close()


def run_notebook(browser, address, notebook, viewport):
    page = browser.new_page(viewport=viewport)
    page.goto(f"{address}/lab/tree/{notebook}.ipynb?reset")
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    expect(prompts.first).to_be_attached(timeout=120 * SECONDS)
    wait_for_kernel(address, notebook)
    run_all_cells(page, prompts.first)
    expect(prompts.last).to_have_text(DONE, timeout=400 * SECONDS)
    return page


def wait_for_kernel(address, notebook):
    """Until the notebook's kernel is at rest: asked before, JupyterLab forgets what to run or asks for a kernel."""
    for _ in range(480):
        with urllib.request.urlopen(f"{address}/api/sessions") as answer:
            sessions = [one for one in json.load(answer) if one["name"] == f"{notebook}.ipynb"]
        if sessions and sessions[0]["kernel"]["execution_state"] == "idle":
            return
        time.sleep(0.25)
    raise AssertionError(f"the notebook's kernel did not start: {sessions}")


def run_all_cells(page, first_prompt):
    """Until the first one has run: the page may hear of the kernel later than the server."""
    for _ in range(5):
        assert page.locator(".jp-Dialog").all_text_contents() == []
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(AssertionError):
            expect(first_prompt).to_have_text(DONE, timeout=40 * SECONDS)
            return
    raise AssertionError("the notebook does not run")


def cell_with(page, text):
    """The code cell whose source has ``text``."""
    return page.locator(".jp-CodeCell", has=page.locator(".jp-InputArea-editor", has_text=text)).first


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_ran_without_an_error(page_of, name):
    page = page_of(name)
    errors = page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"], .jp-mod-error')
    assert errors.all_text_contents() == []
    assert page.locator(".jp-CodeCell").count() > 10


@pytest.mark.parametrize(
    ("name", "explorer", "first_value"),
    [("05_partial_annotation", "explore_thresholds", "tau_u = 0."), ("05b_partial_loop", "explore_rounds", "Query 1,")],
)
def test_a_moved_slider_changes_the_picture_and_its_numbers(page_of, name, explorer, first_value):
    page = page_of(name)
    cell = cell_with(page, f"{explorer}(")
    cell.scroll_into_view_if_needed()
    picture, handle = cell.locator(".jp-OutputArea-output img").first, cell.locator(".noUi-handle").first
    expect(cell.locator(".jp-Cell-outputArea")).to_contain_text(first_value, timeout=20 * SECONDS)
    before, text_before = picture.get_attribute("src"), cell.locator(".jp-Cell-outputArea").inner_text()
    page.screenshot(path=SHOTS / f"{explorer}_before.png")
    assert cell.locator(".noUi-target").first.bounding_box()["width"] > 350  # wide enough to aim with
    handle.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(picture).not_to_have_attribute("src", before, timeout=20 * SECONDS)
    expect(cell.locator(".jp-Cell-outputArea")).not_to_contain_text(text_before.splitlines()[0], timeout=20 * SECONDS)
    assert cell.locator(".jp-OutputArea-output img").count() == 1
    page.screenshot(path=SHOTS / f"{explorer}_after.png")


# The drawing tool


STOPWATCH = """line => {
    window.times = [];
    let pressed = 0;
    addEventListener("pointerup", () => { pressed = performance.now(); }, true);
    new MutationObserver(() => requestAnimationFrame(() => {
        if (pressed) window.times.push(Math.round(performance.now() - pressed));
        pressed = 0;
    })).observe(line, {childList: true, characterData: true, subtree: true});
}"""


def drag(page, stage, corners, button="left"):
    """With the mouse, over shares of the stage."""
    box = stage.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down(button=button)
    for place in places[1:]:
        page.mouse.move(*place, steps=15)
    page.mouse.up(button=button)


def counts(status):
    """Of the status line: pixels marked, pixels to decide, strokes, pixels changed."""
    found = re.search(r"(\d+) of your (\d+) pixels marked .* (\d+) strokes?, (\d+) pixel", status.inner_text())
    return list(map(int, found.groups()))


def test_a_lasso_marks_pixels_of_the_band_alone_and_is_saved(page_of, lab):
    page = page_of("08_annotate")
    cell = cell_with(page, "Annotator(")
    cell.scroll_into_view_if_needed()
    stage, status = cell.locator(".stage"), cell.get_by_role("status")
    expect(status).to_contain_text("0 strokes, 0 pixel changes", timeout=20 * SECONDS)
    cell.get_by_role("button", name="lasso", exact=True).click()
    drag(page, stage, [(0.2, 0.25), (0.8, 0.25), (0.8, 0.8), (0.2, 0.8), (0.2, 0.3)])
    expect(status).to_contain_text("1 stroke,", timeout=20 * SECONDS)
    page.screenshot(path=SHOTS / "lasso.png")
    marked, decided, _, changed = counts(status)
    assert 0 < marked == changed <= decided
    cell.get_by_role("button", name="save and next").click()
    expect(status).to_contain_text("1 saved", timeout=20 * SECONDS)
    _, folder = lab
    (record,) = (folder / "runs").rglob("by_hand/band/*.json")
    saved = json.loads(record.read_text())
    assert saved["pixels_changed"] == changed and saved["pixels_decided"] == decided and len(saved["strokes"]) == 1
    assert record.with_suffix(".png").is_file()


def test_a_person_annotates_photographs_of_1024_by_768_with_mouse_and_keys(browser, lab):
    address, folder = lab
    page = run_notebook(browser, address, "drawing", {"width": 1024, "height": 768})
    stage, status = page.locator(".stage"), page.locator(".alutils-pen").get_by_role("status")
    place, news = page.locator(".alutils-pen b").first, page.locator(".alutils-pen .news")
    expect(place).to_have_text("1 of 3: lesion0", timeout=20 * SECONDS)
    page.locator(".alutils-pen").evaluate("element => element.scrollIntoView()")
    assert stage.locator("img").evaluate("img => [img.naturalWidth, img.naturalHeight]") == [1024, 768]
    status.evaluate(STOPWATCH)
    page.screenshot(path=SHOTS / "annotator_start.png")

    for n in range(1, 9):  # the brush is chosen at the beginning
        angle = n * 0.7
        drag(
            page,
            stage,
            [(0.54 + 0.18 * math.cos(a), 0.47 + 0.24 * math.sin(a)) for a in (angle, angle + 0.4, angle + 0.8)],
        )
        expect(status).to_contain_text(f"{n} stroke", timeout=20 * SECONDS)
    expect(news).to_have_text("● unsaved changes")
    page.screenshot(path=SHOTS / "annotator_brush.png")
    print("ms from the released button to the answer:", page.evaluate("window.times"))
    before = counts(status)
    assert 0 < before[0] == before[3]

    page.keyboard.press("Control+z")
    expect(status).not_to_contain_text(f" {before[0]} of your", timeout=20 * SECONDS)
    page.keyboard.press("Control+Shift+Z")
    expect(status).to_contain_text(f" {before[0]} of your", timeout=20 * SECONDS)
    page.keyboard.press("Control+z")
    expect(status).not_to_contain_text(f" {before[0]} of your", timeout=20 * SECONDS)
    page.keyboard.press("Control+y")
    expect(status).to_contain_text(f" {before[0]} of your", timeout=20 * SECONDS)

    page.keyboard.press("e")
    page.keyboard.press("]")
    drag(page, stage, [(0.3, 0.47), (0.5, 0.47)])
    expect(status).to_contain_text("9 strokes", timeout=20 * SECONDS)
    assert counts(status)[0] < before[0]

    page.keyboard.press("v")
    page.keyboard.press("+")
    page.keyboard.press("+")
    drag(page, stage, [(0.5, 0.5), (0.6, 0.5)], button="right")
    page.keyboard.press("l")
    expect(page.get_by_role("button", name="lasso", exact=True)).to_have_attribute("aria-pressed", "true")
    drag(page, stage, [(0.2, 0.2), (0.8, 0.2), (0.8, 0.9), (0.2, 0.9), (0.2, 0.3)])
    expect(status).to_contain_text("10 strokes", timeout=20 * SECONDS)
    page.screenshot(path=SHOTS / "annotator_zoom.png")
    page.keyboard.press("Enter")
    expect(place).to_have_text("2 of 3: lesion1", timeout=20 * SECONDS)
    assert len(json.loads((folder / "drawn" / "lesion0.json").read_text())["strokes"]) == 10

    page.keyboard.press("n")
    expect(place).to_have_text("3 of 3: lesion2", timeout=20 * SECONDS)
    page.keyboard.press("a")
    expect(place).to_have_text("2 of 3: lesion1", timeout=20 * SECONDS)
    page.keyboard.press("a")
    expect(news).to_have_text("done: run the next cell", timeout=20 * SECONDS)
    assert json.loads((folder / "drawn" / "lesion2.json").read_text())["strokes"] == []
    assert page.locator(".jp-Cell").count() == 1  # no key reached the notebook
    page.screenshot(path=SHOTS / "annotator_done.png")
    page.close()


def test_a_slider_over_frames_moves_without_a_kernel_and_asks_no_other_host(browser, monkeypatch):
    shown = []
    monkeypatch.setattr(frames, "display", lambda bundle, metadata, raw: shown.append(bundle["text/html"]))
    show_frames(lambda value: (Figure(), f'it is "{value}"', "An empty figure."), "x", [1, 2, 3])
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_content(shown[0] + shown[0])
    page.get_by_label("x").first.press("ArrowRight")
    expect(page.locator("pre")).to_have_text(['it is "2"', 'it is "1"'])
    assert page.locator("img").first.get_attribute("alt") == 'it is "2". An empty figure.'
    assert page.locator("img").first.evaluate("image => image.naturalWidth") > 0
    page.close()
    assert [url for url in asked if not url.startswith("data:")] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_site_fits_a_phone_and_a_desktop_and_asks_no_other_host(browser, site, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for name in (
        "website/start",
        "website/teaching",
        "website/measurements",
        "notebooks/03_uncertainty",
        "notebooks/06_results",
        "genindex",
        "website/paper",
        "website/api/paper",
    ):
        page.goto((site / f"{name}.html").as_uri())
        page.screenshot(path=SHOTS / f"site_{Path(name).name}_{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    page.close()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_the_start_page_shows_picture_and_paths_on_one_screen(browser, site, width, height):
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/website/start.html")
    for part in (page.locator("article img"), page.locator(".path").last):
        box = part.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height and box["height"] > 40
    page.close()


def test_the_search_finds_a_page_and_shows_words_of_it(browser, site):
    serve = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/search.html?q=entropy")
        excerpt = page.locator("#search-results li", has_text="3 · Uncertainty").locator("p.context")
        expect(excerpt).to_contain_text("entrop", ignore_case=True, timeout=20 * SECONDS)
        assert len(excerpt.inner_text().split()) > 15 and ".ipynb" not in excerpt.inner_text()
        page.close()
        server.shutdown()


def test_make_lab_opens_on_a_page_whose_links_lead_to_the_copies(browser, lab):
    address, _ = lab
    (opened,) = re.findall(r"--LabApp.default_url=(\S+)", (ROOT / "Makefile").read_text())
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}{opened}?reset")
    shown = page.locator(".jp-MarkdownViewer")
    expect(shown.get_by_role("heading", name="Welcome")).to_be_visible(timeout=120 * SECONDS)
    page.screenshot(path=SHOTS / "welcome.png")
    shown.get_by_role("link", name="01_data").click()
    expect(page.get_by_role("tab", name="01_data.ipynb")).to_be_visible(timeout=60 * SECONDS)
    wait_for_kernel(address, "01_data")  # stopped while a kernel starts, JupyterLab would hang
    page.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
