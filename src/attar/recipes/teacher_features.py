"""What a teacher says of images and sentences: made once, kept in a folder that runs may share, checked at each start.

images/    pool of `attar embed`                 image-vectors/    its vectors, sealed
corpus/    sentences, each once                  text-vectors/     theirs, sealed
captions/  of the images, in their order         caption-vectors/  theirs, sealed
views/     answers to views, as they are asked   ...-tokens/       for a text tower that learns
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attar.config import DistillVlConfig, EmbedConfig
from attar.curation.corpus import Corpus, Rules, write_texts
from attar.curation.feature_store import (
    FRESH,
    MappedRows,
    begin,
    check_fresh,
    check_made_by,
    check_sealed,
    check_tokens,
    replace_rows,
    seal,
    sealed_rows,
    write_pool_vectors,
    write_rows,
    zero_rows,
)
from attar.data.base import Source
from attar.data.captions import caption_file, read_captions
from attar.data.files import File
from attar.data.loader import EvaluationDataset, Item, ViewDataset, evaluation_batches, is_readable
from attar.data.sentence_stream import Sentences
from attar.data.sentences import sentence_files
from attar.data.views import VIEW_IMPLEMENTATION, EvaluationView
from attar.errors import DataError, RunDirectoryError
from attar.evaluation.outputs import fingerprint
from attar.methods.teacher import ask_embedding
from attar.methods.teacher_cache import TeacherCache
from attar.models import Backbone, TextTower
from attar.recipes.embed import embed
from attar.recipes.sentences import SENTENCES
from attar.recipes.text_features import (
    clean_corpus,
    embed_corpus,
    kept_corpus,
    say_corpus,
    text_encoder,
)
from attar.utils.distributed import PATIENCE_S, from_main, rank, uses_bf16, wait_for_all, world_size
from attar.utils.io import sha256_text
from attar.utils.locks import alone_at
from attar.utils.progress import Log, track
from attar.utils.seeding import numpy_generator

_SHARD = 16384  # sentences in a file
_ANOTHER = "Give another --features folder, or another --out, or the files of before."
# where tokenisers differ: case, accents, other scripts, numbers, signs, rare words, nothing at all
_PROBE = ["A café's 3.5 naïve dogs: 犬と猫, ½ & unbelievably re-tokenised!", "photo of", ""]
_WIDEST = (1, 100_000)  # bounds of words and characters: what was given is trained on


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


def image_features(
    config: DistillVlConfig, teacher: Backbone, source: Source, folder: Path, log: Log, *, device: torch.device
) -> MappedRows:
    """One vector an image, of the whole image, in the order of the source (`fixed`); zeros where it cannot be read.

    Images that could not be read when the teacher was asked are tried again, and asked about if they can be now.

    Raises:
        WeightsError: If those in the folder are of another teacher, view or images.
        DataError: If one of its files was changed.
    """
    vectors, images, view = folder / "image-vectors", folder / "images", EvaluationView(teacher.img_size)
    bf16 = uses_bf16(config.precision, device)
    made_by = {
        "teacher": _about(teacher),
        "view": {"img_size": view.img_size, "crop_pct": view.crop_pct, "implementation": VIEW_IMPLEMENTATION},
        "precision": "bf16" if bf16 else "fp32",
        "images": source.fingerprint,
    }

    def make() -> None:
        with _embed_in_our_words(images):
            pool = embed(_embedding(config, images))
        from_main(lambda: write_pool_vectors(pool, vectors), patience_s=PATIENCE_S)

    _stored(vectors, made_by, "images", len(source), make, copied_from=images)

    def mend() -> None:
        places = np.array([row for row in zero_rows(sealed_rows(vectors)) if is_readable(source, int(row))], np.int64)
        if len(places):
            log.say(f"  images   {len(places):,} could not be read before, and are asked about now")
            fresh, read = _seen(teacher, source, places, view, bf16=bf16, device=device)
            replace_rows(vectors, places[read], F.normalize(fresh.float(), dim=1).half().numpy())

    from_main(mend, patience_s=PATIENCE_S)
    rows = sealed_rows(vectors)

    def ask() -> None:
        chosen = _some(len(rows), lambda row: bool(rows[np.array([row])].any()))
        fresh, places = _seen(teacher, source, chosen, view, bf16=bf16, device=device)
        stored = torch.from_numpy(rows[chosen[places]])
        names = [source.name(int(row)) for row in chosen[places]]
        check_fresh(stored, fresh, names.__getitem__, "images", vectors, copied_from=images)

    from_main(ask, patience_s=PATIENCE_S)
    return rows


def view_features(
    config: DistillVlConfig, teacher: Backbone, stream: ViewDataset, folder: Path, log: Log, *, device: torch.device
) -> TeacherCache:
    """What the teacher has said of views, and will (`matched` with `cached_views`).

    Raises:
        WeightsError: If answers in the folder are of another teacher, or of other views.
    """
    assert stream.order.cycle is not None
    bf16, views = uses_bf16(config.precision, device), folder / "views"
    made_by = {
        "teacher": _about(teacher),
        "view": {
            "img_size": stream.img_size,
            "implementation": VIEW_IMPLEMENTATION,
            "settings": stream.config.model_dump(mode="json"),
            "seed": stream.order.seed,
        },
        "precision": "bf16" if bf16 else "fp32",
        "images": stream.source.fingerprint,
    }
    cache = TeacherCache(views, len(stream.source), stream.order.cycle, made_by)

    def ask() -> None:
        if (before := cache.kept_identity()) is not None:
            check_made_by(views, before, cache.identity, "views")
        if len(kept := _kept(cache, stream)):
            items, answers = zip(*kept, strict=True)
            with torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
                fresh = [ask_embedding(teacher.eval(), item.view[None].to(device)).cpu() for item in items]
            check_fresh(
                torch.cat(answers),
                torch.cat(fresh),
                lambda n: f"view {items[n].view_id} of {items[n].name}",
                "views",
                views,
            )

        log.say(
            f"  views    {cache.num_kept():,} answers of {cache.num_samples * cache.num_views:,} are kept from before"
        )

    from_main(ask, patience_s=PATIENCE_S)
    return cache


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

    def embed_texts() -> None:
        embed_corpus(texts, encoder, vectors, batch_size=256, log=log)

    rows = _stored(vectors, made_by, "sentences", len(texts), embed_texts)

    def ask() -> None:
        chosen = _some(len(rows))
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

    def tokenise() -> None:
        _write_tokens(texts, tower.tokenise, tokens)

    numbers = _stored(tokens, read_by, "tokens", len(texts), tokenise)

    def ask_tokeniser() -> None:
        chosen = _some(len(numbers))
        asked = texts.rows_at(chosen).column("text").to_pylist()
        check_tokens(numbers[chosen], tower.tokenise(asked).numpy(), asked, tokens)

    from_main(ask_tokeniser, patience_s=PATIENCE_S)
    return Sentences(rows, numbers)


def _stored(
    folder: Path,
    made_by: Mapping[str, Any],
    what: str,
    count: int,
    make: Callable[[], None],
    *,
    copied_from: Path | None = None,
) -> MappedRows:
    """The rows of a store: checked where it is whole, else made by all ranks together."""
    if from_main(lambda: begin(folder, made_by, what, copied_from=copied_from)):
        make()
        from_main(lambda: seal(folder, count), patience_s=PATIENCE_S)
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


def _about(teacher: Backbone) -> dict[str, Any]:
    """What a teacher's vectors depend on, besides what it sees."""
    return {
        "reference": teacher.source.name,
        "fingerprint": fingerprint(teacher),
        "mean": list(teacher.preprocess.mean),
        "std": list(teacher.preprocess.std),
    }


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


