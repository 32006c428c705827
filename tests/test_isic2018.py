"""The ISIC 2018 reader: every fault in the files is named, pictures are right, and nothing is decoded twice."""

import os
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from alutils.data import cache, folders, pairs
from alutils.data.cache import sweep_caches
from alutils.data.isic2018 import FOLDERS, OFFICIAL_COUNTS, isic2018_report, load_isic2018
from alutils.data.splits import Split, Splits
from alutils.lab.notebook import open_workspace
from alutils.system.checks import DataError

TRAIN_IMAGES, TRAIN_MASKS = FOLDERS["train"]
VAL_IMAGES, VAL_MASKS = FOLDERS["val"]


def write_pair(root, split, name, size=(40, 30), colour=(200, 150, 100), lesion=(10, 10, 20, 20)):
    """One plain image and a mask that is white in the box ``lesion`` (left, top, right, bottom)."""
    images, masks = (root / folder for folder in FOLDERS[split])
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(images / f"{name}.jpg", quality=95)
    mask = Image.new("L", size, 0)
    mask.paste(255, lesion)
    mask.save(masks / f"{name}_segmentation.png")
    return images / f"{name}.jpg", masks / f"{name}_segmentation.png"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four sound pairs of different native sizes: two to train, one each to validate and test."""
    monkeypatch.setenv("ALUTILS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "isic"
    write_pair(folder, "train", "ISIC_1", (40, 30), (250, 0, 0))
    write_pair(folder, "train", "ISIC_2", (100, 64), (0, 250, 0))
    write_pair(folder, "val", "ISIC_3", (64, 100), (0, 0, 250))
    write_pair(folder, "test", "ISIC_4", (32, 32), (9, 9, 9))
    return folder


def cached(root):
    """Everything in the cache folder but lock files."""
    folder = root.parent / "cache"
    return [path for path in folder.rglob("*") if path.suffix != ".lock"] if folder.exists() else []


def planes(root):
    return [path for path in cached(root) if path.suffix == ".npy"]


def error_of(root, **options):
    with pytest.raises(DataError) as caught:
        load_isic2018(root, 32, **{"degenerate_masks": "error", **options})
    return str(caught.value)


# --- what is returned ------------------------------------------------------------------------------------------------


def test_splits_have_the_promised_shapes_types_and_ids(root):
    splits = load_isic2018(root, 64)
    assert splits.train.ids == ("ISIC_1", "ISIC_2") and splits.val.ids == ("ISIC_3",) and splits.test.ids == ("ISIC_4",)
    assert splits.train.images.shape == (2, 3, 64, 64) and splits.train.images.dtype == torch.uint8
    assert splits.train.masks.shape == (2, 1, 64, 64) and splits.train.masks.dtype == torch.uint8
    assert splits.train.images.is_contiguous() and splits.train.masks.is_contiguous()


def test_each_image_keeps_its_own_colour_and_mask(root):
    splits = load_isic2018(root, 32)
    for split, i, colour in (
        (splits.train, 0, (250, 0, 0)),
        (splits.train, 1, (0, 250, 0)),
        (splits.val, 0, (0, 0, 250)),
        (splits.test, 0, (9, 9, 9)),
    ):
        expected = torch.tensor(colour).view(3, 1, 1)
        assert (split.images[i].int() - expected).abs().max() <= 3  # JPEG
    # the box of 10 x 10 pixels in 32 x 32, untouched
    assert splits.test.masks[0, 0].sum() == 100 and splits.test.masks[0, 0, 10:20, 10:20].all()


def test_pairing_is_by_id_and_not_by_order(root):
    # As files, "ISIC_100_segmentation" sorts before "ISIC_10_segmentation", but "ISIC_10.jpg" before "ISIC_100.jpg".
    for name, lesion in (("ISIC_10", (0, 0, 32, 8)), ("ISIC_100", (0, 0, 32, 16)), ("ISIC_1a", (0, 0, 32, 24))):
        write_pair(root, "train", name, (32, 32), lesion=lesion)
    train = load_isic2018(root, 32).train
    area = dict(zip(train.ids, train.lesion_area.tolist(), strict=True))
    assert {name: area[name] for name in ("ISIC_10", "ISIC_100", "ISIC_1a")} == {
        "ISIC_10": 0.25,
        "ISIC_100": 0.5,
        "ISIC_1a": 0.75,
    }


def test_large_jpegs_stay_within_one_grey_level_on_average_of_antialiasing_all_their_pixels(tmp_path):
    """Against torch's antialiased bicubic on all pixels; shrinking inside libjpeg must not cost more than that."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((1600, 1200), Image.BICUBIC)
    noisy = np.asarray(coarse, dtype=float) + rng.normal(0, 20, (1200, 1600, 1))
    path = tmp_path / "large.jpg"
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=92)

    full = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None].float()
    oracle = F.interpolate(full, (128, 128), mode="bicubic", antialias=True)[0].clamp(0, 255)
    ours, native, *_ = pairs._decode_image(path, 128)
    difference = (torch.tensor(ours).float() - oracle).abs()
    assert native == (1600, 1200)
    assert difference.mean() < 0.7 and difference.max() < 8  # half of the margin before the filter: 0.85 on average
    aliased = F.interpolate(full, (128, 128), mode="nearest")[0]  # the bound is tight enough to see this
    assert (aliased - oracle).abs().mean() > 5


