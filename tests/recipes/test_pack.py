"""`attar data pack` from folder to training: what it leaves, that it goes on, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import attar
from attar import PackConfig, cli
from attar.data.decode import open_image
from attar.data.pack import shard_name
from attar.data.sources import open_source
from attar.errors import ConfigError, DataError, Interrupted, RunDirectoryError
from small_runs import distill_words, picture


def write_photos(folder: Path, count: int = 10, broken: tuple[int, ...] = ()) -> Path:
    for number in range(count):
        path = folder / f"class-{number % 3}" / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in broken:
            path.write_bytes(b"no image")
        else:
            picture(number, (90, 60)).save(path)
    return folder


def config(folder: Path, **changes: object) -> PackConfig:
    settings = {"data": str(folder / "photos"), "out": str(folder / "packed"), "short_side": 32, "shard_size": 4}
    return PackConfig.build({**settings, "workers": 0, **changes})


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_what_is_packed_is_a_place_like_any_other(tmp_path, capsys):
    write_photos(tmp_path / "photos", broken=(4,))
    report = attar.pack(config(tmp_path, max_bad_share=0.2))
    said = capsys.readouterr().out
    assert (report.images, report.unreadable, len(tars(report.out))) == (9, 1, 3)
    assert f"--data {report.out}" in said
    assert "1 more could not be read" in said
    assert "remove their shard, such as images-000001.tar" in said
    assert "9 encoded anew, 0 copied as they are" in said
    (bad,) = [json.loads(line) for line in (report.out / "bad_files.jsonl").read_text().splitlines()]
    assert (bad["path"], bad["sample"]) == ("class-1/004.jpg", 5)
    source = open_source(str(report.out))
    assert [open_image(source.read(row), name="x").size for row in range(9)] == [(48, 32)] * 9
    labels, names = source.labels()
    assert names == ["class-0", "class-1", "class-2"]
    assert [source.name(row).split("/")[1] for row in range(9)] == [names[label] for label in labels]
    assert cli.main([*distill_words(tmp_path), "--data", str(report.out)]) == 0


def test_it_goes_on_with_the_shards_that_are_missing(tmp_path, monkeypatch, capsys):
    write_photos(tmp_path / "photos")
    whole = tars(attar.pack(config(tmp_path, out=str(tmp_path / "whole"))).out)
    seen: list[int] = []

    def stop(doing: str) -> None:
        seen.extend([1] if doing == "packing" else [])
        if len(seen) == 6:  # images, of four in a shard
            raise Interrupted(2, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr("attar.utils.progress.stop_if_requested", stop)
        with pytest.raises(Interrupted):
            attar.pack(config(tmp_path))
    packed = tmp_path / "packed"
    assert tars(packed) == {name: whole[name] for name in list(whole)[:1]}
    with pytest.raises(DataError, match="not packed to its end"):
        open_source(str(packed))
    first = (packed / shard_name(0)).stat().st_mtime_ns
    assert attar.pack(config(tmp_path)).images == 10
    assert (packed / shard_name(0)).stat().st_mtime_ns == first
    assert tars(packed) == whole
    capsys.readouterr()
    assert attar.pack(config(tmp_path)).images == 10
    assert "all done before" in capsys.readouterr().out


def test_a_shard_that_was_removed_is_made_again(tmp_path):
    write_photos(tmp_path / "photos")
    out = attar.pack(config(tmp_path)).out
    whole = tars(out)
    (out / shard_name(1)).unlink()
    assert attar.pack(config(tmp_path)).images == 10
    assert tars(out) == whole


def test_other_images_or_settings_are_refused(tmp_path):
    write_photos(tmp_path / "photos")
    attar.pack(config(tmp_path))
    with pytest.raises(RunDirectoryError, match="short_side was 32, now 40"):
        attar.pack(config(tmp_path, short_side=40))
    shutil.copy(tmp_path / "photos/class-0/000.jpg", tmp_path / "photos/class-0/999.jpg")
    with pytest.raises(RunDirectoryError, match="count was 10, now 11"):
        attar.pack(config(tmp_path, reindex=True))


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    write_photos(tmp_path / "photos")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/mine.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="not empty"):
        attar.pack(config(tmp_path))
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["mine.txt"]


def test_too_many_unreadable_images_stop_it(tmp_path):
    write_photos(tmp_path / "photos", broken=(1, 2, 3))
    with pytest.raises(DataError, match=r"2 of 10 images cannot be read, more than the limit of 1"):
        attar.pack(config(tmp_path))


def test_repeating_the_command_is_no_way_past_the_limit(tmp_path):
    photos = write_photos(tmp_path / "photos", broken=(1, 2, 3))
    for _ in range(4):
        with pytest.raises(DataError, match="more than the limit of 1"):
            attar.pack(config(tmp_path))
    for number in (1, 2):
        picture(number, (90, 60)).save(photos / f"class-{number % 3}/{number:03}.jpg")  # mended in place
    assert attar.pack(config(tmp_path)).unreadable == 1


def test_settings_may_change_while_nothing_is_packed(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos")
    with monkeypatch.context() as patch:
        patch.setattr("attar.recipes.pack.free_at", lambda out: 1000)
        with pytest.raises(RunDirectoryError, match="Try a smaller --short-side"):
            attar.pack(config(tmp_path))
    assert attar.pack(config(tmp_path, short_side=24)).images == 10


def test_what_a_killed_process_left_is_removed(tmp_path):
    write_photos(tmp_path / "photos")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/.images-000001.tar.o3r5_6b5.part").write_bytes(b"half")
    out = attar.pack(config(tmp_path)).out
    assert [path.name for path in out.glob(".*")] == []


def test_a_mended_image_is_tried_again_when_its_shard_is_removed(tmp_path):
    photos = write_photos(tmp_path / "photos", broken=(0, 8))
    out = attar.pack(config(tmp_path, max_bad_share=0.5)).out
    for number in (0, 8):
        picture(number, (90, 60)).save(photos / f"class-{number % 3}/{number:03}.jpg")
    (out / shard_name(0)).unlink()
    assert attar.pack(config(tmp_path, max_bad_share=0.5)).unreadable == 1
    (bad,) = [json.loads(line) for line in (out / "bad_files.jsonl").read_text().splitlines()]
    assert bad["path"] == "class-2/008.jpg"


def test_a_copy_that_is_not_whole_is_refused(tmp_path):
    write_photos(tmp_path / "photos")
    out = attar.pack(config(tmp_path)).out
    assert len(open_source(str(out / "images-{000000..000001}.tar"))) == 8  # a choice
    (out / shard_name(2)).unlink()
    with pytest.raises(DataError, match="holds 2 of 3 packed shards"):
        open_source(str(out))
    (out / "attar-pack.json").unlink()
    assert len(open_source(str(out))) == 8


def test_images_beside_packed_shards_are_told(tmp_path):
    write_photos(tmp_path / "photos")
    out = attar.pack(config(tmp_path)).out
    picture().save(out / "thumbnail.png")
    with pytest.raises(DataError, match="other images or folders beside their shards"):
        open_source(str(out))


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("s3://key:secret@bucket/x", r"--out s3://bucket/x is a URL"),
        ("photos", "lies in --data"),
        ("photos/deep/packed", "lies in --data"),
    ],
)
def test_a_place_that_shards_cannot_lie_in_is_refused_before_anything_is_made(tmp_path, out, says):
    write_photos(tmp_path / "photos")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=says):
        attar.pack(config(tmp_path, out=out if "//" in out else str(tmp_path / out)))
    with pytest.raises(DataError, match="does not exist"):
        attar.pack(config(tmp_path, data=str(tmp_path / "nowhere")))
    assert sorted(tmp_path.rglob("*")) == before


def test_several_places_keep_their_names_and_classes(tmp_path, capsys):
    write_photos(tmp_path / "photos", 4)
    write_photos(tmp_path / "more", 7)
    report = attar.pack(config(tmp_path, data=[str(tmp_path / "photos"), str(tmp_path / "more")]))
    assert "11 images of 3 classes" in capsys.readouterr().out
    source = open_source(str(report.out))
    assert source.name(0) == "images-000000.tar/photos/class-0/000.jpg/000000000.jpg"
    assert source.labels()[1] == ["class-0", "class-1", "class-2"]
    (tmp_path / "more/loose.png").write_bytes((tmp_path / "more/class-0/000.jpg").read_bytes())
    unlabelled = attar.pack(config(tmp_path, data=str(tmp_path / "more"), out=str(tmp_path / "other"), reindex=True))
    assert "8 images without classes" in capsys.readouterr().out
    assert open_source(str(unlabelled.out)).labels() is None


def test_a_disk_that_is_too_small_is_told_before(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos")
    monkeypatch.setattr("attar.recipes.pack.free_at", lambda out: 1000)
    with pytest.raises(RunDirectoryError, match=r"1\.0 kB are free"):
        attar.pack(config(tmp_path))
    assert not tars(tmp_path / "packed")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["data"], 0, "attar data pack --help"),
        (["data", "--help"], 0, "attar data pack --help"),
        (["data", "unpack"], 2, "no verb 'data unpack'. Did you mean 'pack'?"),
        (["data", "pack", "--print-config", "--data", "x", "--out", "y"], 0, "short_side: 256"),
    ],
)
def test_the_command_line(words, code, said, capsys):
    assert cli.main(words) == code
    assert said in "".join(capsys.readouterr())
