"""Folder, Parquet and playground give the bytes and the labels that were put in, here and in a loader's worker."""

import functools
import itertools
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

import attar.data.mapped as mapped_module
import attar.data.parquet as parquet_module
from attar.config import ViewsConfig
from attar.data.arrangements import render_arrangement
from attar.data.loader import ViewDataset, training_batches
from attar.data.playground import CLASS_NAMES, render_scene
from attar.data.sampler import ViewOrder
from attar.data.sources import FolderSource, ParquetSource, PlaygroundSource, images_in_both, open_source, share_a_place
from attar.errors import DataError, DecodeError
from shards import Bytes, sample, write_tar


def write_files(root, *names):
    """Files that hold their own names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def write_table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def labels_by_name(source):
    """What the source says: class name of each row, by the row's name."""
    labels, names = source.labels()
    assert labels.dtype == np.int64
    assert labels.shape == (len(source),)
    return {source.name(row): names[labels[row]] for row in range(len(source))}


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_gives_the_bytes_of_the_named_file(tmp_path):
    write_files(tmp_path, "b/2.jpg", "a/deep/1.jpg", "c.jpg")
    source = open_source(str(tmp_path))
    assert isinstance(source, FolderSource)
    assert [source.name(row) for row in range(len(source))] == ["c.jpg", "a/deep/1.jpg", "b/2.jpg"]
    assert all(source.read(row) == source.name(row).encode() for row in range(len(source)))


def test_the_first_folder_is_the_class_and_classes_are_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_module, "_ROWS", 2)  # labels cross the bounds of Arrow's batches
    files = [
        "zebra/1.jpg",
        "ant/9/1.jpg",
        "ant/1.jpg",
        "Bee/1.jpg",
        "bee/2.jpg",
        "zebra/0.jpg",
        "größe/x.jpg",
        "10/1.jpg",
    ]
    write_files(tmp_path, *files)
    source = open_source(str(tmp_path))
    assert source.labels()[1] == ["10", "Bee", "ant", "bee", "größe", "zebra"]
    assert labels_by_name(source) == {name: name.split("/")[0] for name in files}


def test_images_beside_the_class_folders_leave_no_labels(tmp_path):
    write_files(tmp_path, "a/1.jpg", "b/1.jpg")
    assert open_source(str(tmp_path)).labels() is not None
    write_files(tmp_path, "0.jpg")
    assert open_source(str(tmp_path)).labels() is None


def test_a_vanished_or_unreadable_file_is_a_decode_error(tmp_path):
    write_files(tmp_path, "a/1.jpg", "b/1.jpg")
    source = open_source(str(tmp_path))
    (tmp_path / "a/1.jpg").unlink()
    with pytest.raises(DecodeError, match=r"^a/1\.jpg: cannot be read \(No such file or directory\)\.$"):
        source.read(0)
    (tmp_path / "b/1.jpg").unlink()
    (tmp_path / "b/1.jpg").mkdir()
    with pytest.raises(DecodeError, match=r"Is a directory"):
        source.read(1)


def test_fingerprints_of_equal_folders_agree(tmp_path):
    for place in ("here", "there"):
        write_files(tmp_path / place, "a/1.jpg", "b/2.jpg")
    write_files(tmp_path / "other", "a/1.jpg", "b/3.jpg")
    here, there, other = (open_source(str(tmp_path / place)).fingerprint for place in ("here", "there", "other"))
    assert here == there != other


