"""What a round of active learning takes besides training and scoring: querying, asking, merging, costing, saving.

    python benchmarks/round_overhead.py

Scoring is each pass of pictures through the network without training: the pool, the validation and test images, and
in the partial mode the audit of the labels. The target: all else is under 3 % of a round. At 64 pixels, the quick
profile, a round takes a second or two; at 128 it is still far from the paper's.
"""

from __future__ import annotations

import tempfile
import time

import torch
from frame import parser, report

from alutils import Experiment, make_synthetic, run_active_learning

NETWORK_PHASES = ("training", "evaluation", "query", "test", "audit")
COMMON = {"n_queries": 3, "encoder_weights": None}
CASES = {
    "quick, 64 pixels": {"profile": "quick", **COMMON},
    "128 pixels": {"image_size": 128, "cold_start": 32, "query_size": 16, "batch_size": 16, **COMMON},
}
N_POOL, N_VAL, N_TEST = 256, 20, 40


def main() -> None:
    settings = parser(__doc__, __file__).parse_args()
    torch.set_num_threads(settings.threads)
    rows = []
    for name, values in CASES.items():
        values = dict(values)
        base = Experiment.from_profile(values.pop("profile", "paper"), **values)
        splits = make_synthetic(N_POOL, N_VAL, N_TEST, image_size=base.image_size)
        for annotation in ("full", "partial"):
            experiment = base.model_copy(update={"annotation": annotation})
            start = time.perf_counter()
            folder = tempfile.mkdtemp()
            rounds = list(run_active_learning(experiment, splits, folder, device=str(settings.device), progress=False))
            total = time.perf_counter() - start
            network = sum(round_.seconds.get(phase, 0) for round_ in rounds for phase in NETWORK_PHASES)
            annotating = sum(round_.seconds["annotation"] for round_ in rounds)
            rows.append(
                {
                    "case": name,
                    "annotation": annotation,
                    "round_s": total / len(rounds),
                    "else_percent": 100 * (1 - network / total),
                    "annotation_percent": 100 * annotating / total,
                    "saving_and_rest_percent": 100 * (1 - (network + annotating) / total),
                }
            )
    report(settings.out, rows, settings.device)


if __name__ == "__main__":
    main()
