"""Experiment: the paper's values, its groups and profiles. What is refused is tested in test_bad_settings.py."""

import pytest
import yaml

from alutils.experiment import PROFILES_DIR, Experiment, Training
from alutils.system.checks import ConfigError
from alutils.system.settings import parse_settings


def test_the_papers_numbers_follow_from_the_defaults():
    paper = Experiment()
    assert paper.n_training_steps == 8140  # footnote 6
    assert paper.labelled_per_round[0] == 128 and paper.labelled_per_round[-1] == 1280
    assert len(paper.labelled_per_round) == 37
    assert paper.steps_for(128) == 40 and paper.steps_for(1280) == 400


def test_a_literal_40_queries_would_not_give_8140_steps():
    assert Experiment(n_queries=40).n_training_steps == 9840
    assert Experiment(n_queries=40).labelled_per_round[-1] == 1408


def test_table_ii_ends_at_30_per_cent_of_the_images():
    assert round(100 * Experiment(n_queries=20).labelled_per_round[-1] / 2594, 1) == 29.6


def test_an_incomplete_batch_is_a_step():
    odd = Experiment(cold_start=5, query_size=3, n_queries=2, batch_size=4, epochs=2)
    assert odd.labelled_per_round == (5, 8, 11)
    assert odd.n_training_steps == 4 + 4 + 6


def test_the_schedule_ends_with_the_images_that_exist():
    odd = Experiment(cold_start=5, query_size=3, n_queries=2)
    assert [odd.labelled_among(n) for n in (5, 7, 8, 11, 99)] == [(5,), (5, 7), (5, 8), (5, 8, 11), (5, 8, 11)]
    assert Experiment().labelled_among(2594) == Experiment().labelled_per_round


def test_a_group_alone_has_the_experiments_values():
    experiment = Experiment(epochs=3, rotation=5.0, batch_size=2)
    assert experiment.training == Training(epochs=3, rotation=5.0, batch_size=2)
    names = ("pictures", "acquisition", "labelling", "controls", "network", "training")
    together = {name: value for group in names for name, value in dict(getattr(experiment, group)).items()}
    assert {**together, "seed": 0} == experiment.model_dump()


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


def test_all_bad_settings_are_named_at_once():
    with pytest.raises(ConfigError) as refused:
        Experiment(epochs=0, momentum=2, sead=1)
    assert all(name in str(refused.value) for name in ("epochs", "momentum", "seed"))


def test_profile_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match="papr.yaml; did you mean 'paper'"):
        Experiment.from_profile("papr")
    (tmp_path / "mine.yaml").write_text("epochz: 3")
    with pytest.raises(ConfigError, match=r"mine.yaml: [\s\S]*did you mean 'epochs'"):
        Experiment.from_profile(str(tmp_path / "mine.yaml"))
    with pytest.raises(ConfigError, match=r"quick.yaml with overrides: [\s\S]*image_size"):
        Experiment.from_profile("quick", image_size=100)


def test_overrides_can_be_yaml_text():
    assert parse_settings("") == parse_settings("# nothing") == {}
    assert parse_settings("{epochs: 3, encoder_weights: null}") == {"epochs": 3, "encoder_weights": None}
    for text in ("epochs=3", "0", "[]"):
        with pytest.raises(ConfigError, match="overrides must be a mapping"):
            parse_settings(text)
