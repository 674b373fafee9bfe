import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attar.data.files import File
from attar.data.sentences import read_sentences, sentence_files
from attar.errors import DataError


def read(path, **settings):
    return list(read_sentences(File(str(path)), **settings))


def test_a_line_of_text_is_a_sentence(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa red ball\n\nan ünlike one\r\nlast".encode())
    assert read(tmp_path / "a.txt") == [("a red ball\n", 1), ("\n", 2), ("an ünlike one\r\n", 3), ("last", 4)]


def test_a_line_that_is_no_text_or_endless_is_none_and_the_next_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\xfe\nthree\n" + b"x" * 3_000_000 + b"\nfive\n")
    assert read(tmp_path / "a.txt") == [("one\n", 1), (None, 2), ("three\n", 3), (None, 4), ("five\n", 5)]


def test_json_lines_are_objects_or_texts_or_hold_several(tmp_path):
    lines = ['{"text": "one"}', '"two"', "", '{"text": ["three", "four"]}', "{", '{"title": "no"}', '{"text": 7}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = [("one", 1), ("two", 2), ("three", 4), ("four", 4), (None, 5), (None, 6), (None, 7)]
    assert read(tmp_path / "a.jsonl") == found
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    assert read(tmp_path / "a.jsonl.gz") == found


def test_rows_of_parquet(tmp_path):
    pq.write_table(pa.table({"caption": ["one", None, "three"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", column="caption") == [("one", 1), (None, 2), ("three", 3)]
    pq.write_table(pa.table({"text": [["one", "two"], []]}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == [("one", 1), ("two", 1), (None, 2)]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_another_name_of_the_column_is_asked_for(tmp_path, name):
    if name == "a.parquet":
        pq.write_table(pa.table({"caption": ["one"]}), tmp_path / name)
    else:
        (tmp_path / name).write_text(json.dumps({"caption": "one"}))
    with pytest.raises(DataError, match=r"no sentences in 'text'; it has caption. Name the right one with --column"):
        read(tmp_path / name)
    assert read(tmp_path / name, column="caption") == [("one", 1)]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    (tmp_path / "a.txt.gz").write_bytes(b"no gzip")
    for name in ("a.parquet", "a.txt.gz"):
        with pytest.raises(DataError, match=rf"{name} is damaged"):
            read(tmp_path / name)


def test_places_are_files_patterns_and_folders_in_one_order(tmp_path):
    for name in ("b/two.txt", "b/deep/one.jsonl", "b/image.png", "b/.hidden.txt", "x-0.txt", "x-1.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    places = [str(tmp_path / "x-{0..1}.txt"), str(tmp_path / "b"), str(tmp_path / "x-1.txt")]
    found = [file.address.removeprefix(f"{tmp_path}/") for file in sentence_files(places)]
    assert found == ["b/deep/one.jsonl", "b/two.txt", "x-0.txt", "x-1.txt"]
    assert sentence_files(places[::-1]) == sentence_files(places)


def test_a_url_is_read_as_a_file_is(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.txt").write_text("one\n")
    url = f"file://{tmp_path}"
    (file,) = sentence_files([url])
    assert (file.address, list(read_sentences(file))) == (f"{url}/deep/a.txt", [("one\n", 1)])
    assert sentence_files([f"{url}/deep/a.txt"]) == [file]


def test_what_is_no_sentences_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"a.png is no file of sentences. Give .txt"):
        sentence_files([str(tmp_path / "a.png")])
    with pytest.raises(DataError, match="holds no sentences"):
        sentence_files([str(tmp_path)])
    with pytest.raises(DataError, match="does not exist"):
        sentence_files([str(tmp_path / "nowhere.txt")])
