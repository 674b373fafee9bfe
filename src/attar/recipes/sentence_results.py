"""What `attar curate --sentences` writes: the table of sentences, what they are, and examples for the page."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from attar._version import __version__
from attar.config import SentencesConfig
from attar.curation.corpus import Corpus
from attar.curation.grounding import Grounded, short_of
from attar.curation.index import PoolIndex
from attar.curation.pool import Pool
from attar.curation.statistics import histogram
from attar.data.files import File
from attar.errors import DataError
from attar.reports.sentences import Example
from attar.utils.io import sha256_text

_SHOWN_IMAGES, _SHOWN_SENTENCES = 12, 6
_OURS = "attar's own; the algorithm of DIME-FM is not public"


def chosen_table(corpus: Corpus, chosen: Grounded, index: PoolIndex, images: NDArray[np.int64]) -> Any:
    """The sentences in the order they were chosen in."""
    table = corpus.rows_at(chosen.sentence)
    owners = index.rows(images[chosen.image])
    columns = {
        "similarity": pa.array(chosen.similarity),
        "rank": pa.array(chosen.rank.astype(np.int32)),
        "image": pa.array(index.pool.ids(owners), pa.string()),
        "image_uri": pa.array(index.pool.uris(owners), pa.string()),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def chosen_manifest(
    config: SentencesConfig,
    files: list[File],
    corpus: Corpus,
    pool: Pool,
    text_model: Mapping[str, Any],
    chosen: Grounded,
    depth: int,
    queries: Tensor,
) -> dict[str, Any]:
    """All that says what the sentences are, and nothing that changes when the same is done again."""
    hidden = {"out", "device", "workers", "sentences", "images"}
    per_image = np.bincount(chosen.image, minlength=len(queries))
    wanted = config.budget or (len(queries) * config.per_image if config.strategy == "assignment_greedy" else None)
    return {
        "kind": "attar sentences",
        "format": 1,
        "made_by": f"attar {__version__}",
        "sentences": len(chosen),
        "wanted": wanted,
        "shortfall": 0 if wanted is None else wanted - len(chosen),
        "settings": config.model_dump(mode="json", exclude=hidden),
        "algorithm": f"{config.strategy}: {_OURS}",
        "is_approximate": config.strategy == "assignment_greedy",
        "corpus": {
            "files": [{"file": file.uri, "bytes": file.stamp()["bytes"]} for file in files],
            "read": corpus.counts["read"],
            "kept": len(corpus),
            "left_out": corpus.left_out,
            "fingerprint": corpus.fingerprint,
        },
        "images": {
            "count": len(queries),
            "places": list(pool.manifest.places),
            "fingerprint": pool.fingerprint,
            "vectors": sha256_text(queries.numpy().tobytes().hex()),
            "without": int((per_image == 0).sum()),
            "short": short_of(chosen, images=len(queries), per_image=config.per_image),
        },
        "model": {"text": dict(text_model), "image": pool.manifest.model.model_dump(mode="json")},
        "candidates": depth,
        "similarity": histogram(chosen.similarity.tolist()),
    }


def examples(pool: Pool, index: PoolIndex, images: NDArray[np.int64], chosen: Grounded, table: Any) -> list[Example]:
    """A few images with the first sentences that are theirs; the images alone are missing where they have gone."""
    source = None
    with contextlib.suppress(DataError):
        source = pool.source()
    owners = np.unique(chosen.image)
    texts = table.column("text")
    found = []
    for owner in owners[np.unique(np.linspace(0, len(owners) - 1, _SHOWN_IMAGES).round().astype(int))].tolist():
        mine = np.flatnonzero(chosen.image == owner)[:_SHOWN_SENTENCES]
        row = int(index.rows(images[[owner]])[0])
        found.append(
            Example(
                name=pool.ids([row])[0],
                image=None if source is None else (source, row),
                sentences=tuple((texts[int(at)].as_py(), float(chosen.similarity[at])) for at in mine),
            )
        )
    return found
