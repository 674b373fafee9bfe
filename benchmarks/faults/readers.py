"""attar's readers of files, each with a sound file of its own: what fuzzing and hostile files are tried on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reader:
    """A way into attar.

    Attributes:
        make: Writes a sound file, or several, into an empty folder.
        read: Reads all there is in that folder, to the last byte.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], None]


def png(size: int = 16, seed: int = 0, kind: str = "PNG") -> bytes:
    """A small picture of noise."""
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def all_of(place: str) -> None:
    """Open a place and decode each of its images, as a run does: one that cannot be read is passed over."""
    from attar.data.decode import open_image
    from attar.data.sources import open_source
    from attar.errors import DecodeError

    source = open_source(place, reindex=True)
    source.labels()
    for row in range(len(source)):
        try:
            open_image(source.read(row), name=source.name(row)).resized(None, (8, 8))
        except DecodeError:
            continue


def _images(kind: str) -> Reader:
    ending = kind.lower().replace("jpeg", "jpg")
    return Reader(
        lambda folder: [(folder / f"{n}.{ending}").write_bytes(png(seed=n, kind=kind)) for n in range(2)] and None,
        lambda folder: all_of(str(folder)),
    )


def _make_tar(folder: Path) -> None:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for number in range(3):
            for name, data in ((f"{number}.png", png(seed=number)), (f"{number}.cls", b"%d" % number)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _make_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [png(seed=n) for n in range(3)], "label": [0, 1, 0]}), folder / "x.parquet")


def _write_text(name: str, text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_text(text)

    return make


def _sentences(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from attar.data.files import File
        from attar.data.sentences import read_sentences

        for _ in read_sentences(File(str(folder / name))):
            pass

    return read


def _captions(folder: Path) -> None:
    from attar.data.captions import read_captions
    from attar.data.sources import open_source

    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "0.png").write_bytes(png())
    for _ in read_captions(folder / "captions.jsonl", open_source(str(folder / "images"))):
        pass


def _settings(folder: Path) -> None:
    from attar.config import DistillConfig
    from attar.config.files import read_settings

    DistillConfig.build(read_settings(folder / "run.yaml"))


def _make_weights(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        state = {"fc.weight": torch.ones(2, 32), "fc.bias": torch.zeros(2)}
        if name.endswith(".safetensors"):
            save_file(state, folder / name)
        else:
            torch.save(state, folder / name)

    return make


def _weights(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from attar.models.files import read_state_dict

        read_state_dict(folder / name)

    return read


def _make_pack(folder: Path) -> None:
    _make_tar(folder)
    about = {"plan": {}, "class_names": ["a", "b", "c"], "images": 3, "bytes": 1, "unreadable": 0}
    (folder / "pack.json").write_text(json.dumps(about))


def _make_results(folder: Path) -> None:
    from attar.reports.results import Result, write_result

    known = Result.__dataclass_fields__
    values: dict[str, Any] = {"value": 0.5, "n": 10, "ci95": (0.4, 0.6), "seed": 0}
    settings = {name: values.get(name, {} if "Mapping" in str(field.type) else "x") for name, field in known.items()}
    write_result(folder / "results", "one", Result(**settings))


def _results(folder: Path) -> None:
    from attar.reports.results import markdown_table, read_results

    markdown_table(read_results(folder / "results"))


def _make_checkpoint(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from attar.utils.io import sha256_file

    step = folder / "checkpoints" / "step-00000004"
    step.mkdir(parents=True)
    save_file({"learner/weight": torch.ones(3)}, step / "tensors.safetensors")
    (step / "state.json").write_text(json.dumps({"step": 4, "notes": {}, "run_id": "x"}))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(step.iterdir())}
    (step / "manifest.json").write_text(json.dumps({"files": files}))


def _checkpoint(folder: Path) -> None:
    from attar.train.checkpoint import saved_learner, saved_notes

    saved_notes(folder / "checkpoints")
    saved_learner(folder / "checkpoints", "")


def _list(folder: Path) -> None:
    from attar.data.lists import open_list

    (folder / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        (folder / "images" / name).write_bytes(png())
    open_list(folder / "list.csv", folder / "images")


READERS: dict[str, Reader] = {
    **{kind: _images(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")},
    "tar": Reader(_make_tar, lambda folder: all_of(str(folder / "x.tar"))),
    "parquet": Reader(_make_parquet, lambda folder: all_of(str(folder / "x.parquet"))),
    "packed": Reader(_make_pack, lambda folder: all_of(str(folder / "x.tar"))),
    "yaml": Reader(
        _write_text("run.yaml", "teacher: a\nstudent: b\ndata: [x, y]\nout: o\noptim:\n  lr: 1.0e-3\n"), _settings
    ),
    "sentences": Reader(_write_text("x.txt", "a red square\nein Haus\n" * 20), _sentences("x.txt")),
    "jsonl": Reader(_write_text("x.jsonl", '{"text": "a red square"}\n' * 20), _sentences("x.jsonl")),
    "captions": Reader(_write_text("captions.jsonl", '{"image": "0.png", "text": "a"}\n' * 5), _captions),
    "list": Reader(_write_text("list.csv", "a.png,cat\nb.png,dog\n"), _list),
    "safetensors": Reader(_make_weights("x.safetensors"), _weights("x.safetensors")),
    "torch": Reader(_make_weights("x.pth"), _weights("x.pth")),
    "results": Reader(_make_results, _results),
    "checkpoint": Reader(_make_checkpoint, _checkpoint),
}
