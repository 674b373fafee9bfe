"""What a teacher says of images and sentences: made once, kept in a folder that runs may share, checked at each start.

images/    pool of `attar embed`                 image-vectors/    its vectors, sealed
corpus/    sentences, each once                  text-vectors/     theirs, sealed
captions/  of the images, in their order         caption-vectors/  theirs, sealed
views/     answers to views, as they are asked   ...-tokens/       for a text tower that learns
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attar.config import DistillVlConfig, EmbedConfig
from attar.curation.corpus import Corpus
from attar.curation.feature_store import (
    MappedRows,
    begin,
    check_fresh,
    check_made_by,
    check_sealed,
    check_tokens,
    replace_rows,
    seal,
    sealed_rows,
    unreadable_rows,
    write_pool_vectors,
    write_rows,
)
from attar.data.base import Source
from attar.data.loader import ViewDataset, default_workers
from attar.data.sentence_stream import Sentences
from attar.data.views import EVALUATION_VIEWS, TRAINING_VIEWS
from attar.errors import DataError, RunDirectoryError
from attar.methods.teacher_cache import TeacherCache
from attar.models import Backbone, TextTower
from attar.recipes.asked_anew import ImageTeacher, kept_views, some
from attar.recipes.embed import embed
from attar.recipes.text_features import (
    embed_corpus,
    text_encoder,
)
from attar.utils.distributed import PATIENCE_S, from_main, rank, uses_bf16, wait_for_all, world_size
from attar.utils.io import sha256_text
from attar.utils.locks import alone_at
from attar.utils.progress import Log, track

# where tokenisers differ: case, accents, other scripts, numbers, signs, rare words, nothing at all
_PROBE = ["A café's 3.5 naïve dogs: 犬と猫, ½ & unbelievably re-tokenised!", "photo of", ""]


@contextlib.contextmanager
def held_features(folder: Path, log: Log) -> Iterator[None]:
    """Within the block no other run makes or mends what is in the folder; this one waits for it.

    Raises:
        Interrupted: If a signal comes while this run waits.
        RunDirectoryError: If the folder cannot be written.
    """

    def say() -> None:
        log.say(f"  features {folder} are being made or looked at by another run: waiting for it")

    with contextlib.ExitStack() as held:
        # another name than a run's own lock, which this process may hold in the same folder and would lose
        lock = alone_at(folder / ".features-lock", when_taken=say)
        from_main(lambda: held.enter_context(lock), patience_s=PATIENCE_S)
        yield


def image_teacher(config: DistillVlConfig, teacher: Backbone, *, device: torch.device) -> ImageTeacher:
    """The teacher of images, as the settings of a run ask it."""
    workers = default_workers() if config.workers is None else config.workers
    return ImageTeacher(teacher, uses_bf16(config.precision, device), workers)


def image_features(
    config: DistillVlConfig, teacher: ImageTeacher, source: Source, folder: Path, log: Log
) -> tuple[MappedRows, NDArray[np.int64]]:
    """(a vector of each whole image in the order of the source (`fixed`), the rows of images that cannot be read).

    Images that could not be read when the teacher was asked are tried again, and asked about if they can be now.

    Raises:
        WeightsError: If those in the folder are of another teacher, view or images.
        DataError: If one of its files was changed.
    """
    vectors, images, view = folder / "image-vectors", folder / "images", teacher.view
    made_by = teacher.identity | {
        "view": {"img_size": view.img_size, "crop_pct": view.crop_pct, "implementation": EVALUATION_VIEWS},
        "images": source.fingerprint,
    }

    def make() -> list[int]:
        with _embed_in_our_words(images):
            pool = embed(image_embedding(config, images))
            from_main(lambda: write_pool_vectors(pool, vectors), patience_s=PATIENCE_S)
            return [bad.sample for bad in pool.unreadable()]

    _stored(vectors, made_by, "images", len(source), make, copied_from=images)
    from_main(lambda: _mend(teacher, source, vectors, log), patience_s=PATIENCE_S)
    from_main(lambda: _check_images(teacher, source, vectors, images), patience_s=PATIENCE_S)
    return sealed_rows(vectors), from_main(lambda: unreadable_rows(vectors))


def _mend(teacher: ImageTeacher, source: Source, vectors: Path, log: Log) -> None:
    """Ask about what could not be read, file by file; what cannot be read now stays as it is."""
    rows, mended = sealed_rows(vectors).by_file(unreadable_rows(vectors)), 0
    for places in track(rows, "looking at unreadable images", total=len(rows), unit="files"):
        fresh, read = teacher.of_images(source, places)
        if len(read):
            replace_rows(vectors, places[read], F.normalize(fresh.float(), dim=1).half().numpy())
            mended += len(read)
    if mended:
        log.say(f"  images   {mended:,} could not be read before, and were asked about now")


def _check_images(teacher: ImageTeacher, source: Source, vectors: Path, images: Path) -> None:
    rows = sealed_rows(vectors)
    chosen = some(len(rows), lambda row: bool(rows[np.array([row])].any()))
    fresh, read = teacher.of_images(source, chosen)
    if not len(read):
        raise DataError(
            f"none of the {len(chosen):,} images that the teacher is asked about anew can be read, such as"
            f" {source.name(int(chosen[0])) if len(chosen) else 'none'}. Bring the files of --images back."
        )
    names = [source.name(int(row)) for row in chosen[read]]
    check_fresh(torch.from_numpy(rows[chosen[read]]), fresh, names.__getitem__, "images", vectors, copied_from=images)


def view_features(teacher: ImageTeacher, stream: ViewDataset, folder: Path, log: Log) -> TeacherCache:
    """What the teacher has said of views, and will (`matched` with `cached_views`).

    Raises:
        WeightsError: If answers in the folder are of another teacher, or of other views.
    """
    assert stream.order.cycle is not None
    view = {
        "img_size": stream.img_size,
        "implementation": TRAINING_VIEWS,
        "settings": stream.config.model_dump(mode="json"),
        "seed": stream.order.seed,
    }
    made_by = teacher.identity | {"view": view, "images": stream.source.fingerprint}
    cache = TeacherCache(folder / "views", len(stream.source), stream.order.cycle, made_by)
    from_main(lambda: _check_views(teacher, cache, stream), patience_s=PATIENCE_S)
    log.say(f"  views    {cache.num_kept():,} answers of {cache.num_samples * cache.num_views:,} are kept from before")
    return cache


def _check_views(teacher: ImageTeacher, cache: TeacherCache, stream: ViewDataset) -> None:
    if (before := cache.kept_identity()) is not None:
        check_made_by(cache.folder, before, cache.identity, "views")
    if kept := kept_views(cache, stream):
        items, answers = [item for item, _ in kept], torch.cat([answers[0] for _, answers in kept])
        names = [f"view {item.view_id} of {item.name}" for item in items]
        check_fresh(answers, teacher.of_views(items), names.__getitem__, "views", cache.folder)


def text_features(
    config: DistillVlConfig, texts: Corpus, tower: TextTower, folder: Path, kind: str, log: Log, *, device: torch.device
) -> Sentences:
    """Vectors of texts, and tokens where a text tower learns: made where they are missing, and checked.

    Args:
        config: Of the run.
        texts: Sentences or captions.
        tower: The teacher's.
        folder: Of all features.
        kind: `text` or `caption`, of which the folders' names are made.
        log: For people.
        device: Where the tower lies.

    Raises:
        WeightsError: If the vectors in the folder are of another teacher.
        DataError: If a file was changed.
    """
    encoder = text_encoder(tower, precision=config.precision, device=device)
    vectors, made_by = folder / f"{kind}-vectors", {"teacher": dict(encoder.identity), "texts": texts.fingerprint}

    def embed_texts() -> Sequence[int]:
        embed_corpus(texts, encoder, vectors, batch_size=256, log=log)
        return ()

    rows = _stored(vectors, made_by, "sentences", len(texts), embed_texts)

    def ask() -> None:
        chosen = some(len(rows))
        asked = texts.rows_at(chosen).column("text").to_pylist()
        fresh = encoder.encode(asked)
        check_fresh(torch.from_numpy(rows[chosen]), fresh, lambda n: repr(asked[n]), "sentences", vectors)

    from_main(ask, patience_s=PATIENCE_S)
    if config.dime_fm.text_mode == "frozen_teacher":
        return Sentences(rows)
    tokens = folder / f"{kind}-tokens"
    read_by = {
        "tokeniser of": tower.source.name,
        "context": tower.context_length,
        "tokens of a probe": sha256_text(str(tower.tokenise(_PROBE).tolist())),
        "texts": texts.fingerprint,
    }

    def tokenise() -> Sequence[int]:
        _write_tokens(texts, tower.tokenise, tokens)
        return ()

    numbers = _stored(tokens, read_by, "tokens", len(texts), tokenise)

    def ask_tokeniser() -> None:
        chosen = some(len(numbers))
        asked = texts.rows_at(chosen).column("text").to_pylist()
        check_tokens(numbers[chosen], tower.tokenise(asked).numpy(), asked, tokens)

    from_main(ask_tokeniser, patience_s=PATIENCE_S)
    return Sentences(rows, numbers)


def _stored(
    folder: Path,
    made_by: Mapping[str, Any],
    what: str,
    count: int,
    make: Callable[[], Sequence[int]],
    *,
    copied_from: Path | None = None,
) -> MappedRows:
    """The rows of a store: checked where it is whole, else made by all ranks together.

    Args:
        folder: Of the store.
        made_by: What it should be made by.
        what: Its rows are called, in the plural.
        count: Rows it should have.
        make: Makes what is missing, and says which rows nobody could be asked about.
        copied_from: Folder that it is copied from, if any.
    """
    if from_main(lambda: begin(folder, made_by, what, copied_from=copied_from)):
        unreadable = make()
        from_main(lambda: seal(folder, count, unreadable), patience_s=PATIENCE_S)
    else:
        from_main(lambda: check_sealed(folder, made_by, what, copied_from=copied_from), patience_s=PATIENCE_S)
    return sealed_rows(folder)


def _write_tokens(texts: Corpus, tokenise: Callable[[list[str]], Tensor], folder: Path) -> None:
    """(n, L) int32 of each shard that is missing; ranks share the work."""
    missing = from_main(lambda: [n for n in range(len(texts.rows)) if not (folder / f"tokens-{n:05}.npy").is_file()])
    own = missing[rank() :: world_size()]
    for number in track(own, "tokenising", total=len(own), unit="shards"):
        write_rows(folder / f"tokens-{number:05}.npy", tokenise(texts.texts(number)).numpy().astype(np.int32))
    wait_for_all()


def image_embedding(config: DistillVlConfig, out: Path) -> EmbedConfig:
    """How the teacher embeds the images."""
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


@contextlib.contextmanager
def _embed_in_our_words(pool: Path) -> Iterator[None]:
    """Say what `attar embed` means by its flags, which `attar distill-vl` has not, or has for something else."""
    try:
        yield
    except (DataError, RunDirectoryError) as error:
        raise type(error)(
            f"{error} These are words of attar embed: here its --data is --images, its --out {pool}. For a new one"
            " remove that folder, or give another --features folder."
        ) from None
