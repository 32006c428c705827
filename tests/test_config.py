"""Experiment: the paper's values, and clear refusals."""

import pytest
import yaml

from alutils.experiment import PROFILES_DIR, Experiment
from alutils.system.checks import ConfigError
from alutils.system.settings import parse_settings


def test_the_papers_numbers_follow_from_the_defaults():
    paper = Experiment()
    assert paper.n_training_steps == 8140  # footnote 6
    assert paper.labelled_per_round[0] == 128 and paper.labelled_per_round[-1] == 1280
    assert len(paper.labelled_per_round) == 37
    assert paper.steps_per_round[0] == 40 and paper.steps_per_round[-1] == 400


def test_a_literal_40_queries_would_not_give_8140_steps():
    assert Experiment(n_queries=40).n_training_steps == 9840
    assert Experiment(n_queries=40).labelled_per_round[-1] == 1408


def test_table_ii_ends_at_30_per_cent_of_the_images():
    assert round(100 * Experiment(n_queries=20).labelled_per_round[-1] / 2594, 1) == 29.6


def test_an_incomplete_batch_is_a_step():
    odd = Experiment(cold_start=5, query_size=3, n_queries=2, batch_size=4, epochs=2)
    assert odd.labelled_per_round == (5, 8, 11)
    assert odd.steps_per_round == (4, 4, 6)


def test_the_schedule_ends_with_the_images_that_exist():
    odd = Experiment(cold_start=5, query_size=3, n_queries=2)
    assert [odd.labelled_among(n) for n in (5, 7, 8, 11, 99)] == [(5,), (5, 7), (5, 8), (5, 8, 11), (5, 8, 11)]
    assert Experiment().labelled_among(2594) == Experiment().labelled_per_round


def test_the_paper_profile_lists_every_setting_at_its_default():
    listed = yaml.safe_load((PROFILES_DIR / "paper.yaml").read_text())
    assert set(listed) == set(Experiment.model_fields)
    assert Experiment.from_profile("paper") == Experiment()


@pytest.mark.parametrize("path", sorted(PROFILES_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_can_be_used(path):
    assert Experiment.from_profile(path.stem) == Experiment.from_profile(path)


def test_overrides_take_precedence_over_the_profile():
    assert Experiment.from_profile("quick").epochs != 3
    assert Experiment.from_profile("quick", epochs=3).epochs == 3


def test_it_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Experiment().epochs = 3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"learning_rte": 0.1}, "learning_rate"),
        ({"threshold": 0.1}, "batch_size"),  # nothing is near: all are listed
        ({"epochs": 0}, "epochs.*greater than or equal to 1.*got 0"),
        ({"epochs": 2.5}, "epochs.*integer.*got 2.5"),
        ({"epochs": True}, "epochs.*integer.*got True"),
        ({"epochs": "3"}, "epochs.*integer.*got '3'"),
        ({"learning_rate": "1e-4"}, "learning_rate.*YAML reads 1e-4 as text"),
        ({"learning_rate": float("nan")}, "learning_rate.*finite"),
        ({"dropout": 1.0}, "dropout.*less than 1"),
        ({"image_size": 100}, "image_size.*multiple of 32"),
        ({"loss": "focal"}, "loss.*'bce'.*got 'focal'"),
        ({"tau": 0.1}, "tau: there is no such setting; did you mean 'tau_u'"),
        ({"tau_u": -0.1}, "tau_u.*greater than or equal to 0.*got -0.1"),
        ({"tau_u": 0.6}, "tau_u.*less than or equal to 0.5.*got 0.6"),
        ({"tau_u": float("nan")}, "tau_u.*finite"),
        ({"tau_b": 0.0}, "tau_b.*greater than 0.*got 0.0"),
        ({"tau_b": 1.0}, "tau_b.*less than 1.*got 1.0"),
        ({"annotation": "partly"}, "annotation.*'full'.*'contour-band'.*got 'partly'"),
        ({"blur_kernel": 4}, "blur_kernel.*odd.*4"),
        ({"blur_sigma_min": 0.5}, "blur_sigma_max.*at least.*0.5"),
        ({"normalize_std": (0.2, 0.0, 0.2)}, "normalize_std"),
        ({"decoder_channels": [16, 16]}, "decoder_channels"),
        ({"n_synthetic": [0, 1, 1]}, "n_synthetic.*at least 1"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=named):
        Experiment(**settings)


def test_all_bad_settings_are_named_at_once():
    with pytest.raises(ConfigError) as refused:
        Experiment(epochs=0, momentum=2, sead=1)
    assert all(name in str(refused.value) for name in ("epochs", "momentum", "seed"))


def test_profile_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match="papr.yaml; did you mean 'paper'"):
        Experiment.from_profile("papr")
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: [1")
    with pytest.raises(ConfigError, match=r"mine.yaml is not valid YAML"):
        Experiment.from_profile(file)
    file.write_text("- epochs")
    with pytest.raises(ConfigError, match=r"mine.yaml must be a mapping"):
        Experiment.from_profile(file)
    file.write_text("epochz: 3")
    with pytest.raises(ConfigError, match=r"mine.yaml: [\s\S]*did you mean 'epochs'"):
        Experiment.from_profile(str(file))
    with pytest.raises(ConfigError, match=r"quick.yaml with overrides: [\s\S]*image_size"):
        Experiment.from_profile("quick", image_size=100)


def test_overrides_can_be_yaml_text():
    assert parse_settings("") == {}
    assert parse_settings("{epochs: 3, encoder_weights: null}") == {"epochs": 3, "encoder_weights": None}
    with pytest.raises(ConfigError, match="overrides must be a mapping"):
        parse_settings("epochs=3")