def test_reindex_reaches_the_index(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    write_files(tmp_path / "images", "1.jpg")
    os.utime(tmp_path / "images", (1e9, 1e9))
    made = []
    for reindex in (False, False, True):
        open_source(str(tmp_path / "images"), reindex=reindex)
        (file,) = (tmp_path / "cache").rglob("paths.arrow")
        made.append(file.stat().st_mtime_ns)
    assert made[0] == made[1] < made[2]


# --- Parquet --------------------------------------------------------------------------------------------------------


def struct_images(*values):
    return pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def test_parquet_with_plain_bytes(tmp_path):
    path = write_table(tmp_path / "x.parquet", other=[1, 2, 3], image=[b"one", b"", b"three"], label=[1, 0, 1])
    source = open_source(str(path))
    assert isinstance(source, ParquetSource)
    assert [source.read(row) for row in range(3)] == [b"one", b"", b"three"]
    assert [source.name(row) for row in range(3)] == ["x.parquet[0]", "x.parquet[1]", "x.parquet[2]"]
    assert labels_by_name(source) == {"x.parquet[0]": "1", "x.parquet[1]": "0", "x.parquet[2]": "1"}


def test_parquet_as_hugging_face_writes_it(tmp_path):
    images = struct_images({"bytes": b"one", "path": "1.jpg"}, {"bytes": b"two", "path": None}, {"bytes": b"3"})
    source = open_source(str(write_table(tmp_path / "x.parquet", image=images, label=[7, 3, 7])))
    assert [source.read(row) for row in range(3)] == [b"one", b"two", b"3"]
    assert list(labels_by_name(source).values()) == ["7", "3", "7"]
    assert source.labels()[1] == ["3", "7"]


def test_rows_keep_their_order_over_row_groups_and_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "_ROWS", 7)
    images = [f"{number}".encode() for number in range(50)]
    table = pa.table({"image": pa.array(images, pa.large_binary()), "label": list(range(50, 0, -1))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=11)
    source = open_source(str(tmp_path / "x.parquet"))
    assert [source.read(row) for row in range(50)] == images
    assert list(labels_by_name(source).values()) == [str(50 - number) for number in range(50)]


def test_labels_are_ordered_as_numbers_and_names_as_text(tmp_path):
    numbers = open_source(str(write_table(tmp_path / "1.parquet", image=[b"x"] * 3, label=[10, 9, 100])))
    assert numbers.labels()[1] == ["9", "10", "100"]
    assert list(labels_by_name(numbers).values()) == ["10", "9", "100"]
    text = pa.array(["dog", "cat", "dog"]).dictionary_encode()
    words = open_source(str(write_table(tmp_path / "2.parquet", image=[b"x"] * 3, label=text)))
    assert words.labels()[1] == ["cat", "dog"]
    assert list(labels_by_name(words).values()) == ["dog", "cat", "dog"]


def test_parquet_without_a_usable_label_column_has_no_labels(tmp_path):
    bare = write_table(tmp_path / "1.parquet", image=[b"x"])
    many = write_table(tmp_path / "2.parquet", image=[b"x"], label=[[1, 2]])
    assert open_source(str(bare)).labels() is None
    assert open_source(str(many)).labels() is None


def test_parquet_whose_rows_are_all_marked_unlabelled_has_no_labels(tmp_path):
    path = write_table(tmp_path / "test.parquet", image=[b"x"] * 4, label=[-1, -1, -1, None])
    assert open_source(str(path)).labels() is None
    assert len(open_source(f"{path}?images=0.5")) == 2  # a share of all, as of a folder without classes


@pytest.mark.parametrize("labels", [[0, 1, None], [0, 1, -1], ["a", "b", None]])
def test_a_row_without_a_label_is_an_error_only_when_labels_are_asked_for(tmp_path, labels):
    source = open_source(str(write_table(tmp_path / "x.parquet", image=[b"x"] * 3, label=labels)))
    assert source.read(2) == b"x"
    with pytest.raises(DataError, match=rf"x\.parquet\[2\] has no label \({labels[2]}\)"):
        source.labels()


def test_a_row_without_an_image_is_a_decode_error(tmp_path):
    plain = open_source(str(write_table(tmp_path / "1.parquet", image=[b"x", None])))
    struct = open_source(
        str(write_table(tmp_path / "2.parquet", image=struct_images({"bytes": None, "path": "p"}, None)))
    )
    for source, row in ((plain, 1), (struct, 0), (struct, 1)):
        with pytest.raises(DecodeError, match=rf"\[{row}\]: the row has no image"):
            source.read(row)


WRONG_TABLES = {
    "no image column": ({"img": [b"x"], "label": [0]}, "has no column 'image'; it has img, label"),
    "paths in place of bytes": ({"image": ["a.jpg"]}, "column 'image' of .* is string; it must hold the bytes"),
    "numbers in place of bytes": ({"image": [[1, 2]]}, "column 'image' of .* is list"),
    "a struct without bytes": ({"image": [{"path": "x"}]}, "column 'image' of .* is struct"),
    "no rows": ({"image": pa.array([], pa.binary())}, "holds no rows"),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_a_table_without_images_is_an_error(tmp_path, case):
    columns, message = WRONG_TABLES[case]
    with pytest.raises(DataError, match=message):
        open_source(str(write_table(tmp_path / "x.parquet", **columns)))


def test_a_file_that_is_no_parquet_or_damaged_is_an_error(tmp_path):
    (tmp_path / "text.parquet").write_text("image,label\n")
    with pytest.raises(DataError, match=r"text\.parquet is not a Parquet file"):
        open_source(str(tmp_path / "text.parquet"))
    path = write_table(tmp_path / "x.parquet", image=[bytes(range(256)) * 40] * 9)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)  # the head of the first page: the file's own index, at its end, stays sound
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.parquet is damaged"):
        open_source(str(path))


def test_parquet_is_copied_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    path = write_table(tmp_path / "x.parquet", image=[b"one"])
    first = open_source(str(path))
    (copy,) = (tmp_path / "cache").rglob("rows.arrow")
    made = copy.stat().st_ino
    assert open_source(str(path)).fingerprint == first.fingerprint
    assert copy.stat().st_ino == made
    write_table(path, image=[b"two"])
    os.utime(path, (1e9, 1e9))
    second = open_source(str(path))
    assert second.read(0) == b"two"
    assert second.fingerprint != first.fingerprint
    assert first.read(0) == b"one"  # an open source keeps its rows
    assert len(list((tmp_path / "cache").rglob("rows.arrow"))) == 1


def test_fingerprint_of_parquet_is_its_content_not_its_place(tmp_path):
    path = write_table(tmp_path / "x.parquet", image=[b"one"])
    (tmp_path / "y.parquet").write_bytes(path.read_bytes())
    assert open_source(str(path)).fingerprint == open_source(str(tmp_path / "y.parquet")).fingerprint


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", None])
def test_a_damaged_copy_is_made_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    path = write_table(tmp_path / "x.parquet", image=[b"one", b"two"])
    assert open_source(str(path)).read(1) == b"two"
    for name in ("rows.arrow", "about.json"):
        (copy,) = (tmp_path / "cache").rglob(name)
        data = copy.read_bytes()
        copy.unlink()
        if damage is not None:
            copy.write_bytes(damage(data))
        assert open_source(str(path)).read(1) == b"two"


# --- playground -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "seed", "count"),
    [
        ("playground", 0, 10_000),
        ("playground:7", 7, 10_000),
        ("playground:7?n=3", 7, 3),
        ("playground:123456789012?n=1", 123456789012, 1),
    ],
)
def test_playground_references(reference, seed, count):
    source = open_source(reference)
    assert isinstance(source, PlaygroundSource)
    assert (source.seed, len(source)) == (seed, count)


