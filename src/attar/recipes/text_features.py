"""What a teacher says of sentences: text files to a clean corpus, the corpus to vectors, both kept in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attar.curation.corpus import Corpus, Rules, write_corpus
from attar.curation.sentence_vectors import Encode, missing_vectors, written_vectors
from attar.data.files import File
from attar.data.sentences import read_sentences
from attar.errors import DataError
from attar.evaluation.outputs import add_weights
from attar.models import TextTower
from attar.utils.distributed import from_main, rank, uses_bf16, wait_for_all, world_size
from attar.utils.io import new_folder, read_json, remove_half_written, write_json
from attar.utils.progress import Log, counting, track
from attar.utils.run_directory import flat_changes, refuse_changes


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

    @property
    def identity(self) -> Mapping[str, Any]:
        """What must be equal for vectors to be used again: weights as they run, under any name and from any file."""
        return {name: self.about[name] for name in ("fingerprint", "precision", "width")}


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
    files: Sequence[File],
    folder: Path,
    rules: Rules,
    plan: Mapping[str, Any],
    *,
    column: str,
    shard_size: int,
    remedy: str,
    check: Callable[[Corpus], None] = lambda corpus: None,
) -> Corpus:
    """The clean corpus of text files, read only where it is not there yet, or was made from other files.

    Args:
        files: The text, in order.
        folder: Of the corpus.
        rules: Which sentences it keeps.
        plan: What it is made by.
        column: Of JSONL and Parquet.
        shard_size: Sentences in a file.
        remedy: What to do where other sentences stand in the folder, for the message.
        check: Refuses what has just been made, by raising, before it takes its place.

    Raises:
        RunDirectoryError: If other sentences stand there.
        DataError: If text cannot be read.
    """

    def write(empty: Path) -> Corpus:
        corpus = write_corpus(_read(files, column), empty, rules, shard_size=shard_size)
        check(corpus)
        return corpus

    return kept_corpus(folder, plan, write, remedy=remedy)


def kept_corpus(folder: Path, plan: Mapping[str, Any], write: Callable[[Path], Corpus], *, remedy: str) -> Corpus:
    """The corpus in a folder, written where it is not there yet.

    One of another plan, as when a file was touched or moved, is written anew, and may take the old one's place if it
    has the same sentences: what was made of them stays right.

    Raises:
        RunDirectoryError: If it has others, with what differs in the plan.
        DataError: If what is there is damaged.
    """
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a killed process: nobody else is at the folder
        shutil.rmtree(leftover, ignore_errors=True)
    if not (folder / "plan.json").is_file():
        with new_folder(folder) as temporary:
            write(temporary)
            write_json(temporary / "plan.json", plan)
        return Corpus.open(folder)
    before, kept = _plan_in(folder), Corpus.open(folder, check_hashes=True)
    if before != json.loads(json.dumps(plan)):
        with new_folder(folder) as temporary:
            now = write(temporary)
            if len(kept) and (now.fingerprint, now.rows) != (kept.fingerprint, kept.rows):
                check_plan(folder.parent, before, plan, remedy=remedy)
            write_json(temporary / "plan.json", plan)
    return Corpus.open(folder)


def say_corpus(log: Log, corpus: Corpus, num_files: int, *, remedy: str) -> None:
    """How much text there is, and what of it was left out.

    Args:
        log: To say it in.
        corpus: The text.
        num_files: How many files it is from.
        remedy: What to do where nothing is left, for the message.

    Raises:
        DataError: If nothing is left.
    """
    gone = ", ".join(f"{count:,} {reason}" for reason, count in corpus.left_out.items() if count)
    log.say(f"  text     {corpus.counts['read']:,} sentences in {num_files:,} files, {len(corpus):,} kept")
    if gone:
        log.say(f"  left out {gone}")
    if not len(corpus):
        raise DataError(f"no sentence of {num_files:,} files is left ({gone or 'they are empty'}). {remedy}")


def check_plan(folder: Path, before: dict[str, Any], now: Mapping[str, Any], *, remedy: str) -> None:
    """Refuse a folder whose content was made by other means.

    Args:
        folder: For the message.
        before: What its content was made by.
        now: What it should be made by.
        remedy: What to do, for the message.

    Raises:
        RunDirectoryError: With what differs.
    """
    differ = flat_changes(_in_words(before), _in_words(now))
    changes = {
        key: ("not there" if old is None else old, "not there" if new is None else new)
        for key, (old, new) in differ.items()
    }
    refuse_changes(changes, f"{folder} holds sentences that were made otherwise", remedy=remedy)


def _in_words(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan whose stamps of files people can read."""
    return {name: _words(value) if isinstance(value, Mapping) else value for name, value in plan.items()}


def _words(part: Mapping[str, Any]) -> str | dict[str, Any]:
    if "bytes" not in part:
        return _in_words(part)
    written = part.get("version", "")
    if "mtime_ns" in part:
        written = f"{datetime.fromtimestamp(part['mtime_ns'] / 1e9):%Y-%m-%d %H:%M:%S}"
    return f"{part['bytes']:,} bytes of {written}"


def embed_corpus(corpus: Corpus, encoder: TextEncoder, folder: Path, *, batch_size: int, log: Log) -> None:
    """Make the vectors that are missing; ranks share the work. Those that are there are taken to be of this corpus."""
    missing = from_main(lambda: missing_vectors(corpus, folder))
    done = len(corpus.rows) - len(missing)
    log.say(
        f"  shards   {len(corpus.rows):,} of {max(corpus.rows):,} sentences, {done:,} done before;"
        " one that a stop cuts short is begun anew"
    )
    own = missing[rank() :: world_size()]
    batches = written_vectors(encoder.encode, corpus, own, folder, batch_size=batch_size)
    total = sum(corpus.rows[number] for number in own)
    for _ in track(batches, "embedding sentences", total=total, unit="sentences", size=int):
        pass
    wait_for_all()


def hold_plan(folder: Path, plan: Mapping[str, Any], *, remedy: str) -> None:
    """Write down what a folder's vectors are made by, before the first of them, and remove what was left half.

    Raises:
        RunDirectoryError: If those that are there are of another plan.
    """
    if (folder / "plan.json").is_file():
        check_plan(folder.parent, _plan_in(folder), plan, remedy=remedy)
    else:
        write_json(folder / "plan.json", plan)
    remove_half_written(folder)


def _plan_in(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(folder / "plan.json")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder / 'plan.json'} is damaged ({error}). Remove {folder} and give the same command again."
        ) from None
    return found


def _read(files: Sequence[File], column: str) -> Iterator[tuple[str, str | None, int]]:
    done = 0
    with counting("reading sentences", unit="sentences") as show:
        for file in files:
            for text, line in read_sentences(file, column=column):
                yield file.uri, text, line
                done += 1
                if done % 1000 == 0:
                    show(done)
