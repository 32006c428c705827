"""A query's images for another annotation tool, and corrected masks from it: PNG, COCO's and Label Studio's JSON."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import PIL.Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from alutils.annotation import AnnotationsNeeded
from alutils.lab.brush import decode_brush, encode_brush
from alutils.lab.drawing import Drawing, DrawingRecord, Request, file_stem, find_drawing
from alutils.system.checks import ConfigError, DataError, did_you_mean, expanded, listed, shown
from alutils.system.files import CannotWrite

if TYPE_CHECKING:
    from alutils.lab.human_oracle import HumanOracle

LESION, BAND = "lesion", "uncertain band"
"""The labels in COCO's and Label Studio's files; the band is shown, and ignored when it comes back."""


def export_queries(run: HumanOracle, folder: str | Path, format: str = "png") -> None:
    """Write the images that a run waits for, each with the model's mask and the uncertain band, for another tool.

    In the band too the mask is the model's, to be corrected. The pictures are in ``images``, at the run's size and
    named by :func:`~alutils.lab.drawing.file_stem`. "png" adds ``masks`` and ``bands`` (0 and 255), "coco"
    ``annotations.json`` (run-length codes, which keep holes), "label-studio" ``tasks.json`` with the masks as
    predictions. Label Studio finds the pictures if its ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`` is the folder that
    holds ``folder``.

    Args:
        run: the oracle of the run that waits.
        folder: a new or empty one, which appears as a whole.
        format: "png", "coco" or "label-studio".

    Raises:
        ConfigError: if the run asks for nothing, the format is unknown, or ``folder`` is in use.
        CannotWrite: if a file cannot be written.

    For an example see :func:`import_annotations`.
    """
    if format not in [*_FILES]:
        raise ConfigError(f"format: there is no {shown(format)}; {did_you_mean(format, [*_FILES])}")
    requests, folder = _asked(run), expanded("folder", folder).absolute()
    if any(folder.glob("*")) or (run.incoming and run.incoming.resolve().is_relative_to(folder.resolve())):
        raise ConfigError(
            f"folder: {folder} is not empty, or is the folder for the corrections; give a new one for each query"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for kind, name in (("images", "image"), ("masks", "start"), ("bands", "where"))[: 3 if format == "png" else 1]:
            (temporary / kind).mkdir(parents=True)
            for request in requests:
                planes = getattr(request, name)
                picture = planes.transpose(1, 2, 0) if kind == "images" else 255 * planes[0].astype(np.uint8)
                PIL.Image.fromarray(picture).save(temporary / kind / f"{file_stem(request.id)}.png")
        for name, text in _FILES[format](requests, folder.name).items():
            (temporary / name).write_text(text)
        temporary.replace(folder)
    except OSError as error:
        raise CannotWrite(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def import_annotations(run: HumanOracle, source: str | Path) -> list[DrawingRecord]:
    """Take corrected masks as what the person drew, in the pixels that were asked for and nowhere else.

    All masks of the query are taken or none. They are recorded as drawings (:func:`alutils.lab.drawing.drawing_table`),
    with the name of their file and the number of pixels that differ from the model's mask, without strokes and time.
    What was drawn in the notebook stays: to take another mask for it, delete the drawing's two files.

    Args:
        run: the oracle of the run that waits.
        source: a file, or a folder with files: COCO's JSON, Label Studio's JSON, or PNGs of 0 and 255 called after the
            ids, of the size exported. What they say of images asked for earlier is ignored.

    Returns:
        The record of each mask that was taken.

    Raises:
        ConfigError: if the run asks for nothing.
        DataError: if a file cannot be used, or an image is unknown or in two files.
        AnnotationsNeeded: if an image of the query is neither there nor drawn yet; nothing is imported then.

    >>> import tempfile, torch
    >>> from alutils.data.synthetic import make_synthetic
    >>> from alutils.lab.human_oracle import HumanOracle
    >>> split = make_synthetic(2, 1, 1, image_size=32).train
    >>> oracle = HumanOracle(split, tempfile.mkdtemp())
    >>> band = torch.zeros(1, 1, 32, 32).bool().index_fill(2, torch.arange(8, 16), True)  # eight rows
    >>> try:
    ...     oracle.annotate(torch.tensor([0]), band, suggestion=split.masks[:1])
    ... except AnnotationsNeeded as error:
    ...     print(error.ids)
    ('synthetic_train_0000',)
    >>> export_queries(oracle, f"{oracle.folder}/out")  # correct what is in out/masks
    >>> [record.imported for record in import_annotations(oracle, f"{oracle.folder}/out/masks")]
    ['synthetic_train_0000.png']
    """
    requests, source = _asked(run), expanded("source", source)
    found = _read(source, requests, run.ids)
    saved = {request.id: find_drawing(run.folder, request) for request in requests}
    if missing := [id for id, one in saved.items() if one is None and id not in found]:
        raise AnnotationsNeeded(run.folder, missing)
    drawn = {id for id, one in saved.items() if one and (one[0].seconds or not one[0].imported)}
    records = []
    for drawing in (Drawing(request) for request in requests if request.id in found.keys() - drawn):
        path, mask = found[drawing.request.id]
        drawing.mask, drawing.imported = np.where(drawing.request.where, mask, drawing.request.start), path.name
        drawing.pixels_changed = int((drawing.mask != drawing.request.start).sum())
        records.append(drawing.save(run.folder))
    return records


def _asked(run: HumanOracle) -> list[Request]:
    if not hasattr(run, "requests"):
        raise ConfigError(f"run: must be the alutils.HumanOracle that the run has as its oracle, got {shown(run)}")
    if not (requests := run.requests(proposed=True)):
        raise ConfigError("run: it asks for nothing yet; call run_active_learning with this oracle until it does")
    return requests


# Out


def _planes(request: Request) -> Iterator[tuple[str, np.ndarray]]:
    """Label and pixels of the band and of the lesion, where there are any; the lesion comes last, above the band."""
    return ((label, mask[0]) for label, mask in ((BAND, request.where), (LESION, request.start)) if mask.any())


def _coco_files(requests: Sequence[Request], folder: str) -> dict[str, str]:
    images, annotations = [], []
    for number, request in enumerate(requests, 1):
        height, width = request.where.shape[1:]
        images.append({"id": number, "file_name": f"{file_stem(request.id)}.png", "height": height, "width": width})
        for label, plane in _planes(request):
            code = run_lengths.encode(np.asfortranarray(plane.astype(np.uint8)))
            one = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + (label == BAND), "iscrowd": 1}
            one |= {"area": int(plane.sum()), "bbox": run_lengths.toBbox(code).tolist()}
            annotations.append(one | {"segmentation": {**code, "counts": code["counts"].decode()}})
    categories = [{"id": 1, "name": LESION}, {"id": 2, "name": BAND}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return {"annotations.json": json.dumps(content)}


def _label_studio_files(requests: Sequence[Request], folder: str) -> dict[str, str]:
    tasks = []
    for request in requests:
        height, width = request.where.shape[1:]
        about = {"type": "brushlabels", "from_name": "labels", "to_name": "image", "image_rotation": 0}
        about |= {"original_width": width, "original_height": height}
        regions = []
        for label, plane in _planes(request):
            value = {"format": "rle", "rle": encode_brush(plane), "brushlabels": [label]}
            regions.append({"id": label.split()[0], **about, "value": value})
        image = "/data/local-files/?d=" + quote(f"{folder}/images/{file_stem(request.id)}.png")
        predictions = [{"model_version": "alutils", "result": regions}]
        tasks.append({"data": {"image": image, "id": request.id}, "predictions": predictions})
    return {"tasks.json": json.dumps(tasks)}


_FILES = {"png": lambda *_: {}, "coco": _coco_files, "label-studio": _label_studio_files}

# In: a reader yields, for each image that somebody has annotated, its id and its masks with their labels

_Found = Iterator[tuple[str, list[tuple[str, np.ndarray]]]]


def _read(source: Path, requests: Sequence[Request], ids: Sequence[str]) -> dict[str, tuple[Path, np.ndarray]]:
    """The file and the mask, bool (H, W), of each requested image that is there."""
    if not source.exists():
        raise DataError(f"source: there is no {source}; give a file or a folder with corrected masks")
    shapes, known = {request.id: request.where.shape[1:] for request in requests}, set(ids)
    found: dict[str, tuple[Path, np.ndarray]] = {}
    for path in [source] if source.is_file() else sorted(source.glob("[!.]*")):  # macOS makes "._a.png"
        read = {".png": _png, ".json": _json}.get(path.suffix.lower(), lambda _: ())
        try:
            for id, masks in read(path):
                if id not in known:
                    raise ValueError(f"no image is called '{id}'; {did_you_mean(id, [*shapes])}")
                if id in found:
                    raise ValueError(f"'{id}' is in {found[id][0]} too; take one of them away")
                if id in shapes:
                    found[id] = path, _united(id, masks, shapes[id])
        except Exception as error:  # Pillow, JSON and pycocotools raise many kinds
            words = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or repr(error)
            raise DataError(f"{path} cannot be used: {words}. Nothing was imported") from None
    return found


def _united(id: str, masks: list[tuple[str, np.ndarray]], shape: tuple[int, int]) -> np.ndarray:
    united = np.zeros(shape, bool)
    for label, mask in masks:
        if label not in (LESION, BAND):
            raise ValueError(f"'{id}' has the label '{label}', and only '{LESION}' is read; rename or delete it")
        if mask.shape != shape:
            there, here = (f"{width} x {height}" for height, width in (mask.shape, shape))
            raise ValueError(f"'{id}' has {there} pixels, not {here} as exported; correct it at that size")
        united |= mask & (label == LESION)
    return united


def _id_of(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(PureWindowsPath(name).stem))  # knows the separators of all systems


def _png(path: Path) -> _Found:
    with PIL.Image.open(path, formats=["PNG"]) as picture:
        if picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255:
            raise ValueError("it is transparent in places; save it without transparency")  # which hides any colour
        grey = np.asarray(picture.convert("L"))
    if other := sorted(set(np.unique(grey).tolist()) - {0, 255}):
        raise ValueError(f"it has the grey levels {listed(other)}; save it with 0 (skin) and 255 (lesion) alone")
    yield _id_of(path.name), [(LESION, grey == 255)]


def _json(path: Path) -> _Found:
    content = json.loads(path.read_bytes())
    if isinstance(content, list):
        return _label_studio(content)
    if isinstance(content, dict) and content.keys() >= {"images", "annotations", "categories"}:
        return _coco(content)
    raise ValueError("it is neither COCO's nor Label Studio's JSON; export one of these from the tool")


def _coco(content: dict[str, Any]) -> _Found:
    names, coco = {category["id"]: category["name"] for category in content["categories"]}, COCO()
    coco.imgs = {image["id"]: image for image in content["images"]}
    masks = defaultdict(list)
    for one in content["annotations"]:
        shape = one.get("segmentation")
        if not shape or (isinstance(shape, list) and min(map(len, shape)) < 6):
            raise ValueError(f"image {one['image_id']} has an annotation that is no mask, such as a box; delete it")
        code = coco.annToRLE(one)
        mask = run_lengths.decode(code)
        if run_lengths.encode(mask)["counts"] not in (code["counts"], str(code["counts"]).encode()):
            raise ValueError(f"image {one['image_id']} has a damaged run-length code; export it again")  # else garbage
        masks[one["image_id"]].append((names.get(one["category_id"], one["category_id"]), mask.astype(bool)))
    yield from ((_id_of(image["file_name"]), masks[number]) for number, image in coco.imgs.items())


def _label_studio(tasks: list[Any]) -> _Found:
    for task in tasks:
        id, submitted = task["data"]["id"], [one for one in task["annotations"] if not one.get("was_cancelled")]
        if len(submitted) > 1:
            raise ValueError(f"'{id}' has {len(submitted)} annotations; delete all but one, and export again")
        masks = []
        for region in submitted[0]["result"] if submitted else []:
            if (kind := region["type"]) != "brushlabels" or region.get("image_rotation"):
                raise ValueError(f"'{id}' has a {kind!r} or is rotated; only upright brush masks are read")
            mask = decode_brush(region["value"]["rle"], region["original_height"], region["original_width"])
            masks.append((" and ".join(region["value"]["brushlabels"]), mask))
        if submitted:
            yield id, masks