def test_a_fine_chessboard_becomes_grey_and_not_a_pattern(root):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(root / TRAIN_IMAGES / "ISIC_9.png")
    mask = Image.new("L", (256, 256), 0)
    mask.paste(255, (0, 0, 128, 256))
    mask.save(root / TRAIN_MASKS / "ISIC_9_segmentation.png")
    image = load_isic2018(root, 32).train.images[2]
    assert image.min() >= 120 and image.max() <= 135


@pytest.mark.parametrize("top", [1, 255])
def test_masks_stay_binary_and_are_the_area_average_above_one_half(root, top):
    rng = np.random.default_rng(1)
    native = rng.random((96, 160)) < np.linspace(0, 1, 160)  # from background to lesion
    Image.new("RGB", (160, 96)).save(root / TRAIN_IMAGES / "ISIC_9.jpg")
    Image.fromarray((native * top).astype(np.uint8)).save(root / TRAIN_MASKS / "ISIC_9_segmentation.png")
    mask = load_isic2018(root, 32).train.masks[2, 0].numpy()

    area = native.reshape(32, 3, 32, 5).mean((1, 3))  # 15 pixels each: never exactly one half
    assert set(np.unique(mask)) == {0, 1}
    assert (mask == (area > 0.5)).all()


@pytest.mark.parametrize("suffix", [".JPG", ".Jpeg"])
def test_a_suffix_may_be_written_in_any_case(root, suffix):
    for path, other in (
        (root / TRAIN_IMAGES / "ISIC_1.jpg", suffix),
        (root / TRAIN_MASKS / "ISIC_1_segmentation.png", ".PNG"),
    ):
        path.rename(path.with_suffix(other))
    assert load_isic2018(root, 32).train.ids == ("ISIC_1", "ISIC_2")


def test_superpixels_and_files_that_are_not_images_are_ignored(root):
    Image.new("RGB", (40, 30)).save(root / TRAIN_IMAGES / "ISIC_1_superpixels.png")
    for folder in (TRAIN_IMAGES, TRAIN_MASKS):
        for name in ("LICENSE.txt", "ATTRIBUTION.txt", ".DS_Store", "._ISIC_1.jpg", "Thumbs.db"):
            (root / folder / name).write_bytes(b"not an image")
    assert load_isic2018(root, 32).train.ids == ("ISIC_1", "ISIC_2")


def test_report_sets_what_was_found_against_the_official_counts():
    def split(name, n):
        ids = [f"{name}{i}" for i in range(n)]
        return Split(torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.zeros(n, 1, 1, 1, dtype=torch.uint8), ids)

    assert OFFICIAL_COUNTS == {"train": 2594, "val": 100, "test": 1000}  # section IV-A
    report = isic2018_report(Splits(split("a", 7), split("b", 100), split("c", 1000)))
    assert report["images"].tolist() == [7, 100, 1000]
    assert report["official"].tolist() == [2594, 100, 1000]
    assert report["complete"].tolist() == [False, True, True]


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 33, 2080, -32, 64.0, "64", True])
def test_image_sizes_that_the_network_cannot_halve_five_times_are_refused(root, size):
    with pytest.raises(ValueError, match="multiple of 32 from 32 to 2048.*five times"):
        load_isic2018(root, size)


