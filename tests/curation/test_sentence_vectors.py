import hashlib

import numpy as np
import pytest
import torch

from attar.curation.corpus import Rules, write_corpus
from attar.curation.sentence_vectors import missing_vectors, vector_blocks, written_vectors
from attar.errors import DataError


def encode(texts):
    """Numbers that a text alone decides, of many lengths."""
    rows = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8).astype(np.float32) for text in texts]
    return torch.from_numpy(np.stack(rows))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    lines = [("a", f"sentence number {number}", number) for number in range(30)]
    return write_corpus(lines, tmp_path / "corpus", Rules(), shard_size=12)


def write(corpus, folder, numbers=None, **settings):
    folder.mkdir(exist_ok=True)
    return list(written_vectors(encode, corpus, numbers or missing_vectors(corpus, folder), folder, **settings))


def test_vectors_lie_as_the_texts_do(corpus, tmp_path):
    assert write(corpus, tmp_path / "v", batch_size=5) == [5, 5, 2, 5, 5, 2, 5, 1]
    texts = [text for number in range(3) for text in corpus.texts(number)]
    blocks = list(vector_blocks(corpus, tmp_path / "v"))
    vectors, places = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    assert places.tolist() == list(range(30))
    assert torch.equal(vectors, torch.nn.functional.normalize(encode(texts), dim=1).half())


def test_what_was_interrupted_goes_on_and_ends_with_the_same_bytes(corpus, tmp_path):
    write(corpus, tmp_path / "whole", batch_size=5)
    (tmp_path / "parts").mkdir()
    batches = written_vectors(encode, corpus, [0, 1, 2], tmp_path / "parts", batch_size=5)
    for _ in range(5):  # in the middle of the second shard
        next(batches)
    batches.close()
    assert missing_vectors(corpus, tmp_path / "parts") == [1, 2]
    write(corpus, tmp_path / "parts", batch_size=5)
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == [f"vectors-0000{n}.npy" for n in range(3)]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_a_vector_that_is_not_finite_stops_and_names_the_sentence(corpus, tmp_path):
    (tmp_path / "v").mkdir()

    def broken(texts):
        return encode(texts) / torch.tensor([[0.0 if text == "sentence number 7" else 1.0] for text in texts])

    with pytest.raises(DataError, match="vector of 'sentence number 7' is not finite"):
        list(written_vectors(broken, corpus, [0, 1, 2], tmp_path / "v"))


def test_files_that_do_not_fit_are_refused(corpus, tmp_path):
    write(corpus, tmp_path / "v")
    path = tmp_path / "v/vectors-00001.npy"
    np.save(path, np.zeros((11, 4), np.float16))
    with pytest.raises(DataError, match=r"holds float16 of shape \(11, 4\), the corpus has 12 sentences"):
        list(vector_blocks(corpus, tmp_path / "v"))
    path.write_bytes(b"cut")
    with pytest.raises(DataError, match=r"vectors-00001.npy is damaged"):
        list(vector_blocks(corpus, tmp_path / "v"))
