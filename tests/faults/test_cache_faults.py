"""Faults injected into the decode cache: flipped bits, lost ends, full and read-only disks, killed processes."""

import os
import random
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_disk import remount, small_disk
from tiny import CONTEXT

from alutils.data import cache, pairs
from alutils.data.isic2018 import FOLDERS, load_isic2018
from alutils.system.checks import DataError

N_PAIRS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of noise, in which any bit can be told from any other."""
    folder = tmp_path_factory.mktemp("isic")
    rng = np.random.default_rng(0)
    for number, (images, masks) in enumerate(FOLDERS.values()):
        (folder / images).mkdir()
        (folder / masks).mkdir()
        for i in range(N_PAIRS // 3):
            name = f"ISIC_{number}{i}"
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / images / f"{name}.jpg")
            mask = Image.fromarray(rng.integers(0, 2, (32, 32), dtype=np.uint8) * 255)
            mask.save(folder / masks / f"{name}_segmentation.png")
    return folder


def pixels(splits):
    parts = (splits.train, splits.val, splits.test)
    return torch.cat([tensor.flatten() for split in parts for tensor in (split.images, split.masks)]).clone()


@pytest.fixture(scope="module")
def expected(root, tmp_path_factory):
    return pixels(load_isic2018(root, 32, cache_dir=tmp_path_factory.mktemp("sound")))


def the_cache(folder):
    (path,) = folder.glob("*.npy")
    return path


def survived(root, folder, expected):
    """The right pixels; whatever was wrong with the cache is warned of by its name, and put right."""
    path = the_cache(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = pixels(load_isic2018(root, 32, cache_dir=folder))
    assert torch.equal(found, expected)
    assert len(caught) <= 1 and all(f"{path} is damaged and is made anew" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_isic2018(root, 32, cache_dir=folder)
    return len(caught)


def test_a_flipped_bit_in_the_cache_never_changes_a_pixel(root, expected, tmp_path, times, tally):
    n = times(20, 200)
    load_isic2018(root, 32, cache_dir=tmp_path)
    array = the_cache(tmp_path)
    record = array.with_suffix(".json")
    sound = {path: path.read_bytes() for path in (array, record)}
    draw = random.Random(0)
    for i in range(n):
        path, begin, end = ((array, 0, 64), (record, 0, None), (array, 128, None), (array, 128, None))[i % 4]
        data = bytearray(sound[path])
        data[draw.randrange(begin, end or len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        assert survived(root, tmp_path, expected) == 1
        assert {path: path.read_bytes() for path in sound} == sound
    tally("flipped bit in the decode cache", n)


def test_a_truncated_or_half_written_cache_is_made_anew(root, expected, tmp_path, times, tally):
    n = times(10, 100)
    load_isic2018(root, 32, cache_dir=tmp_path)
    path, draw = the_cache(tmp_path), random.Random(1)
    record = path.with_suffix(".json")
    size = path.stat().st_size
    for length in [0, 1, 127, 128, size - 1, *(draw.randrange(size) for _ in range(n - 7))]:
        os.truncate(path, length)
        assert survived(root, tmp_path, expected) == 1
    os.truncate(record, record.stat().st_size - 1)
    assert survived(root, tmp_path, expected) == 1
    record.unlink()  # as after a kill between the two files
    assert survived(root, tmp_path, expected) == 1
    tally("truncated decode cache", n)


# --- the disk --------------------------------------------------------------------------------------------------------


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def both_files(folder):
    return [the_cache(folder).with_suffix(suffix).name for suffix in (".json", ".npy")]


@pytest.mark.parametrize("filled_before", [True, False], ids=["before", "while decoding"])
def test_a_full_disk_is_one_error_and_leaves_nothing(root, expected, tmp_path, tally, monkeypatch, filled_before):
    if not filled_before:  # another process fills the disk after we looked
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**12}))
    with small_disk(tmp_path / "disk", "16k") as folder:  # the cache takes 24 kB
        with pytest.raises(DataError, match="make room" if filled_before else "cannot be written.*cache_dir") as caught:
            load_isic2018(root, 32, cache_dir=folder)
        assert str(folder) in str(caught.value) and caught.value.__suppress_context__
        assert leftovers(folder) == []
        remount(folder, "size=1m")
        assert torch.equal(pixels(load_isic2018(root, 32, cache_dir=folder)), expected)
    tally("full disk under the decode cache", 1)


def test_a_read_only_disk_is_one_error_and_a_sound_cache_on_it_is_read(root, expected, tmp_path, tally):
    with small_disk(tmp_path / "disk", "1m") as folder:
        remount(folder, "ro")
        with pytest.raises(DataError, match="cannot be written.*cache_dir"):
            load_isic2018(root, 32, cache_dir=folder)
        remount(folder, "rw")
        load_isic2018(root, 32, cache_dir=folder)
        remount(folder, "ro")
        assert torch.equal(pixels(load_isic2018(root, 32, cache_dir=folder)), expected)
    tally("read-only disk under the decode cache", 1)


# --- processes -------------------------------------------------------------------------------------------------------


def decode_and_report(root, folder, pipe):
    """Sends the number of each pair before it is decoded and waits for the answer; then sends the pixels' checksums."""
    decode_pair, count = pairs._decode_pair, 0

    def reporting(*args):
        nonlocal count
        count += 1
        pipe.send(count)
        pipe.recv()
        return decode_pair(*args)

    pairs._decode_pair = reporting
    splits = load_isic2018(root, 32, cache_dir=folder, n_workers=1)
    pipe.send([splits.train.checksum, splits.val.checksum, splits.test.checksum])


