"""Where and how the network computes, and that the fast path gives what a plain float32 loop gives."""

import ctypes
import json
import os
import platform
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from test_active_learning import contents, make_partial, make_splits, run
from test_queries import FAIR

from alutils.data.splits import Split, Splits
from alutils.data.synthetic import make_synthetic
from alutils.experiment import Experiment
from alutils.loop import run_active_learning
from alutils.model import UNet, unet_for
from alutils.queries.select import select_queries
from alutils.samples import mc_dropout_batches, mc_dropout_maps, mc_dropout_std
from alutils.system.checks import ConfigError
from alutils.system.device import (
    OutOfMemory,
    deterministic_algorithms,
    keep_freed_memory,
    resolve_device,
    set_up_model,
    working_dtype,
)
from alutils.system.seeding import make_generator
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
    """bfloat16 has 8 binary digits; after some 40 layers the logits keep about two decimal digits."""
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
    assert set_up_model(model, "float32").layout == torch.channels_last
    assert model.encoder.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    plain.forward, forward = lambda x: forward(x.contiguous()), plain.forward
    plain.to = lambda *args, **kwargs: plain
    again = fit(plain, *pair(splits), experiment, make_generator(0), n_steps=3, progress=False)
    assert plain.encoder.conv1.weight.is_contiguous()
    assert torch.allclose(losses, again, rtol=1e-3)


def pair(splits):
    return splits.train.images[:8], splits.train.masks[:8]


def test_precision_is_bfloat16_where_asked_for_and_by_itself_where_the_device_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for name in ("bfloat16", "float16", "float32"):
        assert working_dtype(cpu, name) == getattr(torch, name)
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=has_it: answer)
        assert working_dtype(cpu) == expected
    assert working_dtype(torch.device("meta")) == torch.float32


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), torch.bfloat16), ((7, 0), torch.float16), ((6, 1), torch.float32)],
)
def test_a_gpu_without_bfloat16_takes_float16_where_it_has_that(capability, expected, monkeypatch):
    """An H100, a V100 and a GTX 1080. torch answers for the current GPU, which must be the one in use."""
    present = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: present.append(device.index) or nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
    assert working_dtype(torch.device("cuda:1")) == expected and present == [1]
    assert working_dtype(torch.device("cuda:1"), "float32") == torch.float32


def test_the_choice_is_recorded_with_the_run(splits, tmp_path):
    experiment = SETTINGS.model_copy(update={"n_queries": 0, "cold_start": 4, "epochs": 1, "precision": "bfloat16"})
    list(run_active_learning(experiment, splits, tmp_path, device="cpu", progress=False))
    assert json.loads((tmp_path / "run.json").read_text())["provenance"][0]["precision"] == "bfloat16"


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
    assert "g++" in done.stdout and "set compile to false" in done.stdout


FREED = """
import psutil
import torch
from alutils.system.device import keep_freed_memory

def left():
    before = psutil.Process().memory_info().rss
    torch.ones(2**26)
    return psutil.Process().memory_info().rss - before

print(left(), keep_freed_memory() and left())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told to keep memory")
def test_freed_memory_is_kept_for_the_next_pass():
    """Of 256 MiB that were used and freed the process still has next to nothing, and afterwards all."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    without, kept = map(int, done.stdout.split())
    assert without < 2**26 and kept > 2**27


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


# Deterministic algorithms

DETERMINISTIC = SETTINGS.model_copy(update={"deterministic": True})


def switches():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )


def test_deterministic_algorithms_are_on_only_within_and_only_where_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(True, warn_only=True)  # as a user may have them
    try:
        with deterministic_algorithms(False):
            assert switches() == (True, True, True)
        with pytest.raises(KeyError), deterministic_algorithms(True):
            assert switches() == (True, False, False)
            raise KeyError
        assert switches() == (True, True, True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_run_trains_and_scores_with_them_and_leaves_the_user_s_own_between_rounds(tmp_path):
    experiment, during, before = make_partial("partial", deterministic=True, n_queries=1), set(), switches()

    def score(model, images, experiment, generator):
        during.add(switches())
        return torch.rand(len(images), generator=generator)

    forward = UNet.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, "forward", lambda self, x: during.add(switches()) or forward(self, x))
        rounds = run_active_learning(experiment, make_splits(), tmp_path, strategy=score, device="cpu", progress=False)
        for _ in rounds:
            assert switches() == before
    assert during == {(True, False, False)}


