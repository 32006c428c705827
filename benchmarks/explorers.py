"""How long an explorer takes from a moved slider to the new picture: images of 256 x 256, on the CPU.

    python benchmarks/explorers.py

The predictions are the true masks blurred. The target is a median below 150 ms; what JupyterLab adds is not in it.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Sequence

import torch
from frame import blurred, parser, report, seconds

from alutils import Experiment, make_synthetic, run_active_learning
from alutils.lab.explorers import Explorer, explore_curves, explore_rounds, explore_thresholds
from alutils.lab.figures import show_figure

SIZE = 256


class Discard:
    """Takes the pictures that a notebook would show."""

    def update(self, picture: object) -> None:
        pass


def median_ms(explorer: Explorer, control: str, values: Sequence[float], repetitions: int) -> float:
    """Of a move of ``control`` to one of ``values``, in turn; their first turn, which prepares, is not timed."""

    def move(value: float) -> None:
        explorer.controls[control].value = value
        show_figure(explorer.figure, explorer.alt, update=Discard())

    turns = itertools.chain.from_iterable([values] * (repetitions + 1))
    times = [1000 * seconds(lambda value=value: move(value)) for value in turns]
    return statistics.median(times[len(values) :])


def main() -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--repetitions", type=int, default=5)
    settings = options.parse_args()
    torch.set_num_threads(settings.threads)

    splits = make_synthetic(8, 2, 2, image_size=SIZE)
    images, masks = splits.train.images, splits.train.masks
    p = blurred(masks)
    std = p * (1 - p) * torch.rand(p.shape, generator=torch.Generator().manual_seed(0))
    small = {"encoder_weights": None, "decoder_channels": (16,) * 5, "annotation": "partial"}
    experiment = Experiment(image_size=SIZE, cold_start=2, query_size=2, n_queries=3, epochs=1, **small)
    with tempfile.TemporaryDirectory() as folder:
        rounds = list(run_active_learning(experiment, splits, folder, device="cpu", progress=False))

    moves = {
        "explore_curves": (explore_curves(images, p, std), "p", (0.1, 0.3, 0.5, 0.9)),
        "explore_thresholds": (explore_thresholds(images, masks, p), "tau_u", (0.1, 0.2, 0.3, 0.4)),
        "explore_rounds": (explore_rounds(rounds, splits.train), "query", (1, 2, 3)),
    }
    rows = [{"explorer": name, "ms": median_ms(*move, settings.repetitions)} for name, move in moves.items()]
    report(settings.out, rows, settings.device, image_size=SIZE)


if __name__ == "__main__":
    main()
