"""Check (f): killed and restarted, on two ranks or with Ray, the same rows; and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import attar
from attar.curation.pool import shard_name
from attar.errors import ConfigError, DataError, RunDirectoryError
from small_runs import MODEL, attar_process, environment, write_pictures

IMAGES = 230
SETTINGS = {"model": MODEL, "weights": "random", "img_size": 32, "data": f"playground:0?n={IMAGES}"}
SETTINGS |= {"device": "cpu", "workers": 0, "batch_size": 16, "shard_size": 50}


def config(out: Path, **changes: object) -> attar.EmbedConfig:
    return attar.EmbedConfig.build({**SETTINGS, "out": str(out), **changes})


def words(out: Path, **changes: object) -> list[str]:
    flags = {**SETTINGS, "out": out, **changes}
    return ["embed", *(word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value)))]


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.parquet"))}


def vectors(folder: Path) -> np.ndarray:
    return np.concatenate([block.float().numpy() for _, block in attar.Pool.open(folder).blocks()])


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> attar.Pool:
    return attar.embed(config(tmp_path_factory.mktemp("pool") / "whole"))


def test_a_pool_says_what_it_holds(pool: attar.Pool) -> None:
    said = pool.manifest
    assert (said.count, said.width, said.unreadable, len(said.shards)) == (IMAGES, 32, 0, 5)
    assert (said.model.reference, said.model.weights, said.view.crop_pct, said.precision) == (
        MODEL,
        "random",
        1,
        "fp32",
    )
    assert said.places == (f"playground:0?n={IMAGES}",)
    assert {"attar", "torch", "timm"} <= set(said.versions)
    assert pool.source().name(IMAGES - 1) == pool.ids([IMAGES - 1])[0]
    assert np.allclose(np.linalg.norm(vectors(pool.folder), axis=1), 1, atol=1e-3)


def test_the_same_command_does_nothing_again(pool: attar.Pool) -> None:
    before = {p: p.stat().st_mtime_ns for p in pool.folder.iterdir() if p.name != "log.txt"}
    assert attar.embed(config(pool.folder)).fingerprint == pool.fingerprint
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(before) == 7  # shards, plan, manifest


def test_a_shard_that_was_lost_is_made_again(pool: attar.Pool) -> None:
    before, manifest = shards(pool.folder), (pool.folder / "manifest.json").read_bytes()
    (pool.folder / shard_name(3)).unlink()
    attar.embed(config(pool.folder))
    assert shards(pool.folder) == before
    assert (pool.folder / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": 40}, "img_size was 32, now 40"),
        ({"crop_pct": 0.875}, r"view.crop_pct was 1.0, now 0.875"),
        ({"seed": 1}, "model.seed was 0, now 1"),
        ({"shard_size": 40}, "shard_size was 50, now 40"),
        ({"batch_size": 15}, "batch_size was 16, now 15"),
        ({"data": "playground:0?n=220"}, "count was 230, now 220"),
    ],
)
def test_vectors_made_otherwise_do_not_enter_the_pool(pool: attar.Pool, change: dict, message: str) -> None:
    with pytest.raises(RunDirectoryError, match=message) as told:
        attar.embed(config(pool.folder, **change))
    assert ("fingerprint" in str(told.value)) == ("fingerprint" in message)  # only where no setting tells why
    assert attar.Pool.open(pool.folder).fingerprint == pool.fingerprint


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="is not empty and holds no pool"):
        attar.embed(config(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_unreadable_images_are_counted_written_down_and_limited(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 12)
    for number in (3, 7):
        (images / f"{number:03}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 of 12 images cannot be read, more than --max-bad-share 0\.1 allows"):
        attar.embed(config(tmp_path / "out", data=str(images), max_bad_share=0.1, shard_size=5))
    pool = attar.embed(config(tmp_path / "out", data=str(images), max_bad_share=0.2, shard_size=5))
    assert pool.manifest.unreadable == 2
    assert not pool.vectors([3, 7]).any()
    assert pool.ids([3, 7]) == ["003.png", "007.png"]
    assert pool.uris([3]) == [str(images / "003.png")]
    lines = [json.loads(line) for line in (tmp_path / "out/bad_files.jsonl").read_text().splitlines()]
    assert [(line["sample"], line["path"]) for line in lines] == [(3, "003.png"), (7, "007.png")]


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two images are called playground:0\[0\]"):
        attar.embed(config(tmp_path, data=["playground:0?n=20", "playground:0?n=30"]))
    with pytest.raises(DataError, match="Leave weight and crops out"):
        attar.embed(config(tmp_path, data="playground:0?n=20&weight=2"))
    assert len(attar.embed(config(tmp_path, data="playground:0?n=20"))) == 20  # a refusal leaves the folder free


def test_several_places_are_one_pool_that_opens_again_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "images", 12)
    monkeypatch.chdir(tmp_path)
    pool = attar.embed(config(tmp_path / "out", data=["images", "playground:0?n=5"]))
    monkeypatch.chdir("/")
    source = pool.source()
    assert pool.ids(range(17)) == [source.name(row) for row in range(17)]
    assert pool.ids([3, 14]) == ["images/003.png", "playground:0[2]"]


def test_ray_and_ranks_do_not_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="engine is ray, and 2 ranks were launched"):
        attar.embed(config(tmp_path, engine="ray"))


def test_the_command_line_says_what_it_did(tmp_path: Path) -> None:
    done = attar_process(*words(tmp_path / "out", data="playground:0?n=20"))
    assert done.returncode == 0, done.stderr
    assert "pool     20 vectors of 32 in" in done.stdout
    again = attar_process(*words(tmp_path / "out", data="playground:0?n=20"))
    assert "(all done before)" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_and_restarted_gives_identical_shards(
    pool: attar.Pool, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "attar.cli", *words(tmp_path, shard_size=50)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not shards(tmp_path) and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    made = shards(tmp_path)
    assert 0 < len(made) < 5, said
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    (tmp_path / f".{shard_name(4)}.o3r5_6b5.part").write_bytes(b"half")
    again = attar_process(*words(tmp_path))
    assert again.returncode == 0, again.stderr
    assert f"{len(made)} done before" in again.stdout
    assert shards(tmp_path) == shards(pool.folder)
    assert not list(tmp_path.glob(".shard-*"))


@pytest.mark.slow
def test_two_ranks_make_the_same_rows_and_one_manifest(pool: attar.Pool, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--", "attar"]
    done = subprocess.run(
        [sys.executable, *launcher, *words(tmp_path)],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pool     230 vectors") == 1
    same_rows(pool, attar.Pool.open(tmp_path, check_hashes=True))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray (pip install '.[ray]')")
def test_ray_makes_the_same_rows_and_goes_on_where_it_was_left(pool: attar.Pool, tmp_path: Path) -> None:
    # many small shards and one actor, so that the signal comes in the middle
    command = [sys.executable, "-m", "attar.cli", *words(tmp_path, shard_size=10), "--engine", "ray"]
    command += ["--ray.actors", "1", "--ray.cpus", "0.5"]
    with subprocess.Popen(command, env=environment(OMP_NUM_THREADS="1"), stderr=subprocess.PIPE, text=True) as process:
        while not shards(tmp_path) and process.poll() is None:
            time.sleep(0.005)
        process.terminate()
        said = process.communicate(timeout=140)[1]
    made = shards(tmp_path)
    assert process.returncode == 143, said[-3000:]
    assert "Interrupted: stopped by SIGTERM while embedding with Ray. The same command goes on." in said
    assert 0 < len(made) < 23
    again = subprocess.run(
        command, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=140, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr[-3000:]
    assert f"{len(made)} done before" in again.stdout
    assert {name: shards(tmp_path)[name] for name in made} == made
    same_rows(pool, attar.Pool.open(tmp_path, check_hashes=True))


def same_rows(one: attar.Pool, other: attar.Pool) -> None:
    assert one.ids(range(IMAGES)) == other.ids(range(IMAGES))
    assert one.uris(range(IMAGES)) == other.uris(range(IMAGES))
    assert one.manifest.fingerprint == other.manifest.fingerprint
    cosines = (vectors(one.folder) * vectors(other.folder)).sum(1)
    lengths = np.linalg.norm(vectors(one.folder), axis=1) * np.linalg.norm(vectors(other.folder), axis=1)
    assert (cosines / lengths).min() >= 0.9999
