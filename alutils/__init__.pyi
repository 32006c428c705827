from .annotation import AnnotationsNeeded, Oracle, merge_annotations
from .cost import annotation_cost, average_cost
from .data.cache import sweep_caches
from .data.download import download_isic2018
from .data.isic2018 import isic2018_report, load_isic2018
from .data.splits import Split, Splits, identical_pictures
from .data.synthetic import LesionFactors, make_synthetic, render_lesion
from .experiment import Experiment
from .lab.human_oracle import HumanOracle
from .loop import run_active_learning
from .metrics import dice_score
from .model import build_unet, unet_for
from .queries import STRATEGIES, select_queries
from .runs.folder import RecordsError
from .system.checks import ConfigError, DataError
from .system.device import OutOfMemory
from .system.files import CannotWrite
from .system.seeding import make_generator
from .system.weights import WeightsError
from .training import TrainingDiverged, fit, predict_probabilities
from .uncertainty import binary_entropy, image_score, least_confidence, mc_dropout_std, one_sided_entropy

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
