"""The fast path of dropout sampling: the same samples as ``decode``, or ``decode`` itself."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from alutils.model import UNet, build_unet
from alutils.sampler import decoder_sampler


def unet(**changes):
    return build_unet(**{"encoder_weights": None, "decoder_channels": (16, 16, 16, 16, 16), **changes})


def random_norms(model):
    """The model in evaluation mode, with batch norm that changes what it gets."""
    g = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_var, module.weight.data):
                values.copy_(0.5 + torch.rand(values.shape, generator=g))
            for values in (module.running_mean, module.bias.data):
                values.copy_(0.2 * torch.randn(values.shape, generator=g))
    return model.eval()


@pytest.mark.parametrize("skip_convolutions", [True, False])
@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
def test_the_sampler_decodes_with_the_same_dropout_and_leaves_all_as_it_was(encoder, skip_convolutions):
    model = random_norms(
        unet(encoder=encoder, decoder_channels=(48, 40, 32, 24, 16), skip_convolutions=skip_convolutions)
    ).double()  # the rounding in float32 differs from one processor to the next
    model.dropout.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        features = model.encode(x)
        before = [feature.clone() for feature in features]
        model.decoder.forward, forward = None, model.decoder.forward  # the sampler must not need it
        sample = decoder_sampler(model, features)
        torch.manual_seed(1)
        found = [sample() for _ in range(3)]
        model.decoder.forward = forward
        torch.manual_seed(1)
        expected = [model.decode(features) for _ in range(3)]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(one, other) for one, other in zip(before, features, strict=True))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def attention(model):
    model.decoder.blocks[4].attention2 = smp.base.modules.Attention("scse", in_channels=16)


def another_layer(model):
    model.decoder.blocks[1].conv2 = nn.Sequential(model.decoder.blocks[1].conv2, nn.Tanh())


def bilinear(model):
    model.decoder.blocks[2].interpolation_mode = "bilinear"


def hook(model):
    model.decoder.blocks[3].conv1.register_forward_hook(lambda _module, _inputs, output: 2 * output)


def center(model):
    model.decoder.center = nn.Tanh()


def own_decode(model):
    class Subclass(UNet):
        def decode(self, features):
            return 2 * super().decode(features)

    model.__class__ = Subclass


@pytest.mark.parametrize("change", [attention, another_layer, bilinear, hook, center, own_decode])
def test_the_sampler_of_a_changed_decoder_does_what_it_does(change):
    model = random_norms(unet())
    change(model)
    with torch.no_grad():
        features = model.encode(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(decoder_sampler(model.eval(), features)(), model.decode(features))


def test_another_model_is_sampled_by_its_own_decode():
    class Own(nn.Module):
        def decode(self, features):
            return features[-1] + 1

    assert decoder_sampler(Own(), [torch.zeros(2, 1, 4, 4)])().tolist() == torch.ones(2, 1, 4, 4).tolist()
