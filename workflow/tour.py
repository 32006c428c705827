"""Make results/tour.npz, what notebook 00 shows: four synthetic test images, seen by a model after each of its rounds.

    OMP_NUM_THREADS=1 python workflow/tour.py

takes a minute. The run is the quick profile's with least confidence; the images are, after its last round, the most
and the least uncertain of the test images whose lesion covers more than 2 % of the picture, and two in between.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from record import run_script

from alutils.data.splits import lesion_area
from alutils.lab.notebook import RESULTS_DIR, open_workspace
from alutils.loop import run_active_learning
from alutils.system.files import replacing
from alutils.training import predict_probabilities
from alutils.uncertainty import image_score, least_confidence


def main() -> None:
    work = open_workspace("results", profile="quick", device="cpu")
    experiment = work.experiment.model_copy(update={"strategy": "least_confidence"})
    test = work.splits.test
    maps, n_labelled = [], []
    with tempfile.TemporaryDirectory() as folder:
        for round_ in run_active_learning(experiment, work.splits, folder, device="cpu"):
            maps.append(predict_probabilities(round_.model, test.images, experiment))
            n_labelled.append(round_.n_labelled)
    unsure = image_score(least_confidence(maps[-1]), experiment.reduction).argsort()  # the most uncertain first
    unsure = unsure[lesion_area(test.masks)[unsure] > 0.02]
    chosen = unsure[torch.linspace(0, len(unsure) - 1, 4).long()]
    with replacing(RESULTS_DIR / "tour.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            images=test.images[chosen].numpy(),
            masks=test.masks[chosen].numpy(),
            probabilities=np.stack([np.rint(255 * p[chosen].numpy()).astype(np.uint8) for p in maps]),  # 255 is 1
            n_labelled=np.array(n_labelled),
        )


if __name__ == "__main__":
    run_script(main)
