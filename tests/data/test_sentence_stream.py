"""Sentences of a step: oracle 6.5 of spec dime_fm, and what makes a resume and another number of ranks exact."""

import numpy as np
import pytest
import torch

from attar.data.sentence_stream import Sentences, SentenceStream
from attar.errors import ConfigError, ShapeError


def numbered(count, *, dtype=np.float16, tokens=False):
    """Sentences whose only feature is their row."""
    rows = np.arange(count)[:, None]
    return Sentences(rows.astype(dtype), np.hstack([rows, rows]).astype(np.int32) if tokens else None)


def rows_at(stream, *steps, **place):
    return torch.cat([stream.at(step, **place).features[:, 0] for step in steps]).long().tolist()


def test_sentences_come_round_again_in_another_order():
    # oracle 6.5: 960 sentences by 320 last three steps; catches drawing with repetition, or one order for ever
    stream = SentenceStream(numbered(960, dtype=np.float32), 320, seed=0)
    first, second = rows_at(stream, 0, 1, 2), rows_at(stream, 3, 4, 5)
    assert sorted(first) == sorted(second) == list(range(960))
    assert first != second != sorted(second)
    assert first != rows_at(SentenceStream(numbered(960, dtype=np.float32), 320, seed=1), 0, 1, 2)


def test_a_step_borrows_from_the_next_round_and_may_hold_more_than_all():
    stream = SentenceStream(numbered(5), 4, seed=0)
    assert sorted(rows_at(stream, 0, 1, 2, 3, 4)) == sorted(4 * list(range(5)))
    assert len(set(rows_at(SentenceStream(numbered(3), 7, seed=0), 0))) == 3


def test_ranks_share_a_step_and_each_step_is_a_function_of_its_number():
    stream = SentenceStream(numbered(50), 12, seed=4)
    whole = rows_at(stream, 9)
    assert [row for rank in range(3) for row in rows_at(stream, 9, rank=rank, world_size=3)] == whole
    assert rows_at(SentenceStream(numbered(50), 12, seed=4), 9) == whole


def test_features_are_float32_tokens_int64_and_rows_may_repeat():
    texts = numbered(9, tokens=True).rows(np.array([7, 7, 2]))
    assert (texts.features.dtype, texts.tokens.dtype) == (torch.float32, torch.int64)
    assert texts.tokens.tolist() == [[7, 7], [7, 7], [2, 2]]
    exact = Sentences(torch.eye(3, dtype=torch.float64)).rows(np.array([2]))
    assert exact.features.dtype == torch.float64
    assert exact.tokens is None


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"10 sentences a step do not divide into 4 ranks\. Try 8"):
        SentenceStream(numbered(50), 10, seed=0).at(0, rank=0, world_size=4)
    with pytest.raises(ShapeError, match=r"features of sentences are \(0, 4\)"):
        Sentences(np.zeros((0, 4)))
    with pytest.raises(ShapeError, match=r"tokens of sentences are \(2, 7\), their features \(3, 4\)"):
        Sentences(np.zeros((3, 4)), np.zeros((2, 7), int))


def test_a_memory_mapped_store_is_read_row_by_row(tmp_path):
    np.save(tmp_path / "features.npy", np.arange(40, dtype=np.float16).reshape(20, 2))
    mapped = Sentences(np.load(tmp_path / "features.npy", mmap_mode="r"))
    assert mapped.rows(np.array([19, 0])).features.tolist() == [[38, 39], [0, 1]]
