"""A run's folder under faults of the disk and of its neighbours: nothing lost, nothing silently wrong."""

import random
import shutil
import subprocess
import sys
import textwrap
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from small_disk import remount, small_disk
from test_active_learning import contents, lines_of

from alutils.data.synthetic import make_synthetic
from alutils.experiment import Experiment
from alutils.lab.diagrams import draw_loop
from alutils.lab.figures import show_figure
from alutils.loop import run_active_learning
from alutils.runs.collect import load_diverged, load_results, load_runs, write_results
from alutils.runs.folder import RecordsError, read_record, read_rounds
from alutils.system.files import CannotWrite

RECORDED = Path(__file__).resolve().parent.parent.parent / "results" / "quick"
EXPERIMENT = Experiment(
    image_size=64, encoder_weights=None, decoder_channels=(16, 16, 16, 16, 16), batch_size=4, epochs=1, cold_start=4,
    query_size=2, n_queries=2, annotation="partial-refreshed", tau_u=0.025, tau_b=0.46, precision="float32",
)  # fmt: skip


def run(folder, n_rounds=None):
    """All rounds, or the first ones, after which the process is as if it had been stopped."""
    rounds = run_active_learning(
        EXPERIMENT, make_synthetic(10, 3, 3, image_size=64), folder, device="cpu", progress=False
    )
    return list(rounds) if n_rounds is None else [next(rounds) for _ in range(n_rounds)]


def flip_a_bit(path, rng, content):
    """In a copy of ``content``, at ``path``."""
    flipped = bytearray(content)
    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    path.write_bytes(flipped)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """After two of three rounds."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    run(folder, 2)
    return folder


def parameters(content):
    return [(name, tensor.clone()) for name, tensor in sorted(content["model"].items())]


# Bits that flip


def test_a_flipped_bit_in_a_state_never_gives_another_number(stopped, tmp_path, times, tally):
    """Each flip is noticed, or is in bytes that mean nothing: then all that is read is as it was written."""
    from alutils.runs.folder import _read_tensors

    rng, n = random.Random(0), times(60, 300)
    content, path = (stopped / "state.pt").read_bytes(), tmp_path / "state.pt"
    whole = torch.load(stopped / "state.pt", weights_only=True)
    expected, expected_rounds = parameters(whole), whole["rounds"]
    n_noticed = 0
    for _ in range(n):
        flip_a_bit(path, rng, content)
        try:
            found = _read_tensors(path)
        except Exception:
            n_noticed += 1
        else:
            assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(parameters(found), expected, strict=True))
            assert found["rounds"] == expected_rounds
    assert n_noticed > 0.9 * n  # the file is nearly all weights
    tally("bit flipped in a state file", n)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "a line flipped"])
def test_a_damaged_state_is_named_and_the_round_before_is_used(damage, stopped, finished, tmp_path, tally):
    folder = shutil.copytree(stopped, tmp_path / "run")
    state, lines = folder / "state.pt", folder / "rounds.jsonl"
    content, said = state.read_bytes(), lines.read_bytes()
    last = said.index(b"\n") + 1
    changes = {
        "flip": (state, content[:200_000] + bytes([content[200_000] ^ 1]) + content[200_001:]),
        "cut": (state, content[: len(content) // 2]),
        "a line flipped": (lines, said[: last + 50] + bytes([said[last + 50] ^ 1]) + said[last + 51 :]),
    }
    if damage == "gone":  # a power cut between two renames
        state.unlink()
        rounds = run(folder)
    else:
        path, changed = changes[damage]
        path.write_bytes(changed)
        with pytest.warns(UserWarning, match=rf"{path}.*: going on from round 0, in .*state.previous.pt"):
            rounds = run(folder)
    assert [one.number for one in rounds] == [0, 1, 2] and contents(folder) == contents(finished)
    tally("state file damaged, cut or gone", 1)


@pytest.mark.parametrize("n_bytes", [100, -1])
def test_what_lies_beyond_the_last_state_is_cut_off(n_bytes, stopped, finished, tmp_path, tally):
    """A power cut came after a part of the next line, or all of it, and before the state."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    line = (finished / "rounds.jsonl").read_bytes().splitlines(keepends=True)[2]
    with (folder / "rounds.jsonl").open("ab") as file:
        file.write(line[:n_bytes] if n_bytes > 0 else line)
    assert len(read_rounds(folder, read_record(folder))) == (2 if n_bytes > 0 else 3)
    assert len(run(folder)) == 3 and contents(folder) == contents(finished)
    tally("SIGKILL in the middle of a save", 1)


