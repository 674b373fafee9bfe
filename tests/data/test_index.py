"""The index of a folder: the right files in the right order, and never an old answer for a changed folder."""

import os
import pickle
import random
import socket
import sys
from pathlib import Path

import pytest

import attar.data.mapped as mapped_module
from attar.data.index import IMAGE_SUFFIXES, folder_index, printable
from attar.errors import DataError
from attar.utils.io import cache_dir

LONG_AGO = 1_600_000_000
_listings = None


def _watch(event, arguments):
    if _listings is not None and event in ("os.scandir", "os.listdir"):
        _listings.append(arguments[0])


sys.addaudithook(_watch)  # cannot be taken off again, so it sleeps outside `listed_folders`


def listed_folders(root, call):
    """Folders below `root` whose entries `call` lists, and what it returns."""
    global _listings
    _listings = []
    try:
        result = call()
        inside = [Path(folder) for folder in _listings if isinstance(folder, str)]
        return sorted(str(folder.relative_to(root)) for folder in inside if folder.is_relative_to(root)), result
    finally:
        _listings = None


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own, away from the images."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ATTAR_CACHE", str(folder))
    return folder


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def age(root):
    """Give every folder an old time: what a data set looks like that nobody is writing to."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (LONG_AGO, LONG_AGO))


def names(index):
    return [index.name(row) for row in range(len(index.paths))]


# --- what is in it --------------------------------------------------------------------------------------------------


def test_images_at_any_depth_the_folders_own_first(tmp_path):
    touch(tmp_path, "b/z.jpg", "b/a/deep/er/x.png", "a/2.jpg", "a/10.jpg", "z.jpg", "B/q.webp")
    assert names(folder_index(tmp_path)) == [
        *("z.jpg", "B/q.webp", "a/10.jpg", "a/2.jpg", "b/z.jpg", "b/a/deep/er/x.png"),
    ]


def test_order_and_fingerprint_do_not_depend_on_who_was_made_first(tmp_path):
    files = [f"{folder}/{number:02}.jpg" for folder in "cab" for number in range(20)]
    indexes = []
    for seed in range(3):
        random.Random(seed).shuffle(files)
        touch(tmp_path / str(seed), *files)
        indexes.append(folder_index(tmp_path / str(seed)))
    assert names(indexes[0]) == sorted(files)
    assert names(indexes[0]) == names(indexes[1]) == names(indexes[2])
    assert len({index.fingerprint for index in indexes}) == 1  # over relative paths: the same at any place


def test_fingerprint_tells_other_names_and_other_boundaries(tmp_path):
    for place, files in {
        "1": ["a/b.jpg", "c.jpg"],
        "2": ["a/b.jpg", "d.jpg"],
        "3": ["c.jpga/b.jpg"],
        "4": ["b.jpg"],
    }.items():
        touch(tmp_path / place, *files)
    assert len({folder_index(tmp_path / place).fingerprint for place in "1234"}) == 4


def test_more_rows_than_fit_one_arrow_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_module, "_ROWS", 3)
    files = [f"{folder}/{number}.jpg" for folder in "abcd" for number in range(4)]
    touch(tmp_path, *files)
    index = folder_index(tmp_path)
    assert index.paths.num_chunks == 6
    assert names(index) == files
    assert [index.file(row).address for row in (0, 15)] == [str(tmp_path / "a/0.jpg"), str(tmp_path / "d/3.jpg")]


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path):
    touch(tmp_path, "1.jpg", "2.JPEG", "a/3.TiF", ".4.jpg", "a/.DS_Store", "notes.txt", "a/jpg", "b/c.jpg.part")
    touch(tmp_path, ".git/5.jpg", ".git/config", "a/.thumbnails/6.jpg")  # not entered, so not counted
    index = folder_index(tmp_path)
    assert names(index) == ["1.jpg", "2.JPEG", "a/3.TiF"]
    assert index.ignored == 5


def test_every_known_ending_counts_and_a_folder_may_have_one_too(tmp_path):
    touch(tmp_path, *(f"x{suffix}" for suffix in IMAGE_SUFFIXES), "album.jpg/y.png")
    assert len(folder_index(tmp_path).paths) == len(IMAGE_SUFFIXES) + 1


def test_links_are_followed_and_a_loop_ends(tmp_path):
    touch(tmp_path / "images", "a/1.jpg")
    touch(tmp_path, "elsewhere/2.jpg")
    (tmp_path / "images/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/up").symlink_to(tmp_path / "images")
    (tmp_path / "images/a/top").symlink_to(tmp_path / "images/a")
    (tmp_path / "images/c.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    assert names(folder_index(tmp_path / "images")) == ["c.jpg", "a/1.jpg", "b/2.jpg"]


def test_a_folder_that_is_a_link_shares_the_index_of_its_target(tmp_path):
    touch(tmp_path / "images", "1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert folder_index(tmp_path / "link").root == str(tmp_path / "images")


def test_links_to_nothing_and_to_themselves_do_no_harm(tmp_path):
    touch(tmp_path, "1.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")  # keeps its row: reading it tells what is wrong
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    index = folder_index(tmp_path)
    assert names(index) == ["1.jpg", "gone.jpg"]
    assert index.ignored == 2


def test_pipes_and_sockets_named_like_images_are_left_out(tmp_path, monkeypatch):
    touch(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait for ever
    monkeypatch.chdir(tmp_path)  # a socket's whole path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        index = folder_index(tmp_path)
    assert names(index) == ["1.jpg"]
    assert index.ignored == 2


ODD_NAMES = {
    b"two  spaces .jpg": "two  spaces .jpg",
    "größe 写真 🌹.jpg".encode(): "größe 写真 🌹.jpg",
    b"line\nbreak.jpg": "line\\nbreak.jpg",
    b"\x1b[31mred.jpg": "\\x1b[31mred.jpg",
    b"latin-1 \xe9t\xe9.jpg": "latin-1 \\udce9t\\udce9.jpg",
    b"%41[bold]{x}'\".jpg": "%41[bold]{x}'\".jpg",
    b"back\\slash.jpg": "back\\slash.jpg",
}


def test_odd_names_can_be_read_and_printed(tmp_path):
    for number, name in enumerate(ODD_NAMES):
        path = os.path.join(os.fsencode(tmp_path), name)
        try:
            with open(path, "wb") as file:
                file.write(bytes([number]))
        except OSError:
            pytest.skip("this file system allows UTF-8 names only")
    index = folder_index(tmp_path)
    assert sorted(names(index)) == sorted(ODD_NAMES.values())
    assert {index.file(row).read(name="x")[0] for row in range(len(ODD_NAMES))} == set(range(len(ODD_NAMES)))
    "".join(names(index)).encode()  # what a terminal or a log file does with them
    assert names(folder_index(tmp_path)) == names(index)


def test_a_root_with_an_odd_name_works(tmp_path):
    root = tmp_path / "línea\n1"
    touch(root, "é/1.jpg")
    age(root)
    assert names(folder_index(root)) == names(folder_index(root)) == ["é/1.jpg"]


def test_printable_keeps_ordinary_text():
    assert printable("a b/é 写.jpg".encode()) == "a b/é 写.jpg"


# --- when it is made anew -------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    touch(tmp_path, "top.jpg", "a/1.jpg", "a/2.jpg", "a/deep/3.jpg", "b/4.jpg")
    age(tmp_path)
    return tmp_path


def test_an_unchanged_folder_is_not_listed_again(images):
    first_listed, first = listed_folders(images, lambda: folder_index(images))
    assert first_listed == [".", "a", "a/deep", "b"]
    again_listed, again = listed_folders(images, lambda: folder_index(images))
    assert again_listed == []
    assert (names(again), again.fingerprint, again.ignored) == (names(first), first.fingerprint, first.ignored)


def test_an_unchanged_folder_without_images_is_not_listed_again(tmp_path):
    touch(tmp_path, "notes.txt")
    age(tmp_path)

    def fail():
        with pytest.raises(DataError, match="holds no image"):
            folder_index(tmp_path)

    assert [listed_folders(tmp_path, fail)[0] for _ in range(2)] == [["."], []]


def test_reindex_lists_in_any_case(images):
    folder_index(images)
    assert len(listed_folders(images, lambda: folder_index(images, reindex=True))[0]) == 4


CHANGES = {
    "a file comes": (lambda root: touch(root, "a/deep/0.jpg"), "a/deep", ["a/deep/0.jpg", "a/deep/3.jpg"]),
    "a file goes": (lambda root: (root / "a/1.jpg").unlink(), "a", ["a/2.jpg"]),
    "a file is renamed": (lambda root: (root / "b/4.jpg").rename(root / "b/5.jpg"), "b", ["b/5.jpg"]),
    "a folder comes": (lambda root: touch(root, "a/new/9.jpg"), "a/new", ["a/new/9.jpg"]),
    "a folder is renamed": (lambda root: (root / "b").rename(root / "c"), "c", ["c/4.jpg"]),
    "a folder goes": (lambda root: [(root / "b/4.jpg").unlink(), (root / "b").rmdir()], "b", []),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(images, change):
    act, folder, expected = CHANGES[change]
    before = folder_index(images)
    act(images)
    after = folder_index(images)
    assert [name for name in names(after) if name.rpartition("/")[0] == folder] == expected
    assert after.fingerprint != before.fingerprint


def test_a_change_is_noticed_though_the_folder_gets_its_old_time_back(images):
    # as when a second archive is unpacked into the folder, or by rsync --times
    folder_index(images)
    touch(images, "a/0.jpg")
    os.utime(images / "a", (LONG_AGO, LONG_AGO))
    assert "a/0.jpg" in names(folder_index(images))


def test_a_folder_written_to_just_now_is_listed_again(images):
    # a file that comes within the same tick of the clock leaves no trace in the time
    os.utime(images / "a")
    folder_index(images)
    assert len(listed_folders(images, lambda: folder_index(images))[0]) == 4
    os.utime(images / "a", (LONG_AGO, LONG_AGO))
    folder_index(images)
    assert listed_folders(images, lambda: folder_index(images))[0] == []


# --- the cache ------------------------------------------------------------------------------------------------------


def test_the_cache_lies_in_attar_cache_and_images_stay_alone(images, cache):
    before = sorted(images.rglob("*"))
    folder_index(images)
    assert cache_dir() == cache
    made = [path for path in cache.rglob("*") if path.is_file()]
    assert sorted(path.name for path in made) == ["about.json", "folders.arrow", "paths.arrow"]
    assert sorted(images.rglob("*")) == before


def test_two_folders_do_not_share_a_cache(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    assert names(folder_index(tmp_path / "a")) == ["1.jpg"]
    assert names(folder_index(tmp_path / "b")) == ["2.jpg"]
    assert names(folder_index(tmp_path / "a")) == ["1.jpg"]


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    at = data.index(b"top.jpg") if b"top.jpg" in data else len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("file", ["about.json", "folders.arrow", "paths.arrow"])
@pytest.mark.parametrize("damage", [cut, flip, lambda data: b"", lambda data: b"{}", None])
def test_a_damaged_cache_is_made_anew(images, cache, file, damage):
    expected = names(folder_index(images))
    (path,) = cache.rglob(file)
    data = path.read_bytes()
    path.unlink()  # not written over: that file may still be mapped into memory
    if damage is not None:
        path.write_bytes(damage(data))
    index = folder_index(images)
    assert names(index) == expected
    assert index.file(0).read(name="x")
    assert listed_folders(images, lambda: folder_index(images))[0] == []  # and it is sound again


def test_a_worker_gets_the_same_rows_whatever_happens_to_the_folder(images):
    index = folder_index(images)
    data = pickle.dumps(index)
    assert len(data) < 1000  # the path, not the paths
    touch(images, "a/0.jpg")
    listed, again = listed_folders(images, lambda: pickle.loads(data))
    assert listed == []
    assert names(again) == names(index)
    folder_index(images)  # another start lists the folder anew
    with pytest.raises(DataError, match="indexed anew"):
        pickle.loads(data)


# --- what cannot be indexed -----------------------------------------------------------------------------------------


def test_a_folder_without_images_is_an_error_that_counts_the_rest(tmp_path):
    touch(tmp_path, "a/notes.txt", "b.csv")
    with pytest.raises(DataError, match=r"holds no image \(2 other files\).*\.jpeg, \.jpg"):
        folder_index(tmp_path)
    touch(tmp_path, "a/1.jpg")
    assert names(folder_index(tmp_path)) == ["a/1.jpg"]


def test_a_missing_folder_names_the_nearest_that_exists(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError) as caught:
        folder_index(tmp_path / "data" / "imagenet" / "train")
    assert str(caught.value) == (
        f"image folder {tmp_path}/data/imagenet/train does not exist. The nearest folder that does is {tmp_path}/data."
    )
    (tmp_path / "data" / "imagenet_1000").mkdir()
    with pytest.raises(DataError, match=r"imagenet_100 does not exist. Did you mean 'imagenet_1000'\?"):
        folder_index(tmp_path / "data" / "imagenet_100")


@pytest.mark.parametrize("name", ["x" * 300, "nul\0byte", "~nobody-has-this-home/images", "loop"])
def test_a_path_that_cannot_be_looked_at_is_an_error_of_ours(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError):
        folder_index(Path(name))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may list any folder")
def test_a_folder_that_may_not_be_listed_is_an_error(images):
    (images / "b").chmod(0)
    try:
        with pytest.raises(DataError, match=r"b cannot be listed: Permission denied"):
            folder_index(images)
    finally:
        (images / "b").chmod(0o755)
