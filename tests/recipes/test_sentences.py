"""`attar curate --sentences` from text files to the page, with a CLIP of random weights."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import attar
from attar import SentencesConfig, cli
from attar.data.arrangements import render_arrangement
from attar.data.playground_sentences import draw_sentence
from attar.errors import ConfigError, DataError, RunDirectoryError, WeightsError

pytest.importorskip("open_clip", reason="needs the extra vl")
import small_clip

TEXTS = [draw_sentence(0, index).text for index in range(150)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Twenty images, and 150 sentences in two files."""
    small_clip.register()
    root = tmp_path_factory.mktemp("sentences")
    (root / "images").mkdir()
    for index in range(20):
        Image.fromarray(render_arrangement(0, index, size=32).image).save(root / f"images/{index:02}.png")
    write_texts(root / "text", TEXTS)
    return root


def write_texts(folder, texts):
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(texts[:60]))
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[60:]))


def config(places, out, **changes):
    settings = {
        "sentences": str(places / "text"),
        "images": str(places / "images"),
        "teacher": small_clip.REFERENCE,
        "teacher_weights": "random",
        "out": str(out),
        "per_image": 3,
        "min_words": 2,
        "shard_size": 32,
        "text_batch_size": 16,
        "device": "cpu",
        "workers": 0,
    }
    return SentencesConfig.build(settings | changes)


def rows_of(out):
    return pq.read_table(out / "sentences.parquet").to_pylist()


@pytest.fixture(scope="module")
def union(places, tmp_path_factory):
    return attar.curate_sentences(config(places, tmp_path_factory.mktemp("union") / "out"))


def test_each_image_has_its_nearest_sentences_in_the_set(places, union):
    """Against both towers used by hand, and all pairs compared."""
    pool = attar.Pool.open(union.out / "images")
    images = pool.vectors(range(20)).double()
    tower = attar.models.load_text_tower(small_clip.REFERENCE, weights="random")
    texts = sorted(set(TEXTS))
    vectors = np.concatenate([tower.encode([text]).numpy() for text in texts])
    scores = images.numpy() @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T.astype(np.float16)
    nearest = {texts[place] for row in scores for place in np.argsort(-row)[:3]}
    rows = rows_of(union.out)
    assert {row["text"] for row in rows} == nearest
    assert len(rows) == len(nearest) == union.sentences
    by_name = dict(zip(pool.ids(range(20)), scores, strict=True))
    for row in rows:
        assert row["similarity"] == pytest.approx(by_name[row["image"]][texts.index(row["text"])], abs=2e-3)
        lines = (places / "text" / row["source"].rpartition("/")[2]).read_text().splitlines()
        assert row["text"] in lines[row["line"] - 1]
    assert [row["similarity"] for row in rows] == sorted((row["similarity"] for row in rows), reverse=True)


def test_the_order_of_the_corpus_changes_nothing_that_was_chosen(places, union, tmp_path):
    write_texts(tmp_path / "text", random.Random(1).sample(TEXTS, len(TEXTS)))
    other = attar.curate_sentences(config(places, tmp_path / "out", sentences=str(tmp_path / "text")))
    chosen = [[row[key] for key in ("text", "similarity", "rank", "image")] for row in rows_of(union.out)]
    assert chosen == [[row[key] for key in ("text", "similarity", "rank", "image")] for row in rows_of(other.out)]
    assert other.manifest["corpus"]["fingerprint"] == union.manifest["corpus"]["fingerprint"]


def copied(union, tmp_path):
    return Path(shutil.copytree(union.out, tmp_path / "copy"))


def costly(out):
    """What took time to make, with the times of the files."""
    files = [*(out / "corpus").iterdir(), *(out / "vectors").iterdir(), *(out / "images").glob("shard-*")]
    return {path.name: path.stat().st_mtime_ns for path in files}


def test_the_same_folder_chooses_anew_without_embedding_again(places, union, tmp_path):
    out = copied(union, tmp_path)
    before = costly(out)
    own = attar.curate_sentences(config(places, out, strategy="assignment_greedy", candidates=60, budget=30))
    rows = rows_of(out)
    assert costly(out) == before
    assert len({row["text"] for row in rows}) == len(rows) == 30
    assert max(np.unique([row["image"] for row in rows], return_counts=True)[1]) <= 3
    assert own.manifest["is_approximate"]
    assert "not public" in own.manifest["algorithm"]


def test_a_budget_makes_the_lists_longer_until_it_is_filled(places, union, tmp_path):
    out = copied(union, tmp_path)
    report = attar.curate_sentences(config(places, out, per_image=1, budget=union.sentences + 5))
    assert (report.sentences, report.manifest["shortfall"]) == (union.sentences + 5, 0)
    assert report.manifest["candidates"] > 1
    all_of_them = attar.curate_sentences(config(places, out, budget=1000))
    assert all_of_them.sentences == len(set(TEXTS))
    assert all_of_them.manifest["shortfall"] == 1000 - len(set(TEXTS))


