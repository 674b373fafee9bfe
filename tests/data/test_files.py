"""What a user's word names: one file, a pattern, a folder of shards, here or behind a URL; and never a password."""

import errno

import pytest

from attar.data.files import File, expand_braces, find_files, without_credentials
from attar.data.sources import open_source
from attar.errors import DataError, DecodeError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return str(folder)


# --- patterns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x", ["x"]),
        ("x-{000..002}.tar", ["x-000.tar", "x-001.tar", "x-002.tar"]),
        ("x-{8..11}.tar", ["x-8.tar", "x-9.tar", "x-10.tar", "x-11.tar"]),
        ("x-{08..11}", ["x-08", "x-09", "x-10", "x-11"]),
        ("x-{7..7}", ["x-7"]),
        ("{b,a}/{1..2}", ["b/1", "b/2", "a/1", "a/2"]),
        ("s3://bucket/{train,}x", ["s3://bucket/trainx", "s3://bucket/x"]),
    ],
)
def test_braces_stand_for_names_in_order(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x-{0..}", r"\{0\.\.\} must be a span"),
        ("x-{}", "must be a span"),
        ("x-{a..c}", "must be a span"),
        ("x-{5..3}", "must count up"),
        ("x-{0..100000}", "must count up, to 100,000"),
        ("{0..999}{0..999}", "more than 100,000"),
    ],
)
def test_other_braces_are_an_error(pattern, message):
    with pytest.raises(DataError, match=message):
        expand_braces(pattern)


def test_a_folder_with_braces_in_its_name_stays_a_folder(tmp_path):
    touch(tmp_path / "{a,b}", "1.jpg")
    assert find_files(str(tmp_path / "{a,b}")) is None
    assert len(open_source(str(tmp_path / "{a,b}"))) == 1


# --- folders --------------------------------------------------------------------------------------------------------


def found(place):
    files = find_files(str(place))
    return None if files is None else [file.name for file in files]


def test_a_folder_of_shards_is_told_from_a_folder_of_images(tmp_path):
    assert found(touch(tmp_path / "tars", "b.tar", "a.tar", "10.tar", "README.md", ".hidden.tar")) == [
        *("10.tar", "a.tar", "b.tar")
    ]
    assert found(touch(tmp_path / "spark.parquet", "part-1.parquet", "part-0.parquet", "_SUCCESS")) == [
        *("part-0.parquet", "part-1.parquet")
    ]
    assert found(touch(tmp_path / "images beside", "a.tar", "1.jpg")) is None
    assert found(touch(tmp_path / "folders beside", "a.tar", "cat/1.jpg")) is None
    assert found(touch(tmp_path / "nothing known", "a.txt")) is None


def test_shards_of_several_splits_are_not_merged_by_accident(tmp_path):
    """Training on the test images would go unnoticed."""
    touch(tmp_path, "train-00.parquet", "train-01.parquet", "test-00.parquet")
    with pytest.raises(DataError, match=r"several splits \(train, test\).* train-\{000\.\.012\}\.parquet"):
        find_files(str(tmp_path))
    assert found(f"{tmp_path}/train-{{00..01}}.parquet") == ["train-00.parquet", "train-01.parquet"]


def test_tar_and_parquet_do_not_mix(tmp_path):
    touch(tmp_path, "a.tar", "a.parquet")
    for place in (str(tmp_path), f"{tmp_path}/a.{{tar,parquet}}"):
        with pytest.raises(DataError, match="several kinds"):
            find_files(place)


# --- URLs -----------------------------------------------------------------------------------------------------------


def test_urls_name_files_patterns_and_folders(memory):
    for path in ("/d/x-0.tar", "/d/x-1.tar", "/i/cat/1.jpg"):
        memory.pipe(path, b"x")
    assert [file.address for file in find_files("memory://d/x-0.tar")] == ["memory://d/x-0.tar"]
    assert found("memory://d/x-{0..1}.tar") == found("memory://d") == found("memory://d/") == ["x-0.tar", "x-1.tar"]
    assert find_files("memory://i") is None
    assert found("https://host/x.tar?signature=a/b.jpg") == ["x.tar"]  # nothing is fetched yet


def test_a_file_behind_a_url_is_read_in_parts(memory):
    memory.pipe("/x.bin", bytes(range(100)))
    file = File("memory://x.bin")
    assert file.read(3, 7, name="n") == bytes([3, 4, 5, 6])
    assert file.read(name="n") == bytes(range(100))
    with pytest.raises(DecodeError, match=r"^n: cut short, 2 bytes in place of 4"):
        file.read(98, 102, name="n")
    before = file.stamp()
    assert before == file.stamp()
    memory.pipe("/x.bin", bytes(range(99, -1, -1)))
    assert before != file.stamp()


def test_what_cannot_be_reached_is_an_error_of_ours(memory):
    with pytest.raises(DataError, match=r"^memory://x\.tar does not exist or cannot be reached"):
        open_source("memory://x.tar")
    with pytest.raises(DataError, match=r"^memory://nowhere/ does not exist"):
        open_source("memory://nowhere/")
    with pytest.raises(DataError, match=r"nosuch://x\.tar: cannot be read \(ValueError: Protocol not known"):
        open_source("nosuch://x.tar")
    with pytest.raises(DecodeError, match=r"^n: cannot be read"):
        File("memory://gone.jpg").read(name="n")


def test_a_full_disk_is_not_blamed_on_the_file_that_is_read(tmp_path):
    touch(tmp_path, "x")
    with pytest.raises(OSError, match="No space"), File(str(tmp_path / "x")).open():
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_protocol_whose_package_is_missing_is_an_error_that_names_it():
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"s3://bucket/x\.tar needs a package .* s3fs"):
            open_source("s3://bucket/x.tar")
    else:
        pytest.skip("s3fs is installed")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/a.tar", "s3://bucket/a.tar"),
        ("https://host/a.tar?X-Amz-Signature=secret&e=1", "https://host/a.tar"),
        ("https://secret@host/a@b.tar#secret", "https://host/a@b.tar"),
        ("404, url='https://u:secret@host/a?k=secret' failed", "404, url='https://host/a' failed"),
        ("simplecache::https://u:secret@host/a", "simplecache::https://host/a"),
        ("/a folder/what?/x@y.tar", "/a folder/what?/x@y.tar"),
    ],
)
def test_credentials_are_not_shown(text, shown):
    assert without_credentials(text) == shown
    assert "secret" not in str(File(text))


def test_credentials_are_in_no_error(memory):
    with pytest.raises(DataError) as caught:
        open_source("memory://user:secret@x.tar")
    assert "secret" not in str(caught.value)
