"""The network: the right weights in the right place, the parts of section IV-C, clear errors."""

import hashlib
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

from alutils.model import WeightsError, build_unet

THIN = (16, 16, 16, 16, 16)


def unet(**changes):
    return build_unet(**{"encoder_weights": None, "decoder_channels": THIN, **changes})


def test_a_file_of_torchvision_weights_is_really_in_the_encoder(tmp_path):
    torch.manual_seed(5)
    published = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(published, tmp_path / "resnet18.pth")
    model = build_unet(encoder_weights=tmp_path / "resnet18.pth", decoder_channels=THIN)
    loaded = model.encoder.state_dict()
    assert loaded.keys() == {key for key in published if not key.startswith("fc.")}
    assert all(torch.equal(loaded[key], published[key]) for key in loaded)


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
    )
    model.dropout.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.encode(x)
        before = [feature.clone() for feature in features]
        model.decoder.forward, forward = None, model.decoder.forward  # the sampler must not need it
        sample = model.sampler(features)
        torch.manual_seed(1)
        found = [sample() for _ in range(3)]
        model.decoder.forward = forward
        torch.manual_seed(1)
        expected = [model.decode(features) for _ in range(3)]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
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


@pytest.mark.parametrize("change", [attention, another_layer, bilinear, hook, center])
def test_the_sampler_of_a_changed_decoder_does_what_it_does(change):
    model = random_norms(unet())
    change(model)
    with torch.no_grad():
        features = model.encode(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(model.eval().sampler(features)(), model.decode(features))


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


def test_weights_that_cannot_be_fetched_say_what_to_do_offline(monkeypatch):
    def no_network(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", no_network)
    with pytest.raises(WeightsError, match="could not be fetched.*encoder_weights=null.*resnet18-f37072fd.pth"):
        build_unet(encoder_weights="imagenet")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no file .*imagnet; encoder_weights must be imagenet"):
        build_unet(encoder_weights="imagnet")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(WeightsError, match=r"text.pth does not fit"):
        build_unet(encoder_weights=tmp_path / "text.pth")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(
        WeightsError, match=r"resnet18.pth does not fit[\s\S]*Missing key[\s\S]*path of .*resnet34's weights"
    ):
        build_unet("resnet34", tmp_path / "resnet18.pth")


class _Trap:
    """Unpickling it makes the file ``path``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip file", "legacy pickle"])
def test_a_weights_file_cannot_execute_code(tmp_path, zipped):
    torch.save({"x": _Trap(tmp_path / "made")}, tmp_path / "trap.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="trap.pth does not fit"):
        build_unet(encoder_weights=tmp_path / "trap.pth")
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert (tmp_path / "made").exists()  # so the trap works


def _lacks_a_key(state, path):
    torch.save({name: tensor for name, tensor in state.items() if name != "layer1.0.conv1.weight"}, path)


def _has_a_key_too_many(state, path):
    torch.save({**state, "layer5.weight": torch.zeros(1)}, path)


def _wrong_shape(state, path):
    torch.save({**state, "conv1.weight": torch.zeros(64, 4, 7, 7)}, path)


def _not_finite(value):
    def write(state, path):
        weight = state["layer2.0.conv1.weight"].clone()
        weight[3, 4, 1, 1] = value
        torch.save({**state, "layer2.0.conv1.weight": weight}, path)

    return write


def _truncated(share):
    def write(state, path):
        torch.save(state, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return write


BAD_WEIGHTS = {
    "a key missing": (_lacks_a_key, "Missing key.*layer1.0.conv1.weight"),
    "a key too many": (_has_a_key_too_many, "Unexpected key.*layer5.weight"),
    "a wrong shape": (_wrong_shape, "size mismatch for conv1.weight"),
    "NaN": (_not_finite(float("nan")), "NaN or infinite values in layer2.0.conv1.weight;"),
    "infinity": (_not_finite(float("inf")), "NaN or infinite values in layer2.0.conv1.weight;"),
    "half": (_truncated(0.5), "does not fit"),
    "all but the end": (_truncated(0.999), "does not fit"),
    "a few bytes": (_truncated(1e-6), "does not fit"),
    "zero bytes": (_truncated(0), "does not fit: [^;]+;"),
    "text": (lambda state, path: path.write_text("not weights"), "does not fit"),
    "a list": (lambda state, path: torch.save([torch.zeros(1)], path), "does not fit"),
    "one tensor": (lambda state, path: torch.save(torch.zeros(1), path), "does not fit"),
    "texts for tensors": (lambda state, path: torch.save(dict.fromkeys(state, "x"), path), "does not fit"),
    "a folder": (lambda state, path: path.mkdir(), "no file"),
    "a broken link": (lambda state, path: path.symlink_to("gone"), "no file"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_a_bad_weights_file_is_one_clear_error(tmp_path, kind):
    write, message = BAD_WEIGHTS[kind]
    write(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match=rf"(?s){message}") as caught:
        build_unet(encoder_weights=tmp_path / "resnet18.pth", decoder_channels=THIN)
    assert "resnet18.pth" in str(caught.value) and "encoder_weights must be imagenet" in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """The hub's cache after the library fetched weights: the file, named by its SHA-256, behind a link."""
    state = {name: tensor.clone() for name, tensor in unet().encoder.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    source = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    folder = tmp_path / "hub" / f"models--{source['repo_id'].replace('/', '--')}"
    blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
    snapshot = folder / "snapshots" / source["revision"]
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shutil.move(tmp_path / "model.safetensors", blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "config.json").write_text("{}")
    for module in ("alutils.model.try_to_load_from_cache", "segmentation_models_pytorch.encoders.hf_hub_download"):
        monkeypatch.setattr(module, _with_cache(module, tmp_path / "hub"))
    return blob


def _with_cache(name, folder):
    function = getattr(huggingface_hub, name.rpartition(".")[2])
    return lambda *args, **options: function(*args, cache_dir=folder, **options)


def test_fetched_weights_that_fit_their_checksum_are_loaded(fetched):
    published = safetensors.torch.load_file(fetched)
    loaded = build_unet(decoder_channels=THIN).encoder.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in published.items())


def test_a_flipped_bit_in_fetched_weights_is_named(fetched):
    data = bytearray(fetched.read_bytes())
    data[len(data) // 2] ^= 1
    fetched.write_bytes(data)
    with pytest.raises(WeightsError, match=f"are damaged: .*{fetched.name} has the SHA-256 .*Delete the file"):
        build_unet(decoder_channels=THIN)


def test_fetched_weights_that_were_cut_short_are_one_clear_error(fetched):
    fetched.write_bytes(fetched.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="could not be fetched"):
        build_unet(decoder_channels=THIN)


def test_an_unknown_encoder_is_named():
    with pytest.raises(ValueError, match="no encoder 'resnet19'"):
        build_unet("resnet19", None)
