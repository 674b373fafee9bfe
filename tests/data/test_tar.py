"""Shards give the bytes of the members they name; a damaged shard gives those before the damage and says so."""

import gzip
import io
import os
import pickle
import random
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import attar.data.mapped as mapped_module
import attar.data.tar as tar_module
from attar.data.base import lost_images
from attar.data.sources import TarSource, open_source
from attar.errors import DataError, DecodeError
from shards import sample, write_tar


def contents(source):
    return [source.read(row) for row in range(len(source))]


def names(source):
    return [source.name(row) for row in range(len(source))]


def labels_of(source):
    labels, classes = source.labels()
    assert labels.dtype == np.int64
    return [classes[label] for label in labels]


# --- what a row is --------------------------------------------------------------------------------------------------


def test_rows_are_the_images_in_the_order_of_the_members(tmp_path):
    path = write_tar(tmp_path / "x.tar", [*sample("b/2", 1), *sample("a/1", 0), *sample("c", 1)])
    source = open_source(path)
    assert isinstance(source, TarSource)
    assert contents(source) == [b"b/2", b"a/1", b"c"]
    assert names(source) == ["x.tar/b/2.jpg", "x.tar/a/1.jpg", "x.tar/c.jpg"]
    assert labels_of(source) == ["1", "0", "1"]
    assert source.problems == ()


def test_webdataset_names_the_sample_up_to_the_first_dot(tmp_path):
    """A class taken by the last dot, or by the member before, would go to another image."""
    members = [
        ("0.cls", b"7\n"),  # before its image
        ("0.JPG", b"zero"),
        ("0.json", b'{"label": 99}'),
        ("1.seg.png", b"a mask"),
        ("1.jpeg", b"one"),
        ("1.cls", b"3"),
        ("2.txt", b"no image"),
        ("2.cls", b"5"),
        ("d.e/3.webp", b"three"),  # a dot in the folder is none of the key
        ("d.e/3.png", b"not the first image of its sample"),
        ("d.e/3.cls", b"12"),
        (".hidden.jpg", b"no"),
        ("._0.jpg", b"no"),
        ("jpg", b"no"),
    ]
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert contents(source) == [b"zero", b"one", b"three"]
    assert labels_of(source) == ["7", "3", "12"]
    assert source.labels()[1] == ["3", "7", "12"]  # as numbers


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_and_long_names(tmp_path, format):
    long = "/".join(["folder" * 5] * (3 if format == tarfile.USTAR_FORMAT else 20)) + "/ümlaut"
    members = [*sample("short", 0), *sample(long, 1, b"long"), *sample("last", 2)]
    source = open_source(write_tar(tmp_path / "x.tar", members, format))
    assert contents(source) == [b"short", b"long", b"last"]
    assert names(source)[1] == f"x.tar/{long}.jpg"
    assert labels_of(source) == ["0", "1", "2"]


def test_links_folders_and_devices_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in {"a.jpg": tarfile.SYMTYPE, "b.jpg": tarfile.DIRTYPE, "c.jpg": tarfile.CHRTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("d.jpg")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"d"))
    assert names(open_source(str(tmp_path / "x.tar"))) == ["x.tar/d.jpg"]


def test_without_classes_there_are_no_labels_and_with_some_it_is_an_error(tmp_path):
    assert open_source(write_tar(tmp_path / "1.tar", [("a.jpg", b"a"), ("b.jpg", b"b")])).labels() is None
    some = open_source(write_tar(tmp_path / "2.tar", [*sample("a", 0), ("b.jpg", b"b")]))
    with pytest.raises(DataError, match=r"2\.tar/b\.jpg has no label"):
        some.labels()
    for label in (b"cat", b"", b"-1", b"9" * 30):
        odd = open_source(write_tar(tmp_path / "3.tar", [*sample("a", 0), ("b.jpg", b"b"), ("b.cls", label)]))
        with pytest.raises(DataError, match=r"3\.tar/b\.jpg has no label"):
            odd.labels()


# --- several shards -------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    for number in (0, 1, 2, 10):
        write_tar(folder / f"x-{number:02}.tar", [*sample(f"{number}/a", number % 2), *sample(f"{number}/b", 3)])
    return folder


