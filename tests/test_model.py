"""The network: the parts of section IV-C in their places, its seed, other encoders."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

from alutils.model import build_unet
from alutils.system.checks import ConfigError

THIN = (16, 16, 16, 16, 16)


def unet(**changes):
    return build_unet(**{"encoder_weights": None, "decoder_channels": THIN, **changes})


def test_the_encoder_computes_what_torchvisions_resnet_computes():
    reference = torchvision.models.resnet18(weights=None).eval()
    model = unet().eval()
    model.encoder.load_state_dict(reference.state_dict())
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stem = reference.relu(reference.bn1(reference.conv1(x)))
        bottom = reference.layer4(reference.layer3(reference.layer2(reference.layer1(reference.maxpool(stem)))))
        assert torch.allclose(model.encoder(x)[-1], bottom, atol=1e-5)


def test_skips_and_bottleneck_pass_a_1x1_convolution_with_batch_norm():
    model = unet()
    assert [lateral[0].weight.shape for lateral in model.laterals] == [(c, c, 1, 1) for c in (64, 64, 128, 256, 512)]
    assert all(isinstance(lateral[1], nn.BatchNorm2d) for lateral in model.laterals)
    x = torch.rand(2, 3, 64, 64)
    image, *features = model.encode(x)
    assert image is x
    assert [tuple(f.shape[1:]) for f in features] == [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert all((f >= 0).all() for f in features)


def test_every_convolution_but_the_last_is_followed_by_batch_norm():
    n_convolutions = sum(isinstance(m, nn.Conv2d) for m in unet().modules())
    n_norms = sum(isinstance(m, nn.BatchNorm2d) for m in unet().modules())
    assert n_convolutions == n_norms + 1


def test_without_the_1x1_parts_it_is_the_librarys_unet():
    model = unet(skip_convolutions=False, dropout=0.0).eval()
    plain = smp.Unet("resnet18", encoder_weights=None, decoder_channels=THIN).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))


def test_dropout_is_at_the_bottleneck_only_and_only_in_training():
    model = unet(dropout=0.5)
    assert [type(m) for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)] == [nn.Dropout]
    seen = []
    model.dropout.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    x = torch.rand(2, 3, 64, 64)
    model.train()(x)
    before, after = seen.pop()
    assert before.shape == (2, 512, 2, 2)
    kept = after != 0
    assert torch.allclose(after[kept], 2 * before[kept])
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(x), model(x))


def test_encode_then_decode_is_the_forward_pass():
    model = unet().eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.decode(model.encode(x)), model(x))


def test_the_seed_sets_the_initial_weights_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    first, again, other = unet(seed=1), unet(seed=1), unet(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.encoder.conv1.weight, other.encoder.conv1.weight)


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "mit_b0", "tu-mobilenetv3_small_050"])
def test_other_encoders_work_by_name(encoder):
    assert unet(encoder=encoder).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_an_unknown_encoder_is_named():
    with pytest.raises(ConfigError, match="no encoder 'resnet19'"):
        build_unet("resnet19", None)
    for weights in (None, "imagenet"):  # that timm knows no such name is no fault of the network
        with pytest.raises(ConfigError, match=r"'tu-nosuchthing' \(Unknown model"):
            build_unet("tu-nosuchthing", weights)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dropout": 1.0}, "^dropout: must be at least 0 and below 1, got 1.0"),
        ({"dropout": "half"}, "^dropout: must be .* got 'half'"),
        ({"decoder_channels": (16, 16)}, r"^decoder_channels: must be 5 numbers of filters, got \(16, 16\)"),
        ({"architecture": 3}, "^architecture: there is no '3'"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_else_is_blamed(setting, message):
    with pytest.raises(ConfigError, match=message):
        unet(**setting)