@pytest.mark.parametrize("work", ["fit", "predict_probabilities", "mc_dropout_maps"])
def test_without_a_run_each_part_has_them_too(work):
    class Watched(UNet):
        def encode(self, images):
            during.add(switches()[0])
            return super().encode(images)

    during, images = set(), torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    model = Watched(encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    if work == "fit":
        fit(model, images, images[:, :1], DETERMINISTIC, make_generator(0), n_steps=1, progress=False)
    elif work == "mc_dropout_maps":  # the others of dropout go by way of it
        mc_dropout_maps(model, images, DETERMINISTIC, make_generator(0), 2)
    else:
        predict_probabilities(model, images, DETERMINISTIC)
    assert during == {True} and not switches()[0]


def test_what_torch_itself_refuses_is_told_with_the_setting():
    with (
        pytest.raises(ConfigError, match="deterministic: max_unpool.* does not have .*; choose another"),
        deterministic_algorithms(True),
    ):
        torch.nn.MaxUnpool2d(2)(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("given", "started", "expected"),
    [
        (None, False, ":4096:8"),
        (":16:8", True, ":16:8"),
        (None, True, "got None"),
        (":0:0", False, "got :0:0"),
    ],
)
def test_cuda_is_told_to_repeat_itself_before_it_starts(monkeypatch, given, started, expected):
    variable = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(variable, "")
    monkeypatch.delenv(variable) if given is None else monkeypatch.setenv(variable, given)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    for name in ("cpu", "cuda:0"):
        resolve_device(name)
    assert os.environ.get(variable) == given  # not asked for
    for name in ("cuda", "auto"):
        if expected.startswith(":"):
            assert resolve_device(name, deterministic=True).type == "cuda" and os.environ[variable] == expected
        else:
            with pytest.raises(
                ConfigError, match=f"deterministic: .*{variable}=:4096:8.*{expected}.*restart the kernel"
            ):
                resolve_device(name, deterministic=True)


REPEATED = """
import sys
from pathlib import Path
import alutils
from alutils.data.synthetic import make_synthetic
experiment = alutils.Experiment(
    image_size=64, batch_size=8, epochs=4, cold_start=16, query_size=8, n_queries=2, encoder_weights=None,
    strategy="mc_dropout", mc_samples=4, annotation="partial-refreshed", deterministic=True,
)
splits = make_synthetic(48, 8, 8, image_size=64)
list(alutils.run_active_learning(experiment, splits, sys.argv[1], device="cuda", progress=False))
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_deterministic_run_repeats_itself_to_the_bit(tmp_path):
    """In processes of their own: CUDA has started in this one."""
    for name in ("first", "second"):
        subprocess.run([sys.executable, "-c", REPEATED, str(tmp_path / name)], check=True)
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["model"] for name in ("first", "second")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


# Memory


class Gathered(torch.overrides.TorchFunctionMode):
    """Notes how many pictures each indexing copies."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        copies = function is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor)
        if copies and args[0].ndim == 4 and args[0].shape[1] == 3:
            self.most = max(self.most, len(result))
        return result


@pytest.mark.parametrize("strategy", ["mc_dropout", "entropy"])
def test_no_more_pictures_than_a_batch_are_copied_at_a_time(tmp_path, strategy):
    experiment = make_partial("partial-refreshed", strategy=strategy, batch_size=2, query_size=5, n_queries=1)
    splits = make_splits(20)
    with Gathered() as copies:
        run(tmp_path, experiment, splits)
    assert 2 <= copies.most <= 4  # a prediction takes twice the training's


@pytest.mark.parametrize("strategy", FAIR)
def test_a_pool_by_index_is_scored_as_its_copy(trained, splits, strategy):
    images, indices = splits.train.images, torch.tensor([20, 3, 11, 0, 7, 19, 2, 14, 5])
    experiment = SETTINGS.model_copy(update={"strategy": strategy, "batch_size": 2, "mc_samples": 2})
    found = select_queries(trained, images, 3, experiment, make_generator(0), indices=indices)
    expected = select_queries(trained, images[indices], 3, experiment, make_generator(0))
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0, equal_nan=True)


