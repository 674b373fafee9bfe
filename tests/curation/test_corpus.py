import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attar.curation.corpus import Corpus, Phrases, Rules, normalise, write_corpus, write_texts
from attar.errors import DataError

LINES = [("b.txt" if number % 3 else "a.txt", f"sentence number {number % 40}", number) for number in range(100)]


def corpus_of(folder, lines, rules=None, **settings):
    folder.mkdir()
    return write_corpus(lines, folder, rules or Rules(), **settings)


def every(corpus):
    return [text for number in range(len(corpus.rows)) for text in corpus.texts(number)]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  A\u00a0red\t ball \r\n", "a red ball"),
        ("\ufb01ne ＣＡＴ①", "fine cat1"),  # NFKC: a ligature, full width, a circled digit
        ("cafe\u0301", "café"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark", "softhyphen zerowidth mark"),
        ("bell\x07and\x00null", "bell and null"),
        ("", ""),
    ],
)
def test_what_looks_the_same_is_the_same(raw, clean):
    assert normalise(raw) == clean


def test_case_is_kept_where_it_is_asked_for():
    assert normalise("A Red  Ball", lowercase=False) == "A Red Ball"


@given(st.text(max_size=40))
def test_a_clean_sentence_stays_as_it_is(text):
    once = normalise(text)
    assert normalise(once) == once
    assert once == once.strip()
    assert "  " not in once


def test_phrases_are_whole_words_in_a_row():
    phrases = Phrases(["golden retriever", "cat", "a photo of a dog."])
    assert len(phrases) == 3
    inside = ["My Golden-Retriever sleeps", "cat", "see, a photo of a DOG!"]
    outside = ["retriever golden", "category", "golden the retriever", "cats", "a photo of a hot dog", ""]
    assert all(text in phrases for text in inside)
    assert not any(text in phrases for text in outside)
    assert "anything" not in Phrases(["", "..."])


def test_every_sentence_is_kept_once_and_what_is_left_out_is_counted(tmp_path):
    lines = [
        ("a", "A red ball.", 1),
        ("a", "a  red BALL.", 2),
        ("b", "a red ball.", 1),
        ("a", "short", 3),
        ("a", "one two three four five six", 4),
        ("a", "x" * 50 + " two words", 5),
        ("a", None, 6),
        ("a", "half a character \ud800", 7),
        ("a", "a green cat here", 8),
        ("a", "", 9),
    ]
    rules = Rules(words=(2, 5), chars=(1, 40), excluded={"a class name": Phrases(["cat"])})
    corpus = corpus_of(tmp_path / "c", lines, rules)
    assert every(corpus) == ["a red ball."]
    assert corpus.counts == {
        "read": 10,
        "kept": 1,
        "duplicates": 2,
        "too short": 2,
        "too long": 2,
        "unreadable": 2,
        "contains a class name": 1,
    }
    assert corpus.rows_at(np.array([0])).to_pylist() == [{"text": "a red ball.", "source": "a", "line": 1}]


def test_the_order_of_the_lines_changes_nothing(tmp_path):
    corpus = corpus_of(tmp_path / "one", LINES, shard_size=7)
    shuffled = random.Random(0).sample(LINES, len(LINES))
    other = corpus_of(tmp_path / "other", shuffled, shard_size=7)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "corpus.json",
        *(f"shard-{number:05}.parquet" for number in range(6)),
    ]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name
    assert len(corpus) == len(set(every(other))) == 40
    assert every(corpus) != sorted(every(corpus))  # the order is that of hashes: no shard is of one subject


def test_the_fingerprint_is_that_of_the_set_of_sentences(tmp_path):
    one = corpus_of(tmp_path / "one", LINES, shard_size=7).fingerprint
    assert corpus_of(tmp_path / "two", LINES * 2, shard_size=100).fingerprint == one
    assert corpus_of(tmp_path / "three", LINES[1:39], shard_size=7).fingerprint != one


def test_rows_come_in_the_order_asked_for(tmp_path):
    corpus = corpus_of(tmp_path / "c", LINES, shard_size=7)
    texts = every(corpus)
    places = np.array([39, 0, 13, 14, 13])
    table = corpus.rows_at(places)
    assert table.column("text").to_pylist() == [texts[place] for place in places]
    first = {}
    for source, text, line in sorted(LINES):
        first.setdefault(text, (source, line))
    assert [(row["source"], row["line"]) for row in table.to_pylist()] == [first[texts[place]] for place in places]
    assert corpus.rows_at(np.array([], dtype=np.int64)).num_rows == 0


def test_an_empty_corpus_is_one_without_shards(tmp_path):
    corpus = corpus_of(tmp_path / "c", [])
    assert (len(corpus), corpus.rows, corpus.counts["read"]) == (0, (), 0)


def test_a_damaged_corpus_is_named(tmp_path):
    corpus = corpus_of(tmp_path / "c", LINES)
    (tmp_path / "c/shard-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"shard-00000.parquet is damaged: .*give the same command again"):
        corpus.texts(0)
    (tmp_path / "c/corpus.json").write_text("{}")
    with pytest.raises(DataError, match=r"corpus.json is damaged"):
        Corpus.open(tmp_path / "c")


def test_an_edited_shard_is_seen_where_it_is_looked_for(tmp_path):
    corpus = corpus_of(tmp_path / "c", LINES)
    file = tmp_path / "c/shard-00000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(0, len(table) - 1), file)
    assert Corpus.open(tmp_path / "c") == corpus
    with pytest.raises(DataError, match=r"shard-00000\.parquet is damaged: its SHA-256 is .*Remove .*/c and give"):
        Corpus.open(tmp_path / "c", check_hashes=True)
    file.unlink()
    with pytest.raises(DataError, match="No such file"):
        Corpus.open(tmp_path / "c", check_hashes=True)


def test_a_corpus_of_an_older_attar_is_told(tmp_path):
    corpus_of(tmp_path / "c", LINES)
    about = json.loads((tmp_path / "c/corpus.json").read_text())
    del about["sha256"]
    (tmp_path / "c/corpus.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"it has no 'sha256'\. Remove"):
        Corpus.open(tmp_path / "c")


def test_texts_stay_as_they_are_and_in_their_order(tmp_path):
    lines = [("c.tsv", text, 10 - row) for row, text in enumerate(["B  b", "a", "a", "B  b", "é"])]
    for name, texts in (("one", lines), ("same", lines), ("other", lines[::-1])):
        (tmp_path / name).mkdir()
        corpus = write_texts(texts, tmp_path / name, shard_size=2)
        assert every(corpus) == [text for _, text, _ in texts]
        assert corpus.rows == (2, 2, 1)
    assert corpus.rows_at(np.array([4, 0])).column("line").to_pylist() == [10, 6]
    one, same, other = (Corpus.open(tmp_path / name).fingerprint for name in ("one", "same", "other"))
    assert one == same != other