def test_a_process_killed_while_it_decodes_costs_nothing(root, expected, tmp_path, times, tally):
    n = times(3, 20)
    draw = random.Random(2)
    for i in range(n):
        folder = tmp_path / str(i)
        here, there = CONTEXT.Pipe()
        process = CONTEXT.Process(target=decode_and_report, args=(root, folder, there))
        process.start()
        last = draw.randint(1, N_PAIRS)
        while here.recv() != last:
            here.send("go on")
        if draw.random() < 0.5:  # in the middle of decoding, or between it and the rename
            here.send("go on")
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode in (-signal.SIGKILL, 0)
        assert torch.equal(pixels(load_isic2018(root, 32, cache_dir=folder)), expected)
        assert leftovers(folder) == both_files(folder)
    tally("SIGKILL while the decode cache is written", n)


def test_the_unfinished_file_of_a_killed_process_is_removed(root, tmp_path):
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=decode_and_report, args=(root, tmp_path, there))
    process.start()
    here.recv()
    (unfinished,) = leftovers(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert leftovers(tmp_path) == [unfinished] and unfinished.endswith(f".{process.pid}.tmp")
    load_isic2018(root, 32, cache_dir=tmp_path)
    assert leftovers(tmp_path) == both_files(tmp_path)


def open_at_once(root, folder, barrier, queue):
    decode_pair = pairs._decode_pair

    def marked(pair, *args):
        Path(folder, f"{os.getpid()}-{pair.image.stem}.lock").touch()
        return decode_pair(pair, *args)

    pairs._decode_pair = marked
    barrier.wait(240)
    splits = load_isic2018(root, 32, cache_dir=folder)
    queue.put([splits.train.checksum, splits.val.checksum, splits.test.checksum])


def test_of_eight_processes_that_open_at_once_one_decodes(root, tmp_path, times, tally):
    n = times(1, 5)
    for i in range(n):
        folder = tmp_path / str(i)
        folder.mkdir()
        barrier, queue = CONTEXT.Barrier(8), CONTEXT.Queue()
        started = [CONTEXT.Process(target=open_at_once, args=(root, folder, barrier, queue)) for _ in range(8)]
        for process in started:
            process.start()
        found = [queue.get(timeout=240) for _ in started]
        for process in started:
            process.join(60)
        splits = load_isic2018(root, 32, cache_dir=folder)
        assert found == [[splits.train.checksum, splits.val.checksum, splits.test.checksum]] * 8
        marks = [path.name.split("-")[0] for path in folder.glob("*-ISIC_*.lock")]
        assert len(marks) == N_PAIRS and len(set(marks)) == 1
    tally("eight processes opening one uncached folder", n)
