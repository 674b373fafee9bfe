"""`attar curate --sentences`: of a corpus of text, the sentences that could be seen in some images."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.config import EmbedConfig, SentencesConfig
from attar.curation.corpus import Corpus, Phrases, Rules, write_corpus
from attar.curation.grounding import Grounded, assignment_greedy, topk_union
from attar.curation.index import PoolIndex
from attar.curation.pool import Pool, shard_name
from attar.curation.search import search
from attar.curation.sentence_vectors import Encode, missing_vectors, vector_blocks, written_vectors
from attar.data.files import File
from attar.data.sentences import read_sentences, sentence_files
from attar.errors import ConfigError, DataError, RunDirectoryError, WeightsError
from attar.evaluation.datasets import DATASETS, find_dataset, listed_names, prompt_templates
from attar.evaluation.outputs import add_weights
from attar.models import load_text_tower
from attar.recipes.embed import embed
from attar.recipes.sentence_results import chosen_manifest, chosen_table, examples, left_out
from attar.reports.sentences import write_sentences_page
from attar.utils.distributed import launched_ranks, pick_device, uses_bf16
from attar.utils.io import new_file, new_folder, read_json, sha256_text, write_json
from attar.utils.progress import Log, counting, track
from attar.utils.run_directory import flat_changes, held_directory
from attar.utils.signals import polite_stop, stop_if_requested

SENTENCES = "sentences.parquet"
_ENTRIES = 50_000_000  # of all lists together, 800 MB: where a corpus is nearly used up they could outgrow memory


@dataclass(frozen=True)
class SentencesReport:
    """What choosing sentences leaves behind.

    Attributes:
        out: The folder.
        file: The sentences in it.
        sentences: How many they are.
        manifest: What `manifest.json` holds.
    """

    out: Path
    file: Path
    sentences: int
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class _Tower:
    """The teacher's side of text: what it makes of sentences, and what it is."""

    encode: Encode
    width: int
    about: Mapping[str, Any]


def curate_sentences(config: SentencesConfig) -> SentencesReport:
    """Choose the sentences of a corpus that could be seen in images, by the two towers of a teacher.

    In `out` stay the clean corpus, its vectors and those of the images: with other settings of the choice the same
    folder is done in seconds.

    Raises:
        UserError: If text, images, model or folder do not work out.
        Interrupted: If SIGINT or SIGTERM came; the same command goes on.
    """
    if launched_ranks() > 1:
        raise ConfigError(f"{launched_ranks()} ranks were launched, and sentences are chosen by one process.")
    with polite_stop(), held_directory(Path(config.out)) as out:
        log, device = Log(), pick_device(config.device)
        files, rules = sentence_files(config.sentences), _rules(config)
        plan = _corpus_plan(config, files)
        _check_folder(out, plan)
        tower, pool = _tower(config, device), _given_pool(config)
        if pool is not None:
            _check_pair(config, pool, tower)
        corpus = _corpus(config, files, rules, plan, out, log)
        if pool is None:
            pool = _embed_images(config, out)
        _embed_sentences(config, corpus, tower, out, log)
        index = PoolIndex(pool)
        images, queries = _queries(index)
        chosen, depth = _choose(config, corpus, queries, out / "vectors", device)
        table = chosen_table(corpus, chosen, index, images)
        manifest = chosen_manifest(config, files, corpus, pool, tower.about, chosen, depth, queries)
        with new_file(out / SENTENCES) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_statistics=False)
        write_json(out / "manifest.json", manifest)
        write_sentences_page(out / "report.html", manifest, examples(pool, index, images, chosen, table))
        _say_end(log, manifest, out)
        return SentencesReport(out, out / SENTENCES, len(chosen), manifest)


def _rules(config: SentencesConfig) -> Rules:
    excluded = {
        "a class name": Phrases(phrase for word in config.exclude_names for phrase in _names(word)),
        "a prompt": Phrases(phrase for word in config.exclude_prompts for phrase in _prompts(word)),
    }
    return Rules(
        words=(config.min_words, config.max_words),
        chars=(config.min_chars, config.max_chars),
        lowercase=config.lowercase,
        excluded={name: phrases for name, phrases in excluded.items() if len(phrases)},
    )


def _names(word: str) -> list[str]:
    return _lines(word) if _is_file(word) else list(listed_names(find_dataset(word)))


