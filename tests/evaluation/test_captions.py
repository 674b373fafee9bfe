"""Images with captions in both layouts, and what is no such folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attar.errors import DataError
from attar.evaluation.captions import open_captioned
from small_runs import write_pictures


def test_a_table_has_a_line_for_each_caption(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 3)
    lines = ["pictures/002.png\tone", 'pictures/000.png\ta "quoted" one', "pictures/002.png\ttwo, of it"]
    (tmp_path / "captions.tsv").write_text("\n".join(lines) + "\n")
    found = open_captioned(str(tmp_path))
    assert [found.images.source.name(row) for row in found.images.rows] == ["pictures/002.png", "pictures/000.png"]
    assert found.captions == (("one", "two, of it"), ('a "quoted" one',))
    assert found.images.labels.tolist() == [0, 1]


def test_of_karpathys_file_the_test_split_is_taken(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images/val2014", 2)
    images = [
        {"filepath": "val2014", "filename": "001.png", "split": "test", "sentences": [{"raw": "a"}, {"raw": "b"}]},
        {"filepath": "val2014", "filename": "000.png", "split": "restval", "sentences": [{"raw": "c"}]},
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    found = open_captioned(str(tmp_path))
    assert found.captions == (("a", "b"),)
    assert found.images.source.name(0) == "images/val2014/001.png"


def test_what_is_no_folder_of_captions_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no captions.tsv and no dataset_\*.json"):
        open_captioned(str(tmp_path))
    (tmp_path / "captions.tsv").write_text("a.png\tone\n")
    with pytest.raises(DataError, match=r"a.png does not exist, though it has a caption"):
        open_captioned(str(tmp_path))
    (tmp_path / "captions.tsv").write_text("a.png one\n")
    with pytest.raises(DataError, match="line 1: 1 columns"):
        open_captioned(str(tmp_path))
    (tmp_path / "captions.tsv").unlink()
    (tmp_path / "dataset_x.json").write_text('{"images": [{"split": "test"}]}')
    with pytest.raises(DataError, match="none of Karpathy's split files"):
        open_captioned(str(tmp_path))