def test_an_earlier_call_of_the_same_process_writes_nothing_into_a_run_that_a_later_one_finished(tmp_path):
    splits = make_synthetic(10, 3, 3, image_size=64)
    earlier = run_active_learning(EXPERIMENT, splits, tmp_path, device="cpu", progress=False)
    next(earlier)
    rounds = run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(RecordsError, match="in use by a later call of run_active_learning in this process"):
        list(earlier)
    assert contents(tmp_path) == before and len(run(tmp_path)) == len(rounds) == 3


def test_what_a_save_writes_does_not_grow_with_the_rounds(tmp_path, monkeypatch):
    """Only the labelled set in the state does, by a query's masks."""
    written, real_open = [], Path.open

    def watched(path, mode="r", *arguments, **options):
        if "w" in mode or "a" in mode:
            written.append(path.name)
        return real_open(path, mode, *arguments, **options)

    rounds = run_active_learning(
        EXPERIMENT, make_synthetic(10, 3, 3, image_size=64), tmp_path, device="cpu", progress=False
    )
    next(rounds)
    first = (tmp_path / "rounds.jsonl").read_bytes()
    monkeypatch.setattr(Path, "open", watched)
    next(rounds)
    assert sorted(name.split(".")[1] for name in written if ".tmp" in name) == ["state"]
    assert [name for name in written if ".tmp" not in name] == ["rounds.jsonl"]
    second = (tmp_path / "rounds.jsonl").read_bytes()
    assert second.startswith(first) and len(second) < 2.5 * len(first)


def test_a_finished_run_keeps_one_state_and_without_it_its_tables_are_still_read(finished, tmp_path, tally):
    folder = shutil.copytree(finished, tmp_path / "run")
    assert [path.name for path in folder.glob("*.pt")] == ["state.pt"]
    (folder / "state.pt").write_bytes(b"")
    with pytest.raises(RecordsError, match=r"state.pt cannot be read .*; delete .*run .* can still be read"):
        run(folder)
    assert contents(folder) == contents(finished)
    assert all(table.equals(other) for table, other in zip(*map(results_of, (folder, finished)), strict=True))
    tally("state file damaged, cut or gone", 1)


def results_of(folder):
    return load_results(folder).values()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_kill_between_the_last_state_and_the_clearing_away_costs_nothing(damaged, finished, stopped, tmp_path, tally):
    folder = shutil.copytree(stopped, tmp_path / "run")
    run(folder)
    shutil.copy(stopped / "state.pt", folder / "state.previous.pt")
    if damaged:
        (folder / "state.pt").write_bytes(b"")
        with pytest.warns(UserWarning, match="going on from round 1"):
            assert len(run(folder)) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(run(folder)) == 3
    assert contents(folder) == contents(finished) and [path.name for path in folder.glob("*.pt")] == ["state.pt"]
    tally("state file damaged, cut or gone", 1)


def test_where_both_states_are_damaged_the_error_names_them(stopped, tmp_path, tally):
    folder = shutil.copytree(stopped, tmp_path / "run")
    for name in ("state.pt", "state.previous.pt"):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(
        RecordsError, match=r"state.pt cannot be read .*state.previous.pt cannot be read .*; delete .*run"
    ):
        run(folder)
    tally("state file damaged, cut or gone", 1)


def test_a_flipped_bit_in_a_result_file_is_named(finished, tmp_path, times, tally):
    rng, n = random.Random(1), times(40, 600)
    folder = shutil.copytree(finished, tmp_path / "run")
    before = load_results(folder)
    files = [folder / name for name in ("rounds.jsonl", "run.json")]
    for i in range(n):
        path = files[i % len(files)]
        content = path.read_bytes()
        flip_a_bit(path, rng, content)
        try:
            found = load_results(folder)
        except RecordsError as error:
            assert str(path) in str(error) or "there is no finished run" in str(error)
        else:  # of the JSON's spaces and line ends some may be others
            assert path.name == "run.json" and all(found[name].equals(before[name]) for name in found)
        path.write_bytes(content)
    tally("bit flipped in a result file", n)


# Disks


def test_a_disk_that_is_full_at_any_file_stops_the_run_and_more_room_lets_it_go_on(finished, tmp_path, times, tally):
    size = sum(path.stat().st_size for path in finished.iterdir())
    rng, n, n_full = random.Random(2), times(4, 20), 0
    for attempt in range(n):
        with small_disk(tmp_path / str(attempt), rng.randrange(2**16, int(1.6 * size))) as disk:
            folder = disk / "run"
            try:
                run(folder)
            except CannotWrite as error:
                n_full += 1
                assert (
                    "No space left on device" in str(error) and str(folder) in str(error) and "make room" in str(error)
                )
            remount(disk, f"size={3 * size}")
            assert len(run(folder)) == 3 and contents(folder) == contents(finished)
            assert not list(folder.glob(".*.tmp"))
    assert n_full > n // 2
    tally("disk full while a run writes", n_full)


