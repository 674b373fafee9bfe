"""`attar curate --sentences`: of a corpus of text, the sentences that could be seen in some images."""

from __future__ import annotations

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
from attar.curation.corpus import Corpus, Phrases, Rules
from attar.curation.grounding import Grounded, assignment_greedy, facility_location, topk_union
from attar.curation.index import PoolIndex
from attar.curation.pool import Pool, shard_name
from attar.curation.search import search
from attar.curation.sentence_vectors import vector_blocks
from attar.data.files import File
from attar.data.sentences import sentence_files
from attar.errors import ConfigError, DataError, RunDirectoryError, WeightsError
from attar.evaluation.datasets import DATASETS, find_dataset, listed_names, prompt_templates
from attar.models import load_text_tower
from attar.recipes.embed import embed
from attar.recipes.sentence_results import chosen_manifest, chosen_table, examples
from attar.recipes.text_features import (
    TextEncoder,
    clean_corpus,
    embed_corpus,
    hold_plan,
    say_corpus,
    text_encoder,
)
from attar.reports.sentences import write_sentences_page
from attar.utils.distributed import launched_ranks, pick_device
from attar.utils.io import new_file, remove_half_written, sha256_text, write_json
from attar.utils.progress import Log, track
from attar.utils.run_directory import held_directory
from attar.utils.signals import polite_stop, stop_if_requested

SENTENCES = "sentences.parquet"
_ANOTHER = "Choose another --out, or give the settings and files of before."
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
        _check_folder(out)
        tower, pool = _encoder(config, device), _given_pool(config)
        if pool is not None:
            _check_pair(config, pool, tower)
        corpus = clean_corpus(
            files, out / "corpus", rules, plan, column=config.column, shard_size=config.shard_size, remedy=_ANOTHER
        )
        widen = "Widen the bounds (--min-words, --max-chars), or exclude less."
        say_corpus(log, corpus, len(files), remedy=widen)
        if pool is None:
            pool = _embed_images(config, out)
        made_by = {
            "model": dict(tower.about),
            "corpus": corpus.fingerprint,
            "text_batch_size": config.text_batch_size,
        }
        hold_plan(out / "vectors", made_by, remedy=_ANOTHER)
        embed_corpus(corpus, tower, out / "vectors", batch_size=config.text_batch_size, log=log)
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


def _check_folder(out: Path) -> None:
    """See that nothing stands in the folder but an earlier choice, and clear what was left half.

    Raises:
        RunDirectoryError: If something else stands there.
    """
    remove_half_written(out, "corpus")
    if not (out / "corpus").is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise RunDirectoryError(f"--out {out} is not empty and holds no sentences of attar. Choose a new folder.")


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


def _encoder(config: SentencesConfig, device: torch.device) -> TextEncoder:
    """The teacher's side of text."""
    tower = load_text_tower(
        config.teacher, weights=config.teacher_weights, trust_torchscript=config.trust_torchscript, seed=config.seed
    ).to(device)
    return text_encoder(tower, precision=config.precision, device=device)


def _check_pair(config: SentencesConfig, pool: Pool, tower: TextEncoder) -> None:
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
    depth = min(config.per_image if config.strategy == "topk_union" else config.candidates, most)
    while True:
        blocks = track(vector_blocks(corpus, folder), "comparing", total=len(corpus.rows), unit="shards")
        found = search(blocks, queries, k=depth, device=device)
        stop_if_requested("choosing sentences")
        if config.strategy == "assignment_greedy":
            return assignment_greedy(found, per_image=config.per_image, count=config.budget), depth
        if config.strategy == "facility_location":
            assert config.budget is not None, "the settings were checked"
            return facility_location(found, count=config.budget), depth
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
