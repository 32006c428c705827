"""Where and how the network computes, and that the fast path gives what a plain float32 loop gives."""

import ctypes
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_active_learning import make_partial, make_splits, run

from alutils.active_learning import run_active_learning
from alutils.compute import keep_freed_memory, prepare, resolve_device, to_device, uses_bfloat16
from alutils.config import ConfigError, Experiment
from alutils.data import Split, Splits
from alutils.model import unet_for
from alutils.queries import select_queries
from alutils.seeding import make_generator
from alutils.synthetic import make_synthetic
from alutils.training import fit, predict_probabilities

SETTINGS = Experiment(
    image_size=64,
    batch_size=4,
    epochs=6,
    mc_samples=6,
    encoder_weights=None,
    decoder_channels=(32, 24, 16, 16, 16),
    precision="float32",
)


@pytest.fixture(scope="module")
def splits():
    return make_synthetic(24, 2, 2, image_size=64)


@pytest.fixture(scope="module")
def trained(splits):
    model = unet_for(SETTINGS)
    fit(model, splits.train.images[:8], splits.train.masks[:8], SETTINGS, make_generator(0), progress=False)
    return model


def plain_probabilities(model, images):
    """One image at a time: float32, no autocast, contiguous weights and pictures, NumPy's normalization and sigmoid."""
    plain = unet_for(SETTINGS)
    plain.load_state_dict(model.state_dict())
    plain.eval().to(memory_format=torch.contiguous_format)
    mean, std = (np.array(getattr(SETTINGS, f"normalize_{name}")).reshape(3, 1, 1) for name in ("mean", "std"))
    maps = []
    for image in images.numpy():
        x = torch.from_numpy(((image / 255 - mean) / std).astype(np.float32))[None]
        with torch.no_grad():
            maps.append(1 / (1 + np.exp(-plain(x).double().numpy())))
    return np.concatenate(maps)


def test_float32_probabilities_are_the_plain_loops(splits, trained):
    fast = predict_probabilities(trained, splits.train.images, SETTINGS, batch_size=7)
    np.testing.assert_allclose(fast.numpy(), plain_probabilities(trained, splits.train.images), atol=2e-5)


def test_bfloat16_probabilities_are_within_its_error_of_the_plain_loops(splits, trained):
    """bfloat16 has 8 binary digits; over some 40 layers the logits keep about two decimal ones."""
    fast = predict_probabilities(trained, splits.train.images, SETTINGS.model_copy(update={"precision": "bfloat16"}))
    difference = np.abs(fast.numpy() - plain_probabilities(trained, splits.train.images))
    assert difference.max() < 0.06 and difference.mean() < 0.005
    assert difference.max() > 1e-5  # it was bfloat16


@pytest.mark.parametrize("strategy", ["least_confidence", "entropy", "binary_entropy"])
def test_the_queries_of_a_fixed_model_are_the_plain_loops(splits, trained, strategy):
    p = plain_probabilities(trained, splits.train.images).reshape(len(splits.train), -1)
    half = -p * np.log2(p)
    information = {
        "least_confidence": -np.abs(0.5 - p),
        "entropy": half,
        "binary_entropy": half - (1 - p) * np.log2(1 - p),
    }
    expected = np.argsort(-information[strategy].sum(1), kind="stable")[:6]
    experiment = SETTINGS.model_copy(update={"strategy": strategy})
    chosen, _ = select_queries(trained, splits.train.images, 6, experiment, make_generator(0))
    assert chosen.tolist() == expected.tolist()


def test_float32_on_a_cpu_is_channels_last_and_its_training_the_plain_one(splits):
    """Three steps, repeated with contiguous tensors; without dropout, which draws in the order of the memory."""
    experiment = SETTINGS.model_copy(update={"dropout": 0.0})
    model, plain = unet_for(experiment), unet_for(experiment)
    losses = fit(model, *pair(splits), experiment, make_generator(0), n_steps=3, progress=False)
    assert prepare(model, experiment).layout == torch.channels_last
    assert model.encoder.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    plain.forward, forward = lambda x: forward(x.contiguous()), plain.forward
    plain.to = lambda *args, **kwargs: plain
    again = fit(plain, *pair(splits), experiment, make_generator(0), n_steps=3, progress=False)
    assert plain.encoder.conv1.weight.is_contiguous()
    assert torch.allclose(losses, again, rtol=1e-3)


def pair(splits):
    return splits.train.images[:8], splits.train.masks[:8]