@pytest.mark.parametrize(
    "reference",
    [
        *("playground:", "playground:x", "playground:-1", "playground:1.5", "playground: 1", "playground:\u00b2"),
        *("playground:1?", "playground:1?n=", "playground:1?n=0", "playground:1?n=-5", "playground:1?m=5"),
        *("playground:1?n=5&n=6", "playground:1?n=\u0665", "playground:1\n", "playground:?n=5"),
    ],
)
def test_wrong_playground_references_show_the_right_form(reference):
    with pytest.raises(DataError, match="must look like playground:SEED") as caught:
        open_source(reference)
    assert reference in str(caught.value)


def test_playground_gives_its_scenes_and_their_classes():
    source = open_source("playground:3?n=40")
    np.testing.assert_array_equal(source.read(17), render_scene(3, 17).image)
    labels, names = source.labels()
    assert names == list(CLASS_NAMES)
    assert labels.tolist() == [render_scene(3, row).label for row in range(40)]
    assert source.name(17) == "playground:3[17]"
    assert source.fingerprint != open_source("playground:4?n=40").fingerprint
    assert source.fingerprint != open_source("playground:3?n=41").fingerprint


def test_arrangements_are_those_of_their_part_and_are_labelled_in_words():
    source = open_source("playground:3?scenes=arrangements&part=held_out&things=1&n=40&size=32")
    scenes = [render_arrangement(3, row, part="held_out", things=1, size=32) for row in range(40)]
    labels, names = source.labels()
    assert all(np.array_equal(source.read(row), scene.image) for row, scene in enumerate(scenes))
    assert all(names[label] in scene.caption for label, scene in zip(labels, scenes, strict=True))
    assert len(names) == 28
    assert labels.tolist() == [row % 28 for row in range(40)]