def test_a_read_only_disk_is_named_before_any_work_and_a_finished_run_can_be_read_there(finished, tmp_path, tally):
    with small_disk(tmp_path / "disk", 2**28) as disk:
        shutil.copytree(finished, disk / "finished")
        remount(disk, "ro")
        with pytest.raises(CannotWrite, match=r"new cannot be written \(Read-only file system\)"):
            run(disk / "new")
        assert len(run(disk / "finished")) == 3
        assert len(load_results(disk / "finished")["runs"]) == 1
    tally("read-only disk", 2)


def write_a_figure(folder):
    show_figure(draw_loop(), "The loop.", save_as=folder / "fig1")


def collect(folder):
    write_results(folder, RECORDED)


@pytest.mark.parametrize("write", [write_a_figure, collect])
def test_a_full_or_read_only_disk_leaves_figures_and_results_as_they_were(tmp_path, tally, write):
    with small_disk(tmp_path / "disk", 2**20) as disk:
        write(disk / "out")
        before = {path: path.read_bytes() for path in (disk / "out").iterdir()}
        with suppress(OSError), (disk / "ballast").open("wb") as file:
            file.write(bytes(2**21))
        for reason, option in (("No space left on device", "rw"), ("Read-only file system", "ro")):
            remount(disk, option)
            with pytest.raises(CannotWrite, match=f"{disk}/out/.* cannot be written \\({reason}\\): .* unchanged"):
                write(disk / "out")
            assert {path: path.read_bytes() for path in (disk / "out").iterdir()} == before
        remount(disk, "rw,size=8m")
        write(disk / "out")
    tally("full or read-only disk under figures and results", 2)


# Two processes

HOLDER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
    import test_run_folder
    from alutils.loop import run_active_learning
    from alutils.data.synthetic import make_synthetic

    splits = make_synthetic(10, 3, 3, image_size=64)
    rounds = run_active_learning(test_run_folder.EXPERIMENT, splits, sys.argv[2], device="cpu", progress=False)
    next(rounds)
    print("one round is done", flush=True)
    sys.stdin.readline()
    print(len(list(rounds)), flush=True)
    """
)


def test_of_two_processes_on_one_folder_one_works_and_the_other_is_told_who(finished, tmp_path, tally):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "one round is done\n"
        with pytest.raises(
            RecordsError, match=rf"run is in use by process {holder.pid} on .*, since 2\d{{3}}-.*: wait until"
        ):
            run(folder)
        print(file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "2\n"
    assert len(run(folder)) == 3 and contents(folder) == contents(finished)
    tally("two processes on one run folder", 1)


def test_a_killed_process_leaves_its_folder_to_the_next(finished, tmp_path, tally):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        holder.kill()
    (folder / f".state.pt.{holder.pid}.tmp").write_bytes(b"half")
    assert len(run(folder)) == 3 and contents(folder) == contents(finished)
    assert not list(folder.glob(".*.tmp"))
    tally("two processes on one run folder", 1)


def test_the_same_process_may_start_again_what_it_left_in_the_middle(finished, tmp_path):
    rounds = run_active_learning(
        EXPERIMENT, make_synthetic(10, 3, 3, image_size=64), tmp_path, device="cpu", progress=False
    )
    next(rounds)
    assert len(run(tmp_path)) == 3 and contents(tmp_path) == contents(finished)
    rounds.close()


# Trainings that end badly


def test_a_run_that_diverges_says_so_in_its_record_and_is_not_trained_again(tmp_path, monkeypatch, tally):
    from alutils import steps
    from alutils.training import TrainingDiverged, fit

    def diverging(model, *arguments, **more):
        losses = fit(model, *arguments, **more)
        if diverging.calls == 1:
            raise TrainingDiverged("the loss was nan in the epoch that ended at step 2 of 2")
        diverging.calls += 1
        return losses

    diverging.calls = 0
    monkeypatch.setattr(steps, "fit", diverging)
    with pytest.raises(TrainingDiverged):
        run(tmp_path / "bad")
    monkeypatch.setattr(steps, "fit", None)
    with pytest.raises(TrainingDiverged, match=r"the loss was nan .* \(recorded in .*bad/run.json\)"):
        run(tmp_path / "bad")
    with pytest.raises(RecordsError, match="no finished run"):
        load_runs(tmp_path)
    row = load_diverged(tmp_path).iloc[0]
    assert (row["run"], row["round"], row["seed"]) == ("bad", 1, 0) and "the loss was nan" in row["message"]
    assert len(lines_of(tmp_path / "bad")) == 1  # the round before it is kept
    tally("training diverged", 1)
