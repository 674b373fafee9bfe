"""Files that mean harm: pickles with code, archives that point outside, images and texts that blow up. Nothing is kept
of anybody's: each is made here, by what it is known to do."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.readers import png

ABSOLUTE = Path(tempfile.gettempdir()) / "attar-outside" / "outside.png"
"""A place that no reader has to do with."""

Write = Callable[[Path, Path], None]
"""(folder to write into, file that code in a specimen would create) -> nothing."""


@dataclass(frozen=True)
class Specimen:
    """One hostile file.

    Attributes:
        name: What it does.
        reader: Of `readers.READERS`, who meets it.
        write: Puts it into a folder.
    """

    name: str
    reader: str
    write: Write


def all_specimens() -> list[Specimen]:
    """All of them, in one order."""
    return [*_pickles(), *_archives(), *_images(), *_settings(), *_tensors(), *_texts()]


# --- code -----------------------------------------------------------------------------------------------------------


class _Code:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.canary), "w"))


def _pickles() -> Iterator[Specimen]:
    def plain(name: str) -> Write:
        return lambda folder, canary: _put(folder / name, pickle.dumps({"fc.weight": _Code(canary)}))

    def by_torch(name: str, **options: Any) -> Write:
        def write(folder: Path, canary: Path) -> None:
            import torch

            torch.save({"fc.weight": _Code(canary)}, folder / name, **options)

        return write

    def by_numpy(folder: Path, canary: Path) -> None:
        import numpy as np

        np.savez(folder / "x.npz", weight=np.array([_Code(canary)], dtype=object))
        (folder / "x.npz").rename(folder / "x.pth")

    def in_checkpoint(name: str) -> Write:
        def write(folder: Path, canary: Path) -> None:
            step = folder / "checkpoints" / "step-00000004"
            step.mkdir(parents=True)
            for each in ("tensors.safetensors", "state.json", "manifest.json"):
                _put(step / each, pickle.dumps(_Code(canary)) if each == name else b"{}")

        return write

    yield Specimen("pickle as weights", "torch", plain("x.pth"))
    yield Specimen("pickle in torch's zip", "torch", by_torch("x.pth"))
    yield Specimen("pickle in torch's old format", "torch", by_torch("x.pth", _use_new_zipfile_serialization=False))
    yield Specimen("pickle in an npz", "torch", by_numpy)
    yield Specimen("pickle called safetensors", "safetensors", plain("x.safetensors"))
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        yield Specimen(f"pickle as {name} of a checkpoint", "checkpoint", in_checkpoint(name))
    for kind, name in (
        ("PNG", "0.png"),
        ("JPEG", "0.jpg"),
        ("TIFF", "0.tif"),
        ("tar", "x.tar"),
        ("parquet", "x.parquet"),
    ):
        yield Specimen(f"pickle called {name}", kind, plain(name))
    yield Specimen("pickle as settings", "yaml", plain("run.yaml"))
    yield Specimen("pickle as sentences", "jsonl", plain("x.jsonl"))
    yield Specimen("pickle as a list", "list", plain("list.csv"))
    yield Specimen("pickle as captions", "captions", plain("captions.jsonl"))
    yield Specimen("pickle as pack.json", "packed", _beside_a_tar(plain("pack.json")))
    yield Specimen("pickle as a result", "results", plain("results/one.json"))


def _beside_a_tar(write: Write) -> Write:
    def both(folder: Path, canary: Path) -> None:
        _tar(folder, [("0.png", png())])
        write(folder, canary)

    return both


# --- archives -------------------------------------------------------------------------------------------------------


def _tar(folder: Path, members: list[tuple[str, bytes]], **about: Any) -> None:
    with tarfile.open(folder / "x.tar", "w", format=about.pop("format", tarfile.GNU_FORMAT)) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in about.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))


def _archives() -> Iterator[Specimen]:
    def named(name: str) -> Write:
        return lambda folder, canary: _tar(folder, [(name, png()), ("sound.png", png())])

    outside = ("../../outside.png", str(ABSOLUTE), "a/../../../outside.png", "..\\..\\outside.png")
    for name in (
        *outside,
        "\x1b[2J.png",
        "line\nbreak.png",
        "<script>alert(1)</script>.png",
        "a" * 5000 + ".png",
        "\u202e.png",
    ):
        yield Specimen(f"member called {name[:30]!r}", "tar", named(name))
    for what, kind in (
        ("symlink", tarfile.SYMTYPE),
        ("hardlink", tarfile.LNKTYPE),
        ("device", tarfile.CHRTYPE),
        ("fifo", tarfile.FIFOTYPE),
    ):
        yield Specimen(
            f"{what} to /etc/passwd",
            "tar",
            lambda f, c, kind=kind: _tar(f, [("x.png", b"")], type=kind, linkname="/etc/passwd"),
        )
    for what, size in (("2 GB", 2**31), ("8 exabytes", 2**63 - 1)):
        yield Specimen(f"member that claims {what}", "tar", lambda f, c, size=size: _lying(f, size))
    yield Specimen("name of 1 GB announced", "tar", lambda f, c: _lying(f, 2**30, kind=b"L"))
    yield Specimen("PAX header of 1 GB announced", "tar", lambda f, c: _lying(f, 2**30, kind=b"x"))
    for key, value in (
        ("size", "99999999999999"),
        ("size", "-1"),
        ("path", "../../outside.png"),
        ("GNU.sparse.realsize", "9" * 15),
        ("mtime", "nan"),
    ):
        yield Specimen(
            f"PAX {key}={value}",
            "tar",
            lambda f, c, key=key, value=value: _tar(
                f, [("x.png", png())], format=tarfile.PAX_FORMAT, pax_headers={key: value}
            ),
        )
    yield Specimen(
        "checksums that are right, numbers that are not", "tar", lambda f, c: _patched(f, 124, b"8" * 11 + b"\0")
    )
    yield Specimen("a tar in a tar in a tar", "tar", lambda f, c: _nested(f, 40))
    yield Specimen(
        "50,000 empty members", "tar", lambda f, c: _put(f / "x.tar", _header(b"a.txt", 0) * 50_000 + bytes(1024))
    )
    yield Specimen("compressed to a thousandth", "tar", lambda f, c: _put(f / "x.tar", gzip.compress(bytes(10**8))))


def _header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    head = bytearray(512)
    head[0 : len(name)] = name
    head[100:108], head[108:116], head[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    head[124:136] = b"\x80" + size.to_bytes(11, "big") if size >= 8**11 else b"%011o\0" % size
    head[136:148], head[148:156], head[156:157] = b"00000000000\0", b" " * 8, kind
    head[257:265] = b"ustar  \0"
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def _lying(folder: Path, size: int, kind: bytes = b"0") -> None:
    _put(folder / "x.tar", _header(b"x.png", size, kind) + png())


def _patched(folder: Path, place: int, data: bytes) -> None:
    _tar(folder, [("x.png", png())])
    content = bytearray((folder / "x.tar").read_bytes())
    content[place : place + len(data)] = data
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (folder / "x.tar").write_bytes(content)


def _nested(folder: Path, depth: int) -> None:
    data = png()
    for _ in range(depth):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            member = tarfile.TarInfo("x.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        data = file.getvalue()
    _put(folder / "x.tar", data)


# --- images ---------------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, rows: int | None = None, colour: int = 2) -> bytes:
    """A PNG of zeros, with chunks before its pixels."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    line = 1 + width * (3 if colour == 2 else 1)
    packer, packed = zlib.compressobj(9), b""
    for _ in range(height if rows is None else rows):
        packed += packer.compress(bytes(line))
    packed += packer.flush()
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _images() -> Iterator[Specimen]:
    def put(name: str, make: Callable[[], bytes]) -> Write:
        return lambda folder, canary: _put(folder / name, make())

    zeros = zlib.compress(bytes(100_000_000), 9)
    yield Specimen("PNG of 169 megapixels", "PNG", put("0.png", lambda: _png(13_000, 13_000)))
    yield Specimen("PNG of 81 megapixels", "PNG", put("0.png", lambda: _png(9_000, 9_000)))
    yield Specimen("PNG of 4 gigapixels, no pixels", "PNG", put("0.png", lambda: _png(65_000, 65_000, rows=1)))
    yield Specimen("PNG of 2^31 by 1", "PNG", put("0.png", lambda: _png(2**31 - 1, 1, rows=0)))
    yield Specimen(
        "PNG with a text of 100 MB", "PNG", put("0.png", lambda: _png(8, 8, _chunk(b"zTXt", b"a\0\0" + zeros)))
    )
    yield Specimen(
        "PNG with an international text of 100 MB",
        "PNG",
        put("0.png", lambda: _png(8, 8, _chunk(b"iTXt", b"a\0\1\0\0\0" + zeros))),
    )
    yield Specimen(
        "PNG with a colour profile of 100 MB",
        "PNG",
        put("0.png", lambda: _png(8, 8, _chunk(b"iCCP", b"a\0\0" + zeros))),
    )
    yield Specimen(
        "PNG with 50,000 chunks", "PNG", put("0.png", lambda: _png(8, 8, *[_chunk(b"tEXt", b"a\0b")] * 50_000))
    )
    yield Specimen("PNG with size 0", "PNG", put("0.png", lambda: _png(0, 0)))
    yield Specimen("PNG with half its rows", "PNG", put("0.png", lambda: _png(64, 64, rows=32)))
    yield Specimen(
        "PNG animated, 2^31 frames",
        "PNG",
        put("0.png", lambda: _png(8, 8, _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))),
    )
    yield Specimen("JPEG of 65,500 by 65,500", "JPEG", put("0.jpg", lambda: _jpeg_size(65_500, 65_500)))
    yield Specimen("JPEG of 0 by 0", "JPEG", put("0.jpg", lambda: _jpeg_size(0, 0)))
    yield Specimen(
        "JPEG with 20,000 APP segments", "JPEG", put("0.jpg", lambda: _jpeg_with(b"\xff\xe1\x00\x08Exif\0\0" * 20_000))
    )
    yield Specimen(
        "JPEG with EXIF that points to itself", "JPEG", put("0.jpg", lambda: _jpeg_with(_exif(b"\x08\0\0\0")))
    )
    yield Specimen(
        "JPEG with EXIF of 65,535 entries", "JPEG", put("0.jpg", lambda: _jpeg_with(_exif(b"\0\0\0\0", entries=65_535)))
    )
    yield Specimen(
        "GIF of 65,535 by 65,535", "GIF", put("0.gif", lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b";")
    )
    yield Specimen("GIF of 5,000 frames", "GIF", put("0.gif", _long_gif))
    yield Specimen("BMP of 2^31 by 2^31", "BMP", put("0.bmp", lambda: _bmp(2**31 - 1, 2**31 - 1)))
    yield Specimen("BMP of negative width", "BMP", put("0.bmp", lambda: _bmp(-8, 8)))
    yield Specimen(
        "TIFF whose directory points to itself", "TIFF", put("0.tif", lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0")
    )
    yield Specimen("TIFF of 100,000 by 100,000", "TIFF", put("0.tif", lambda: _tiff(100_000, 100_000)))
    yield Specimen("SVG with an entity bomb", "PNG", put("0.png", lambda: _entities().encode()))
    yield Specimen("a web page", "JPEG", put("0.jpg", lambda: b"<html><script>alert(1)</script></html>"))
    yield Specimen("an image in Parquet that is a bomb", "parquet", _parquet_bomb)


def _jpeg_size(width: int, height: int) -> bytes:
    data = bytearray(png(kind="JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _jpeg_with(segments: bytes) -> bytes:
    data = png(kind="JPEG")
    return data[:2] + segments + data[2:]


def _exif(next_directory: bytes, entries: int = 1) -> bytes:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)  # a directory within, which is this one
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", entries) + entry + next_directory
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def _long_gif() -> bytes:
    frame = b",\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0"
    return b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff" + frame * 5_000 + b";"


def _bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 1000, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(64)
    )


def _tiff(width: int, height: int) -> bytes:
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, 8),
    ]
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *e) for e in entries)
        + bytes(4)
    )