def test_arrangements_of_another_stream_are_other_images():
    same = "playground:3?n=40&scenes=arrangements&part=seen"
    base = open_source("playground:3?scenes=arrangements&n=40")
    assert open_source(same).fingerprint == base.fingerprint
    for option, shares in (("things=1", False), ("part=held_out", False), ("size=32", True)):
        other = open_source(f"playground:3?scenes=arrangements&n=40&{option}")
        assert other.fingerprint != base.fingerprint
        assert (other.name(5) == base.name(5)) == (other.uri(5) == base.uri(5)) == shares
        assert share_a_place(base, other) == shares
    assert not share_a_place(base, open_source("playground:3?n=40"))
    assert len(open_source("playground:3?images=0.5&scenes=arrangements&n=560")) == 280  # an option of any place


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("scenes=arangements", "scenes=arrangements&n=COUNT"),
        ("scenes=arrangements&part=hold_out", "'part' is 'hold_out'"),
        ("scenes=arrangements&things=3", "'things' is '3'"),
        ("scenes=arrangements&size=8", "'size' is '8'"),
        ("scenes=arrangements&variety=0", "unknown setting 'variety'"),
        ("things=1", "unknown setting 'things'"),
    ],
)
def test_a_wrong_option_of_the_playground_is_named(options, message):
    with pytest.raises(DataError, match=message):
        open_source(f"playground:1?{options}")


# --- references that name nothing -----------------------------------------------------------------------------------


def test_what_is_not_there_or_not_images_is_an_error(tmp_path):
    write_files(tmp_path, "cat.jpg")
    with pytest.raises(DataError, match=r"cat\.jpg is a file. Give a folder"):
        open_source(str(tmp_path / "cat.jpg"))
    (tmp_path / "train.parquet").touch()
    with pytest.raises(DataError, match=r"tain\.parquet does not exist\. Did you mean 'train\.parquet'\? Check"):
        open_source(str(tmp_path / "tain.parquet"))
    with pytest.raises(DataError, match=r"folder .*no/where does not exist"):
        open_source(str(tmp_path / "no" / "where"))


@pytest.mark.parametrize("reference", ["~nobody-has-this-home/x", "x" * 300, "nul\0byte"])
def test_what_cannot_be_looked_at_is_an_error_of_ours(reference):
    with pytest.raises(DataError, match="cannot be opened"):
        open_source(reference)


def test_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_files(tmp_path, "images/1.jpg")
    assert open_source("~/images").name(0) == "1.jpg"


# --- in another process ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "parquet", "playground"])
def source(request, tmp_path):
    if request.param == "playground":
        return open_source("playground:5?n=6")
    if request.param == "parquet":
        return open_source(str(write_table(tmp_path / "x.parquet", image=[b"%d" % n for n in range(6)])))
    write_files(tmp_path / "images", *(f"{number % 2}/{number}.jpg" for number in range(6)))
    return open_source(str(tmp_path / "images"))


