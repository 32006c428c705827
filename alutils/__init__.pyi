from . import annotation, augment, cost, experiment, loop, metrics, model, rounds, samples, training, uncertainty
from .annotation import AnnotationsNeeded, Oracle, merge_annotations
from .cost import annotation_cost, average_cost
from .data.cache import sweep_caches
from .data.download import download_isic2018
from .data.duplicates import near_duplicates
from .data.isic2018 import isic2018_report, load_isic2018
from .data.pairs import load_pairs
from .data.rendering import LesionFactors, render_lesion
from .data.splits import Split, Splits, identical_pictures
from .data.synthetic import make_synthetic
from .experiment import Experiment
from .lab.exchange import export_queries, import_annotations
from .lab.human_oracle import HumanOracle
from .loop import run_active_learning
from .metrics import dice_score
from .model import build_unet, unet_for
from .queries.registry import STRATEGIES
from .queries.select import select_queries
from .runs.folder import RecordsError
from .samples import mc_dropout_std
from .system.checks import ConfigError, DataError
from .system.device import OutOfMemory
from .system.files import CannotWrite
from .system.seeding import make_generator
from .system.weights import WeightsError
from .training import TrainingDiverged, fit, predict_probabilities
from .uncertainty import binary_entropy, image_score, least_confidence, one_sided_entropy

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
    "annotation",
    "annotation_cost",
    "augment",
    "average_cost",
    "binary_entropy",
    "build_unet",
    "cost",
    "dice_score",
    "download_isic2018",
    "experiment",
    "export_queries",
    "fit",
    "identical_pictures",
    "image_score",
    "import_annotations",
    "isic2018_report",
    "least_confidence",
    "load_isic2018",
    "load_pairs",
    "loop",
    "make_generator",
    "make_synthetic",
    "mc_dropout_std",
    "merge_annotations",
    "metrics",
    "model",
    "near_duplicates",
    "one_sided_entropy",
    "predict_probabilities",
    "render_lesion",
    "rounds",
    "run_active_learning",
    "samples",
    "select_queries",
    "sweep_caches",
    "training",
    "uncertainty",
    "unet_for",
]
