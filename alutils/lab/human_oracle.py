"""A person as the oracle: step 3 of Fig. 1 with what somebody drew, in place of the masks of the data set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alutils.annotation import AnnotationsNeeded, Oracle
from alutils.data.splits import Split
from alutils.lab.drawing import Request, Saved, file_stem, find_drawing, make_requests
from alutils.lab.exchange import import_annotations
from alutils.system.checks import ConfigError, DataError, expanded
from alutils.system.files import replacing


class HumanOracle(Oracle):
    """A person who draws the pixels asked for, in place of the simulated :class:`alutils.Oracle` of a run.

    Where a drawing is missing, or was drawn for other pixels, the oracle writes the requests into ``folder``, and
    :class:`AnnotationsNeeded` ends the run. Called again, the run asks for the same pixels, finds the drawings and goes
    on. ``incoming`` takes masks corrected in another tool (:func:`alutils.export_queries`): once those of the whole
    query are there, the run imports them. For images that nobody has annotated yet, pass masks of zeros and
    ``draws_cold_start=True``; the audit and Dice, which compare with the split's masks, then mean nothing.

    Args:
        split: the pool: images, true masks, ids.
        folder: of this run and this person: their drawings and ``requests.npz``.
        tau_u: recorded with the drawings.
        draws_cold_start: whether the person draws the cold start too; otherwise it has the split's masks.
        incoming: the folder of corrected masks, see :func:`alutils.import_annotations`; another program may fill it.

    Raises:
        ValueError: if an id cannot name a file.
        ConfigError: if both folders are the same.

    For an example see :func:`alutils.import_annotations`.
    """

    name = "human"

    def __init__(
        self,
        split: Split,
        folder: str | Path,
        *,
        tau_u: float | None = None,
        draws_cold_start: bool = False,
        incoming: str | Path | None = None,
    ) -> None:
        super().__init__(split.masks)
        for id in split.ids:
            file_stem(id)
        self.folder = expanded("folder", folder)
        self.incoming = None if incoming is None else expanded("incoming", incoming)
        if self.incoming and self.incoming.resolve() == self.folder.resolve():
            raise ConfigError(f"incoming: must be another folder than {self.folder}, which holds the drawings")
        self.ids = split.ids
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
        """What the person drew in the pixels asked for; arguments and result are those of ``Oracle.annotate``.

        Raises:
            AnnotationsNeeded: if some are not drawn yet; ``folder`` then holds the requests for all.
            DataError: if a drawing or a file in ``incoming`` cannot be used.
        """
        self._check_asked(indices, where)
        requests = make_requests(self._split, indices, where, suggestion, tau_u=self._tau_u)
        masks = torch.zeros(len(requests), *self._masks.shape[1:], dtype=torch.uint8)
        asked = [place for place, request in enumerate(requests) if request.n_decided]
        found = self._drawn(requests[i] for i in asked)
        if missing := [requests[i].id for i, one in zip(asked, found, strict=True) if one is None]:
            self._write([requests[i] for i in asked], None if suggestion is None else suggestion[asked])
            if self.incoming is None or not self.incoming.exists():
                raise AnnotationsNeeded(self.folder, missing)
            import_annotations(self, self.incoming)
            found = self._drawn(requests[i] for i in asked)
        for i, (_, mask) in zip(asked, found, strict=True):
            masks[i] = torch.from_numpy(mask & requests[i].where)
        self._count(masks, where)
        return masks.to(self._masks.device)

    def requests(self, *, proposed: bool = False) -> list[Request]:
        """What was last asked for, drawn or not; empty where nothing was.

        ``proposed``: start from the model's mask in the pixels asked for too, and not from background.

        Raises:
            DataError: if the file cannot be used, or its requests are for images that the split lacks.
        """
        path = self.folder / "requests.npz"
        if not path.exists():
            return []
        try:
            with np.load(path) as saved:
                where, start = (torch.from_numpy(saved[name]) for name in ("where", "start"))
                indices = torch.tensor([self._split.ids.index(id) for id in json.loads(saved["ids"].item())])
            requests = make_requests(self._split, indices, where, start, tau_u=self._tau_u)
            return [replace(r, start=s) for r, s in zip(requests, start, strict=True)] if proposed else requests
        except Exception as error:  # damaged archives raise errors of many kinds
            remedy = "delete it and call run_active_learning again to ask anew"
            raise DataError(f"{path} cannot be used ({error}); {remedy}") from None

    def _drawn(self, requests: Iterable[Request]) -> list[Saved | None]:
        return [find_drawing(self.folder, request) for request in requests]

    def _write(self, requests: list[Request], suggestion: torch.Tensor | None) -> None:
        where = np.stack([request.where for request in requests])
        start = np.zeros_like(where) if suggestion is None else suggestion.cpu().numpy().astype(bool)
        with replacing(self.folder / "requests.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, ids=json.dumps([request.id for request in requests]), where=where, start=start)
