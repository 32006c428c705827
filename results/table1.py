"""The arms of Table I: which images are annotated.

    python results/table1.py results/quick --profile quick --seeds 0 1 2
    python results/table1.py results/isic2018-small --profile small --data data/isic2018 --seeds 0 1 \
        --overrides "{encoder_weights: data/resnet18_imagenet.pth}"

Finished runs are not run again, and a stopped one continues: the same command can be given until all is done.
"""

from __future__ import annotations

from arms import arguments, run_arms

from alutils.loop import BASELINES
from alutils.queries import STRATEGIES

ARMS = [*STRATEGIES, *BASELINES]

if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM")
    options = parser.parse_args()
    run_arms(options, {name: {"strategy": name} for name in options.arms})
