"""A query's images for another annotation tool, and corrected masks from it: PNG, COCO's and Label Studio's JSON."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import PIL.Image
from pycocotools import mask as coco

from alutils.annotation import AnnotationsNeeded
from alutils.lab.brush import decode_brush, encode_brush
from alutils.lab.drawing import Drawing, DrawingRecord, Request, file_stem, find_drawing
from alutils.system.checks import ConfigError, DataError, did_you_mean, expanded, listed, shown
from alutils.system.files import CannotWrite

if TYPE_CHECKING:
    from alutils.lab.human_oracle import HumanOracle

LESION, BAND = "lesion", "uncertain band"
"""The labels in COCO's and Label Studio's files; the band is shown, and ignored when it comes back."""

_INTERFACE = f"""<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="labels" toName="image"><Label value="{LESION}"/><Label value="{BAND}"/></BrushLabels>
</View>
"""

_Found = tuple[str, list[tuple[str, tuple[int, int], Any]], Callable[..., np.ndarray]]
"""One image in a file: its id, the parts of its mask (label, height and width, code), and what decodes a code."""


def export_queries(run: HumanOracle, folder: str | Path, format: str = "png") -> None:
    """Write the images that a run waits for, each with the model's mask and the uncertain band, for another tool.

    The mask is the model's in the band too, to be corrected there. Files are named by
    :func:`~alutils.lab.drawing.file_stem`. All formats have the pictures in ``images``, at the run's size. "png" adds
    ``masks`` and ``bands`` (0 and 255), "coco" ``annotations.json`` (run-length codes, which keep holes; categories
    "lesion" and "uncertain band"), "label-studio" ``tasks.json``, with the masks as predictions, and ``labels.xml``,
    the labelling interface. Tasks find their images where ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`` is the folder
    around ``folder``.

    Args:
        run: the oracle of the run that waits.
        folder: a new or empty one, which appears as a whole.
        format: "png", "coco" or "label-studio".

    Raises:
        ConfigError: if the run asks for nothing, the format is unknown, or ``folder`` is in use.
        CannotWrite: if a file cannot be written.
    """
    if format not in _WRITERS:
        raise ConfigError(f"format: there is no {shown(format)}; {did_you_mean(format, [*_WRITERS])}")
    requests, folder = _asked(run), expanded("folder", folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"folder: {folder} is not empty, and may hold corrections; give a new one for each query")
    if run.incoming and run.incoming.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"folder: {folder} is where the run looks for what was corrected; give another one")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        (temporary / "images").mkdir(parents=True)
        for request in requests:
            _save(temporary / "images", request, request.image.transpose(1, 2, 0))
        _WRITERS[format](temporary, requests, folder.name)
        temporary.replace(folder)
    except OSError as error:
        raise CannotWrite(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def import_annotations(run: HumanOracle, source: str | Path) -> list[DrawingRecord]:
    """Take corrected masks as what the person drew, in the pixels that were asked for and nowhere else.

    All masks of the query are taken or none. They are recorded as drawings (:func:`alutils.lab.drawing.drawing_table`),
    with the name of their file and the number of pixels that differ from the model's mask, without strokes and time.

    Args:
        run: the oracle of the run that waits.
        source: a file, or a folder with files: COCO's JSON, Label Studio's JSON, or PNGs of 0 and 255 called after the
            ids, of the size exported. What they have of images asked for earlier is ignored.

    Returns:
        The record of each mask that was there.

    Raises:
        ConfigError: if the run asks for nothing.
        DataError: if a file cannot be used, or an image is unknown or in two files.
        AnnotationsNeeded: if an image of the query is neither there nor drawn yet; nothing is imported then.
    """
    requests, source = _asked(run), expanded("source", source)
    found = _read(source, {request.id: request.where.shape[1:] for request in requests}, run.ids)
    if missing := [r.id for r in requests if r.id not in found and find_drawing(run.folder, r) is None]:
        raise AnnotationsNeeded(run.folder, missing, source)
    records = []
    for drawing in (Drawing(request) for request in requests if request.id in found):
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


def _save(folder: Path, request: Request, picture: np.ndarray) -> None:
    PIL.Image.fromarray(picture).save(folder / f"{file_stem(request.id)}.png", "PNG")


def _planes(request: Request) -> Iterator[tuple[str, np.ndarray]]:
    """By the label, if there is a pixel; the lesion last, and so above the band."""
    return ((label, mask[0]) for label, mask in ((BAND, request.where), (LESION, request.start)) if mask.any())


def _write_pngs(folder: Path, requests: Sequence[Request], name: str) -> None:
    for kind, plane in (("masks", "start"), ("bands", "where")):
        (folder / kind).mkdir()
        for request in requests:
            _save(folder / kind, request, 255 * getattr(request, plane)[0].astype(np.uint8))


def _write_coco(folder: Path, requests: Sequence[Request], name: str) -> None:
    images, annotations = [], []
    for number, request in enumerate(requests, 1):
        height, width = request.where.shape[1:]
        images.append({"id": number, "file_name": f"{file_stem(request.id)}.png", "height": height, "width": width})
        for label, plane in _planes(request):
            code = coco.encode(np.asfortranarray(plane.astype(np.uint8)))
            one = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + (label == BAND), "iscrowd": 1}
            one |= {"area": int(plane.sum()), "bbox": coco.toBbox(code).tolist()}
            annotations.append(one | {"segmentation": {**code, "counts": code["counts"].decode()}})
    categories = [{"id": 1, "name": LESION}, {"id": 2, "name": BAND}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def _write_label_studio(folder: Path, requests: Sequence[Request], name: str) -> None:
    tasks = []
    for request in requests:
        height, width = request.where.shape[1:]
        about = {"type": "brushlabels", "from_name": "labels", "to_name": "image", "image_rotation": 0}
        about |= {"original_width": width, "original_height": height}
        regions = []
        for label, plane in _planes(request):
            value = {"format": "rle", "rle": encode_brush(plane), "brushlabels": [label]}
            regions.append({"id": label.split()[0], **about, "value": value})
        image = "/data/local-files/?d=" + quote(f"{name}/images/{file_stem(request.id)}.png")
        predictions = [{"model_version": "alutils", "result": regions}]
        tasks.append({"data": {"image": image, "id": request.id}, "predictions": predictions})
    (folder / "tasks.json").write_text(json.dumps(tasks))
    (folder / "labels.xml").write_text(_INTERFACE)


_WRITERS = {"png": _write_pngs, "coco": _write_coco, "label-studio": _write_label_studio}


# In


def _read(source: Path, wanted: dict[str, tuple], ids: Sequence[str]) -> dict[str, tuple[Path, np.ndarray]]:
    """The file and the mask, bool (H, W), of each image that is there, of those ``wanted`` with a height and width."""
    if not source.exists():
        raise DataError(f"source: there is no {source}; give a file or a folder with corrected masks")
    found: dict[str, tuple[Path, np.ndarray]] = {}
    known = set(ids)
    for path in [source] if source.is_file() else sorted(source.glob("[!.]*")):  # macOS makes "._a.png"
        read = {".png": _png, ".json": _json}.get(path.suffix.lower(), lambda _: ())
        try:
            for id, parts, decode in read(path):
                if id not in known:
                    raise ValueError(f"no image is called '{id}'; {did_you_mean(id, [*wanted])}")
                if id in found:
                    raise ValueError(f"'{id}' is in {found[id][0]} too; take one of them away")
                if id in wanted:
                    found[id] = path, _united(id, parts, decode, wanted[id])
        except Exception as error:  # Pillow, JSON and pycocotools raise many kinds
            words = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or repr(error)
            raise DataError(f"{path} cannot be used: {words}. Nothing was imported") from None
    return found


def _united(id: str, parts: list, decode: Callable[..., np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for label, size, code in parts:
        if label not in (LESION, BAND):
            raise ValueError(f"'{id}' has the label '{label}', and only '{LESION}' is read; rename or delete it")
        if tuple(size) != shape:
            there, here = (f"{width} x {height}" for height, width in (size, shape))
            raise ValueError(f"'{id}' has {there} pixels, not {here} as exported; correct it at that size")
        if label == LESION:
            mask |= decode(code, *shape)
    return mask


def _id_of(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(PureWindowsPath(name).stem))  # knows the separators of all systems


def _png(path: Path) -> Iterator[_Found]:
    with PIL.Image.open(path, formats=["PNG"]) as picture:
        if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise ValueError(f"its pixels are of type {picture.mode}; save it with 8 bits per channel")
        grey = np.asarray(picture.convert("L"))
    if other := sorted(set(np.unique(grey).tolist()) - {0, 255}):
        raise ValueError(f"it has the grey levels {listed(other)}; save it with 0 (skin) and 255 (lesion) alone")
    yield _id_of(path.name), [(LESION, grey.shape, grey == 255)], lambda mask, *_: mask


def _json(path: Path) -> Iterator[_Found]:
    content = json.loads(path.read_bytes())
    if isinstance(content, list):
        return _label_studio(content)
    if isinstance(content, dict) and content.keys() >= {"images", "annotations", "categories"}:
        return _coco(content)
    raise ValueError("it is neither COCO's nor Label Studio's JSON; export one of these from the tool")


def _coco(content: dict[str, Any]) -> Iterator[_Found]:
    names = {category["id"]: category["name"] for category in content["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    parts = defaultdict(list)
    for one in content["annotations"]:
        number = one["image_id"]
        parts[number].append((names[one["category_id"]], sizes[number], one["segmentation"]))
    for image in content["images"]:
        yield _id_of(image["file_name"]), parts[image["id"]], _coco_mask


def _coco_mask(code: Any, height: int, width: int) -> np.ndarray:
    """Of polygons, or of a run-length code, as numbers or packed."""
    if isinstance(code, dict) and list(code["size"]) != [height, width]:
        raise ValueError(f"a run-length code of size {code['size']}, not {[height, width]}; export it again")
    if not isinstance(code, dict):
        code = coco.merge(coco.frPyObjects(code, height, width))
    elif not isinstance(code["counts"], str):
        code = coco.frPyObjects(code, height, width)
    return coco.decode(code).astype(bool)


def _label_studio(tasks: list[Any]) -> Iterator[_Found]:
    """Of the tasks that somebody has submitted."""
    for task in tasks:
        id, submitted = task["data"]["id"], [one for one in task["annotations"] if not one.get("was_cancelled")]
        if len(submitted) > 1:
            raise ValueError(f"'{id}' has {len(submitted)} annotations; delete all but one, and export again")
        for annotation in submitted:
            parts = []
            for region in annotation["result"]:
                if region["type"] != "brushlabels" or region.get("image_rotation"):
                    raise ValueError(
                        f"'{id}' has a {region['type']!r} or is rotated; only upright brush masks are read"
                    )
                value, size = region["value"], (region["original_height"], region["original_width"])
                parts.append((" and ".join(value["brushlabels"]), size, value["rle"]))
            yield id, parts, decode_brush