def test_a_folder_of_shards_and_a_pattern_are_one_source(shards):
    everything = open_source(str(shards))
    assert contents(everything) == [f"{number}/{key}".encode() for number in (0, 1, 2, 10) for key in "ab"]
    assert labels_of(everything) == ["0", "3", "1", "3", "0", "3", "0", "3"]
    assert names(everything)[5] == "x-02.tar/2/b.jpg"
    pattern = open_source(f"{shards}/x-{{00..02}}.tar")
    assert contents(pattern) == contents(everything)[:6]
    assert len({everything.fingerprint, pattern.fingerprint, open_source(f"{shards}/x-00.tar").fingerprint}) == 3


def test_a_shard_of_a_pattern_that_is_missing_is_an_error(shards):
    with pytest.raises(DataError, match=r"x-03\.tar does not exist"):
        open_source(f"{shards}/x-{{00..10}}.tar")


def test_the_fingerprint_tells_names_sizes_and_labels_but_not_the_place(tmp_path):
    found = {
        place: open_source(write_tar(tmp_path / place / "x.tar", members)).fingerprint
        for place, members in {
            "here": sample("a", 0),
            "there": sample("a", 0),
            "name": sample("b", 0),
            "label": sample("a", 1),
            "size": sample("a", 0, b"aa"),
        }.items()
    }
    assert found["here"] == found["there"]
    assert len(set(found.values())) == 4


# --- the index ------------------------------------------------------------------------------------------------------


def test_a_shard_is_walked_once_and_again_when_it_changes(tmp_path, monkeypatch):
    walked = []
    walk = tar_module._members
    monkeypatch.setattr(tar_module, "_members", lambda file: walked.append(file.name) or walk(file))
    path = write_tar(tmp_path / "x.tar", sample("a", 0))
    assert contents(open_source(path)) == contents(open_source(path)) == [b"a"]
    assert len(walked) == 1
    write_tar(tmp_path / "x.tar", sample("a", 0, b"other"))
    os.utime(path, (1e9, 1e9))
    assert contents(open_source(path)) == [b"other"]
    assert len(walked) == 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:99] + b"!" + data[100:]]
)
def test_a_damaged_index_is_made_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    path = write_tar(tmp_path / "x.tar", [*sample("a", 0), *sample("b", 1)])
    open_source(path)
    (index,) = (tmp_path / "cache").rglob("rows.arrow")
    data = index.read_bytes()
    index.unlink()
    index.write_bytes(damage(data))
    assert contents(open_source(path)) == [b"a", b"b"]


def test_a_source_survives_pickling_without_its_rows(tmp_path):
    path = write_tar(tmp_path / "x.tar", [pair for n in range(200) for pair in sample(f"{n}", n % 3)])
    source = open_source(path)
    data = pickle.dumps(source)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert (len(again), again.fingerprint, again.read(150)) == (200, source.fingerprint, b"150")


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    """TarFile keeps every member that it has met; so would a list of rows."""
    monkeypatch.setattr(mapped_module, "_ROWS", 100)
    peaks = []
    for images in (500, 5_000):
        path = write_tar(tmp_path / f"{images}.tar", [(f"{n}.jpg", b"x") for n in range(images)])
        tracemalloc.start()
        assert len(open_source(path)) == images
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


# --- damage ---------------------------------------------------------------------------------------------------------

BLOCK = tarfile.BLOCKSIZE


@pytest.fixture
def archive(tmp_path):
    """Ten samples of two blocks each for image and class: sample n starts at byte 4 * 512 * n."""
    return Path(
        write_tar(tmp_path / "x.tar", [pair for n in range(10) for pair in sample(f"{n}", n % 3, b"%d" % n * 100)])
    )


def cut(at):
    return lambda data: data[:at]


def zeros(at, size):
    return lambda data: data[:at] + bytes(size) + data[at + size :]


def noise(at, size):
    return lambda data: data[:at] + random.Random(0).randbytes(size) + data[at + size :]


