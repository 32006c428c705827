"""Files that are there whole or not at all, whose numbers read back exactly."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alutils.system.files import write_csv, write_json

NUMBERS = np.concatenate(
    [
        np.random.default_rng(0).random(2000) * 10.0 ** np.random.default_rng(1).integers(-300, 300, 2000),
        np.random.default_rng(2).random(500).astype(np.float32).astype(np.float64),
        [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3],
    ]
)


def test_csv_numbers_read_back_exactly_in_one_line(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"x": NUMBERS, "n": range(len(NUMBERS))}))
    back = pd.read_csv(tmp_path / "a.csv", float_precision="round_trip")  # what pandas 3 does by itself
    assert back["x"].to_numpy().tobytes() == NUMBERS.tobytes()
    assert list(back.columns) == ["x", "n"] and back["n"].dtype == np.int64


def test_json_numbers_read_back_exactly(tmp_path):
    write_json(tmp_path / "a.json", {"x": NUMBERS.tolist()})
    assert np.array(json.loads((tmp_path / "a.json").read_text())["x"]).tobytes() == NUMBERS.tobytes()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})  # not JSON

    def broken(path, *_, **__):
        path.write_bytes(b"x\n1")
        raise OSError("disk full")

    write_csv(tmp_path / "a.csv", pd.DataFrame({"x": [1]}))
    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OSError, match="disk full"):
        write_csv(tmp_path / "a.csv", pd.DataFrame({"x": [2]}))
    monkeypatch.undo()
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert (tmp_path / "a.csv").read_bytes() == b"x\n1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]