def test_a_folder_whose_shards_are_not_all_there_goes_on_and_ends_with_the_same_bytes(places, union, tmp_path, capsys):
    out = copied(union, tmp_path)
    names = ("sentences.parquet", "manifest.json", "report.html")
    for name in (*names, "vectors/vectors-00001.npy", "vectors/vectors-00003.npy"):
        (out / name).unlink()
    (out / "vectors/.vectors-00003.npy.o3r5_6b5.part").write_bytes(b"half")
    attar.curate_sentences(config(places, out))
    shards = len(list((out / "vectors").glob("vectors-*.npy")))
    assert f"{shards:,} of 32 sentences, {shards - 2:,} done before" in capsys.readouterr().out
    for name in names:
        assert (out / name).read_bytes() == (union.out / name).read_bytes(), name
    assert not list((out / "vectors").glob(".vectors-*"))


def test_sentences_with_class_names_or_prompts_are_left_out_and_counted(places, tmp_path):
    (tmp_path / "names.txt").write_text("# shapes\ncircle\nhalf-disc\n")
    (tmp_path / "prompts.txt").write_text("There is a large red square.\n")
    (tmp_path / "text.txt").write_text(
        "\n".join(
            ["a blue Circle", "a pink half disc", "oh, there is a large red square!", "a red square", "a ring too"]
        )
    )
    report = attar.curate_sentences(
        config(
            places,
            tmp_path / "out",
            sentences=str(tmp_path / "text.txt"),
            exclude_names=str(tmp_path / "names.txt"),
            exclude_prompts=(str(tmp_path / "prompts.txt"), "eurosat"),
        )
    )
    assert {row["text"] for row in rows_of(report.out)} == {"a red square", "a ring too"}
    assert report.manifest["corpus"]["left_out"] == {"contains a class name": 2, "contains a prompt": 1}


def test_what_a_folder_was_made_by_is_what_it_goes_on_with(places, union, tmp_path):
    with pytest.raises(RunDirectoryError, match="made otherwise: min_words was 2, now 4"):
        attar.curate_sentences(config(places, union.out, min_words=4))
    with pytest.raises(RunDirectoryError, match="vectors that were made otherwise"):
        attar.curate_sentences(config(places, union.out, images=str(places / "images") + "?images=0.5"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="is not empty and holds no sentences of attar"):
        attar.curate_sentences(config(places, tmp_path / "full"))


def test_a_corpus_that_was_touched_is_the_same_one(places, union, tmp_path):
    shutil.copytree(places / "text", tmp_path / "text")
    attar.curate_sentences(config(places, tmp_path / "out", sentences=str(tmp_path / "text")))
    vectors = {file: file.stat().st_mtime_ns for file in (tmp_path / "out/vectors").iterdir()}
    (tmp_path / "text/a.txt").touch()
    attar.curate_sentences(config(places, tmp_path / "out", sentences=str(tmp_path / "text")))
    assert {file: file.stat().st_mtime_ns for file in vectors} == vectors
    (tmp_path / "text/a.txt").write_text("a sentence of another set")
    with pytest.raises(RunDirectoryError, match=r"a\.txt was .* now 25 bytes of .*another --out"):
        attar.curate_sentences(config(places, tmp_path / "out", sentences=str(tmp_path / "text")))


def test_images_of_another_model_are_refused_and_a_pool_serves(places, union, tmp_path):
    pool = str(union.out / "images")
    report = attar.curate_sentences(config(places, tmp_path / "out", images=pool))
    assert not (tmp_path / "out/images").exists()
    assert report.manifest["images"]["count"] == 20
    with pytest.raises(WeightsError, match="they cannot be compared"):
        attar.curate_sentences(config(places, tmp_path / "other", images=pool, teacher=f"{small_clip.REFERENCE}?"))


def test_what_cannot_be_done_is_said(places, tmp_path):
    with pytest.raises(ConfigError, match="min_words is 9, more than max_words, 3"):
        config(places, tmp_path, min_words=9, max_words=3)
    with pytest.raises(ConfigError, match="candidates is 2, less than per_image, 3"):
        config(places, tmp_path, strategy="assignment_greedy", candidates=2)
    with pytest.raises(DataError, match=r"no sentence of 2 files is left \(150 too short\). Widen"):
        attar.curate_sentences(config(places, tmp_path / "none", min_words=60))
    with pytest.raises(DataError, match="class names of cars lie with its data"):
        attar.curate_sentences(config(places, tmp_path / "cars", exclude_names="cars"))


def test_the_verb_does_the_same(places, union, tmp_path, capsys):
    words = ["curate", "--sentences", str(places / "text"), "--images", str(places / "images"), "--per-image", "3"]
    words += ["--teacher", small_clip.REFERENCE, "--teacher-weights", "random", "--out", str(tmp_path / "set")]
    assert cli.main([*words, "--min-words", "2", "--workers", "0", "--device", "cpu"]) == 0
    assert "chosen   " in capsys.readouterr().out
    page = (tmp_path / "set/report.html").read_text()
    assert "Images and sentences that are theirs" in page
    assert "data:image/jpeg" in page
    assert cli.main(["curate", "--sentences", "--help"]) == 0
    assert "--exclude-prompts" in capsys.readouterr().out