def test_a_source_survives_pickling(source):
    data = pickle.dumps(source)
    assert len(data) < 1000  # not the paths, not the images
    again = pickle.loads(data)
    assert (len(again), again.fingerprint) == (len(source), source.fingerprint)
    np.testing.assert_array_equal(again.read(4), source.read(4))
    assert again.name(4) == source.name(4)


def test_a_source_gives_the_same_in_a_loaders_worker(source):
    loader = DataLoader(Bytes(source), batch_size=None, collate_fn=tuple, num_workers=2, generator=torch.Generator())
    there = list(loader)
    assert [row[1:] for row in there] == [Bytes(source)[row][1:] for row in range(6)]
    assert os.getpid() not in {process for process, *_ in there}


@pytest.mark.slow
def test_sources_give_the_same_in_a_worker_that_was_not_forked(tmp_path):
    write_files(tmp_path / "images", "a/1.jpg", "b/2.jpg")
    write_table(tmp_path / "x.parquet", image=[b"one", b"two"])
    rows = ConcatDataset(Bytes(open_source(str(tmp_path / name))) for name in ("images", "x.parquet"))
    loader = DataLoader(rows, batch_size=None, collate_fn=tuple, num_workers=1, multiprocessing_context="spawn")
    assert [row[1:] for row in loader] == [row[1:] for row in rows]


def test_a_parquet_file_that_is_replaced_meanwhile_is_noticed(tmp_path):
    path = write_table(tmp_path / "x.parquet", image=[b"one"])
    data = pickle.dumps(open_source(str(path)))
    path.unlink()
    assert pickle.loads(data).read(0) == b"one"
    write_table(path, image=[b"other"])
    open_source(str(path))
    mapped_module._open_table.cache_clear()  # as in another process
    with pytest.raises(DataError, match="changed while this run read it"):
        pickle.loads(data).read(0)


# --- several Parquet files ------------------------------------------------------------------------------------------


def test_a_folder_of_parquet_files_is_one_source(tmp_path):
    for name, images, labels in (("b", [b"3"], [2]), ("a", [b"1", b"2"], [9, 2])):
        write_table(tmp_path / f"{name}.parquet", image=images, label=labels)
    source = open_source(str(tmp_path))
    assert [source.read(row) for row in range(3)] == [b"1", b"2", b"3"]
    assert labels_by_name(source) == {"a.parquet[0]": "9", "a.parquet[1]": "2", "b.parquet[0]": "2"}
    assert source.labels()[1] == ["2", "9"]
    one, other = (open_source(str(tmp_path / name)).fingerprint for name in ("a.parquet", "b.parquet"))
    assert len({source.fingerprint, one, other}) == 3
    again = pickle.loads(pickle.dumps(source))
    assert (again.read(2), again.fingerprint) == (b"3", source.fingerprint)


def test_more_parquet_files_than_may_be_open(tmp_path, monkeypatch):
    """Each memory map is an open file, of which a process often may have a thousand."""
    monkeypatch.setattr(mapped_module, "_open_table", functools.lru_cache(3)(mapped_module._open_table.__wrapped__))
    for number in range(8):
        write_table(tmp_path / f"{number}.parquet", image=[b"%d" % number])
    before = len(os.listdir("/proc/self/fd"))
    source = open_source(str(tmp_path))
    assert [source.read(row) for row in (0, 7, 3, 0, 5)] == [b"0", b"7", b"3", b"0", b"5"]
    assert len(os.listdir("/proc/self/fd")) - before <= 3


@pytest.mark.parametrize("second", [{"image": [b"x"]}, {"image": [b"x"], "label": ["cat"]}])
def test_parquet_files_that_differ_in_their_labels_have_none_together(tmp_path, second):
    write_table(tmp_path / "a.parquet", image=[b"x"], label=[1])
    write_table(tmp_path / "b.parquet", **second)
    with pytest.raises(DataError, match=r"a\.parquet to b\.parquet differ in their label column"):
        open_source(str(tmp_path)).labels()


