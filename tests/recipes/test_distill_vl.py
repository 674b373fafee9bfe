"""`attar distill-vl` from images and text files to two towers that ship, with a CLIP of random weights as teacher."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import attar
from attar import DistillVlConfig
from attar.curation.feature_store import seal
from attar.data.arrangements import COMBINATIONS, render_arrangement
from attar.data.playground_sentences import draw_sentence
from attar.errors import ConfigError, DataError, RunDirectoryError, WeightsError
from attar.models import load_two_towers, small_text_tower
from small_models import TINY

pytest.importorskip("open_clip", reason="needs the extra vl")
import small_clip

SMALL_TEXT = {"dime_fm": {"text_mode": "small_student"}, "text": {"depth": 1, "width": 8, "num_heads": 2}}
DEEP = {"student": TINY + "&drop_path_rate=0.5"}
MATCHED = {"teacher_views": "matched"}
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """24 images with captions, 40 sentences that belong to none, and eight labelled images."""
    small_clip.register()
    root = tmp_path_factory.mktemp("vl")
    (root / "images").mkdir()
    captions = []
    for index in range(24):
        scene = render_arrangement(0, index, size=32)
        Image.fromarray(scene.image).save(root / f"images/{index:02}.png")
        captions.append(f"{index:02}.png\t{scene.caption}\n")
    (root / "captions.tsv").write_text("".join(captions))
    (root / "text.txt").write_text("\n".join(draw_sentence(0, index).text for index in range(40)))
    for index in range(8):
        scene = render_arrangement(1, index, size=32)
        folder = root / "test" / "_".join(COMBINATIONS["seen"][scene.label])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(folder / f"{index}.png")
        (folder / f"{index}b.png").write_bytes((folder / f"{index}.png").read_bytes())
    return root


def config(places, out, **changes):
    settings = {
        "teacher": small_clip.REFERENCE,
        "teacher_weights": "random",
        "student": TINY,
        "images": str(places / "images"),
        "sentences": str(places / "text.txt"),
        "out": str(out),
        "img_size": 32,
        "batch_size": 8,
        "text_batch_size": 12,
        "max_steps": 2,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "checkpoint": {"every": 1, "keep": 5},
    }
    return DistillVlConfig.build(settings | changes)


def weights_of(report):
    return (report.student / WEIGHTS).read_bytes()


def losses_of(report):
    lines = [json.loads(line) for line in (report.run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_leaves_two_towers_their_results_and_a_page(places, tmp_path):
    report = attar.distill_vl(config(places, tmp_path / "run", monitor=str(places / "test")))
    assert [result.role for result in report.results] == ["student", "teacher", "random"]
    assert all(result.task.startswith("zero_shot:") and result.n > 0 for result in report.results)
    assert "zero-shot" in report.verdict
    page, card = (report.run / "report.html").read_text(), (report.student / "README.md").read_text()
    assert "zero-shot top-1" in page
    assert "zero-shot top-1" in card
    assert "image" in card
    assert "DIME-FM" in card
    log = (report.run / "log.txt").read_text()
    assert "vl " in log
    assert "pvl " in log
    assert "zero-shot (selection half) at step 2" in log
    towers = load_two_towers(str(report.student))
    assert towers.text.encode(["a red star"]).shape == (1, 16)


def test_the_frozen_text_tower_ships_as_it_is(places, tmp_path):
    report = attar.distill_vl(config(places, tmp_path / "run"))
    teacher = load_two_towers(small_clip.REFERENCE, weights="random")
    said = ["a red star", "two blue rings above a square"]
    torch.testing.assert_close(load_two_towers(str(report.student)).text.encode(said), teacher.text.encode(said))


@pytest.mark.parametrize(
    "changes",
    [{}, MATCHED, MATCHED | {"cached_views": 2}, SMALL_TEXT, {"optim": {"accumulate": 2}}, DEEP],
    ids=["fixed", "online", "cached", "small text", "pieces", "stochastic depth"],
)
def test_a_run_goes_on_exactly(changes, places, tmp_path):
    wanted = config(places, tmp_path / "run", **changes)
    report = attar.distill_vl(wanted)
    losses, weights = losses_of(report), weights_of(report)
    shutil.rmtree(report.run / "checkpoints/step-00000002")  # as if it had been stopped after the first step
    shutil.rmtree(report.student)
    again = attar.distill_vl(wanted)
    assert "from step-00000001" in (again.run / "log.txt").read_text()
    assert losses_of(again) == losses
    assert weights_of(again) == weights


def test_each_mode_learns_something_of_its_own(places, tmp_path):
    # catches modes that are told apart in the log alone
    found = [
        weights_of(attar.distill_vl(config(places, tmp_path / str(number), **changes)))
        for number, changes in enumerate([{}, MATCHED, SMALL_TEXT, {"text_batch_size": 8}])
    ]
    assert len(set(found)) == 4


def test_cached_views_are_those_that_the_teacher_would_see_online(places, tmp_path):
    # one view an image: asked about in the first epoch, read in the next two; online it is asked each time
    changes = MATCHED | {"cached_views": 1, "max_steps": 9}
    cached = attar.distill_vl(config(places, tmp_path / "cached", **changes))
    again = attar.distill_vl(config(places, tmp_path / "again", features=str(cached.run / "features"), **changes))
    assert weights_of(again) == weights_of(cached)
    for file in (cached.run / "features/views").iterdir():
        file.unlink()
    lost = attar.distill_vl(config(places, tmp_path / "lost", features=str(cached.run / "features"), **changes))
    assert weights_of(lost) == weights_of(cached)


def test_sentences_are_drawn_without_regard_to_images(places, tmp_path):
    # another order of the text file is the same set of sentences, and so the same run
    lines = (places / "text.txt").read_text().splitlines()
    (tmp_path / "other.txt").write_text("\n".join([*reversed(lines), lines[0]]))
    one = attar.distill_vl(config(places, tmp_path / "one"))
    other = attar.distill_vl(config(places, tmp_path / "two", sentences=str(tmp_path / "other.txt")))
    assert weights_of(one) == weights_of(other)


def test_runs_share_the_teachers_features(places, tmp_path):
    shared = str(tmp_path / "features")
    one = attar.distill_vl(config(places, tmp_path / "one", features=shared))
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.npy")}
    two = attar.distill_vl(config(places, tmp_path / "two", features=shared, device="cpu"))
    assert stamps
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.npy")} == stamps
    assert weights_of(one) == weights_of(two)
    assert not (one.run / "features").exists()


def test_pairs_can_teach_too(places, tmp_path):
    # another caption an image is another run, and the text tower leaves its start
    only = {"vl_weight": 0, "pvl_weight": 0, "contrastive_weight": 1.0, "text_mode": "small_student"}
    changes = {"dime_fm": only, "text": SMALL_TEXT["text"]}
    lines = (places / "captions.tsv").read_text().splitlines()
    names, said = zip(*(line.split("\t") for line in lines), strict=True)
    (tmp_path / "shifted.tsv").write_text(
        "".join(f"{n}\t{t}\n" for n, t in zip(names, said[1:] + said[:1], strict=True))
    )
    given = {"own": places / "captions.tsv", "others": tmp_path / "shifted.tsv"}
    towers = {
        name: load_two_towers(
            str(attar.distill_vl(config(places, tmp_path / name, captions=str(file), **changes)).student)
        )
        for name, file in given.items()
    }
    teacher = load_two_towers(small_clip.REFERENCE, weights="random").text
    start = small_text_tower(teacher, depth=1, width=8, num_heads=2)
    texts = ["a red star"]
    assert not torch.allclose(towers["own"].text.encode(texts), start.encode(texts))
    assert not torch.allclose(towers["own"].text.encode(texts), towers["others"].text.encode(texts))


class TestStoresThatDoNotMatch:
    """Check (f): refused with the reason."""

    @pytest.fixture
    def made(self, places, tmp_path):
        attar.distill_vl(config(places, tmp_path / "first", features=str(tmp_path / "features")))
        return tmp_path / "features"

    def run(self, places, made, **changes):
        attar.distill_vl(config(places, made.parent / "second", features=str(made), **changes))

    def test_another_teacher(self, places, made):
        with pytest.raises(WeightsError, match="fingerprint was"):
            self.run(places, made, seed=1)  # which names the random weights

    def test_other_sentences(self, places, made):
        (made.parent / "more.txt").write_text("a word\nand another one")
        with pytest.raises(RunDirectoryError, match=r"more\.txt"):
            self.run(places, made, sentences=str(made.parent / "more.txt"))

    def test_other_images(self, places, made):
        shutil.copytree(places / "images", made.parent / "images")
        (made.parent / "images/00.png").unlink()
        with pytest.raises(WeightsError, match="images was"):
            self.run(places, made, images=str(made.parent / "images"))

    @pytest.mark.parametrize("kind", ["image", "text"])
    def test_an_edited_file(self, places, made, kind):
        file = made / f"{kind}-vectors/vectors-00000.npy"
        vectors = np.load(file)
        vectors[3] = vectors[4]
        np.save(file, vectors)
        with pytest.raises(DataError, match=r"vectors-00000\.npy was changed"):
            self.run(places, made)

    @pytest.mark.parametrize("kind", ["image", "text"])
    def test_other_preprocessing_that_no_hash_tells(self, places, made, kind):
        # vectors as another way to resize, or another tokeniser, would have given them, sealed anew
        folder = made / f"{kind}-vectors"
        file, about = folder / "vectors-00000.npy", json.loads((folder / "sealed.json").read_text())
        np.save(file, np.roll(np.load(file), 1, axis=0))
        (folder / "sealed.json").unlink()
        seal(folder, about["made_by"])
        with pytest.raises(WeightsError, match="a cosine of"):
            self.run(places, made)


def test_what_could_not_ship_is_told_before_the_first_step(places, tmp_path):
    with pytest.raises(ConfigError, match="reg"):
        attar.distill_vl(config(places, tmp_path / "run", student=TINY + "&reg_tokens=2"))
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_step_that_ranks_cannot_share_is_refused(places, tmp_path, monkeypatch):
    monkeypatch.setattr("attar.recipes.vl_assembly.world_size", lambda: 3)
    with pytest.raises(ConfigError, match="--batch-size 9"):
        attar.distill_vl(config(places, tmp_path / "run"))


def test_refused_settings_are_not_written_into_the_run(places, tmp_path):
    # what was refused must not be what the next command is compared with
    first = config(places, tmp_path / "run")
    attar.distill_vl(first)
    with pytest.raises(WeightsError):
        attar.distill_vl(first.replace(seed=1, resume_anyway=True))
    attar.distill_vl(first)