DAMAGE = {
    # what is done: (function, samples that are left, byte of the problem, words)
    "cut in an image": (cut(4 * BLOCK * 5 + BLOCK + 7), 5, 4 * BLOCK * 5, "cut in the middle of 5.jpg"),
    "cut in a header": (cut(4 * BLOCK * 5 + 100), 5, 4 * BLOCK * 5, "it ends here"),
    "cut between samples": (cut(4 * BLOCK * 5), 5, 4 * BLOCK * 5, "without the zeros that end a tar"),
    "cut between an image and its class": (
        cut(4 * BLOCK * 5 + 2 * BLOCK),
        5,
        4 * BLOCK * 5 + 2 * BLOCK,
        "it ends here",
    ),
    "cut in a class": (cut(4 * BLOCK * 5 + 3 * BLOCK), 5, 4 * BLOCK * 5 + 2 * BLOCK, "cut in the middle of 5.cls"),
    "zeros over a header": (zeros(4 * BLOCK * 7, BLOCK), 7, 4 * BLOCK * 7, "more data behind them"),
    "zeros to the middle": (zeros(4 * BLOCK * 7, 6 * BLOCK), 7, 4 * BLOCK * 7, "more data behind them"),
    "noise over a header": (noise(4 * BLOCK * 7, BLOCK), 7, 4 * BLOCK * 7, "no tar header"),
    "one byte of a header": (noise(4 * BLOCK * 7 + 3, 1), 7, 4 * BLOCK * 7, "bad checksum"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_images_before_the_damage_are_used_and_the_rest_is_reported(archive, case):
    """Python's own TarFile ends silently at most of these."""
    function, left, offset, words = DAMAGE[case]
    archive.write_bytes(function(archive.read_bytes()))
    source = open_source(str(archive))
    assert contents(source) == [b"%d" % n * 100 for n in range(left)]
    assert labels_of(source) == [f"{n % 3}" for n in range(left)]
    (problem,) = source.problems
    assert problem.name == str(archive)
    assert f"x.tar: passed over from byte {offset:,} on" in problem.reason
    assert words in problem.reason
    assert f"{left} images before it are used" in problem.reason
    assert open_source(str(archive)).problems == source.problems  # from the cache too


@pytest.mark.parametrize(
    ("damage", "others", "lost"),
    [
        (cut(4 * BLOCK * 5), 0, 1),  # nothing tells how many there were
        (cut(4 * BLOCK * 5), 12, 7),  # the fullest shard does
        (lambda data: zeros(4 * BLOCK * 4, BLOCK)(data)[: 4 * BLOCK * 10], 0, 6),  # the rest of the file does
        (lambda data: zeros(4 * BLOCK * 4, BLOCK)(data)[: 4 * BLOCK * 10], 7, 6),  # the larger of both
        (lambda data: b"<html>" * 1000, 9, 9),
    ],
)
def test_lost_images_are_counted_rather_too_high(archive, damage, others, lost):
    archive.write_bytes(damage(archive.read_bytes()))
    if others:
        write_tar(archive.with_name("y.tar"), [pair for n in range(others) for pair in sample(f"{n}", n % 3)])
    source = open_source(str(archive.parent))
    assert lost_images(source) == lost


def test_of_a_part_a_part_is_lost_and_of_a_weight_as_many_times(tmp_path):
    # catches one shard of a place that is taken by the hundredth to count as a whole one
    for name, count in {"x": 4, "y": 12}.items():
        write_tar(tmp_path / f"shards/{name}.tar", [(f"{n}.jpg", b"x") for n in range(count)])
    cut_short = tmp_path / "shards/x.tar"
    cut_short.write_bytes(cut_short.read_bytes()[: 4 * 2 * BLOCK])
    for options, lost in {"": 8, "?images=0.5": 4, "?weight=3": 24, "?images=0.5&weight=0.5": 2}.items():
        assert lost_images(open_source([f"{tmp_path}/shards{options}", "playground:0?n=5"])) == lost


def test_noise_in_an_image_is_for_the_decoder_to_find(archive):
    archive.write_bytes(noise(4 * BLOCK * 7 + BLOCK, 50)(archive.read_bytes()))
    source = open_source(str(archive))
    assert (len(source), source.problems) == (10, ())


def test_zeros_at_the_end_are_no_damage(archive):
    archive.write_bytes(archive.read_bytes() + bytes(1 << 21))
    assert open_source(str(archive)).problems == ()


WHOLE_LOSS = {
    "no bytes": (lambda data: b"", "it ends here"),
    "no tar": (lambda data: b"<html>" * 1000, "no tar header"),
    "cut in the first image": (cut(BLOCK + 5), "cut in the middle of 0.jpg"),
}


@pytest.mark.parametrize("case", WHOLE_LOSS)
def test_when_no_image_is_left_it_is_an_error(archive, case):
    damage, words = WHOLE_LOSS[case]
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DataError, match=rf"x\.tar holds no image that can be read.*{words}"):
        open_source(str(archive))


@pytest.mark.parametrize("case", WHOLE_LOSS)
def test_a_lost_shard_among_others_is_reported_and_skipped(archive, case):
    write_tar(archive.parent / "y.tar", sample("y", 1))
    archive.write_bytes(WHOLE_LOSS[case][0](archive.read_bytes()))
    source = open_source([f"{archive.parent}?weight=2", "playground:0?n=1"])
    assert len(source) == 3
    assert [problem.name for problem in source.problems] == [str(archive)]


def test_a_tar_without_images_is_an_error_that_says_how_they_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no image that can be read. Samples are named as WebDataset does"):
        open_source(write_tar(tmp_path / "x.tar", [("readme.txt", b"hello"), ("a.cls", b"1")]))


def test_a_header_that_asks_for_the_whole_memory_is_damage(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, [*sample("a", 0)])
    evil = tarfile.TarInfo("././@LongLink")
    evil.type, evil.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    path.write_bytes(path.read_bytes()[: 4 * BLOCK] + evil.tobuf(tarfile.GNU_FORMAT) + bytes(BLOCK))
    source = open_source(str(path))
    assert len(source) == 1
    assert "a header of 1,099,511,627,776 bytes" in source.problems[0].reason


def test_a_negative_size_does_not_walk_for_ever(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, sample("a", 0))
    evil = tarfile.TarInfo("evil.jpg")
    head = bytearray(evil.tobuf(tarfile.GNU_FORMAT))
    head[124:136] = b"\xff" * 10 + b"\xf0\x00"  # -4096 in base 256
    head[148:156] = b"%06o\0 " % (256 + sum(head[:148]) + sum(head[156:512]))
    path.write_bytes(path.read_bytes()[: 4 * BLOCK] + bytes(head))
    source = open_source(str(path))
    assert len(source) == 1
    assert "no tar header" in source.problems[0].reason


def test_an_image_of_gigabytes_is_refused_and_leaves_the_others_as_they_are(tmp_path):
    path = Path(write_tar(tmp_path / "x.tar", sample("a", 0)))
    huge = tarfile.TarInfo("b.jpg")
    huge.size = 5 << 30
    last = Path(write_tar(tmp_path / "last.tar", sample("c", 1))).read_bytes()
    with path.open("r+b") as file:
        file.seek(4 * BLOCK)
        file.write(huge.tobuf(tarfile.GNU_FORMAT))
        file.seek(huge.size, os.SEEK_CUR)  # a hole: it takes no room on the disk
        file.write(last)
    source = open_source(str(path))
    assert names(source) == ["x.tar/a.jpg", "x.tar/b.jpg", "x.tar/c.jpg"]
    assert (source.read(0), source.read(2)) == (b"a", b"c")
    with pytest.raises(DecodeError, match=r"x\.tar/b\.jpg: the file has 4 GiB or more"):
        source.read(1)
    assert source.problems == ()


def test_a_sparse_member_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, sample("a", 0))
    sparse = tarfile.TarInfo("b.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    path.write_bytes(path.read_bytes()[: 4 * BLOCK] + sparse.tobuf(tarfile.GNU_FORMAT) + bytes(2 * BLOCK))
    assert "b.jpg is stored as a sparse file" in open_source(str(path)).problems[0].reason


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar"])
def test_a_compressed_tar_is_refused_with_a_remedy(archive, name):
    data = gzip.compress(archive.read_bytes())
    archive.unlink()
    archive.with_name(name).write_bytes(data)
    with pytest.raises(DataError, match=r"is compressed \(gzip\).* Decompress it once"):
        open_source(str(archive.with_name(name)))


def test_a_shard_that_shrinks_while_it_is_read_gives_decode_errors(archive):
    source = open_source(str(archive))
    os.truncate(archive, 4 * BLOCK * 5 + BLOCK + 7)
    assert source.read(4) == b"4" * 100
    with pytest.raises(DecodeError, match=r"^x\.tar/5\.jpg: cut short, 7 bytes in place of 100"):
        source.read(5)
    archive.unlink()
    with pytest.raises(DecodeError, match=r"^x\.tar/4\.jpg: cannot be read \(No such file"):
        source.read(4)
