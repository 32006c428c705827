"""Data sets by their descriptions: each shipped layout with its quirks, splits by group, and bad descriptions."""

import unicodedata
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from alutils.data.description import DESCRIPTIONS, find_description, read_description
from alutils.data.duplicates import difference_hash, near_duplicates
from alutils.data.pairs import load_pairs
from alutils.data.splits import Split, Splits
from alutils.lab.notebook import open_workspace
from alutils.system.checks import ConfigError, DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ALUTILS_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path, *, lesion=None, size=(40, 30), colour=0, mode="L", value=255):
    """A picture in one colour, or with the box ``lesion`` in another, by the ending's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new(mode, size, colour)
    if lesion:
        picture.paste(value if mode == "L" else (value,) * 3, lesion)
    picture.save(path)


def photo(path, i):
    """A picture like no other one."""
    save(path, colour=(20 + 3 * i % 200, 7 * i % 256, 90), mode="RGB")


def isic2016(root):
    for split, numbers in (("Training", range(20)), ("Test", range(20, 25))):
        for i in numbers:
            photo(root / f"ISBI2016_ISIC_Part1_{split}_Data/ISIC_{i:07d}.jpg", i)
            save(root / f"ISBI2016_ISIC_Part1_{split}_GroundTruth/ISIC_{i:07d}_Segmentation.png", lesion=(5, 5, 20, 20))
    return {"train": 18, "val": 2, "test": 5}


def isic2017(root):
    for split, numbers in (("Training", range(4)), ("Validation", range(4, 6)), ("Test_v2", range(6, 9))):
        for i in numbers:
            photo(root / f"ISIC-2017_{split}_Data/ISIC_{i:07d}.jpg", i)
            photo(root / f"ISIC-2017_{split}_Data/ISIC_{i:07d}_superpixels.png", i)
            suffix = "Segmentation" if i % 2 else "segmentation"
            save(root / f"ISIC-2017_{split}_Part1_GroundTruth/ISIC_{i:07d}_{suffix}.png", lesion=(5, 5, 20, 20))
    return {"train": 4, "val": 2, "test": 3, "ignored": 9}


def isic2018(root):
    for split, i in (("Training", 1), ("Validation", 2), ("Test", 3)):
        photo(root / f"ISIC2018_Task1-2_{split}_Input/ISIC_{i:07d}.jpg", i)
        save(root / f"ISIC2018_Task1_{split}_GroundTruth/ISIC_{i:07d}_segmentation.png", lesion=(5, 5, 20, 20))
    return {"train": 1, "val": 1, "test": 1}


def ham10000(root):
    for i in range(40):
        photo(root / f"HAM10000_images_part_{1 + i % 2}/ISIC_{i:07d}.jpg", i)
        save(root / f"HAM10000_segmentations_lesion_tschandl/ISIC_{i:07d}_segmentation.png", lesion=(5, 5, 20, 20))
    ids = [f"ISIC_{i:07d}" for i in range(40)]
    lesions = [f"HAM_{i // 2}" for i in range(40)]
    pd.DataFrame({"lesion_id": lesions, "image_id": ids}).to_csv(root / "HAM10000_metadata.csv", index=False)
    return {"train": 28, "val": 4, "test": 8}


def ph2(root, n=20):
    for i in range(n):
        folder = root / f"PH2 Dataset images/IMD{i:03d}"
        photo(folder / f"IMD{i:03d}_Dermoscopic_Image/IMD{i:03d}.bmp", i)
        save(folder / f"IMD{i:03d}_lesion/IMD{i:03d}_lesion.bmp", lesion=(5, 5, 20, 20))
        save(folder / f"IMD{i:03d}_roi/IMD{i:03d}_R1_Label3.bmp", lesion=(5, 5, 20, 20))
    return {"train": 0.7 * n, "val": 0.1 * n, "test": 0.2 * n, "ignored": n}


def kvasir(root):
    for i in range(10):
        photo(root / f"Kvasir-SEG/images/cju{i}.jpg", i)
        save(root / f"Kvasir-SEG/masks/cju{i}.jpg", lesion=(5, 5, 20, 20), mode="RGB")  # edges blurred by JPEG
    return {"train": 7, "val": 1, "test": 2}


def clinicdb(root):
    for i in range(1, 11):
        photo(root / f"CVC-ClinicDB/Original/{i}.tif", i)
        save(root / f"CVC-ClinicDB/Ground Truth/{i}.tif", lesion=(5, 5, 20, 20))
    return {"train": 7, "val": 1, "test": 2}


def busi(root):
    for kind in ("benign", "normal"):
        for i in range(1, 6):
            photo(root / f"Dataset_BUSI_with_GT/{kind}/{kind} ({i}).png", i + 50 * (kind == "normal"))
            lesion = (5, 5, 20, 20) if kind == "benign" else None
            save(root / f"Dataset_BUSI_with_GT/{kind}/{kind} ({i})_mask.png", lesion=lesion)
    save(root / "Dataset_BUSI_with_GT/benign/benign (2)_mask_1.png", lesion=(22, 5, 37, 20))
    return {"train": 7, "val": 1, "test": 2}


LAYOUTS = {
    "isic2016": isic2016, "isic2017": isic2017, "isic2018": isic2018, "ham10000": ham10000, "ph2": ph2,
    "kvasir-seg": kvasir, "cvc-clinicdb": clinicdb, "busi": busi,
}  # fmt: skip


def test_each_shipped_description_has_its_layout_here():
    assert [*DESCRIPTIONS] == sorted(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_shipped_layout_is_recognised_and_read_with_its_quirks(tmp_path, name):
    expected = LAYOUTS[name](tmp_path)
    found = find_description(tmp_path)
    assert found == read_description(name)
    splits = load_pairs(name, tmp_path, 32)
    assert {k: len(v) for k, v in splits.named.items()} == {k: v for k, v in expected.items() if k != "ignored"}
    assert splits.source == found.name and splits.n_ignored == expected.get("ignored", 0)
    box = np.zeros((30, 40))
    box[5:20, 5:20] = 1
    share = torch.cat([split.lesion_area for split in splits.named.values()])
    lesion = share[share > 0]
    assert lesion.numel() and torch.allclose(lesion[lesion < 0.25], torch.tensor(box.mean()).float(), atol=0.03)


def test_several_masks_of_an_image_are_united(tmp_path):
    busi(tmp_path)
    splits = load_pairs("busi", tmp_path, 64)
    area = {n: a for split in splits.named.values() for n, a in zip(split.ids, split.lesion_area.tolist(), strict=True)}
    assert area["benign (2)"] == pytest.approx(2 * area["benign (1)"], rel=0.05)
    assert area["normal (1)"] == 0


def test_images_of_one_group_come_into_one_split_and_the_division_is_the_seeds(tmp_path):
    ham10000(tmp_path)
    splits = load_pairs("ham10000", tmp_path, 32)
    lesions = [{int(name[-7:]) // 2 for name in split.ids} for split in splits.named.values()]
    assert sum(map(len, lesions)) == len(set.union(*lesions)) == 20
    other = read_description("ham10000").model_copy(
        update={"split": read_description("ph2").split.model_copy(update={"seed": 1})}
    )
    assert load_pairs(other, tmp_path, 32).train.ids != splits.train.ids
    assert load_pairs("ham10000", tmp_path, 32).train.ids == splits.train.ids


OWN = """\
name: mine
train: {{images: "pictures/train/{{id}}", masks: "masks/train/{{id}}"}}
val: {{images: "pictures/val/{{id}}", masks: "masks/val/{{id}}"}}
test: {{images: "pictures/test/{{id}}", masks: "masks/test/{{id}}"}}
{more}
"""


def own(root, more="", names=("a1", "b1", "c1")):
    for split, name in zip(("train", "val", "test"), names, strict=True):
        photo(root / f"pictures/{split}/{name}.gif", ord(name[0]))
        save(root / f"masks/{split}/{name}.gif", lesion=(5, 5, 20, 20), value=2, colour=1)
    (root / "description.yaml").write_text(OWN.format(more=more))


def test_a_description_of_ones_own_lies_beside_the_data(tmp_path):
    own(tmp_path, "lesion_values: [2]")
    work = open_workspace("02_model", data_root=str(tmp_path), overrides="{image_size: 32}", device="cpu")
    assert work.data_name == work.splits.source == "mine" and work.splits.val.ids == ("b1",)
    assert 0.15 < work.splits.train.lesion_area.item() < 0.25


@pytest.mark.parametrize("rows", ["a1,p\nb1,q\nc1,p\n", "a1,a1\nb1,b1\nc1,a1\n", "A1,p\nB1,q\nC1,p\n"])
def test_groups_of_a_table_never_straddle_the_splits(tmp_path, rows):
    """Be they called after one of their images, as some data sets do, or the ids written in capitals."""
    own(tmp_path, "lesion_values: [2]\ngroup: {csv: groups.csv, by: patient}")
    (tmp_path / "groups.csv").write_text("id,patient\n" + rows)
    with pytest.raises(DataError, match=r"group in two splits \(1\); remedy[^\n]*\n  (p|a1): test and train$"):
        load_pairs(tmp_path / "description.yaml", tmp_path, 32)
    (tmp_path / "groups.csv").write_text("id,patient\na1,a1\nb1,b1\nc1,c1\n")
    load_pairs(tmp_path / "description.yaml", tmp_path, 32)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a1,p\nb1,\nc1,q\n", r"not in the table \(1\)[^\n]*\n  b1: no patient in groups.csv"),
        ("a1,p\nb1,q\nc1,r\na1,q\n", "groups.csv: a1: several values of patient; keep one"),
    ],
)
def test_a_table_must_give_each_image_one_group(tmp_path, rows, message):
    own(tmp_path, "lesion_values: [2]\ngroup: {csv: groups.csv, by: patient}")
    (tmp_path / "groups.csv").write_text("id,patient\n" + rows)
    with pytest.raises(DataError, match=message):
        load_pairs(tmp_path / "description.yaml", tmp_path, 32)


def test_an_id_in_two_splits_is_refused_in_capitals_too(tmp_path):
    own(tmp_path, "lesion_values: [2]", names=("a1", "b1", "A1"))
    with pytest.raises(DataError, match=r"id in two splits \(1\)[^\n]*\n  a1: train and test"):
        load_pairs(tmp_path / "description.yaml", tmp_path, 32)


def test_links_to_folders_are_followed(tmp_path):
    expected = ham10000(tmp_path / "disk")
    (tmp_path / "here").mkdir()
    for path in (tmp_path / "disk").iterdir():
        (tmp_path / "here" / path.name).symlink_to(path)
    assert len(load_pairs("ham10000", tmp_path / "here", 32).train) == expected["train"]


@pytest.mark.parametrize("ending", ["webp", "pcx", "qoi", "PPM", "Tif"])
def test_lossless_formats_are_read_exactly(tmp_path, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    own(tmp_path, "lesion_values: [2]")
    (tmp_path / "pictures/val/b1.gif").unlink()
    save(tmp_path / "masks/val/b1.gif", lesion=(5, 5, 20, 20), value=2, colour=1, size=(32, 32))
    Image.fromarray(pixels).save(tmp_path / f"pictures/val/b1.{ending}", lossless=True)
    found = load_pairs(tmp_path / "description.yaml", tmp_path, 32).val.images[0]
    assert (found.permute(1, 2, 0).numpy() == pixels).all()


def test_groups_never_straddle_the_splits(tmp_path):
    own(tmp_path, "lesion_values: [2]\ngroup: '[a-z](\\d)'")
    with pytest.raises(DataError, match=r"group in two splits \(1\); remedy[^\n]*\n  1: test and train and val"):
        load_pairs(tmp_path / "description.yaml", tmp_path, 32)


def pairs_of(root, names, more, images="x/{id}", masks="y/{id}"):
    """A folder with a pair of each name, and the path of its description."""
    for i, name in enumerate(names):
        photo(root / f"{images.replace('{id}', name)}.png", i)
        save(root / f"{masks.replace('{id}', name)}.png", lesion=(5, 5, 20, 20))
    (root / "mine.yaml").write_text(f"name: x\nall: {{images: '{images}', masks: '{masks}'}}\n{more}")
    return root / "mine.yaml"


SHARES = "split: {fractions: [0.5, 0.25, 0.25]}\n"


def test_groups_are_the_same_in_capitals(tmp_path):
    names = [f"{letter}{i}_{j}" for i in range(4) for j, letter in enumerate("pP")]
    splits = load_pairs(pairs_of(tmp_path, names, SHARES + "group: '(p\\d)_'\n"), tmp_path, 32)
    groups = [{name[:2].lower() for name in split.ids} for split in splits.named.values()]
    assert sorted(map(len, groups)) == [1, 1, 2] and len(set.union(*groups)) == 4


def test_an_id_that_is_in_no_group_is_named_with_the_remedy(tmp_path):
    path = pairs_of(tmp_path, "abc", SHARES + "group: '(p\\d)_'\n")
    with pytest.raises(DataError, match=r"no group \(3\); remedy: change the pattern[^\n]*\n  a: group '\(p"):
        load_pairs(path, tmp_path, 32)


@pytest.mark.parametrize(
    "parts", ["all: {images: 'x/{id}', masks: 'y/{id}'}\n" + SHARES, OWN.partition("\n")[2].format(more="")]
)
def test_a_split_without_an_image_is_refused_with_the_number_of_names_that_do_not_fit(tmp_path, parts):
    own(tmp_path)
    pairs_of(tmp_path, ["a1"], SHARES)
    (tmp_path / "mine.yaml").write_text(f"name: mine\nid: a1\n{parts}")
    with pytest.raises(DataError, match=r"of the 1 images that fit .* none is for val, test, and [04] pictures do not"):
        load_pairs(tmp_path / "mine.yaml", tmp_path, 32)


def test_masks_may_lie_in_a_folder_among_those_of_the_images(tmp_path):
    path = pairs_of(tmp_path, "abcd", SHARES, images="d/one/{id}", masks="d/masks/{id}")
    path.write_text(path.read_text().replace("one", "*"))
    assert len(load_pairs(path, tmp_path, 32).train) == 2


def test_pictures_that_change_places_are_read_anew(tmp_path):
    path = pairs_of(tmp_path, "abcd", SHARES, images="{id}/photo/image", masks="{id}/lesion/mask")
    before = load_pairs(path, tmp_path, 32).train
    first, second = (tmp_path / name / "photo" for name in before.ids)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    assert torch.equal(load_pairs(path, tmp_path, 32).train.images, before.images.flip(0))


@pytest.mark.parametrize("given", ["warn", "keep", None])
@pytest.mark.parametrize("described", ["warn", "keep"])
def test_what_is_asked_of_degenerate_masks_wins_over_the_description(tmp_path, given, described):
    path = pairs_of(tmp_path, "abcd", SHARES + f"degenerate_masks: {described}\n").rename(tmp_path / "description.yaml")
    save(tmp_path / "y/a.png")
    overrides = {"image_size": 32} | ({"degenerate_masks": given} if given else {})
    with warnings.catch_warnings(record=True, action="always") as of_function:
        load_pairs(path, tmp_path, 32, degenerate_masks=given)
    with warnings.catch_warnings(record=True, action="always") as of_notebook:
        open_workspace("02_model", profile="paper", data_root=str(tmp_path), overrides=overrides, device="cpu")
    assert len(of_function) == len(of_notebook) == ((given or described) == "warn")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,part\na,train\nb,val\né,test\n", None),
        (unicodedata.normalize("NFD", "id, part\nA, Train\nB, val\nÉ, TEST\n"), None),
        ("id,part\na,train\nb,val\n", r"not in the table \(1\).*\n  é: no part in parts.csv"),
        ("id,part\na,train\nb,vall\né,test\n", "column part: must be one of train, val, test, got vall"),
        ("name,part\na,train\n", r"has no column 'id'; there are name, part"),
        (None, "parts.csv cannot be read"),
    ],
)
def test_a_table_says_which_split_an_image_belongs_to(tmp_path, table, message):
    path = pairs_of(tmp_path, "abé", "split: {csv: parts.csv, by: part}\n")
    if table:
        (tmp_path / "parts.csv").write_text(table, encoding="utf-8")
    if message is None:
        assert load_pairs(path, tmp_path, 32).test.ids == ("é",)
        return
    with pytest.raises(DataError, match=message):
        load_pairs(path, tmp_path, 32)


GOOD = "name: x\nall: {images: 'x/{id}', masks: 'y/{id}'}\nsplit: {fractions: [0.5, 0.25, 0.25]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: name: is missing"),
        (GOOD + "tresholt: 3\n", "line 4: tresholt: there is no such entry; did you mean 'threshold'?"),
        (GOOD + "threshold: 300\n", "line 4: threshold: Input should be less than or equal to 255, got 300"),
        (GOOD + "threshold: 3\nlesion_values: [1]\n", "line 4: threshold, lesion_values: give one of them"),
        (GOOD + "id: '('\n", "line 4: id: '\\(' is not a regular expression"),
        (GOOD + "id: '(?P<id>x)'\n", "line 4: id: .* is not a regular expression"),
        (GOOD + "lesion_values: [300]\n", "line 4: lesion_values: Input should be less than or equal to 255, got 300"),
        (GOOD + "group: 'x'\n", "line 4: group: 'x' has no group in parentheses"),
        (
            GOOD + "group: {csv: x, by: y, col: z}\n",
            "line 4: group.col: there is no such entry; the valid ones are by, csv, id",
        ),
        (GOOD + "group: {csv: x}\n", "used:\n  line 4: group.by: is missing$"),
        (
            GOOD.replace("fractions", "fraction"),
            "line 3: split.fraction: there is no such entry; did you mean 'fractions'",
        ),
        ("# mask\n" + GOOD.replace("masks", "mask"), "line 3: all.mask: there is no such entry; did you mean 'masks'"),
        (
            GOOD.replace("0.5,", "0.6,"),
            r"line 3: fractions: must be above 0 and have the sum 1, got \[0.6, 0.25, 0.25\]",
        ),
        (
            GOOD.replace("x/{id}", "x/id"),
            r"images: must be a path below the data's folder that holds \{id\}, got 'x/id'",
        ),
        (GOOD.replace("x/{id}", "../{id}"), "images: must be a path below"),
        (GOOD.replace("x/{id}", "x/{id}.JPG"), "line 2: images: must have no ending, and / between names"),
        (GOOD.replace("y/{id}", "y\\{id}"), "line 2: masks: must have no ending, and / between names"),
        (GOOD.replace("y/{id}", "x/{id}"), "line 2: masks: must be another path than images"),
        (GOOD.replace("0.5,", ".nan,"), "line 3: fractions: must be above 0"),
        (GOOD.rpartition("split")[0], "all: goes with a split"),
        ("name: x\ntrain: {images: 'x/{id}', masks: 'y/{id}'}\n", "train, val, test: give all three"),
        ("name: x\nname: y\n", "name stands twice"),
    ],
)
def test_a_bad_description_gets_one_error_with_its_line(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_description(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(caught.value)


def test_two_layouts_that_fit_and_none_that_does_are_refused(tmp_path):
    ph2(tmp_path)
    kvasir(tmp_path)
    with pytest.raises(DataError, match=r"looks like kvasir-seg and ph2: move the data sets"):
        find_description(tmp_path)
    (tmp_path / "other/pictures").mkdir(parents=True)
    with pytest.raises(
        DataError, match="none of the known data sets. [^~]*ph2: PH2 Dataset images\n[^~]*there: pictures. Remedy: "
    ):
        find_description(tmp_path / "other")


def test_a_layout_that_fits_in_part_is_named_by_what_is_missing(tmp_path):
    ph2(tmp_path)
    (tmp_path / "PH2 Dataset images/IMD003/IMD003_lesion/IMD003_lesion.bmp").unlink()
    with pytest.raises(DataError, match=r"missing mask \(1\)[^\n]*\n  PH2 Dataset images/IMD003/IMD003_lesion/IMD003"):
        load_pairs("ph2", tmp_path, 32)


def test_masks_of_other_grey_levels_ask_for_a_threshold(tmp_path):
    clinicdb(tmp_path)
    save(tmp_path / "CVC-ClinicDB/Ground Truth/3.tif", lesion=(5, 5, 20, 20), value=200)
    with pytest.raises(DataError, match=r"mask's values \(1\); remedy: .*a threshold or lesion_values"):
        load_pairs("cvc-clinicdb", tmp_path, 32)


def test_sixteen_bit_pictures_are_refused_in_all_formats(tmp_path):
    clinicdb(tmp_path)
    Image.fromarray(np.zeros((30, 40), np.uint16)).save(tmp_path / "CVC-ClinicDB/Original/3.tif")
    (tmp_path / "CVC-ClinicDB/Original/4.ppm").write_bytes(b"P6 40 30 65535\n" + bytes(40 * 30 * 6))
    (tmp_path / "CVC-ClinicDB/Original/4.tif").unlink()
    with pytest.raises(DataError, match=r"cannot be decoded \(2\)[^~]*3.tif: .* not of 8 bits [^~]*4.ppm: .*RGB, not"):
        load_pairs("cvc-clinicdb", tmp_path, 32)


def test_near_duplicates_are_found_within_and_between_splits_and_no_others():
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (6, 3, 8, 9), generator=generator).float()
    images = torch.nn.functional.interpolate(small, size=(64, 72), mode="bilinear").to(torch.uint8)
    images[3], images[5] = images[0] // 2, images[1]  # a darker copy, and a copy
    masks = torch.zeros(6, 1, 64, 72, dtype=torch.uint8)
    parts = (Split(images[2 * i : 2 * i + 2], masks[2 * i : 2 * i + 2], ("ab", "cd", "ef")[i]) for i in range(3))
    found = near_duplicates(Splits(*parts))
    pairs = {(row.first_id, row.second_id): (row.first_split, row.second_split) for row in found.itertuples()}
    assert pairs == {("b", "f"): ("train", "test"), ("a", "d"): ("train", "val")}
    assert found["bits"].tolist()[0] == 0 and found["bits"].max() <= 4


def test_pictures_of_one_colour_have_equal_hashes():
    colours = torch.tensor([(29, 21, 90), (7, 7, 7), (13, 99, 201)], dtype=torch.uint8)
    images = colours[..., None, None].expand(3, 3, 96, 96)
    assert len(set(map(tuple, difference_hash(images).tolist()))) == 1
