"""The encoder's weights: the right ones in the right place, and clear errors where they are not."""

import hashlib
import math
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
import torchvision

from alutils.model import build_unet
from alutils.system.weights import WeightsError

THIN = (16, 16, 16, 16, 16)


def test_a_file_of_torchvision_weights_is_really_in_the_encoder(tmp_path):
    torch.manual_seed(5)
    published = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(published, tmp_path / "resnet18.pth")
    model = build_unet(encoder_weights=tmp_path / "resnet18.pth", decoder_channels=THIN)
    loaded = model.encoder.state_dict()
    assert loaded.keys() == {key for key in published if not key.startswith("fc.")}
    assert all(torch.equal(loaded[key], published[key]) for key in loaded)


def test_weights_that_cannot_be_fetched_say_what_to_do_offline(monkeypatch):
    def no_network(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", no_network)
    with pytest.raises(WeightsError, match="could not be fetched.*encoder_weights=null.*resnet18-f37072fd.pth"):
        build_unet(encoder_weights="imagenet")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no file .*imagnet; encoder_weights must be imagenet"):
        build_unet(encoder_weights="imagnet")
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


def _wrong_shape(state, path):
    torch.save({**state, "conv1.weight": torch.zeros(64, 4, 7, 7)}, path)


def _not_finite(state, path):
    weight = state["layer2.0.conv1.weight"].clone()
    weight[3, 4, 1, 1] = math.nan
    torch.save({**state, "layer2.0.conv1.weight": weight}, path)


def _truncated(share):
    def write(state, path):
        torch.save(state, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return write


BAD_WEIGHTS = {
    "a key missing": (_lacks_a_key, "Missing key.*layer1.0.conv1.weight"),
    "a wrong shape": (_wrong_shape, "size mismatch for conv1.weight"),
    "NaN": (_not_finite, "NaN or infinite values in layer2.0.conv1.weight;"),
    "all but the end": (_truncated(0.999), "does not fit"),
    "zero bytes": (_truncated(0), "does not fit: [^;]+;"),
    "a folder": (lambda state, path: path.mkdir(), "no file"),
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
    state = {
        name: tensor.clone()
        for name, tensor in build_unet(encoder_weights=None, decoder_channels=THIN).encoder.state_dict().items()
    }
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
    for module in (
        "alutils.system.weights.try_to_load_from_cache",
        "segmentation_models_pytorch.encoders.hf_hub_download",
    ):
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
    with pytest.raises(WeightsError, match=f"are damaged: .*{fetched.name} .*SHA-256.*Delete the file"):
        build_unet(decoder_channels=THIN)


def test_fetched_weights_that_were_cut_short_are_one_clear_error(fetched):
    fetched.write_bytes(fetched.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="could not be fetched"):
        build_unet(decoder_channels=THIN)