def test_a_strategy_of_one_s_own_gets_a_tensor(trained, splits):
    def brightness(model, images, experiment, generator):
        assert type(images) is torch.Tensor
        return images.float().mean((1, 2, 3))

    indices = torch.tensor([5, 1, 8])
    _, scores = select_queries(
        trained, splits.train.images, 1, SETTINGS, make_generator(0), brightness, indices=indices
    )
    assert torch.equal(scores, splits.train.images[indices].float().mean((1, 2, 3)))


@pytest.mark.parametrize("indices", [[0, 24], [-1, 2], [0.0]])
def test_indices_that_are_no_positions_are_refused(trained, splits, indices):
    masks = splits.train.masks[: len(indices)]
    for work in (
        lambda: predict_probabilities(trained, splits.train.images, SETTINGS, indices=torch.tensor(indices)),
        lambda: fit(trained, splits.train.images, masks, SETTINGS, make_generator(0), indices=torch.tensor(indices)),
    ):
        with pytest.raises(ValueError, match=r"indices must be int64 of shape \(n,\), each from 0 to 23"):
            work()


class Full(torch.overrides.TorchFunctionMode):
    """A memory that has no room for ``n`` pictures or masks as ``function`` makes them."""

    def __init__(self, n, function=torch.Tensor.__getitem__):
        super().__init__()
        self.n, self.function = n, function

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is self.function and result.ndim == 4 and len(result) == self.n:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return result


def test_monte_carlo_dropout_names_a_batch_size_that_fits(trained, splits, monkeypatch):
    encode = UNet.encode

    def cramped(self, images):
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(self, images)

    monkeypatch.setattr(UNet, "encode", cramped)
    for work in (
        lambda: next(mc_dropout_batches(trained, splits.train.images, SETTINGS, make_generator(0), 2)),
        lambda: mc_dropout_std(trained, splits.train.images, SETTINGS, make_generator(0), 2),
    ):
        with pytest.raises(OutOfMemory, match=r"^batch_size \(Monte Carlo .*\): .* for 8 images at a time; 2 fit"):
            work()
    assert mc_dropout_std(trained, splits.train.images, SETTINGS, make_generator(0), 2, batch_size=3).shape[0] == 24


def test_whatever_else_does_not_fit_is_named_too(trained, splits, tmp_path):
    images, experiment = splits.train.images, make_partial("partial")
    with (
        pytest.raises(OutOfMemory, match="strategy 'max': the 5 images of the pool.* image_size or device='cpu'"),
        Full(5),
    ):
        select_queries(trained, images, 1, SETTINGS, make_generator(0), max, indices=torch.arange(5))
    with pytest.raises(OutOfMemory, match="the maps of 9 images.*probability_batches"), Full(9, torch.cat):
        predict_probabilities(trained, images, SETTINGS, indices=torch.arange(9))
    with pytest.raises(OutOfMemory, match="image_size: the masks of 4 images"), Full(4):
        run(tmp_path / "start", experiment)
    rounds = run_active_learning(experiment, make_splits(), tmp_path / "query", device="cpu", progress=False)
    with pytest.raises(OutOfMemory, match="query_size: .* query_size, batch_size or image_size"), Full(2, torch.where):
        list(rounds)


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


def test_a_run_with_partial_annotation_needs_no_float64_on_the_device(tmp_path):
    experiment, splits = make_partial("partial-refreshed", n_queries=2, reduction="band_mean"), make_splits()
    with pytest.raises(TypeError, match="float64"):
        splits.train.images.as_subclass(Apples).float().double()

    def there(split):
        return Split(split.images.as_subclass(Apples), split.masks.as_subclass(Apples), split.ids)

    rounds = run(tmp_path, experiment, Splits(there(splits.train), there(splits.val), there(splits.test)))
    assert len(rounds) == 3 and len(rounds[-1].audit) == 2  # the audit was what wanted it
