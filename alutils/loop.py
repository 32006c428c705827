"""The loop of Fig. 1: score the pool, query, ask the oracle, train, evaluate, and again."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn
from tqdm import tqdm

from alutils.annotation import (
    Oracle,
)
from alutils.data.splits import Splits
from alutils.erring import simulated_oracle
from alutils.experiment import Experiment
from alutils.model import unet_for
from alutils.queries.select import Strategy
from alutils.rounds import (
    Draft,
    Round,
    RunState,
)
from alutils.runs.arm import build_network, check_oracle, make_plan, run_identity
from alutils.runs.folder import RunFolder
from alutils.steps import (
    Run,
    annotate,
    annotate_cold_start,
    evaluate_round,
    query,
    save_round,
    score_pool,
    train,
    view_of,
)
from alutils.system.checks import expanded
from alutils.system.device import (
    check_compiler,
    memory_for,
    resolve_device,
)
from alutils.system.progress import progress_bar
from alutils.training import TrainingDiverged

Network = Callable[[Experiment], nn.Module]
"""``network(experiment)`` -> a model from normalized images (N, 3, H, W) to logits (N, 1, H, W), as ``unet_for`` is."""


# Eight parameters and longer than 60 lines: it describes the arguments and errors of the whole loop
def run_active_learning(
    experiment: Experiment,
    splits: Splits,
    output_dir: str | Path,
    *,
    strategy: Strategy | None = None,
    network: Network | None = None,
    oracle: Oracle | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Iterator[Round]:
    """Active learning as in Fig. 1, simulated as in section IV-E, one round at a time.

    All arms of one seed share the cold start, which is annotated in full, and the initial weights. Of the pool's masks
    only those of queried images are read (a positive control such as "lowest_dice" reads all), and the model learns no
    more of them than ``experiment.annotation`` says.

    Everything is checked, and the cold start chosen and annotated, when the function is called; the rest of the work is
    done as the rounds are asked for. Each round is on disk before it is yielded. A stopped run goes on when it is
    called again with the same arguments: the rounds on disk come first, and a finished run trains nothing. The same
    arguments give the same numbers to the bit on a CPU, for one machine and number of threads; on a GPU only with
    ``experiment.deterministic``.

    Args:
        experiment: every setting; ``strategy`` names one of ``alutils.queries.STRATEGIES`` or ``BASELINES``.
        splits: images of the experiment's ``image_size``; the training split is the pool.
        output_dir: the run's own folder; it takes ``run.json``, ``rounds.jsonl`` (one line per round, see
            :data:`alutils.rounds.KEYS`), ``state.pt`` (what a stopped run goes on from) and, while a round waits for a
            person, ``waiting.pt``.
        strategy: a function of your own (see :func:`alutils.queries.select.select_queries`) in place of the one that
            the experiment names; it is recorded by its name and its code (:mod:`alutils.runs.own_code`).
        network: a function of your own in place of :func:`alutils.unet_for`; it draws its initial weights from the
            global random state, which is the seed's, and is recorded by its name and code too.
        oracle: who annotates ``splits.train``: by default the simulated oracle; a person (:class:`alutils.HumanOracle`)
            draws the queried images, and with ``draws_cold_start`` the cold start. One of your own is recorded by its
            code and masks.
        device: where to compute: "auto", "cpu", "cuda", "cuda:1", ...; the pictures are moved there if they fit.
        progress: show a progress bar.

    Yields:
        ``experiment.n_queries + 1`` rounds, fewer where the pool ends, one for a baseline.

    Raises:
        ConfigError: if settings, pictures, functions and device do not fit together, or ``output_dir`` holds another
            run (the error lists the settings that differ).
        RecordsError: if the files of a stopped run cannot be read, or another process is at work in ``output_dir``.
        CannotWrite: if a file cannot be written; the rounds before are safe.
        TrainingDiverged: if a loss, a weight or a prediction for a validation or test image is not finite, or gradients
            are too large for float16: the run has ended, and its record says so.
        OutOfMemory: if the device cannot hold a batch (the message names a batch size that fits), the masks, or the
            copy of the pool that a ``strategy`` of your own gets.
        AnnotationsNeeded: if the oracle is a person who has images to draw; draw them and make the same call again.

    >>> import tempfile
    >>> from alutils.data.synthetic import make_synthetic
    >>> experiment = Experiment(image_size=64, cold_start=4, query_size=2, n_queries=1, epochs=1,
    ...                         encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16))
    >>> splits = make_synthetic(8, 2, 2, image_size=64)
    >>> rounds = run_active_learning(experiment, splits, tempfile.mkdtemp(), progress=False)
    >>> [(round.number, round.n_labelled, len(round.queries)) for round in rounds]
    [(0, 4, 2), (1, 6, 0)]
    """
    network = network or unet_for
    plan = make_plan(experiment, strategy, splits)
    if oracle is not None:
        check_oracle(oracle, experiment, strategy, splits.train.masks)
    torch_device = resolve_device(device, deterministic=experiment.deterministic)
    initial = build_network(network, experiment, strategy)
    identity = run_identity(experiment, splits, strategy, network, initial, oracle)
    folder = RunFolder(expanded("output_dir", output_dir), identity)
    once = len(plan.sizes) == 1
    with memory_for("image_size: the masks and what the run had labelled", "take another device", torch_device):
        initial, splits = initial.to(torch_device), splits.placed(torch_device)
        oracle = simulated_oracle(splits.train.masks, experiment) if oracle is None else oracle.to(torch_device)
        state = folder.load(copy.deepcopy(initial), splits.train)
    if experiment.compile and not (state is not None and state.finished):
        check_compiler(torch_device)
    run = Run(plan, splits, oracle, strategy, initial, folder, progress and once)
    rounds = _loop(run, state or annotate_cold_start(run))
    return _with_bar(rounds, len(plan.sizes)) if progress and not once else rounds


def _loop(run: Run, state: RunState) -> Iterator[Round]:
    """Fig. 1, entered at step 4 with the cold start, or with what a stopped run had annotated."""
    run.folder.begin(state)
    yield from state.rounds
    if state.finished:
        return
    try:
        draft = _waiting(run, state) or evaluate_round(run, state, train(run, state))
        while not run.is_last(draft):
            if draft.asked is None:  # otherwise it has queried already, and waited for a person
                view = view_of(run, state, draft)
                answer = score_pool(run, draft, view)  # step 1
                query(run, draft, view, answer)  # step 2
            annotate(run, state, draft)  # step 3
            yield save_round(run, state, draft)
            draft = train(run, state)  # step 4
            evaluate_round(run, state, draft)  # step 5
        yield save_round(run, state, draft)
    except TrainingDiverged as error:
        run.folder.note_divergence(len(state.rounds), error)
        raise
    except KeyboardInterrupt:
        tqdm.write(f"stopped; called again it goes on from its last round in {run.folder.path}", file=sys.stderr)
        raise


def _waiting(run: Run, state: RunState) -> Draft | None:
    """The round that had to wait for a person, as it was, if there is one."""
    model = copy.deepcopy(run.initial)
    draft = run.folder.waiting(len(state.rounds), model, run.splits.train)
    if draft is not None:
        state.model = model
    return draft


def _with_bar(rounds: Iterator[Round], total: int) -> Iterator[Round]:
    with progress_bar("active learning", total, "round") as bar:
        for round_ in rounds:
            bar.set_postfix(labelled=round_.n_labelled, val_dice=f"{round_.val_dice:.3f}")
            bar.update()
            yield round_