def test_a_root_that_does_not_exist_is_named_whole_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = error_of("data/isic")
    assert f"cannot be read from {tmp_path}/data/isic:" in message
    assert f"{tmp_path}/data/isic does not exist" in message and f'alutils-download "{tmp_path}/data/isic"' in message


def test_all_missing_and_empty_folders_are_named_with_what_was_found_instead(root):
    for path in (root / VAL_MASKS).iterdir():
        path.rename(path.with_suffix(".txt"))
    (root / TRAIN_MASKS).rename(root / "Training_GroundTruth")
    (root / TRAIN_IMAGES).rename(root / "Training_Input")
    message = error_of(root)
    assert f"no folder {TRAIN_MASKS}" in message and f"no folder {TRAIN_IMAGES}" in message
    assert f"the folder {VAL_MASKS} holds no pictures" in message
    assert "Training_GroundTruth, Training_Input" in message.split("found there")[1]


def break_missing_mask(root):
    (root / TRAIN_MASKS / "ISIC_1_segmentation.png").unlink()


def break_link(root):
    (root / TRAIN_IMAGES / "ISIC_1.jpg").unlink()
    (root / TRAIN_IMAGES / "ISIC_1.jpg").symlink_to(root / "gone.jpg")


def break_truncated_jpeg(root):
    path = root / TRAIN_IMAGES / "ISIC_1.jpg"
    Image.effect_noise((40, 30), 90).convert("RGB").save(path)
    os.truncate(path, path.stat().st_size // 2 + 300)


def break_mask_size(root):
    mask = Image.new("L", (30, 40))
    mask.paste(255, (0, 0, 9, 9))
    mask.save(root / TRAIN_MASKS / "ISIC_1_segmentation.png")


def break_no_lesion(root):
    Image.new("L", (40, 30), 0).save(root / TRAIN_MASKS / "ISIC_1_segmentation.png")


def test_faults_in_names_and_pixels_are_all_reported_at_once(root):
    for i, fault in enumerate((break_missing_mask, break_truncated_jpeg, break_mask_size, break_no_lesion, break_link)):
        write_pair(root, "train", "ISIC_1")  # each fault strikes ISIC_1, which then moves out of the way
        fault(root)
        for folder in (TRAIN_IMAGES, TRAIN_MASKS):
            for path in (root / folder).glob("ISIC_1[._]*"):
                path.rename(path.with_name(path.name.replace("ISIC_1", f"ISIC_5{i}")))
    write_pair(root, "train", "ISIC_1")
    os.truncate(root / VAL_IMAGES / "ISIC_3.jpg", 0)
    message = error_of(root)
    assert "; problems: 6\n" in message
    for kind, name in (
        ("missing mask (1)", "ISIC_50"),
        ("cannot be decoded (2)", "ISIC_51.jpg"),
        ("cannot be decoded (2)", "ISIC_3.jpg"),
        ("mask's size (1)", "ISIC_52"),
        ("mask without lesion (1)", "ISIC_53"),
        ("unreadable file (1)", "ISIC_54"),
    ):
        group = message[message.index(kind) :].split("; remedy:")[1].split("remedy:")[0]
        assert name in group, (kind, name)


def test_one_pair_with_two_faults_reports_both(root):
    Image.new("L", (30, 40), 7).save(root / TRAIN_MASKS / "ISIC_1_segmentation.png")
    message = error_of(root)
    assert "mask's size (1)" in message and "mask's values (1)" in message


def test_masks_with_a_single_pixel_of_the_other_kind_are_sound_at_any_image_size(root):
    """The check is at the native size: 4 of 10,000 pixels are nothing at 32 x 32."""
    for name, inside, outside in (("ISIC_8", 255, 0), ("ISIC_9", 0, 255)):
        _, path = write_pair(root, "train", name, (100, 100))
        mask = Image.new("L", (100, 100), outside)
        mask.paste(inside, (0, 0, 2, 2))
        mask.save(path)
    area = load_isic2018(root, 32).train.lesion_area
    assert area[2] < 0.002 and area[3] > 0.998


def sayings(root, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load_isic2018(root, 32, **options)
    assert all(said.filename == __file__ for said in caught)
    return splits, [str(said.message) for said in caught]


@pytest.mark.parametrize("first", ["error", "keep"])
def test_one_cache_serves_all_that_can_be_done_with_degenerate_masks(root, monkeypatch, first):
    break_no_lesion(root)
    write_pair(root, "train", "ISIC_2", (100, 64), lesion=(0, 0, 100, 64))
    if first == "error":
        error_of(root)
    else:
        load_isic2018(root, 32, degenerate_masks=first)
    monkeypatch.setattr(pairs, "_decode_pair", explode)
    splits, said = sayings(root)  # "warn" is the default
    assert splits.train.lesion_area.tolist() == [0, 1]
    assert len(said) == 2
    assert f"masks without lesion (1): {TRAIN_MASKS}/ISIC_1_segmentation.png; " in said[0]
    assert f"masks that are all lesion (1): {TRAIN_MASKS}/ISIC_2_segmentation.png; " in said[1]
    assert sayings(root, degenerate_masks="keep")[1] == []
    message = error_of(root)
    assert "mask without lesion (1)" in message and "mask all lesion (1)" in message and "problems: 2" in message


def test_degenerate_masks_are_a_setting_of_the_experiment(root):
    break_no_lesion(root)
    options = {"profile": "quick", "data_root": str(root), "device": "cpu"}
    with pytest.raises(DataError, match="mask without lesion"):
        open_workspace("01_data", overrides="{image_size: 32, degenerate_masks: error}", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workspace = open_workspace("01_data", overrides="{image_size: 32, degenerate_masks: keep}", **options)
    assert workspace.splits.train.lesion_area[0] == 0
    with pytest.warns(UserWarning, match=r"masks without lesion \(1\)"):
        open_workspace("01_data", overrides="{image_size: 32}", **options)


def test_long_lists_are_cut_short_in_errors_and_warnings(root):
    for i in range(30):
        write_pair(root, "train", f"ISIC_9{i:02}", lesion=(0, 0, 0, 0))
        write_pair(root, "val", f"ISIC_8{i:02}", colour=(0, 0, 9))
        (root / VAL_IMAGES / f"ISIC_8{i:02}.jpg").write_bytes(b"")
    message = error_of(root)
    assert "problems: 60\n" in message and message.count("... (30 in all)") == 2 and len(message.splitlines()) == 25
    for path in (root / VAL_IMAGES).glob("ISIC_8*"):
        write_pair(root, "val", path.stem, colour=(0, 0, 9))
    (said,) = sayings(root)[1]
    assert "masks without lesion (30): " in said and "ISIC_909_segmentation.png, ... (30 in all); " in said


# --- the cache -------------------------------------------------------------------------------------------------------


def explode(*args):
    raise AssertionError("decoded again")


def test_the_second_call_decodes_nothing_and_returns_the_same(root, monkeypatch):
    first = load_isic2018(root, 32)
    monkeypatch.setattr(pairs, "_decode_pair", explode)
    second = load_isic2018(root, 32)
    assert torch.equal(first.train.images, second.train.images) and torch.equal(first.test.masks, second.test.masks)
    with pytest.raises(AssertionError, match="decoded again"):  # so the explosion would have been seen
        load_isic2018(root, 64)


def test_writing_to_the_tensors_changes_neither_the_cache_nor_other_calls(root):
    first = load_isic2018(root, 32)
    first.train.images.zero_()
    assert load_isic2018(root, 32).train.images.max() > 200


def test_a_changed_image_a_new_pair_and_another_size_are_decoded_anew(root):
    assert load_isic2018(root, 32).train.images[0, 0].min() > 240
    write_pair(root, "train", "ISIC_1", (40, 30), (0, 0, 0))
    assert load_isic2018(root, 32).train.images[0].max() < 5
    write_pair(root, "train", "ISIC_7")
    assert load_isic2018(root, 32).train.ids == ("ISIC_1", "ISIC_2", "ISIC_7")
    assert load_isic2018(root, 96).train.images.shape == (3, 3, 96, 96)


@pytest.mark.parametrize("n", [100, 5000, 50_000])
@pytest.mark.parametrize("end", [0, -1], ids=["first", "last"])
def test_a_file_whose_first_or_last_byte_changes_is_decoded_anew_at_any_size_and_time(tmp_path, n, end):
    path = tmp_path / "file"
    hashes = set()
    for value in (0, 1):
        content = bytearray(n)
        content[end] = value
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        hashes.add(folders._size_and_ends(path))
    assert len(hashes) == 2


def test_a_file_of_the_same_name_size_and_time_but_other_content_is_decoded_anew(root):
    path = root / TRAIN_MASKS / "ISIC_1_segmentation.png"
    data = path.read_bytes()
    Image.new("L", (40, 30), 0).save(path)
    empty = path.read_bytes()
    for content, has_lesion in ((data, True), (empty, False)):
        path.write_bytes(content.ljust(max(len(data), len(empty)), b"\0"))
        os.utime(path, ns=(1, 1))
        assert load_isic2018(root, 32, degenerate_masks="keep").train.masks[0].any() == has_lesion


def test_a_copy_of_the_data_finds_the_same_cache(root, tmp_path, monkeypatch):
    first = load_isic2018(root, 32)
    copy = tmp_path / "scratch" / "job"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)  # other times of change
    monkeypatch.setattr(pairs, "_decode_pair", explode)
    assert load_isic2018(copy, 32).train.checksum == first.train.checksum


def test_caches_that_were_not_opened_for_long_are_swept(root):
    load_isic2018(root, 32)
    (old,) = planes(root)
    os.utime(old, (0, 0))
    (other := old.with_name("other.npy")).touch()
    os.utime(other, (0, 0))
    load_isic2018(root, 64)
    load_isic2018(root, 32)
    assert sweep_caches(old.parent) == []  # it has been opened since
    os.utime(old, (0, 0))
    assert sweep_caches(old.parent) == [old] and not old.exists() and other.exists()
    assert not old.with_suffix(".json").exists()
    assert len(sweep_caches(old.parent, days=0)) == 1
    for days in (-1, "30", float("nan")):
        with pytest.raises(ValueError, match="days"):
            sweep_caches(old.parent, days=days)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00{'descr': (((" + path.read_bytes()[24:]),
        lambda path: np.save(path, np.array([{"an": "object"}], dtype=object)),
        lambda path: np.save(path, np.zeros((5, 5))),
    ],
    ids=["truncated", "header", "pickle", "other array"],
)
def test_a_damaged_cache_is_made_anew_with_a_warning(root, damage):
    before = load_isic2018(root, 32).train.images.clone()
    (path,) = planes(root)
    damage(path)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged and is made anew"):
        again = load_isic2018(root, 32)
    assert torch.equal(again.train.images, before)
    assert planes(root) == [path]


def test_the_cache_goes_to_the_argument_before_the_environment(root, tmp_path):
    load_isic2018(root, 32, cache_dir=tmp_path / "mine")
    assert len(list((tmp_path / "mine").glob("*.npy"))) == 1 and cached(root) == []
    load_isic2018(root, 32)
    assert len(planes(root)) == 1


def test_without_argument_and_environment_the_users_cache_folder_is_taken(root, tmp_path, monkeypatch):
    monkeypatch.delenv("ALUTILS_CACHE")
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", lambda name: tmp_path / "user" / name)
    load_isic2018(root, 32)
    assert len(list((tmp_path / "user" / "alutils").glob("*.npy"))) == 1


def test_an_unusable_cache_folder_and_a_full_disk_are_named_before_anything_is_decoded(root, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "_decode_pair", explode)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/sub/.* cannot be written \(Not a directory\).*ALUTILS_CACHE"):
        load_isic2018(root, 32, cache_dir=tmp_path / "file" / "sub")
    usage = type("Usage", (), {"free": 4 * 4 * 32**2 - 1})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"needs 0\.0 GB.*make room"):
        load_isic2018(root, 32)


def test_an_interrupt_leaves_nothing_behind_and_the_next_call_works(root, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "_decode_pair", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_isic2018(root, 32)
    assert cached(root) == []
    assert len(load_isic2018(root, 32).train) == 2
