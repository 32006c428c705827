"""A query corrected in another tool: what is written for it, what is taken from it, and what is refused."""

import json
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from test_active_learning import contents, make_partial, make_splits, run

from alutils.annotation import AnnotationsNeeded
from alutils.data.splits import Split
from alutils.lab.annotator import Annotator
from alutils.lab.brush import decode_brush, encode_brush
from alutils.lab.drawing import Drawing, drawing_table, file_stem, read_drawing
from alutils.lab.exchange import export_queries, import_annotations
from alutils.lab.human_oracle import HumanOracle
from alutils.system.checks import ConfigError, DataError
from alutils.system.files import CannotWrite

SHAPE = 24, 32
IDS = ("left eye", "../50 %", "é.1", "earlier")
FORMATS = ("png", "coco", "label-studio")


def ring_and_speck():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    distance = np.hypot(y - 12, x - 12)
    return (distance < 9) & (distance > 4) | (x > 28) & (y > 20)


TRUTH = np.stack([ring_and_speck(), np.zeros(SHAPE, bool), ~ring_and_speck(), np.ones(SHAPE, bool)])
GUESS = np.roll(TRUTH, 3, axis=2)
BAND = np.stack([np.arange(SHAPE[1]) % 16 < 12] * SHAPE[0])


@pytest.fixture
def asked(tmp_path):
    """An oracle whose run waits for three of four images; their masks are looked for in "corrected"."""
    images = torch.randint(256, (4, 3, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.from_numpy(TRUTH[:, None]).to(torch.uint8), IDS)
    oracle = HumanOracle(split, tmp_path / "drawn here", tau_u=0.25, incoming=tmp_path / "corrected")
    with pytest.raises(AnnotationsNeeded):
        answer(oracle)
    return oracle


def answer(oracle):
    band, guess = (torch.from_numpy(np.broadcast_to(a, (3, *SHAPE))[:, None].copy()) for a in (BAND, GUESS[:3]))
    return oracle.annotate(torch.tensor([0, 1, 2]), band, guess.to(torch.uint8))


def png(path, picture):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)


def read_png(path):
    return np.asarray(Image.open(path))


def grey(mask):
    return 255 * mask.astype(np.uint8)


def coco_file(path, masks=TRUTH[:3], ids=IDS, code=None, label="lesion", size=SHAPE):
    """What a tool exports: a run-length code in numbers, or ``code`` in its place."""
    images, annotations = [], []
    for i, mask in enumerate(masks):
        runs = np.diff(np.flatnonzero(np.r_[True, np.diff(mask.T.ravel()) != 0, True])).tolist()
        numbers = {"size": list(size), "counts": [0] * bool(mask[0, 0]) + runs}
        images.append({"id": i, "file_name": f"images/{file_stem(ids[i])}.jpg", "height": size[0], "width": size[1]})
        annotations.append({"id": i, "image_id": i, "category_id": 7, "segmentation": code or numbers})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": label}]}
    write_json(path, content)


def region(mask, label="lesion", **changes):
    value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": [label]}
    about = {"type": "brushlabels", "original_height": SHAPE[0], "original_width": SHAPE[1], "image_rotation": 0}
    return {**about, "value": value, **changes}


def label_studio_file(path, regions, ids=IDS):
    """What Label Studio exports: one submitted annotation per task, beside one that was skipped."""
    tasks = [
        {
            "id": 9,
            "data": {"image": "/data/a.png", "id": id},
            "annotations": [{"result": part}, {"was_cancelled": True}],
        }
        for id, part in zip(ids, regions, strict=False)
    ]
    write_json(path, tasks)