# --- the same images in any place -----------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, memory):
    """Twelve real images of three classes: folder, Parquet, two shards, here and behind memory://"""
    folder = tmp_path / "images"
    for row in range(12):
        path = folder / f"{row % 3}" / f"{row:02}.{('jpg', 'png', 'bmp')[row % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render_scene(0, row, size=40 + row).image).save(path)
    source = open_source(str(folder))
    rows = [(source.name(row), source.read(row)) for row in range(12)]
    write_table(tmp_path / "x.parquet", image=[data for _, data in rows], label=[int(name[0]) for name, _ in rows])
    for shard in (0, 1):
        part = rows[shard * 5 : shard * 5 + 5 + 2 * shard]
        samples = [sample(name.partition(".")[0], int(name[0]), data, ending=name[-3:]) for name, data in part]
        write_tar(tmp_path / f"x-{shard}.tar", itertools.chain(*samples))
    memory.put(str(tmp_path) + "/", "/x/", recursive=True)
    here = {"folder": str(folder), "parquet": f"{tmp_path}/x.parquet", "tar": f"{tmp_path}/x-{{0..1}}.tar"}
    there = {"folder": "memory://x/images", "parquet": "memory://x/x.parquet", "tar": "memory://x/x-{0..1}.tar"}
    return {**{f"{kind} here": place for kind, place in here.items()}, **{f"{k} there": p for k, p in there.items()}}


def views_of(reference, workers=0):
    """(view, sample, view id) of two epochs, in the order of training."""
    source = open_source(reference)
    dataset = ViewDataset(source, ViewOrder(len(source), seed=3), ViewsConfig(), 24)
    batches = training_batches(dataset, batch_size=4, start_step=0, num_steps=6, workers=workers)
    floats = (batch.to(torch.device("cpu")) for batch in batches)
    return [(batch.views.numpy().tobytes(), batch.samples.tolist(), batch.view_ids.tolist()) for batch in floats]


def test_the_same_images_give_the_same_views_wherever_they_lie(places):
    expected = views_of(places["folder here"])
    assert len(expected) == 6
    assert len({view for view, *_ in expected}) == 6
    for name, place in places.items():
        assert views_of(place) == expected, name


def test_the_same_images_have_the_same_labels_wherever_they_lie(places):
    expected = [*([0] * 4), *([1] * 4), *([2] * 4)]
    for name, place in places.items():
        labels, classes = open_source(place).labels()
        assert (labels.tolist(), classes) == (expected, ["0", "1", "2"]), name


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tar here", "tar there", "parquet there", "folder there"])
def test_workers_give_the_same_views(places, place):
    assert views_of(places[place], workers=2) == views_of(places["folder here"])


def test_a_folder_and_its_url_are_the_same_source(places):
    here, there = open_source(places["folder here"]), open_source(places["folder there"])
    assert here.fingerprint == there.fingerprint
    assert [here.name(row) for row in range(12)] == [there.name(row) for row in range(12)]


def test_a_url_is_listed_once_and_again_when_asked(places, memory):
    assert len(open_source(places["folder there"])) == 12
    memory.pipe("/x/images/1/000.png", b"new")
    assert len(open_source(places["folder there"])) == 12
    assert len(open_source(places["folder there"], reindex=True)) == 13
    assert len(open_source(places["folder there"])) == 13


def test_files_order_is_that_of_a_folder_here(tmp_path, memory):
    files = ["b.jpg", "a/z.jpg", "a/b/1.jpg", "a.jpg", "a-b/1.jpg", "a/b.jpg", ".x/1.jpg", "B/.1.jpg", "é/1.jpg"]
    write_files(tmp_path / "images", *files)
    memory.put(str(tmp_path / "images") + "/", "/y/", recursive=True)
    here, there = open_source(str(tmp_path / "images")), open_source("memory://y")
    assert [there.name(row) for row in range(len(there))] == [here.name(row) for row in range(len(here))]
    assert len(there) == 7