def _prompts(word: str) -> Iterator[str]:
    if _is_file(word):
        yield from _lines(word)
        return
    dataset = find_dataset(word)
    if dataset.templates is None:
        raise ConfigError(f"{word} has no prompts: no paper asks for zero-shot there. Give a text file, one a line.")
    for template in prompt_templates(dataset.templates):
        for name in listed_names(dataset):
            yield template.format(name)


def _is_file(word: str) -> bool:
    return word not in DATASETS and Path(word).expanduser().is_file()


def _lines(word: str) -> list[str]:
    lines = Path(word).expanduser().read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _corpus_plan(config: SentencesConfig, files: list[File]) -> dict[str, Any]:
    """What the clean corpus is made by."""
    kept = ("column", "lowercase", "min_words", "max_words", "min_chars", "max_chars", "shard_size")
    excluded = sorted({*(f"name {n}" for w in config.exclude_names for n in _names(w))})
    excluded += sorted({*(f"prompt {p}" for w in config.exclude_prompts for p in _prompts(w))})
    return {
        "files": {file.uri: file.stamp() for file in files},
        **{name: getattr(config, name) for name in kept},
        "excluded": sha256_text("\n".join(excluded)),
    }


def _check_folder(out: Path, plan: Mapping[str, Any]) -> None:
    """See that nothing stands in the folder but an earlier choice from this corpus, and clear what was left half.

    Raises:
        RunDirectoryError: If something else stands there.
    """
    for leftover in out.glob(".corpus.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if (out / "corpus").is_dir():
        _check_plan(out, read_json(out / "corpus/plan.json"), plan)
    elif any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise RunDirectoryError(f"--out {out} is not empty and holds no sentences of attar. Choose a new folder.")


def _check_plan(out: Path, before: dict[str, Any], now: Mapping[str, Any]) -> None:
    changes = [f"{key} was {old}, now {new}" for key, (old, new) in flat_changes(before, dict(now)).items()]
    if changes:
        raise RunDirectoryError(
            f"--out {out} holds sentences that were made otherwise: {'; '.join(changes[:6])}."
            " Choose a new --out, or give the settings and files of before."
        )


def _corpus(
    config: SentencesConfig, files: list[File], rules: Rules, plan: Mapping[str, Any], out: Path, log: Log
) -> Corpus:
    """The clean corpus, read only where it is not there yet."""
    if not (out / "corpus").is_dir():
        with new_folder(out / "corpus") as folder:
            write_corpus(_read(files, config.column), folder, rules, shard_size=config.shard_size)
            write_json(folder / "plan.json", plan)
    corpus = Corpus.open(out / "corpus")
    gone = ", ".join(f"{count:,} {reason}" for reason, count in left_out(corpus).items() if count)
    log.say(f"  text     {corpus.counts['read']:,} sentences in {len(files):,} files, {len(corpus):,} kept")
    if gone:
        log.say(f"  left out {gone}")
    if not len(corpus):
        raise DataError(
            f"no sentence of {len(files):,} files is left ({gone or 'they are empty'})."
            " Widen the bounds (--min-words, --max-chars), or exclude less."
        )
    return corpus


def _read(files: list[File], column: str) -> Iterator[tuple[str, str | None, int]]:
    done = 0
    with counting("reading sentences", unit="sentences") as show:
        for file in files:
            for text, line in read_sentences(file, column=column):
                yield file.uri, text, line
                done += 1
                if done % 1000 == 0:
                    show(done)


def _given_pool(config: SentencesConfig) -> Pool | None:
    """The images that ask, where they are embedded already."""
    place = Path(config.images[0]).expanduser()
    is_pool = len(config.images) == 1 and (place / shard_name(0)).is_file()
    return Pool.open(place) if is_pool else None


def _embed_images(config: SentencesConfig, out: Path) -> Pool:
    """The images that ask, embedded by the teacher in the folder; what is there is not done again."""
    return embed(
        EmbedConfig(
            model=config.teacher,
            weights=config.teacher_weights,
            data=config.images,
            out=str(out / "images"),
            batch_size=config.batch_size,
            precision=config.precision,
            device=config.device,
            workers=config.workers,
            trust_torchscript=config.trust_torchscript,
            seed=config.seed,
        )
    )


def _tower(config: SentencesConfig, device: torch.device) -> _Tower:
    """The teacher's text tower as a function."""
    tower = load_text_tower(
        config.teacher, weights=config.teacher_weights, trust_torchscript=config.trust_torchscript, seed=config.seed
    ).to(device)
    bf16 = uses_bf16(config.precision, device)

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
    return _Tower(encode, tower.embed_dim, about)


def _check_pair(config: SentencesConfig, pool: Pool, tower: _Tower) -> None:
    """See that images and sentences are seen by two towers of one model.

    Raises:
        WeightsError: If they are not.
    """
    made = pool.manifest.model
    is_other = made.reference != config.teacher or pool.width != tower.width
    if is_other or (made.sha256 and tower.about["sha256"] and made.sha256 != tower.about["sha256"]):
        raise WeightsError(
            f"the images of {pool.folder} were embedded by {made.reference} ({made.file or made.weights}, width"
            f" {pool.width}), the sentences would be by {config.teacher} ({tower.about['file'] or 'random'}, width"
            f" {tower.width}): they cannot be compared. Give --teacher and --teacher-weights of the images."
        )


def _embed_sentences(config: SentencesConfig, corpus: Corpus, tower: _Tower, out: Path, log: Log) -> None:
    """Make the vectors that are missing.

    Raises:
        RunDirectoryError: If those that are there are of another model or corpus.
    """
    folder = out / "vectors"
    plan = {"model": dict(tower.about), "corpus": corpus.fingerprint, "text_batch_size": config.text_batch_size}
    if (folder / "plan.json").is_file():
        _check_plan(out, read_json(folder / "plan.json"), plan)
    else:
        write_json(folder / "plan.json", plan)
    for leftover in folder.glob(".vectors-*"):
        leftover.unlink()
    missing = missing_vectors(corpus, folder)
    log.say(
        f"  shards   {len(corpus.rows):,} of {config.shard_size:,} sentences, {len(corpus.rows) - len(missing):,} done"
        " before"
    )
    batches = written_vectors(tower.encode, corpus, missing, folder, batch_size=config.text_batch_size)
    total = sum(corpus.rows[number] for number in missing)
    for _ in track(batches, "embedding sentences", total=total, unit="sentences", size=int):
        pass


def _queries(index: PoolIndex) -> tuple[NDArray[np.int64], Tensor]:
    """(places, (n, D) vectors) of the readable images, in the order of their ids."""
    places = np.arange(len(index))
    vectors = index.vectors(places)
    is_readable = vectors.any(dim=1)
    if not is_readable.any():
        raise DataError(f"no image of {index.pool.folder} could be read, so none can ask.")
    return places[is_readable.numpy()], vectors[is_readable]


def _choose(
    config: SentencesConfig, corpus: Corpus, queries: Tensor, folder: Path, device: torch.device
) -> tuple[Grounded, int]:
    """What is chosen, and how many candidates each image had in the end."""
    most = min(len(corpus), max(1, _ENTRIES // len(queries)))
    depth = min(config.candidates if config.strategy == "assignment_greedy" else config.per_image, most)
    while True:
        blocks = track(vector_blocks(corpus, folder), "comparing", total=len(corpus.rows), unit="shards")
        found = search(blocks, queries, k=depth, device=device)
        stop_if_requested("choosing sentences")
        if config.strategy == "assignment_greedy":
            return assignment_greedy(found, per_image=config.per_image, count=config.budget), depth
        chosen = topk_union(found, count=config.budget)
        if config.budget is None or len(chosen) == config.budget or depth == most:
            return chosen, depth
        depth = min(2 * depth, most)


def _say_end(log: Log, manifest: Mapping[str, Any], out: Path) -> None:
    kept, images, mean = manifest["corpus"]["kept"], manifest["images"]["count"], manifest["similarity"]["mean"]
    log.say(
        f"  chosen   {manifest['sentences']:,} of {kept:,} sentences by {images:,} images"
        + (f", mean similarity {mean:.3f}" if mean is not None else "")
        + f" ({manifest['algorithm']})"
    )
    if manifest["shortfall"]:
        log.say(f"           {manifest['shortfall']:,} fewer than wanted: more candidates or images may find them")
    log.say(f"  written  {out}: {SENTENCES}, manifest.json, report.html")
