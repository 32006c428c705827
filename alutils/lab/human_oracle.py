"""A person as the oracle: step 3 of Fig. 1 with what somebody drew, in place of the masks of the data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alutils.annotation import AnnotationsNeeded, Oracle
from alutils.data.splits import Split
from alutils.lab.drawing import Request, file_stem, find_drawing, make_requests, read_mask, write_mask
from alutils.system.checks import DataError, expanded
from alutils.system.files import write_json


class HumanOracle(Oracle):
    """A person who draws the pixels asked for; takes the place of the simulated :class:`alutils.Oracle` in a run.

    What is asked for is looked up among the drawings saved in ``folder``. Where one is missing, or was drawn for other
    pixels, the requests are written there and :class:`AnnotationsNeeded` ends the run. Called again, the run takes up
    the model it had trained, asks for the same pixels, finds the drawings and goes on.

    The cold start is shown by the simulated oracle, in full: it is the same in all arms, and a class should not have to
    outline it before anything happens. The truth, which the audit and Dice compare with, is the split's too; a run on
    images that nobody has annotated yet wants ``draws_cold_start`` and masks of zeros, and its audit says nothing.

    Args:
        split: the pool: images, true masks, ids.
        folder: of this run and this person; it takes the drawings (a PNG and a JSON each, see
            :func:`alutils.lab.drawing.file_stem`) and in ``requests/`` what is asked for.
        tau_u: recorded with the drawings.
        draws_cold_start: the person draws the cold start too.

    Raises:
        ValueError: if an id cannot name a file.

    >>> import tempfile
    >>> from alutils.data.synthetic import make_synthetic
    >>> oracle = HumanOracle(make_synthetic(4, 1, 1, image_size=64).train, tempfile.mkdtemp())
    >>> try:
    ...     oracle.annotate(torch.tensor([2]))
    ... except AnnotationsNeeded as needed:
    ...     print(len(needed.ids), len(oracle.requests()))
    1 1
    """

    name = "human"

    def __init__(
        self, split: Split, folder: str | Path, *, tau_u: float | None = None, draws_cold_start: bool = False
    ) -> None:
        super().__init__(split.masks)
        for id in split.ids:
            file_stem(id)
        self.folder = expanded("folder", folder)
        self._split, self._tau_u, self._draws_cold_start = split, tau_u, draws_cold_start

    @property
    def settings(self) -> dict[str, Any]:
        """Whether the person draws the cold start too."""
        return {"draws_cold_start": self._draws_cold_start}

    def annotate_cold_start(self, indices: torch.Tensor) -> torch.Tensor:
        """The cold start in full: the truth, unless the person draws it too."""
        return self.annotate(indices) if self._draws_cold_start else super().annotate(indices)

    def annotate(
        self, indices: torch.Tensor, where: torch.Tensor | None = None, suggestion: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the person drew in the pixels asked for, as :meth:`alutils.Oracle.annotate` returns it.

        Args:
            indices: int64 (n,), positions of the images.
            where: bool (n, 1, H, W), the pixels asked for; None: all.
            suggestion: uint8 (n, 1, H, W), the model's labels of the others, for the person to see.

        Raises:
            AnnotationsNeeded: if some are not drawn yet; all are asked for in ``folder``.
            DataError: if a drawing cannot be used.
            ValueError: if ``where`` has another shape or type, or an index is of no image.
        """
        self._check_asked(indices, where)
        asked = make_requests(self._split, indices, where, suggestion, tau_u=self._tau_u)
        drawn = np.zeros((len(asked), *self._masks.shape[1:]), dtype=np.uint8)
        missing = []
        for request, mask in zip(asked, drawn, strict=True):
            found = find_drawing(self.folder, request) if request.n_decided else None
            if found is not None:
                mask[:] = found[1] & request.where
            elif request.n_decided:
                missing.append(request.id)
        if missing:
            self._write(asked)
            raise AnnotationsNeeded(self.folder, missing)
        masks = torch.from_numpy(drawn).to(self._masks.device)
        self._count(masks, where)
        return masks

    def requests(self) -> list[Request]:
        """What was last asked for, drawn or not, as it lies in ``folder``; empty where nothing was.

        Raises:
            DataError: if a file cannot be used, or the requests are for images that the split lacks.
        """
        path, (height, width) = self.folder / "requests" / "requests.json", self._split.images.shape[2:]
        if not path.exists():
            return []
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))["ids"]
            indices = torch.tensor([self._split.ids.index(id) for id in ids])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} cannot be used ({error}); delete it and call run_active_learning again to ask anew"
            ) from None
        planes = [
            np.stack([read_mask(path.with_name(f"{file_stem(id)}.{name}.png"), height, width) for id in ids])
            for name in ("where", "start")
        ]
        where, start = (torch.from_numpy(plane) for plane in planes)
        return make_requests(self._split, indices, where, start, tau_u=self._tau_u)

    def _write(self, asked: Sequence[Request]) -> None:
        """The pictures first: the list that is there is complete."""
        folder, asked = self.folder / "requests", [request for request in asked if request.n_decided]
        for request in asked:
            write_mask(folder / f"{file_stem(request.id)}.where.png", request.where)
            write_mask(folder / f"{file_stem(request.id)}.start.png", request.start)
        write_json(folder / "requests.json", {"ids": [request.id for request in asked], "tau_u": self._tau_u})
