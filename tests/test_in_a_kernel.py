"""Outputs that depend on a kernel, from one executed notebook: the progress line, and explorers with their controls."""

import nbclient
import nbformat
import pytest

CELLS = (
    """
from alutils.system.progress import progress_bar
with progress_bar("counting", 30, "step") as bar:
    for _ in range(30):
        bar.update()
    bar.set_postfix(loss="0.5")
""",
    """
import torch
from alutils.lab.explorers import explore_thresholds
images, p = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
explorer = explore_thresholds(images, images[:, :1], p)
explorer
""",
    "explorer  # in an editor",
    "explorer.controls['tau_u'].value = 0.5",
)


class Client(nbclient.NotebookClient):
    """Runs the cells as papermill does, but says of some which cell they are, as JupyterLab does of all."""

    async def async_start_new_kernel_client(self, **settings):
        client = await super().async_start_new_kernel_client(**settings)
        message = client.session.msg

        def with_cell(kind, content=None, *args, **kwargs):
            made = message(kind, content, *args, **kwargs)
            if "in an editor" in (content or {}).get("code", ""):
                made["metadata"]["cellId"] = "some-cell"
            return made

        client.session.msg = with_cell
        return client


@pytest.fixture(scope="module")
def outputs():
    """Of each cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    Client(notebook, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


def test_progress_is_saved_as_it_was_at_the_end(outputs):
    (line,) = outputs[0]
    text = line.data["text/plain"]
    assert text.startswith("counting: 100%") and "30/30" in text and "loss=0.5" in text


def test_without_an_editor_an_explorer_is_a_picture_and_its_numbers(outputs):
    picture, numbers, controls = outputs[1]
    assert picture.metadata["image/jpeg"]["alt"].startswith("tau_u = 0.250")
    assert numbers.data["text/plain"].startswith("tau_u = 0.250")
    assert list(controls.data) == ["text/plain"]


def test_in_an_editor_it_has_controls_and_follows_them(outputs):
    picture, numbers, controls = outputs[2]
    assert picture.metadata["image/jpeg"]["alt"].startswith("tau_u = 0.500")
    assert numbers.data["text/plain"].startswith("tau_u = 0.500")
    assert set(controls.data) == {"text/plain", "application/vnd.jupyter.widget-view+json"}
