"""Any network of segmentation-models-pytorch: one dropout, the arms of the loop, and what is refused."""

import hashlib
import json

import pytest
import segmentation_models_pytorch as smp
import torch
from test_active_learning import assert_same_rounds, contents, first_round, make_experiment, run
from test_queries import FAIR

from alutils import select_queries
from alutils.experiment import Experiment
from alutils.model import Network, build_unet
from alutils.queries.view import untrained_features
from alutils.report.network import model_costs
from alutils.sampler import decoder_sampler
from alutils.samples import draws_dropout
from alutils.system.checks import ConfigError

ENCODERS = {"dpt": "tu-vit_tiny_patch16_224"}
ALL = sorted(smp.MODEL_ARCHITECTURES_MAPPING)


def build(architecture, encoder=None, **changes):
    encoder = encoder or ENCODERS.get(architecture, "resnet18")
    settings = {"encoder_weights": None, "decoder_channels": (16,) * 5, **changes}
    return build_unet(encoder, architecture=architecture, **settings)


def picture(n=2, size=128):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("strategy", ["mc_dropout", "kcentre"])
@pytest.mark.parametrize("architecture", ["unet", "unetplusplus", "fpn", "deeplabv3plus", "segformer"])
def test_an_arm_runs_stops_and_goes_on(tmp_path, architecture, strategy):
    # 5 images in batches of 4: the last one is alone, which DeepLab cannot train on
    changes = {"architecture": architecture, "strategy": strategy, "query_size": 1, "n_queries": 1}
    experiment = make_experiment(**changes)
    rounds = run(tmp_path / "a", experiment)
    first_round(tmp_path / "b", experiment)
    assert_same_rounds(run(tmp_path / "b", experiment), rounds)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["experiment"]["architecture"] == architecture and record["network"]["name"] == "unet_for"
    assert record["network"]["class"].lower() == f"alutils.model.{architecture}" and record["network"]["code"] is None
    with pytest.raises(ConfigError, match=f"experiment.architecture: {architecture} there, manet here"):
        run(tmp_path / "a", experiment.model_copy(update={"architecture": "manet"}))


@pytest.mark.parametrize("architecture", ALL)
def test_each_architecture_draws_its_dropout_once_before_its_decoder(architecture):
    model, x = build(architecture).eval(), picture()
    assert isinstance(model, Network) and isinstance(model, smp.MODEL_ARCHITECTURES_MAPPING[architecture])
    seen = []
    model.dropout.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.no_grad():
        assert torch.equal(model(x), model(x))  # in evaluation mode nothing is drawn
        assert model(x).shape == (2, 1, 128, 128)
        features = model.encode(x)
        assert torch.equal(features[-1], seen[0]) and features[-1].ndim == 4
        before = [feature.clone() for feature in features if isinstance(feature, torch.Tensor)]
        model.dropout.train()
        sample = decoder_sampler(model, features)
        torch.manual_seed(1)
        found = [sample(), sample()]
        torch.manual_seed(1)
        expected = [model(x), model(x)]
    assert not torch.equal(*expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    after = [feature for feature in features if isinstance(feature, torch.Tensor)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        *((name, None) for name in ALL),
        ("fpn", "mit_b0"),
        ("unet", "efficientnet-b0"),
        ("segformer", "tu-mobilevit_xxs"),
    ],
)
def test_no_dropout_of_the_library_is_left(architecture, encoder):
    model, image = build(architecture, encoder, dropout=0.0), torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    assert not draws_dropout(model, image, Experiment())
    state = torch.get_rng_state()
    model.train()(picture())  # stochastic depth would draw here
    assert torch.equal(torch.get_rng_state(), state)
    model.dropout.p = 0.5
    assert draws_dropout(model, image, Experiment())


def test_a_file_of_weights_fits_whatever_the_decoder_asks_of_the_encoder(tmp_path):
    torch.save(build("unet", seed=3).encoder.state_dict(), tmp_path / "resnet18.pth")
    images = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for architecture, n in {"unet": 512, "pspnet": 128, "deeplabv3plus": 512, "fpn": 512}.items():
        experiment = make_experiment(architecture=architecture, encoder_weights=str(tmp_path / "resnet18.pth"))
        features = untrained_features(images, experiment)
        assert features.shape == (3, n) and features.isfinite().all()


def test_the_u_nets_own_settings_change_no_other_network():
    def names(**changes):
        return {name: tuple(value.shape) for name, value in build("fpn", **changes).state_dict().items()}

    assert names() == names(skip_convolutions=False, decoder_channels=(64, 48, 32, 24, 16))
    assert build("manet").decoder.blocks[-1].conv2[0].out_channels == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "unet++"}, r"architecture: there is no 'unet\+\+'; did you mean 'unet"),
        ({"architecture": "FPN"}, "architecture: there is no 'FPN'; did you mean 'fpn'"),
        (
            {"architecture": "linknet", "encoder": "mit_b0"},
            "architecture: .* build 'linknet' with encoder 'mit_b0'",
        ),
        ({"architecture": "pan"}, r"network: .* its PAN cannot use images \(1, 3, 64, 64\).* another image_size"),
    ],
)
def test_what_cannot_be_built_or_used_is_one_error_before_any_work(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", make_experiment(**settings))
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_time_before_other_architectures_goes_on_as_a_u_net(tmp_path):
    rounds = run(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["experiment"]["architecture"], record["checksum"]
    record["checksum"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert_same_rounds(run(tmp_path), rounds)


def test_the_costs_of_any_network_are_those_of_its_parts():
    costs = model_costs(build("fpn"), 64)
    assert list(costs.index) == ["encoder", "decoder", "segmentation head", "all"]
    assert costs.loc["all", "GFLOP"] == pytest.approx(costs["GFLOP"][:-1].sum())


def test_every_strategy_queries_by_a_network_whose_decoder_ends_at_a_quarter_of_the_size():
    model, generator = build("fpn"), torch.Generator().manual_seed(0)
    pool = torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8, generator=generator)
    for name in FAIR:
        experiment = make_experiment(strategy=name, architecture="fpn")
        chosen, _ = select_queries(model, pool, 2, experiment, generator)
        assert len(set(chosen.tolist())) == 2, name
