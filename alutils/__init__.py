"""Helpers behind the notebooks: active learning for melanoma segmentation (Martin et al., CBMI 2024)."""

import gc

# What the libraries are made of stays to the end. To look for garbage among it takes Python a second while they are
# imported, more when the process ends, and a quarter of one now and then between (benchmarks/startup.py). The price:
# garbage that the process made before, and did not yet find, stays too.
_collecting = gc.isenabled()
gc.disable()
try:
    from alutils.active_learning import run_active_learning
    from alutils.annotation import AnnotationsNeeded, Oracle, merge_annotations
    from alutils.compute import OutOfMemory
    from alutils.config import ConfigError, Experiment
    from alutils.cost import annotation_cost, average_cost
    from alutils.data import DataError, Split, Splits, identical_pictures
    from alutils.download import download_isic2018
    from alutils.files import CannotWrite
    from alutils.human_oracle import HumanOracle
    from alutils.isic2018 import isic2018_report, load_isic2018, sweep_caches
    from alutils.metrics import dice_score
    from alutils.model import build_unet, unet_for
    from alutils.queries import STRATEGIES, select_queries
    from alutils.records import RecordsError
    from alutils.seeding import make_generator
    from alutils.synthetic import LesionFactors, make_synthetic, render_lesion
    from alutils.training import TrainingDiverged, fit, predict_probabilities
    from alutils.uncertainty import binary_entropy, image_score, least_confidence, mc_dropout_std, one_sided_entropy
    from alutils.weights import WeightsError
finally:
    gc.freeze()
    if _collecting:
        gc.enable()

__all__ = [
    "STRATEGIES",
    "AnnotationsNeeded",
    "CannotWrite",
    "ConfigError",
    "DataError",
    "Experiment",
    "HumanOracle",
    "LesionFactors",
    "Oracle",
    "OutOfMemory",
    "RecordsError",
    "Split",
    "Splits",
    "TrainingDiverged",
    "WeightsError",
    "annotation_cost",
    "average_cost",
    "binary_entropy",
    "build_unet",
    "dice_score",
    "download_isic2018",
    "fit",
    "identical_pictures",
    "image_score",
    "isic2018_report",
    "least_confidence",
    "load_isic2018",
    "make_generator",
    "make_synthetic",
    "mc_dropout_std",
    "merge_annotations",
    "one_sided_entropy",
    "predict_probabilities",
    "render_lesion",
    "run_active_learning",
    "select_queries",
    "sweep_caches",
    "unet_for",
]
