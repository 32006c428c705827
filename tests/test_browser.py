"""In a browser: the sliders of a notebook move its picture, a lasso marks pixels and is saved, the site fits a phone.

Screenshots are left in ``runs/browser/`` to be looked at.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "runs" / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ALONE = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SECONDS = 1000  # Playwright counts milliseconds
DONE = re.compile(r"\[\d+\]:")  # the prompt of a cell that has run
NOTEBOOK = "05_partial_annotation"
TINY = "{n_synthetic: [32, 8, 8], cold_start: 8, query_size: 8, n_queries: 2, epochs: 2}"

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
    """The address and the folder of a JupyterLab that has a copy of the notebook, without outputs, with less to do."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(ROOT / "notebooks" / f"{NOTEBOOK}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = cell.source.replace('overrides = ""', f'overrides = "{TINY}"')
    nbformat.write(notebook, folder / f"{NOTEBOOK}.ipynb")
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
def page(browser, lab):
    """The notebook in JupyterLab after all its cells were run."""
    address, _ = lab
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}/lab/tree/{NOTEBOOK}.ipynb?reset")
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    expect(prompts.first).to_be_attached(timeout=120 * SECONDS)
    wait_for_kernel(address)
    run_all_cells(page, prompts.first)
    expect(prompts.last).to_have_text(DONE, timeout=400 * SECONDS)
    yield page
    page.close()


def wait_for_kernel(address):
    """Until the notebook's kernel is at rest: asked before, JupyterLab forgets what to run or asks for a kernel."""
    for _ in range(480):
        with urllib.request.urlopen(f"{address}/api/sessions") as answer:
            sessions = json.load(answer)
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


def test_every_cell_ran_without_an_error(page):
    errors = page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"], .jp-mod-error')
    assert errors.all_text_contents() == []
    assert page.locator(".jp-CodeCell").count() > 10


@pytest.mark.parametrize(
    ("explorer", "first_value"), [("explore_thresholds", "tau_u = 0."), ("explore_rounds", "Query 1,")]
)
def test_a_moved_slider_changes_the_picture_and_its_numbers(page, explorer, first_value):
    cell = cell_with(page, f"{explorer}(")
    cell.scroll_into_view_if_needed()
    picture, handle = cell.locator(".jp-OutputArea-output img").first, cell.locator(".noUi-handle").first
    expect(cell.locator(".jp-Cell-outputArea")).to_contain_text(first_value, timeout=20 * SECONDS)
    before, text_before = picture.get_attribute("src"), cell.locator(".jp-Cell-outputArea").inner_text()
    page.screenshot(path=SHOTS / f"{explorer}_before.png")
    handle.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(picture).not_to_have_attribute("src", before, timeout=20 * SECONDS)
    expect(cell.locator(".jp-Cell-outputArea")).not_to_contain_text(text_before.splitlines()[0], timeout=20 * SECONDS)
    assert cell.locator(".jp-OutputArea-output img").count() == 1
    page.screenshot(path=SHOTS / f"{explorer}_after.png")


def test_a_lasso_marks_pixels_of_the_band_alone_and_is_saved(page, lab):
    cell = cell_with(page, "Annotator(")
    cell.scroll_into_view_if_needed()
    canvas = cell.locator("canvas").last
    expect(canvas).to_be_visible(timeout=20 * SECONDS)
    status = cell.locator(".widget-label", has_text="of your")
    expect(status).to_contain_text("0 strokes, 0 pixel changes")
    box = canvas.bounding_box()
    corners = [(0.2, 0.25), (0.8, 0.25), (0.8, 0.8), (0.2, 0.8), (0.2, 0.3)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=15)
    page.mouse.up()
    expect(status).to_contain_text("1 stroke,", timeout=20 * SECONDS)
    page.screenshot(path=SHOTS / "lasso.png")
    counts = re.search(r"(\d+) of your (\d+) pixels marked .* (\d+) pixel changes", status.inner_text())
    marked, decided, changed = map(int, counts.groups())
    assert 0 < marked == changed <= decided
    cell.get_by_role("button", name="save and next").click()
    expect(status).to_contain_text("1 saved", timeout=20 * SECONDS)
    _, folder = lab
    (record,) = (folder / "runs").rglob("by_hand/band/*.json")
    saved = json.loads(record.read_text())
    assert saved["pixels_changed"] == changed and saved["pixels_decided"] == decided and len(saved["strokes"]) == 1
    assert record.with_suffix(".png").is_file()


@pytest.mark.parametrize("width", [375, 1280])
def test_the_site_fits_a_phone_and_a_desktop_and_asks_no_other_host(browser, site, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for name in (
        "index",
        "notebooks/03_uncertainty",
        "notebooks/06_results",
        "website/paper",
        "website/api/paper",
    ):
        page.goto((site / f"{name}.html").as_uri())
        page.screenshot(path=SHOTS / f"site_{Path(name).name}_{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    page.close()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
