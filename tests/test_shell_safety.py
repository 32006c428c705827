"""No parameter reaches a shell or is run as code, from Snakemake's command line down to a notebook's cell."""

import json
import shutil

import nbformat
import papermill
import pytest
import yaml
from test_batch import ONE_OF_EACH, Batch, ConfigError, project, snakemake  # noqa: F401

NASTY = [
    "two words",
    "it's",
    'say "hi"',
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED;",
    "a\nb; touch PWNED",
    "{braces}",
    "%s %d",
    "日本 é",
    "--dry-run",
    "~",
    "\\",
    '"""',
    "''' + __import__('os').system('touch PWNED') + '''",
    "*?[x]",
    "&& false",
]


def test_what_papermill_passes_arrives_as_it_is_and_runs_nothing(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("values, one = [], ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import json\nfrom pathlib import Path\n_ = Path('got').write_text(json.dumps([values, one]))"
        ),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "in.ipynb")
    one = "\n".join(NASTY)
    papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"values": NASTY, "one": one},
        cwd=tmp_path, kernel_name="python3", progress_bar=False,
    )  # fmt: skip
    assert json.loads((tmp_path / "got").read_text()) == [NASTY, one]
    assert not list(tmp_path.rglob("PWNED*"))


@pytest.mark.parametrize(
    "name",
    ['it\'s "$(touch PWNED)" `touch PWNED`; touch PWNED & %s é', "--help $HOME \\ *?[x] ~ | touch PWNED"],
    ids=["quotes", "dashes"],
)
def test_folders_profiles_and_overrides_reach_the_notebook_as_they_are(project, name):  # noqa: F811
    profile = project / f"{name}.yaml"
    shutil.copy(project / "profiles" / "quick.yaml", profile)
    (project / f"data {name}").mkdir()
    shutil.copy(project / "alutils/data/descriptions/ph2.yaml", project / f"data {name}" / "description.yaml")
    overrides = {"encoder_weights": " ".join(NASTY)}
    config = {
        **ONE_OF_EACH, "profile": profile, "data": project / f"data {name}", "overrides": json.dumps(overrides),
        "runs": project / f"runs {name}", "figures": f"figures {name}",
    }  # fmt: skip
    target = project / f"runs {name}" / "01_data" / "done.json"
    env = {"CUDA_VISIBLE_DEVICES": "0", "TMPDIR": str(project)}
    status, said = snakemake(project, target, project=project, env=env, **config)
    assert not list(project.parent.rglob("PWNED*"))
    assert status == 0, said
    job = json.loads(target.read_text())["parameters"]
    assert job["profile"] == str(profile) and job["data_root"] == str(config["data"])
    assert yaml.safe_load(job["overrides"]) == overrides
    given = json.loads((target.parent / "given.json").read_text())[0]
    assert yaml.safe_load(given) == overrides


@pytest.mark.parametrize("name", ["a\nb", "{braces}", "{params.job}", " ", "a\0b"])
def test_a_folder_that_snakemake_would_read_otherwise_is_refused(name):
    for key in ("runs", "figures"):
        with pytest.raises(ConfigError, match=f"^{key}: must "):
            Batch({key: name})
