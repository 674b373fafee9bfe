"""Captions beside images: in the order of the source, and nothing missing."""

import json
import tracemalloc

import pytest

from attar.data.captions import caption_file, read_captions
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
    found = list(read_captions(tmp_path / f"c.{form}", source))
    assert found == [("picture 0", 2), ("picture 1", 3), ("picture 2", 1)]


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_empty_lines_and_ends_of_lines_of_windows_are_no_captions(form, source, tmp_path):
    plain = lines(source, form)
    (tmp_path / f"c.{form}").write_bytes((plain.replace("\n", "\r\n\r\n") + "  \n").encode())
    assert [text for text, _ in read_captions(tmp_path / f"c.{form}", source)] == [f"picture {row}" for row in range(3)]


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_a_mark_of_byte_order_is_no_part_of_the_first_line(form, source, tmp_path):
    (tmp_path / f"c.{form}").write_text(lines(source, form), encoding="utf-8-sig")
    assert [text for text, _ in read_captions(tmp_path / f"c.{form}", source)] == [f"picture {row}" for row in range(3)]


def test_of_a_list_of_captions_the_first_counts(source, tmp_path):
    said = [{"image": source.name(row), "text": [f"picture {row}", "another"]} for row in range(3)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(one) + "\n" for one in said))
    assert [text for text, _ in read_captions(tmp_path / "c.jsonl", source)] == [f"picture {row}" for row in range(3)]


def test_an_image_without_one_is_named(source, tmp_path):
    (tmp_path / "c.tsv").write_text(f"{source.name(0)}\tone\n{source.name(2)}\ttwo\n")
    with pytest.raises(
        DataError,
        match=f"1 of 3 images have no caption.*calls one of them '{source.name(1)}', the file calls its first '",
    ):
        list(read_captions(tmp_path / "c.tsv", source))


def test_names_of_all_images_are_never_pythons_objects_together(source, tmp_path, monkeypatch):
    monkeypatch.setattr("attar.data.captions._ROWS", 500)
    (tmp_path / "c.tsv").write_text("".join(f"{row:050}\tpicture {row}\n" for row in range(20_000)))

    class Many(type(source)):
        name, __len__ = (lambda self, row: f"{row:050}"), (lambda self: 20_000)

    source.__class__ = Many
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_captions(tmp_path / "c.tsv", source)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # all names as objects take twice that
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.tsv", b"only one column\n", r"line 1 of .* is no IMAGE<TAB>CAPTION"),
        ("c.tsv", b"a\tone\nb\t \n", "line 2"),
        ("c.tsv", b"a\tone\nb\tcaf\xe9\n", r"line 2 of .* is no UTF-8"),
        ("c.jsonl", b'{"image": "a"}\n', "line 1"),
        ("c.jsonl", b'\n{"image": "a", "text": ""}\n', "line 2"),
        ("c.jsonl", b'{"image": "a", "text": "\\ud800"}\n', "line 1"),
        ("c.jsonl", b'{"image": "a", "text": null}\n', "line 1"),
        ("c.jsonl", b'{"image": null, "text": "one"}\n', "line 1"),
        ("c.jsonl", b'{"image": "a", "text": []}\n', "line 1"),
        ("c.jsonl", b'{"image": "a", "text": [7]}\n', "line 1"),
        ("c.jsonl", b'{"image": "a", "text": {"en": "one"}}\n', "line 1"),
        ("c.jsonl", b'{"image": "a", "text": "caf\xe9"}\n', r"line 1 of .* is no UTF-8"),
    ],
)
def test_what_cannot_be_read_is_told(name, text, said, source, tmp_path):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=said):
        list(read_captions(tmp_path / name, source))


def test_the_file_must_be_there_and_of_a_known_format(tmp_path):
    (tmp_path / "c.tsv").touch()
    assert caption_file(tmp_path / "c.tsv") == tmp_path / "c.tsv"
    with pytest.raises(DataError, match="do not exist"):
        caption_file(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no format"):
        caption_file(tmp_path / "c.txt")
