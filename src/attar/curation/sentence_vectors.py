"""Vectors of a corpus, shard by shard as its texts lie; a text tower is any function from sentences to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from attar.curation.corpus import Corpus
from attar.errors import DataError
from attar.utils.io import new_file

Encode = Callable[[list[str]], Tensor]
"""Sentences to (n, D) embeddings, of any length, on any device."""


def vectors_name(number: int) -> str:
    """File name of a shard's vectors."""
    return f"vectors-{number:05}.npy"


def missing_vectors(corpus: Corpus, folder: Path) -> list[int]:
    """Numbers of the shards whose vectors are not there."""
    return [number for number in range(len(corpus.rows)) if not (folder / vectors_name(number)).is_file()]


def written_vectors(
    encode: Encode, corpus: Corpus, numbers: Sequence[int], folder: Path, *, batch_size: int = 256
) -> Iterator[int]:
    """Write the vectors of these shards, and say of each batch how many sentences it had.

    A file is written whole when its last batch is there. Its batches begin with the shard, so that it is the same after
    whatever interruption.

    Args:
        encode: The text tower.
        corpus: Sentences.
        numbers: Which shards to make.
        folder: Where the files shall be.
        batch_size: Sentences in a forward pass.

    Raises:
        DataError: If a vector is not finite.
    """
    for number in numbers:
        texts, held = corpus.texts(number), list[Tensor]()
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            vectors = encode(batch).float()
            is_finite = vectors.isfinite().all(1).cpu()  # device-to-host sync; the copy below would be one, too
            if not is_finite.all():
                strange = batch[int((~is_finite).nonzero()[0])]
                raise DataError(
                    f"the vector of '{strange[:80]}' is not finite. Try --precision fp32, or other weights."
                )
            held.append(normalize(vectors, dim=1).half().cpu())
            if start + batch_size >= len(texts):
                with new_file(folder / vectors_name(number)) as temporary, temporary.open("wb") as file:
                    np.save(file, torch.cat(held).numpy())
            yield len(batch)


def vector_blocks(corpus: Corpus, folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """((n, D) float16 of length 1, (n,) places in the corpus) of each shard, in order; one is held at a time.

    Raises:
        DataError: If a file is missing or damaged.
    """
    first = 0
    for number, rows in enumerate(corpus.rows):
        path = folder / vectors_name(number)
        try:
            vectors = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is damaged ({error}). Remove it and give the same command again.") from None
        if vectors.dtype != np.float16 or vectors.ndim != 2 or len(vectors) != rows:
            raise DataError(
                f"{path} holds {vectors.dtype} of shape {vectors.shape}, the corpus has {rows:,} sentences there."
                " Remove it and give the same command again."
            )
        yield torch.from_numpy(vectors), torch.arange(first, first + rows)
        first += rows