def _parquet_bomb(folder: Path, canary: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [_png(13_000, 13_000), png()]}), folder / "x.parquet")


# --- settings, tensors, texts ---------------------------------------------------------------------------------------


def _entities() -> str:
    lines = ['<!ENTITY a0 "lol">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))]
    return f"<?xml version='1.0'?><!DOCTYPE svg [{''.join(lines)}]><svg>&a9;</svg>"


def _settings() -> Iterator[Specimen]:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    code = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{canary}']]"
    texts = {
        "aliases that grow tenfold nine times": bomb,
        "an alias of itself": "data: &a [*a]\n",
        "code of Python, applied": f"teacher: {code}\n",
        "code of Python, by name": "teacher: !!python/name:os.system\n",
        "code of Python, new object": "teacher: !!python/object/new:os.system ['touch {canary}']\n",
        "10,000 levels of lists": "data: " + "[" * 10_000 + "]" * 10_000 + "\n",
        "3,000 levels of blocks": "".join(f"{' ' * n}a:\n" for n in range(3_000)),
        "a number of 100,000 digits": f"seed: {'9' * 100_000}\n",
        "a number in base 60": "seed: " + ":".join(["59"] * 10_000) + "\n",
        "the same key twice": "teacher: a\nteacher: b\n",
        "merged keys": "x: &x {teacher: a}\n<<: *x\n",
        "two documents": "teacher: a\n---\nteacher: b\n",
        "5 MB of text": f"teacher: {'a' * 5_000_000}\n",
        "bytes that are no text": "teacher: \udcff\n",
        "a key that is a list": "? [a, b]\n: c\n",
        "a binary": "teacher: !!binary aGVsbG8=\n",
    }
    for name, text in texts.items():
        yield Specimen(
            f"YAML: {name}",
            "yaml",
            lambda folder, canary, text=text: _put(
                folder / "run.yaml", text.replace("{canary}", str(canary)).encode(errors="surrogateescape")
            ),
        )


def _tensors() -> Iterator[Specimen]:
    def file(header: Any, data: bytes = bytes(8), length: int | None = None) -> Write:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        content = struct.pack("<Q", len(text) if length is None else length) + text + data
        return lambda folder, canary: _put(folder / "x.safetensors", content)

    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    cases: dict[str, Write] = {
        "header of 2^63 bytes": file({"a": one}, length=2**63),
        "header longer than the file": file({"a": one}, length=10_000),
        "header of 200 MB": file(b'{"a":' + b" " * 200_000_000, length=200_000_005),
        "tensors that overlap": file({"a": one, "b": one}),
        "a gap between tensors": file({"a": one, "b": {**one, "data_offsets": [16, 24]}}, bytes(24)),
        "offsets that run back": file({"a": {**one, "data_offsets": [8, 0]}}),
        "offsets behind the file": file({"a": {**one, "data_offsets": [0, 2**40]}}),
        "a shape of 2^60 numbers": file({"a": {**one, "shape": [2**30, 2**30]}}),
        "a negative shape": file({"a": {**one, "shape": [-2]}}),
        "a type that is none": file({"a": {**one, "dtype": "CODE"}}),
        "a header that is no JSON": file(b"{" * 64),
        "a header 100,000 levels deep": file(b'{"a":' * 100_000),
        "a header that is no text": file(b"\xff" * 64),
        "metadata that are numbers": file({"__metadata__": {"a": 1}, "a": one}),
        "bytes behind the tensors": file({"a": one}, bytes(64)),
        "nothing": lambda folder, canary: _put(folder / "x.safetensors", b""),
    }
    for name, write in cases.items():
        yield Specimen(f"safetensors: {name}", "safetensors", write)


def _texts() -> Iterator[Specimen]:
    def put(name: str, data: bytes) -> Write:
        return lambda folder, canary: _put(folder / name, data)

    deep = b"[" * 200_000
    yield Specimen("a line of 50 MB", "sentences", put("x.txt", b"a" * 50_000_000))
    yield Specimen("NUL bytes", "sentences", put("x.txt", b"a\0b\n" * 1000))
    yield Specimen("text that is none", "sentences", put("x.txt", b"\xff\xfe\xfa\n" * 1000))
    yield Specimen("escapes for the terminal", "sentences", put("x.txt", b"\x1b]0;owned\x07\x1b[2J\n"))
    yield Specimen("JSON 200,000 levels deep, as a line", "jsonl", put("x.jsonl", b'{"text": ' + deep + b"\n"))
    yield Specimen(
        "JSON with a number of 100,000 digits", "jsonl", put("x.jsonl", b'{"text": ' + b"9" * 100_000 + b"}\n")
    )
    yield Specimen("JSON 200,000 levels deep, as captions", "captions", put("captions.jsonl", deep))
    yield Specimen("JSON 200,000 levels deep, as a result", "results", put("results/x.json", deep))
    yield Specimen("JSON 200,000 levels deep, as pack.json", "packed", _beside_a_tar(put("pack.json", deep)))
    yield Specimen(
        "a list that names files outside", "list", put("list.csv", b"../../../../etc/passwd,cat\n/etc/passwd,dog\n")
    )
    yield Specimen("a list of one field of 10 MB", "list", put("list.csv", b'"' + b"a" * 10_000_000))
    yield Specimen(
        "captions of images outside", "captions", put("captions.jsonl", b'{"image": "../../etc/passwd", "text": "a"}\n')
    )


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