def write_json(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def give_back(format, exported, folder):
    """A person corrects everything, in the band and elsewhere, and gives the files back as the tool does."""
    if format == "png":
        for path in (exported / "masks").iterdir():
            png(folder / path.name, grey(TRUTH[IDS.index(unquote(path.stem))]))
    elif format == "coco":
        coco_file(folder / "instances.json")
    else:
        parts = [
            [region(TRUTH[0] & BAND), region(TRUTH[0] & ~BAND)],
            [],
            [region(TRUTH[2]), region(BAND, "uncertain band")],
        ]
        label_studio_file(folder / "project-1.json", parts)


# Out and in


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_exported_and_corrected_comes_back_in_the_band_alone(asked, tmp_path, format):
    exported = tmp_path / "to correct"
    export_queries(asked, exported, format)
    give_back(format, exported, asked.incoming)
    expected = np.where(BAND, TRUTH[:3], False)
    np.testing.assert_array_equal(answer(asked)[:, 0], expected)
    for i in range(3):
        record, mask = read_drawing(asked.folder, IDS[i])
        np.testing.assert_array_equal(mask[0], np.where(BAND, TRUTH[i], GUESS[i]))
        assert record.imported.endswith(("1.png", "eye.png", "%25.png", "instances.json", "project-1.json"))
        assert record.pixels_changed == (BAND & (TRUTH[i] != GUESS[i])).sum() and record.pixels_decided == BAND.sum()
    table = drawing_table(asked.folder)
    assert table["seconds"].isna().all() and table["strokes"].isna().all()


def test_pngs_have_the_models_mask_and_the_band_under_the_names_of_their_images(asked, tmp_path):
    export_queries(asked, tmp_path / "out")
    names = {"left%20eye": 0, "%2E.%2F50%20%25": 1, "é.1": 2}
    for kind, expected in (("masks", GUESS), ("bands", [BAND] * 3)):
        assert {path.stem for path in (tmp_path / "out" / kind).iterdir()} == set(names)
        for name, i in names.items():
            np.testing.assert_array_equal(read_png(tmp_path / "out" / kind / f"{name}.png"), grey(expected[i]))
    for name, i in names.items():
        picture = read_png(tmp_path / "out" / "images" / f"{name}.png")
        np.testing.assert_array_equal(picture.transpose(2, 0, 1), asked.requests()[i].image)


def test_pycocotools_reads_the_masks_of_the_coco_file(asked, tmp_path):
    export_queries(asked, tmp_path / "out", "coco")
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["left%20eye.png", "%2E.%2F50%20%25.png", "é.1.png"]
    assert all((tmp_path / "out" / "images" / image["file_name"]).exists() for image in content["images"])
    seen = []
    for one in content["annotations"]:
        expected = {1: GUESS[one["image_id"] - 1], 2: BAND}[one["category_id"]]
        np.testing.assert_array_equal(coco.decode(one["segmentation"]), expected)
        assert one["area"] == expected.sum() and one["iscrowd"] == 1
        seen.append((one["image_id"], one["category_id"]))
    assert sorted(seen) == [(1, 1), (1, 2), (2, 2), (3, 1), (3, 2)]  # nothing is predicted in the second image
    assert content["categories"] == [{"id": 1, "name": "lesion"}, {"id": 2, "name": "uncertain band"}]


def test_label_studios_tasks_show_the_masks_as_predictions(asked, tmp_path):
    export_queries(asked, tmp_path / "my query", "label-studio")
    tasks = json.loads((tmp_path / "my query" / "tasks.json").read_text())
    assert [task["data"]["id"] for task in tasks] == list(IDS[:3])
    for task, guess in zip(tasks, GUESS, strict=False):
        url, _, path = task["data"]["image"].partition("?d=")
        assert url == "/data/local-files/" and (tmp_path / unquote(path)).exists() and " " not in path
        masks = {one["value"]["brushlabels"][0]: one for one in task["predictions"][0]["result"]}
        assert list(masks) == ["uncertain band", "lesion"][: 1 + guess.any()]
        for label, one in masks.items():
            size = one["original_height"], one["original_width"]
            expected = BAND if label == "uncertain band" else guess
            assert size == SHAPE
            np.testing.assert_array_equal(decode_brush(one["value"]["rle"], *size), expected)


def test_a_run_goes_on_with_what_was_corrected_elsewhere_as_with_the_simulated_oracle(tmp_path):
    experiment, splits = make_partial("partial", n_queries=2), make_splits()
    run(tmp_path / "simulated", experiment, splits)
    oracle = HumanOracle(splits.train, tmp_path / "drawn", incoming=tmp_path / "in")
    for number in range(2):
        with pytest.raises(AnnotationsNeeded) as needed:
            run(tmp_path / "run", experiment, splits, oracle=oracle)
        export_queries(oracle, tmp_path / f"out{number}")
        for id in needed.value.ids:
            assert read_png(tmp_path / f"out{number}" / "masks" / f"{id}.png").shape == (64, 64)
            png(tmp_path / "in" / f"{id}.png", grey(splits.train.masks[splits.train.ids.index(id), 0].numpy()))
    run(tmp_path / "run", experiment, splits, oracle=oracle)
    assert contents(tmp_path / "run") == contents(tmp_path / "simulated")


@pytest.mark.parametrize("mode", ["partial", "full"])
def test_the_mask_to_correct_is_the_models_in_the_band_too(tmp_path, mode):
    experiment, splits = make_partial(mode, n_queries=1), make_splits()
    oracle = HumanOracle(splits.train, tmp_path / "drawn")
    with pytest.raises(AnnotationsNeeded):
        run(tmp_path / "run", experiment, splits, oracle=oracle)
    proposed, blank = oracle.requests(proposed=True), oracle.requests()
    assert any((request.start & request.where).any() for request in proposed)
    for with_guess, without in zip(proposed, blank, strict=True):
        np.testing.assert_array_equal(with_guess.start & ~with_guess.where, without.start)


# What may come in


def test_masks_come_from_one_file_too_and_from_several_kinds_of_files(asked, tmp_path):
    coco_file(tmp_path / "first two.json", TRUTH[:2])
    png(asked.incoming / "é.1.PNG", grey(TRUTH[2]))
    with pytest.raises(AnnotationsNeeded) as needed:
        import_annotations(asked, tmp_path / "first two.json")
    assert needed.value.ids == ("é.1",)
    (tmp_path / "first two.json").rename(asked.incoming / "first two.json")
    (asked.incoming / "._é.1.png").write_bytes(b"macOS")
    (asked.incoming / "notes.txt").write_text("mine")
    records = import_annotations(asked, asked.incoming)
    assert [record.imported for record in records] == ["first two.json", "first two.json", "é.1.PNG"]
    np.testing.assert_array_equal(answer(asked)[:, 0], BAND & TRUTH[:3])


def test_a_mask_drawn_here_needs_none_from_elsewhere(asked, tmp_path):
    Drawing(asked.requests()[2]).save(asked.folder)
    coco_file(tmp_path / "first two.json", TRUTH[:2])
    assert len(import_annotations(asked, tmp_path / "first two.json")) == 2
    assert not answer(asked)[2].any()


def test_masks_of_earlier_queries_are_ignored(asked):
    coco_file(asked.incoming / "all.json", TRUTH)
    assert [record.id for record in import_annotations(asked, asked.incoming)] == list(IDS[:3])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_png_of_any_common_type_is_a_mask(asked, mode):
    for id, mask in zip(IDS, TRUTH[:3], strict=False):
        path = asked.incoming / f"{id.replace('../', '%2E.%2F')}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(grey(mask)).convert(mode).save(path)
    np.testing.assert_array_equal(answer(asked)[:, 0], BAND & TRUTH[:3])


def test_coco_masks_may_be_polygons_or_packed_codes(asked):
    mask = np.zeros(SHAPE, bool)
    mask[2:8, 4:20] = mask[12:20, 1:9] = True
    boxes = [[4, 2, 20, 2, 20, 8, 4, 8], [1, 12, 9, 12, 9, 20, 1, 20]]
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    for code in (boxes, {**packed, "counts": packed["counts"].decode()}):
        coco_file(asked.incoming / "a.json", code=code)
        import_annotations(asked, asked.incoming)
        np.testing.assert_array_equal(read_drawing(asked.folder, IDS[0])[1][0] & BAND, mask & BAND)


def test_a_folder_that_is_not_full_yet_imports_nothing_and_says_what_it_lacks(asked):
    png(asked.incoming / "left eye.png", grey(TRUTH[0]))
    for act in (answer, lambda oracle: import_annotations(oracle, oracle.incoming)):
        with pytest.raises(AnnotationsNeeded, match=r"are to be drawn in .*\(\.\./50 %, é\.1\)"):
            act(asked)
    assert not list(asked.folder.glob("*.json"))


def test_an_imported_mask_is_gone_on_with_in_the_notebook(asked, tmp_path):
    give_back("coco", None, asked.incoming)
    answer(asked)
    for corners in (4, 4), (2, 2), (8, 2):  # each time opened anew
        annotator = Annotator(asked.requests(), asked.folder)
        assert annotator.news() == "done: run the next cell" and "all 3 saved" in annotator.status()
        before = answer(asked)[0]
        np.testing.assert_array_equal(annotator.drawing.mask & BAND, before)
        annotator.brush([corners], 1)
        assert annotator.news() == "● unsaved changes"
        annotator.undo()
        np.testing.assert_array_equal(annotator.drawing.mask & BAND, before)
        annotator.redo()
        annotator.save()
        assert (answer(asked)[0] & ~before).sum() == annotator.drawing.n_marked - before.sum() > 0
    record = read_drawing(asked.folder, IDS[0])[0]
    assert (record.imported, record.n_strokes, len(record.strokes)) == ("instances.json", 3, 1)
    assert drawing_table(asked.folder)["seconds"].isna().all()


def test_what_was_drawn_here_is_not_lost_to_a_mask_from_elsewhere(asked):
    drawing = Drawing(asked.requests()[0])
    drawing.brush([(4, 12)], 2)
    drawing.save(asked.folder)
    give_back("coco", None, asked.incoming)
    assert [record.id for record in import_annotations(asked, asked.incoming)] == list(IDS[1:3])
    np.testing.assert_array_equal(answer(asked)[0], drawing.mask & BAND)


# What is refused


def bad_png(**options):
    return lambda folder: png(folder / "left eye.png", **options)


def tasks(*regions, **options):
    return lambda folder: label_studio_file(folder / "tasks.json", regions, **options)


def file(name, content):
    def write(folder):
        folder.mkdir()
        (folder / name).write_bytes(content)

    return write


def twice(folder):
    png(folder / "left eye.png", grey(TRUTH[0]))
    coco_file(folder / "left.json")


REFUSED = {
    "size": (
        bad_png(picture=grey(TRUTH[0, :20])),
        "left eye.png .*'left eye' has 32 x 20 pixels, not 32 x 24 as exported",
    ),
    "coco's size": (lambda f: coco_file(f / "a.json", size=(32, 24)), "a.json .*24 x 32 pixels, not 32 x 24"),
    "grey": (
        bad_png(picture=TRUTH[0].astype(np.uint8)),
        r"left eye.png .*the grey levels 1; save it with 0 .* and 255",
    ),
    "transparent": (
        bad_png(picture=np.stack([grey(BAND | True)] * 3 + [grey(TRUTH[0])], 2)),
        "left eye.png .*transparent in places",
    ),
    "no mask": (
        lambda f: coco_file(f / "a.json", code=[[1, 1, 5, 5]]),
        "a.json .*image 0 has an annotation that is no mask, such as a box; delete it",
    ),
    "colour": (bad_png(picture=np.stack([grey(TRUTH[0])] + [0 * grey(BAND)] * 2, 2)), "grey levels 76"),
    "id": (
        lambda f: png(f / "left eyes.png", grey(TRUTH[0])),
        "no image is called 'left eyes'; did you mean 'left eye'",
    ),
    "twice": (twice, "'left eye' is in .*left eye.png too; take one of them away"),
    "half a PNG": (file("left eye.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "left eye.png cannot be used"),
    "no JSON": (file("a.json", b"[{"), "a.json cannot be used"),
    "other JSON": (file("a.json", b'{"shapes": []}'), "a.json .*neither COCO's nor Label Studio's"),
    "classes": (lambda f: coco_file(f / "a.json", label="nevus"), "has the label 'nevus', and only 'lesion' is read"),
    "brush classes": (tasks([region(BAND, "nevus")]), "tasks.json .*'left eye' has the label 'nevus'"),
    "a rectangle": (tasks([region(BAND, type="rectanglelabels")]), "'rectanglelabels' .*brush masks"),
    "damaged brush": (tasks([region(BAND, value={"rle": [0, 0, 12, 0, 57], "brushlabels": ["lesion"]})]), "tasks.json"),
    "small brush": (tasks([region(BAND[:2])]), "a brush mask of 64 pixels, not of 24 x 32"),
    "damaged code": (
        lambda f: coco_file(f / "a.json", code={"size": list(SHAPE), "counts": "zzzz"}),
        "a.json .*image 0 has a damaged run-length code",
    ),
    "code's size": (lambda f: coco_file(f / "a.json", code={"size": [1, 1], "counts": "1"}), "has 1 x 1 pixels, not"),
    "long code": (
        lambda f: coco_file(f / "a.json", code={"size": list(SHAPE), "counts": [0, 9999]}),
        "a.json cannot be",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_mask_is_refused_by_its_file(asked, kind):
    write, message = REFUSED[kind]
    write(asked.incoming)
    with pytest.raises(DataError, match=message):
        answer(asked)
    assert not list(asked.folder.glob("*.json"))


def test_an_exported_file_that_nobody_corrected_is_not_taken_for_corrections(asked, tmp_path):
    export_queries(asked, tmp_path / "out", "label-studio")
    with pytest.raises(DataError, match=r"tasks.json cannot be used: it lacks 'annotations'"):
        import_annotations(asked, tmp_path / "out")
    with pytest.raises(ConfigError, match="new out is not empty, or is the folder for the corrections"):
        export_queries(
            HumanOracle(asked._split, asked.folder, incoming=tmp_path / "new out" / "masks"), tmp_path / "new out"
        )
    with pytest.raises(DataError, match="source: there is no .*nowhere"):
        import_annotations(asked, tmp_path / "nowhere")


def test_what_cannot_be_exported_is_refused_and_leaves_no_file(asked, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for options, message in (
        ({"format": "cvat"}, "format: there is no 'cvat'"),
        ({"folder": tmp_path / "full"}, "full is not empty"),
        ({"run": tmp_path}, "run: must be the alutils.HumanOracle"),
        ({"run": HumanOracle(asked._split, tmp_path / "other")}, "run: it asks for nothing yet"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_queries(**{"run": asked, "folder": tmp_path / "out", **options})
    monkeypatch.setattr(json, "dumps", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CannotWrite, match="out cannot be written .No space left"):
        export_queries(asked, tmp_path / "out", "coco")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "drawn here"}


# Label Studio's code


def test_brush_codes_are_those_of_label_studios_converter():
    """``mask2rle`` of label_studio_converter 0.0.59 makes these bytes of the mask, ``encode_rle`` those of its pixels
    with colour, alpha 200, and one of alpha 90 in the corner, as a brush's edge has."""
    mask = np.zeros((6, 8), bool)
    mask[1:5, 1:5] = mask[5, 7] = True
    mask[2:4, 2:4] = False
    code = bytes.fromhex("000000c0391bfe2300bfff7c023ff9c023ffbe011ffce011ffdf00bfff89c023ff00")
    coloured = bytes.fromhex(
        "000000c0391bfc41202d61f0003fe10003200ff84000c803fe10003200ff84000c8be0007fc2000644e0007fc2000645f0003fe10003"
        "2270003fe1000322f8001ff080019007fc20006401ff080019007fc2000646270003fe10003200"
    )
    assert encode_brush(mask) == list(code)
    np.testing.assert_array_equal(decode_brush(list(code), 6, 8), mask)
    np.testing.assert_array_equal(decode_brush(list(coloured), 6, 8), mask)


def test_any_mask_survives_the_brush_code():
    rng = np.random.default_rng(0)
    masks = [np.zeros((300, 300), bool), np.ones((300, 300), bool), *(rng.random((37, 23)) < p for p in (0.02, 0.5))]
    for mask in masks:
        np.testing.assert_array_equal(decode_brush(encode_brush(mask), *mask.shape), mask)
