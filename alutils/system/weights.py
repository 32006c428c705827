"""An encoder's weights: from the library's hub or from a file, checked before they are used."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from alutils.system.checks import ConfigError, did_you_mean, listed


class WeightsError(RuntimeError):
    """The encoder's weights are missing or unusable; the message says what to do, also without the internet."""


def weight_names(encoder: str) -> set[str]:
    """The names of segmentation-models-pytorch's weights for ``encoder``; ConfigError if it has no such encoder."""
    if encoder.startswith("tu-"):  # timm's encoders have one published set each, called imagenet by the library
        return {"imagenet"}
    if encoder not in smp.encoders.encoders:
        raise ConfigError(
            f"encoder: segmentation-models-pytorch has no encoder '{encoder}'; "
            f"{did_you_mean(encoder, list(smp.encoders.encoders))} (it has timm's as tu-NAME)"
        )
    return set(smp.encoders.encoders[encoder]["pretrained_settings"])


@contextmanager
def fetching(encoder: str, weights: str) -> Iterator[None]:
    """A context in which whatever fails in the library's download of ``weights`` becomes one WeightsError."""
    try:
        yield
    except Exception as error:  # besides OSError, the HTTP client and safetensors have types of their own
        wrong = isinstance(error, (TypeError, ValueError)) and not isinstance(error, OSError)
        if wrong or "Unknown model" in str(error):  # an argument, or timm's word for one of its names
            raise
        raise WeightsError(
            f"the weights '{weights}' of {encoder} could not be fetched or read ({type(error).__name__}). Without a "
            "network: encoder_weights=null trains from random weights, or give the path of a file with the encoder's "
            "weights (torchvision's resnet18-f37072fd.pth, copied from a machine that has a network)"
        ) from None


def load_encoder(encoder: nn.Module, name: str, path: Path) -> None:
    """Load a file with the encoder's own key names into ``encoder``, which the library calls ``name``.

    Raises:
        WeightsError: if there is no such file, its keys or shapes do not fit, or a value is not finite.
    """
    remedy = f"encoder_weights must be {', '.join(sorted(weight_names(name)))}, null, or the path of {name}'s weights"
    if not path.is_file():
        raise WeightsError(f"there is no file {path.absolute()}; {remedy}")
    try:
        encoder.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many types for files that are not its own
        reason = str(error)[:300] or type(error).__name__
        raise WeightsError(f"{path} does not fit: {reason}; {remedy}") from None
    wrong = [key for key, tensor in encoder.state_dict().items() if not tensor.isfinite().all()]
    if wrong:
        raise WeightsError(f"{path} has NaN or infinite values in {listed(wrong)}; {remedy}")


def verify_download(encoder: str, weights: str) -> None:
    """Refuse by a WeightsError a fetched file without the SHA-256 that is its name in the hub's cache.

    Nothing is compared for timm's encoders, nor where the cache has no symbolic links (Windows) and so loses the name.
    """
    if encoder.startswith("tu-"):
        return
    source = smp.encoders.encoders[encoder]["pretrained_settings"][weights]
    path = try_to_load_from_cache(source["repo_id"], "model.safetensors", revision=source["revision"])
    blob = Path(path).resolve() if isinstance(path, str) else Path()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
        raise WeightsError(
            f"the fetched weights '{weights}' of {encoder} are damaged: {blob} does not have the SHA-256 that is its "
            "name. Delete the file and try again"
        )
