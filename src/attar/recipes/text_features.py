"""What a teacher says of sentences: text files to a clean corpus, the corpus to vectors, both kept in a folder."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attar.curation.corpus import Corpus, Rules, write_corpus
from attar.curation.sentence_vectors import Encode, TextShards, missing_vectors, written_vectors
from attar.data.files import File
from attar.data.sentences import read_sentences
from attar.errors import DataError, RunDirectoryError
from attar.evaluation.outputs import add_weights
from attar.models import TextTower
from attar.utils.distributed import from_main, rank, uses_bf16, wait_for_all, world_size
from attar.utils.io import new_folder, read_json, write_json
from attar.utils.progress import Log, counting, track
from attar.utils.run_directory import flat_changes


@dataclass(frozen=True)
class TextEncoder:
    """A text tower as a function, and what it is.

    Attributes:
        encode: From m sentences to (m, width).
        width: Numbers in a vector.
        about: All that its vectors depend on.
    """

    encode: Encode
    width: int
    about: Mapping[str, Any]


def text_encoder(tower: TextTower, *, precision: str, device: torch.device) -> TextEncoder:
    """The tower, which lies on the device, under the autocast that the precision asks for."""
    bf16 = uses_bf16(precision, device)

    def encode(texts: list[str]) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            return tower.encode(texts)

    digest = hashlib.sha256()
    add_weights(digest, tower)
    about = {
        "reference": tower.source.name,
        "weights": tower.source.weights,
        "file": Path(tower.source.file).name if tower.source.file else None,
        "sha256": tower.source.sha256,
        "fingerprint": digest.hexdigest(),
        "precision": "bf16" if bf16 else "fp32",
        "width": tower.embed_dim,
    }
    return TextEncoder(encode, tower.embed_dim, about)


def clean_corpus(
    files: Sequence[File], folder: Path, rules: Rules, plan: Mapping[str, Any], *, column: str, shard_size: int
) -> Corpus:
    """The clean corpus of text files, read only where the folder is not there yet; an old one must be of this plan.

    Args:
        files: The text, in order.
        folder: Of the corpus.
        rules: Which sentences it keeps.
        plan: What it is made by.
        column: Of JSONL and Parquet.
        shard_size: Sentences in a file.

    Raises:
        RunDirectoryError: If a corpus of another plan stands there.
        DataError: If text cannot be read.
    """
    if (folder / "plan.json").is_file():
        check_plan(folder.parent, read_json(folder / "plan.json"), plan)
    else:
        with new_folder(folder) as temporary:
            write_corpus(_read(files, column), temporary, rules, shard_size=shard_size)
            write_json(temporary / "plan.json", plan)
    return Corpus.open(folder)


def say_corpus(log: Log, corpus: Corpus, num_files: int) -> None:
    """How much text there is, and what of it was left out.

    Raises:
        DataError: If nothing is left.
    """
    gone = ", ".join(f"{count:,} {reason}" for reason, count in corpus.left_out.items() if count)
    log.say(f"  text     {corpus.counts['read']:,} sentences in {num_files:,} files, {len(corpus):,} kept")
    if gone:
        log.say(f"  left out {gone}")
    if not len(corpus):
        raise DataError(
            f"no sentence of {num_files:,} files is left ({gone or 'they are empty'})."
            " Widen the bounds (--min-words, --max-chars), or exclude less."
        )


def check_plan(folder: Path, before: dict[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a folder whose content was made by other means.

    Raises:
        RunDirectoryError: With what differs.
    """
    changes = [f"{key} was {old}, now {new}" for key, (old, new) in flat_changes(before, dict(now)).items()]
    if changes:
        raise RunDirectoryError(
            f"{folder} holds sentences that were made otherwise: {'; '.join(changes[:6])}."
            " Choose another folder, or give the settings and files of before."
        )


def embed_corpus(corpus: TextShards, encoder: TextEncoder, folder: Path, *, batch_size: int, log: Log) -> None:
    """Make the vectors that are missing; ranks share the work.

    Raises:
        RunDirectoryError: If those that are there are of another model or corpus.
    """
    missing = from_main(lambda: _missing(corpus, encoder, folder, batch_size))
    done = len(corpus.rows) - len(missing)
    log.say(f"  shards   {len(corpus.rows):,} of {max(corpus.rows):,} sentences, {done:,} done before")
    own = missing[rank() :: world_size()]
    batches = written_vectors(encoder.encode, corpus, own, folder, batch_size=batch_size)
    total = sum(corpus.rows[number] for number in own)
    for _ in track(batches, "embedding sentences", total=total, unit="sentences", size=int):
        pass
    wait_for_all()


def _missing(corpus: TextShards, encoder: TextEncoder, folder: Path, batch_size: int) -> list[int]:
    plan = {"model": dict(encoder.about), "corpus": corpus.fingerprint, "text_batch_size": batch_size}
    if (folder / "plan.json").is_file():
        check_plan(folder.parent, read_json(folder / "plan.json"), plan)
    else:
        write_json(folder / "plan.json", plan)
    for leftover in folder.glob(".vectors-*"):
        leftover.unlink()
    return missing_vectors(corpus, folder)


def _read(files: Sequence[File], column: str) -> Iterator[tuple[str, str | None, int]]:
    done = 0
    with counting("reading sentences", unit="sentences") as show:
        for file in files:
            for text, line in read_sentences(file, column=column):
                yield file.uri, text, line
                done += 1
                if done % 1000 == 0:
                    show(done)
