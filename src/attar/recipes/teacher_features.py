"""What a teacher says of images and sentences: made once, kept in a folder that runs may share, checked at each start.

images/          pool of `attar embed`                 image-vectors/   its vectors, sealed
corpus/          sentences, each once                  text-vectors/    theirs, sealed
caption-vectors/ of the images' captions, in their order      ...-tokens/   for a text tower that learns
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.config import DistillVlConfig, EmbedConfig
from attar.curation.corpus import Rules
from attar.curation.feature_store import (
    FRESH,
    MappedRows,
    check_fresh,
    check_sealed,
    is_sealed,
    seal,
    sealed_rows,
    write_pool_vectors,
)
from attar.curation.sentence_vectors import TextShards
from attar.data.base import Source
from attar.data.captions import read_captions
from attar.data.loader import EvaluationDataset, evaluation_batches
from attar.data.sentence_stream import Sentences
from attar.data.sentences import sentence_files
from attar.data.views import VIEW_IMPLEMENTATION, EvaluationView
from attar.evaluation.outputs import fingerprint
from attar.models import Backbone, TextTower
from attar.recipes.embed import embed
from attar.recipes.sentences import SENTENCES
from attar.recipes.text_features import TextEncoder, clean_corpus, embed_corpus, say_corpus, text_encoder
from attar.utils.distributed import from_main, uses_bf16
from attar.utils.io import new_file, sha256_text
from attar.utils.progress import Log, track
from attar.utils.seeding import numpy_generator

_SHARD = 16384  # sentences in a file
_WIDEST = (1, 100_000)  # bounds of words and characters: what was given is trained on


def image_features(
    config: DistillVlConfig, teacher: Backbone, source: Source, folder: Path, *, device: torch.device
) -> MappedRows:
    """One vector an image, of the whole image, in the order of the source (`fixed`).

    Raises:
        WeightsError: If those in the folder are of another teacher, view or images.
        DataError: If one of its files was changed.
    """
    vectors, view = folder / "image-vectors", EvaluationView(teacher.img_size)
    bf16 = uses_bf16(config.precision, device)
    made_by = {
        "teacher": {
            "reference": teacher.source.name,
            "fingerprint": fingerprint(teacher),
            "mean": list(teacher.preprocess.mean),
            "std": list(teacher.preprocess.std),
        },
        "view": {"img_size": view.img_size, "crop_pct": view.crop_pct, "implementation": VIEW_IMPLEMENTATION},
        "precision": "bf16" if bf16 else "fp32",
        "images": source.fingerprint,
    }
    if not from_main(lambda: is_sealed(vectors)):
        pool = embed(_embedding(config, folder / "images"))
        from_main(lambda: write_pool_vectors(pool, vectors))
    from_main(lambda: seal(vectors, made_by))
    from_main(lambda: check_sealed(vectors, made_by, "images"))
    rows = sealed_rows(vectors)

    def ask() -> None:
        chosen = _some(len(rows), lambda row: bool(rows[np.array([row])].any()))
        fresh, places = _seen(teacher, source, chosen, view, bf16=bf16, device=device)
        stored = torch.from_numpy(rows[chosen[places]])
        check_fresh(stored, fresh, lambda n: source.name(int(chosen[places][n])), "images", vectors)

    from_main(ask)
    return rows


def sentence_features(
    config: DistillVlConfig, text: TextTower, folder: Path, log: Log, *, device: torch.device
) -> tuple[Sentences, str]:
    """(the sentences to draw from, the fingerprint of their texts); with tokens where a text tower learns.

    Raises:
        WeightsError: If the vectors in the folder are of another teacher.
        RunDirectoryError: If they are of other sentences.
        DataError: If text cannot be read, or a file was changed.
    """
    files = sentence_files(_texts_of(config.sentences))
    rules = Rules(words=_WIDEST, chars=_WIDEST, lowercase=False)
    plan = {"files": {file.uri: file.stamp() for file in files}, "column": config.column}

    def read() -> Any:
        return clean_corpus(files, folder / "corpus", rules, plan, column=config.column, shard_size=_SHARD)

    corpus = from_main(read)
    say_corpus(log, corpus, len(files))
    encoder = text_encoder(text, precision=config.precision, device=device)
    found = _encoded(config, corpus, text, encoder, folder, "text", log)
    return found, corpus.fingerprint


def caption_features(
    config: DistillVlConfig, text: TextTower, source: Source, folder: Path, log: Log, *, device: torch.device
) -> Sentences:
    """The caption of each image, in the order of the source.

    Raises:
        WeightsError: If the vectors in the folder are of another teacher.
        DataError: If an image has no caption.
    """
    assert config.captions is not None
    captions = _InOrder(read_captions(config.captions, source))
    encoder = text_encoder(text, precision=config.precision, device=device)
    return _encoded(config, captions, text, encoder, folder, "caption", log)


@dataclass(frozen=True)
class _InOrder:
    """Texts in memory as shards."""

    every: list[str]

    @property
    def rows(self) -> Sequence[int]:
        return [len(self.every[start : start + _SHARD]) for start in range(0, len(self.every), _SHARD)]

    @property
    def fingerprint(self) -> str:
        return sha256_text("\0".join(self.every))

    def texts(self, number: int) -> list[str]:
        return self.every[number * _SHARD : (number + 1) * _SHARD]


def _encoded(
    config: DistillVlConfig,
    texts: TextShards,
    tower: TextTower,
    encoder: TextEncoder,
    folder: Path,
    kind: str,
    log: Log,
) -> Sentences:
    """Vectors, and tokens where they are wanted, of texts: made where they are missing, and checked."""
    vectors, made_by = folder / f"{kind}-vectors", {"teacher": dict(encoder.about), "texts": texts.fingerprint}
    if not from_main(lambda: is_sealed(vectors)):
        embed_corpus(texts, encoder, vectors, batch_size=256, log=log)
    from_main(lambda: seal(vectors, made_by))
    from_main(lambda: check_sealed(vectors, made_by, "sentences"))
    rows = sealed_rows(vectors)

    def ask() -> None:
        chosen = _some(len(rows))
        asked = _texts_at(texts, chosen)
        check_fresh(
            torch.from_numpy(rows[chosen]), encoder.encode(asked), lambda n: repr(asked[n]), "sentences", vectors
        )

    from_main(ask)
    if config.dime_fm.text_mode == "frozen_teacher":
        return Sentences(rows)
    tokens = folder / f"{kind}-tokens"
    read_by = {"tokeniser of": tower.source.name, "context": tower.context_length, "texts": texts.fingerprint}
    from_main(lambda: _write_tokens(texts, tower.tokenise, tokens))
    from_main(lambda: seal(tokens, read_by))
    from_main(lambda: check_sealed(tokens, read_by, "tokens"))
    return Sentences(rows, sealed_rows(tokens))


def _write_tokens(texts: TextShards, tokenise: Callable[[list[str]], Tensor], folder: Path) -> None:
    """(n, L) int32 of each shard."""
    numbers = [n for n in range(len(texts.rows)) if not (folder / f"tokens-{n:05}.npy").is_file()]
    for number in track(numbers, "tokenising", total=len(numbers), unit="shards"):
        with new_file(folder / f"tokens-{number:05}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, tokenise(texts.texts(number)).numpy().astype(np.int32))


def _embedding(config: DistillVlConfig, out: Path) -> EmbedConfig:
    return EmbedConfig(
        model=config.teacher,
        weights=config.teacher_weights,
        data=config.images,
        out=str(out),
        precision=config.precision,
        device=config.device,
        workers=config.workers,
        trust_torchscript=config.trust_torchscript,
        seed=config.seed,
        max_bad_share=config.max_bad_share,
    )


def _texts_of(places: Sequence[str]) -> list[str]:
    """Places of text; of a folder that `attar curate --sentences` has written, the chosen sentences alone."""
    chosen = [Path(place).expanduser() / SENTENCES for place in places]
    return [str(file) if file.is_file() else place for file, place in zip(chosen, places, strict=True)]


def _some(count: int, is_of_use: Callable[[int], bool] = lambda row: True) -> NDArray[np.int64]:
    """Rows to ask about anew."""
    drawn = numpy_generator(0, "fresh", count).permutation(count)[: 4 * FRESH]
    return np.array([row for row in drawn.tolist() if is_of_use(row)][:FRESH], dtype=np.int64)


def _texts_at(texts: TextShards, places: NDArray[np.int64]) -> list[str]:
    ends = np.cumsum(texts.rows)
    shards = np.searchsorted(ends, places, side="right")
    found = {}
    for number in np.unique(shards):
        own = texts.texts(int(number))
        for place in places[shards == number]:
            found[int(place)] = own[int(place - (ends[number] - texts.rows[number]))]
    return [found[int(place)] for place in places]


def _seen(
    teacher: Backbone,
    source: Source,
    rows: NDArray[np.int64],
    view: EvaluationView,
    *,
    bf16: bool,
    device: torch.device,
) -> tuple[Tensor, NDArray[np.int64]]:
    """(what the teacher says of these images now, which of them could be read)."""
    vectors, places = [], []
    for images, where in evaluation_batches(EvaluationDataset(source, rows, view), batch_size=16):
        if len(where):
            with torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
                vectors.append(teacher.embed(images).cpu())
            places.append(where.numpy())
    return torch.cat(vectors), np.concatenate(places)