def test_an_image_that_goes_missing_behind_a_url_is_a_decode_error(places, memory):
    source = open_source(places["folder there"])
    memory.rm("/x/images/0/00.jpg")
    with pytest.raises(DecodeError, match=r"^0/00\.jpg: cannot be read"):
        source.read(0)


def test_parquet_behind_a_url_is_fetched_once_and_leaves_only_its_rows(places, memory, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    there = open_source(places["parquet there"])
    assert there.fingerprint == open_source(places["parquet here"]).fingerprint
    assert not list((tmp_path / "cache").rglob("fetched*"))
    memory.pipe("/x/x.parquet", b"other")
    with pytest.raises(DataError, match=r"memory://x/x\.parquet is not a Parquet file"):
        open_source(places["parquet there"])


def test_places_are_shared_by_folders_below_and_by_single_files(tmp_path):
    # one string for a whole source would tell a folder from its parts, and some shards from one of them
    for part in ("train", "val"):
        write_files(tmp_path / "images", f"{part}/cat/0.png", f"{part}/dog/0.png")
    for number in range(2):
        write_tar(tmp_path / f"x-{number}.tar", sample("0", 0))

    def shares(one, other):
        return share_a_place(*(open_source(str(tmp_path / place)) for place in (one, other)))

    assert shares("images", "images/val")
    assert shares("images/val", "images")
    assert not shares("images/val", "images/train")
    assert shares("x-{0..1}.tar", "x-1.tar")
    assert not shares("x-0.tar", "x-1.tar")
    assert share_a_place(open_source("playground:1?n=5"), open_source("playground:1?n=9"))
    assert not share_a_place(open_source("playground:1?n=5"), open_source("playground:11?n=5"))


# --- where a row lies -----------------------------------------------------------------------------------------------


def test_each_source_says_where_a_row_lies(tmp_path):
    write_files(tmp_path / "folder", "a/1.jpg", "b/2.jpg")
    table = write_table(tmp_path / "x.parquet", image=[b"1", b"2", b"3"])
    shard = write_tar(tmp_path / "x.tar", [("one.jpg", b"1"), ("deep/two.jpg", b"2")])
    places = {
        str(tmp_path / "folder"): [f"{tmp_path}/folder/a/1.jpg", f"{tmp_path}/folder/b/2.jpg"],
        str(table): [f"{table}#row={row}" for row in range(3)],
        shard: [f"{shard}#one.jpg", f"{shard}#deep/two.jpg"],
        "playground:7?n=2": ["playground:7#0", "playground:7#1"],
    }
    for place, expected in places.items():
        source = open_source(place)
        assert [source.uri(row) for row in range(len(source))] == expected
    merged = open_source(list(places))
    assert [merged.uri(row) for row in range(len(merged))] == [uri for uris in places.values() for uri in uris]
    assert open_source(f"{table}?crops=1&image=2").uri(0) == f"{table}#row=2"


def test_an_address_is_text_whatever_the_file_is_called(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9\n.jpg")).write_bytes(b"1")
    uri = open_source(str(tmp_path)).uri(0)
    assert uri.encode()
    assert uri.isprintable()


def test_an_address_behind_a_url_is_a_url(tmp_path):
    write_files(tmp_path, "a/1.jpg")
    source = open_source(f"file://{tmp_path}")
    assert source.uri(0) == f"file://{tmp_path}/a/1.jpg"


def test_images_of_one_source_that_are_among_those_of_another_are_counted(tmp_path):
    write_files(tmp_path, "set/a/1.jpg", "set/a/2.jpg", "set/b/3.jpg", "other/1.jpg")
    whole, part = open_source(str(tmp_path / "set")), open_source(str(tmp_path / "set/a"))
    assert images_in_both(part, whole) == images_in_both(whole, part) == 2
    assert images_in_both(part, open_source(str(tmp_path / "other"))) == 0  # equal names elsewhere
    chosen = open_source([f"{tmp_path}/set?crops=4&image=1", "playground:3?n=5"])  # four views of one image
    assert images_in_both(part, chosen) == 1
    assert images_in_both(open_source("playground:3?n=9"), chosen) == 5
