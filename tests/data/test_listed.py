"""Files in the order of a list."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from attar.data.listed import ListedFiles
from attar.errors import DecodeError

LABELS = np.array([1, 0, 1], dtype=np.int64)


def listed(root: Path, paths: list[str] | None = None, labels: np.ndarray | None = LABELS) -> ListedFiles:
    (root / "b").mkdir(exist_ok=True)
    for name in ("a.jpg", "b/ä.jpg"):
        (root / name).write_bytes(name.encode())
    return ListedFiles(root, paths or ["b/ä.jpg", "a.jpg", "b/ä.jpg"], labels, ["x", "y"])


def test_rows_stand_as_listed_and_a_file_may_be_listed_twice(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(listed(tmp_path)))
    assert [source.name(row) for row in range(len(source))] == ["b/ä.jpg", "a.jpg", "b/ä.jpg"]
    assert all(source.read(row) == source.name(row).encode() for row in range(3))
    labels, names = source.labels()
    assert (labels.tolist(), names) == ([1, 0, 1], ["x", "y"])
    assert listed(tmp_path, labels=None).labels() is None


def test_the_fingerprint_is_that_of_paths_in_order_and_of_labels(tmp_path: Path) -> None:
    first = listed(tmp_path).fingerprint
    assert first == listed(tmp_path).fingerprint
    assert first != listed(tmp_path, ["b/ä.jpg", "b/ä.jpg", "a.jpg"]).fingerprint
    assert first != listed(tmp_path, labels=LABELS[::-1].copy() * 0).fingerprint


def test_a_file_that_is_gone_is_no_readable_image(tmp_path: Path) -> None:
    source = listed(tmp_path, ["none.jpg"])
    with pytest.raises(DecodeError, match=r"none\.jpg"):
        source.read(0)