FOUR_TIMES_64_MIB = """
import resource
import torch
from alutils.compute import keep_freed_memory
assert keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_precision_is_bfloat16_where_asked_for_and_by_itself_where_the_device_has_it(monkeypatch):
    cpu = torch.device("cpu")
    assert uses_bfloat16(cpu, "bfloat16") and not uses_bfloat16(cpu, "float32")
    for has_it in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=has_it: answer)
        assert uses_bfloat16(cpu) is has_it
    assert not uses_bfloat16(torch.device("meta"))


def test_the_choice_is_recorded_with_the_run(splits, tmp_path):
    experiment = SETTINGS.model_copy(update={"n_queries": 0, "cold_start": 4, "epochs": 1, "precision": "bfloat16"})
    list(run_active_learning(experiment, splits, tmp_path, device="cpu", progress=False))
    assert json.loads((tmp_path / "run.json").read_text())["provenance"][0]["bfloat16"] is True


def test_a_model_is_compiled_once_and_only_when_asked(monkeypatch):
    calls = []

    def compile_(self):
        calls.append(self)
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    model, images = unet_for(SETTINGS), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    expected = predict_probabilities(model, images, SETTINGS)
    assert calls == []
    compiled = SETTINGS.model_copy(update={"compile": True})
    for _ in range(2):
        assert torch.equal(predict_probabilities(model, images, compiled), expected)
    assert calls == [model]


COMPILED_RUN = """
import sys
from alutils import ConfigError, Experiment, make_synthetic, run_active_learning
experiment = Experiment(image_size=64, cold_start=2, n_queries=0, compile=True, encoder_weights=None)
try:
    run_active_learning(experiment, make_synthetic(2, 1, 1, image_size=64), sys.argv[1], device="cpu")
except ConfigError as error:
    print(error)
"""


def test_without_a_compiler_the_setting_compile_is_refused_at_the_call(tmp_path):
    missing = {**os.environ, "PATH": str(tmp_path), "CXX": str(tmp_path / "g++")}
    command = [sys.executable, "-c", COMPILED_RUN, str(tmp_path / "run")]
    done = subprocess.run(command, env=missing, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("compile: torch.compile does not work on cpu (")
    assert done.stdout.strip().endswith("install what it needs, a C++ compiler (g++), or set compile to false")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told to keep memory")
def test_freed_memory_is_kept_for_the_next_pass():
    """64 MiB are 16,384 pages, which would be fetched anew each time."""
    fetched = subprocess.run([sys.executable, "-c", FOUR_TIMES_64_MIB], capture_output=True, text=True, check=True)
    assert int(fetched.stdout) < 2 * 16384


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not keep_freed_memory.__wrapped__()


def test_pictures_that_fit_go_to_the_device_and_others_stay_with_their_masks_there(splits):
    meta = torch.device("meta")  # a device without memory or values
    needed = sum(4 * 64 * 64 * len(split) for split in (splits.train, splits.val, splits.test))
    for free_bytes, images_on in ((None, "meta"), (needed, "meta"), (needed - 1, "cpu")):
        placed = splits.placed(meta, free_bytes=free_bytes)
        for name in ("train", "val", "test"):
            split = getattr(placed, name)
            assert (split.images.device.type, split.masks.device.type) == (images_on, "meta")
            assert split.ids == getattr(splits, name).ids


def test_a_batch_goes_to_the_device_as_it_is():
    batch = torch.arange(6).view(2, 3)
    assert torch.equal(to_device(batch, torch.device("cpu")), batch)
    assert to_device(batch, torch.device("meta")).shape == (2, 3)


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="device: 'gpu'"):
        resolve_device("gpu")


# Devices without float64


class Apples(torch.Tensor):
    """A tensor on a device that has no float64, as Apple's have none; ``cpu()`` brings it from there."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return result


@pytest.mark.parametrize("mode", ["partial-refreshed", "contour-band"])
def test_a_run_with_partial_annotation_needs_no_float64_on_the_device(tmp_path, mode):
    experiment, splits = make_partial(mode, n_queries=2, reduction="band_mean"), make_splits()
    with pytest.raises(TypeError, match="float64"):
        splits.train.images.as_subclass(Apples).float().double()

    def there(split):
        return Split(split.images.as_subclass(Apples), split.masks.as_subclass(Apples), split.ids)

    rounds = run(tmp_path, experiment, Splits(there(splits.train), there(splits.val), there(splits.test)))
    assert len(rounds) == 3 and len(rounds[-1].audit) == 2  # the audit was what wanted it
