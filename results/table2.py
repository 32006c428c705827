"""The runs of Table II: which pixels of the queried images the human annotates. Least confidence queries the images.

    python results/table2.py results/quick --profile quick --seeds 0 1 2
    python results/table2.py results/isic2018-small --profile small --data data/isic2018 --seeds 0 1 \
        --overrides "{encoder_weights: data/resnet18_imagenet.pth}"

"modes" is every mode except full (which is Table I's arm) at tau_u = tau_b = 0.25. "grid" is partial annotation at each
tau_u and tau_b of the paper, without the cells that are the same run as another (any tau_b from 0.5 - tau_u to
0.5 + tau_u).
Finished runs are not run again, and a stopped one continues: the same command can be given until all is done.
"""

from __future__ import annotations

from itertools import product

from arms import arguments, run_arms

from alutils.experiment import ANNOTATION_MODES, TAU_B, TAU_U, same_run

GRID = [("partial", *thresholds) for thresholds in product(TAU_U, TAU_B)]
PARTS = {
    "modes": [(mode, 0.25, 0.25) for mode in ANNOTATION_MODES if mode != "full"],
    "grid": [*{same_run(*cell[1:]): cell for cell in reversed(GRID)}.values()][::-1],
}

if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=["modes", "grid"])
    options = parser.parse_args()
    cells = [cell for part in options.only for cell in PARTS[part]]
    run_arms(
        options,
        {
            f"{mode}-{tau_u}-{tau_b}": {"annotation": mode, "tau_u": tau_u, "tau_b": tau_b}
            for mode, tau_u, tau_b in cells
        },
    )
