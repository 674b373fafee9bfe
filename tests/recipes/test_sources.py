"""A run on several places at once, one of them damaged, and a second start of it."""

import itertools
import json

import fsspec
import pytest

from attar.cli import main
from shards import sample, write_tar
from small_runs import distill_words, picture, write_pictures


def png(tmp_path, seed):
    picture(seed).save(tmp_path / "one.png")
    return (tmp_path / "one.png").read_bytes()


def test_a_damaged_shard_is_said_and_written_down_once(tmp_path, capsys):
    write_pictures(tmp_path / "images")
    for number in (0, 1):
        samples = [sample(f"{n}", n % 2, png(tmp_path, n), ending="png") for n in range(4)]
        write_tar(tmp_path / f"shards/x-{number}.tar", itertools.chain(*samples))
    shard = tmp_path / "shards/x-1.tar"
    shard.write_bytes(shard.read_bytes()[: 3 * 512 + 2048])
    words = distill_words(tmp_path, "--data", str(tmp_path / "images"), f"{tmp_path}/shards?weight=2")
    assert main(words) == 2  # twice three images of 28
    said = capsys.readouterr().err
    assert "about 6 of 28 images are lost in 1 damaged shards, more than the limit of 1" in said
    assert f"{shard}: passed over from byte" in said
    assert not (tmp_path / "out/run.json").exists()
    for _ in range(2):
        assert main([*words, "--max-bad-share", "0.3"]) == 0
        assert f"{shard}: passed over from byte" in capsys.readouterr().out
    (line,) = (tmp_path / "out/bad_files.jsonl").read_text().splitlines()
    assert (json.loads(line)["path"], json.loads(line)["lost"]) == (str(shard), 6)
    about = json.loads((tmp_path / "out/about.json").read_text())
    assert about["images"].startswith(f"{12 + 2 * 5},")


@pytest.mark.parametrize(
    ("data", "monitor", "is_held_out"),
    [
        (["all/train"], "all", True),  # neighbours are trained on, the images in question are not
        (["all/train"], "all/train", False),
        (["all/train?images=0.5"], "all/train", False),
        (["other", "all/train?weight=2"], "all/train?images=0.9", False),
        (["other"], "all/train", True),
        (["all"], "all", False),  # trained on all of it, monitored by a part of it
    ],
)
def test_a_monitor_on_images_trained_on_says_so(data, monitor, is_held_out, tmp_path, capsys):
    for folder in ("all/train/cat", "all/train/dog", "all/val/cat", "all/val/dog", "other"):
        write_pictures(tmp_path / folder)  # under equal names everywhere
    places = [str(tmp_path / place) for place in data]
    assert main(distill_words(tmp_path, "--data", *places, "--monitor", str(tmp_path / monitor))) == 0
    warning = "lie where those trained on do"
    assert (warning in capsys.readouterr().out) is not is_held_out
    for file in ("report.html", "student/README.md"):
        assert (warning in (tmp_path / "out" / file).read_text()) is not is_held_out
    for role in ("student", "teacher", "random"):
        assert json.loads((tmp_path / f"out/results/knn-{role}.json").read_text())["held_out"] is is_held_out


def test_console_card_and_page_name_each_place_with_count_and_weight(tmp_path, capsys):
    write_pictures(tmp_path / "images")
    address = "memory://me:secret@there/more"
    for name in ("cat", "dog"):
        write_pictures(tmp_path / name, 5)
        fsspec.filesystem("memory").put(str(tmp_path / name), f"{address}/{name}", recursive=True)
    places = [str(tmp_path / "images"), f"{address}?weight=2"]
    assert main(distill_words(tmp_path, "--data", *places, "--monitor", address)) == 0
    said = capsys.readouterr().out
    first, second = f"{places[0]}: 12 images", "memory://there/more?weight=2: 10 images x 2"
    assert "  data     32 images of 2 places    plan  2 steps" in said
    assert f"\n           {first}\n           {second}\n" in said
    for name in ("student/README.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert f"{first}; {second}" in text
        assert "memory://there/more: 6 known images, 2 to select by, 2 to report on" in text
    assert "monitor: memory://there/more\n" in text  # among the page's settings
    written = [path for path in tmp_path.rglob("out/**/*") if path.is_file()]
    keeps = {path.name for path in written if b"secret" in path.read_bytes()}
    assert keeps <= {"config.yaml", "run.json"}
    assert "secret" not in said
