"""Captions beside images: in the order of the source, and nothing missing."""

import json

import pytest

from attar.data.captions import read_captions
from attar.data.sources import open_source
from attar.errors import DataError
from small_runs import write_pictures


@pytest.fixture
def source(tmp_path):
    write_pictures(tmp_path / "images", 3)
    return open_source(str(tmp_path / "images"))


def lines(source, form):
    said = [(source.name(row), f"picture {row}") for row in (2, 0, 1)] + [(source.name(0), "a second one")]
    if form == "tsv":
        return "".join(f"{name}\t{text}\n" for name, text in said)
    return "".join(json.dumps({"image": name, "text": text}) + "\n" for name, text in said)


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_each_image_has_its_first_caption(form, source, tmp_path):
    (tmp_path / f"c.{form}").write_text(lines(source, form))
    assert read_captions(tmp_path / f"c.{form}", source) == ["picture 0", "picture 1", "picture 2"]


def test_an_image_without_one_is_named(source, tmp_path):
    (tmp_path / "c.tsv").write_text(f"{source.name(0)}\tone\n{source.name(2)}\ttwo\n")
    with pytest.raises(DataError, match=f"1 of 3 images have no caption.*{source.name(1)}"):
        read_captions(tmp_path / "c.tsv", source)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.tsv", "only one column\n", "line 1"),
        ("c.jsonl", '{"image": "a"}\n', "line 1"),
        ("c.txt", "a\tb\n", "no format"),
    ],
)
def test_what_cannot_be_read_is_told(name, text, said, source, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_captions(tmp_path / name, source)
    with pytest.raises(DataError, match=r"do not exist|no format"):
        read_captions(tmp_path / f"not-{name}", source)
