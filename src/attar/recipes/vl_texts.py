"""Sentences and captions that a distillation of two towers learns from, read into the folder of features."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from attar.config import DistillVlConfig
from attar.curation.corpus import Corpus, Rules, write_texts
from attar.data.base import Source
from attar.data.captions import caption_file, read_captions
from attar.data.files import File
from attar.data.sentences import sentence_files
from attar.errors import DataError
from attar.recipes.sentences import SENTENCES
from attar.recipes.text_features import clean_corpus, kept_corpus, say_corpus
from attar.utils.distributed import PATIENCE_S, from_main
from attar.utils.progress import Log, track

_SHARD = 16384  # sentences in a file
_ANOTHER = "Give another --features folder, or another --out, or the files of before."
_WIDEST = (1, 100_000)  # bounds of words and characters: what was given is trained on


def check_texts(config: DistillVlConfig) -> None:
    """Look for the files of sentences and captions, before a model is loaded.

    Raises:
        DataError: If one is not there, or of no format known here.
    """
    sentence_files(_texts_of(config.sentences))
    if config.captions is not None:
        caption_file(config.captions)


def sentence_corpus(config: DistillVlConfig, folder: Path, log: Log) -> Corpus:
    """The sentences to draw from, each once.

    Raises:
        RunDirectoryError: If there are others in the folder.
        DataError: If text cannot be read, or there is not more than one sentence.
    """
    files = sentence_files(_texts_of(config.sentences))
    rules = Rules(words=_WIDEST, chars=_WIDEST, lowercase=False)
    plan = {"files": {file.uri: file.stamp() for file in files}, "column": config.column}

    def read() -> Corpus:
        return clean_corpus(
            files,
            folder / "corpus",
            rules,
            plan,
            column=config.column,
            shard_size=_SHARD,
            remedy=_ANOTHER,
            check=_check_several,
        )

    corpus = from_main(read, patience_s=PATIENCE_S)
    say_corpus(log, corpus, len(files), remedy="Give other --sentences.")
    if (size := config.text_batch_size or config.batch_size) > len(corpus):
        log.say(f"           a step's {size:,} sentences hold each of the {len(corpus):,} several times")
    return corpus


def caption_corpus(config: DistillVlConfig, source: Source, folder: Path) -> Corpus:
    """The caption of each image, in the order of the source.

    Raises:
        RunDirectoryError: If there are others in the folder.
        DataError: If an image has no caption, or all have the same.
    """
    assert config.captions is not None
    file = caption_file(config.captions)
    plan = {"file": File(str(file)).stamp(), "images": source.fingerprint}

    def write(empty: Path) -> Corpus:
        lines = ((str(file), caption, line) for caption, line in read_captions(file, source))
        watched = track(lines, "reading captions", total=len(source), unit="captions")
        captions = write_texts(watched, empty, shard_size=_SHARD)
        _check_varied(captions, file)
        return captions

    def read() -> Corpus:
        return kept_corpus(folder / "captions", plan, write, remedy=_ANOTHER)

    return from_main(read, patience_s=PATIENCE_S)


def _check_several(sentences: Corpus) -> None:
    if len(sentences) == 1:
        only = _shortened(sentences.texts(0)[0])
        raise DataError(
            f"all {sentences.counts['read']:,} lines of --sentences are one sentence, '{only}'."
            " What an image is like is learned as shares of several: give other --sentences."
        )


def _check_varied(captions: Corpus, file: Path) -> None:
    texts = (text for number in range(len(captions.rows)) for text in captions.texts(number))
    first = next(texts)
    if all(text == first for text in texts):
        raise DataError(
            f"all {len(captions):,} captions in {file} are '{_shortened(first)}': the contrastive term learns which"
            " caption is an image's own, and there is nothing to tell. Give other --captions, or leave them and"
            " --dime-fm.contrastive-weight out."
        )


def _texts_of(places: Sequence[str]) -> list[str]:
    """Places of text; of a folder that `attar curate --sentences` has written, the chosen sentences alone."""
    chosen = [Path(place).expanduser() / SENTENCES for place in places]
    return [str(file) if file.is_file() else place for file, place in zip(chosen, places, strict=True)]


def _shortened(text: str) -> str:
    return textwrap.shorten(text, 60, placeholder=" ...")