def _texts_of(places: Sequence[str]) -> list[str]:
    """Places of text; of a folder that `attar curate --sentences` has written, the chosen sentences alone."""
    chosen = [Path(place).expanduser() / SENTENCES for place in places]
    return [str(file) if file.is_file() else place for file, place in zip(chosen, places, strict=True)]


def _shortened(text: str) -> str:
    return textwrap.shorten(text, 60, placeholder=" ...")


def _some(count: int, is_of_use: Callable[[int], bool] = lambda row: True) -> NDArray[np.int64]:
    """Rows to ask about anew."""
    return np.array([row for row in _drawn(count) if is_of_use(row)][:FRESH], dtype=np.int64)


def _drawn(count: int) -> list[int]:
    """Several times as many of so many rows as are asked about, since some may be of no use."""
    drawn: list[int] = numpy_generator(0, "fresh", count).permutation(count)[: 4 * FRESH].tolist()
    return drawn


def _kept(cache: TeacherCache, stream: ViewDataset) -> list[tuple[Item, Tensor]]:
    """Views of the stream that were answered, with the answers: the stream fills a cache from its front."""
    found: list[tuple[Item, Tensor]] = []
    for place in _drawn(cache.num_kept()):
        item = stream[place]
        if isinstance(item, Item) and (answer := cache.kept(item.sample, item.view_id)) is not None:
            found.append((item, answer[0]))
            if len(found) == FRESH:
                break
    return found


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
    if not places:
        raise DataError(
            f"none of the {len(rows):,} images that the teacher is asked about anew can be read, such as"
            f" {source.name(int(rows[0])) if len(rows) else 'none'}. Bring the files of --images back."
        )
    return torch.cat(vectors), np.concatenate(places)
