"""`attar distill-vl` from images and text files to two towers that ship, with a CLIP of random weights as teacher."""

import json
import os
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import attar
from attar import DistillVlConfig
from attar.curation.feature_store import seal
from attar.data.arrangements import COMBINATIONS, render_arrangement
from attar.data.playground_sentences import draw_sentence
from attar.errors import CheckpointError, ConfigError, DataError, RunDirectoryError, ShapeError, WeightsError
from attar.export import write_two_towers
from attar.models import load_two_towers, small_text_tower
from attar.recipes.vl_assembly import assemble_towers, teacher_at_rest
from attar.utils.io import sha256_file
from small_models import TINY
from small_runs import holder

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
    assert report.verdict in card
    assert "image" in card
    assert "DIME-FM" in card
    log = (report.run / "log.txt").read_text()
    assert "vl " in log
    assert "pvl " in log
    assert "zero-shot (selection half) at step 2" in log
    towers = load_two_towers(str(report.student))
    assert towers.text.encode(["a red star"]).shape == (1, 16)


def test_what_ships_is_the_student_of_the_step_that_is_named(places, tmp_path):
    # as after a kill between a better student and the checkpoint that would have named it
    wanted = config(places, tmp_path / "run", monitor=str(places / "test"), monitoring={"every": 1})
    report = attar.distill_vl(wanted)
    weights, card = weights_of(report), (report.student / "README.md").read_text()
    teacher = load_two_towers(small_clip.REFERENCE, weights="random")
    write_two_towers(report.student, teacher.image, teacher.text, card="of a later step", scale=100.0)
    again = attar.distill_vl(wanted)
    assert weights_of(again) == weights
    assert "weights kept" in card
    assert (again.student / "README.md").read_text().partition("## Costs")[0] == card.partition("## Costs")[0]


def test_monitor_images_that_cannot_be_read_are_told(places, tmp_path):
    shutil.copytree(places / "test", tmp_path / "test")
    for copy in (tmp_path / "test").rglob("*b.png"):
        copy.write_bytes(b"gone")
    report = attar.distill_vl(config(places, tmp_path / "run", monitor=str(tmp_path / "test"), max_steps=1))
    left = report.results[0].n
    assert 0 < left < 8
    assert f"{8 - left} of its 8 images to report on cannot be read" in (report.run / "log.txt").read_text()


def test_a_small_text_tower_that_is_larger_than_the_teachers_is_told(places, tmp_path):
    large = SMALL_TEXT | {"text": {"depth": 2, "width": 24, "num_heads": 2}, "max_steps": 1}
    for changes, is_told in ((large, True), (SMALL_TEXT | {"max_steps": 1}, False), ({"max_steps": 1}, False)):
        report = attar.distill_vl(config(places, tmp_path / f"run{len(list(tmp_path.iterdir()))}", **changes))
        for place in (report.run / "log.txt", report.student / "README.md"):
            assert ("the small text tower is larger than the teacher's (" in place.read_text()) is is_told


def test_a_run_and_a_plan_take_what_the_recipe_says(places, tmp_path):
    named = config(places, tmp_path / "out", recipe="dime_fm_b32_regularised", max_steps=1)
    planned = attar.plan(named, attar.PlanConfig(probe_steps=2))
    assert planned.settings["dime_fm"]["udist_weight"] == 0.1
    assert not any(name.startswith("dime_fm.") for name in planned.found["settings"])  # they are the recipe's
    attar.distill_vl(named)
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["dime_fm"]["udist_weight"] == 0.1


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


@pytest.mark.parametrize("count", [1, 2])
def test_cached_views_are_those_that_the_teacher_would_see_online(count, places, tmp_path):
    # three steps an epoch: until its views come again, a run with a cache sees what one without sees
    changes = MATCHED | {"max_steps": 3 * count}
    online = attar.distill_vl(config(places, tmp_path / "online", **changes))
    cached = attar.distill_vl(config(places, tmp_path / "cached", cached_views=count, **changes))
    assert weights_of(cached) == weights_of(online)
    again = config(places, tmp_path / "again", cached_views=count, features=str(cached.run / "features"), **changes)
    assert weights_of(attar.distill_vl(again)) == weights_of(online)


def test_cached_views_come_again_as_they_were(places, tmp_path):
    # two views an image: asked about in the first two epochs, read in the next two
    changes = MATCHED | {"cached_views": 2, "max_steps": 12}
    cached = attar.distill_vl(config(places, tmp_path / "cached", **changes))
    again = attar.distill_vl(config(places, tmp_path / "again", features=str(cached.run / "features"), **changes))
    assert weights_of(again) == weights_of(cached)
    for file in (cached.run / "features/views").iterdir():
        file.unlink()
    assert "0 answers of 48 are kept from before" in (cached.run / "log.txt").read_text()
    assert "48 answers of 48 are kept from before" in (again.run / "log.txt").read_text()
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

    @pytest.mark.parametrize("kind", ["corpus", "images"])
    def test_an_edited_file_that_features_are_made_of(self, places, made, kind):
        # of other sentences tokens would be made, and beside vectors of the old ones they would lie for ever
        (shard,) = (made / kind).glob("shard-*.parquet")
        table = pq.read_table(shard)
        pq.write_table(table.take(np.roll(np.arange(len(table)), 1)), shard)
        if kind == "images":
            manifest = json.loads((made / "images/manifest.json").read_text())
            manifest["shards"][0]["size_bytes"] = shard.stat().st_size
            (made / "images/manifest.json").write_text(json.dumps(manifest))
            shutil.rmtree(made / "image-vectors")
        with pytest.raises(DataError, match=r"shard-00000\.parquet is damaged: its SHA-256 is") as found:
            self.run(places, made, **SMALL_TEXT)
        assert f"Remove {made / 'corpus' if kind == 'corpus' else 'it'} and give the same" in str(found.value)
        shutil.rmtree(made / "corpus") if kind == "corpus" else shard.unlink()
        self.run(places, made, **SMALL_TEXT)

    @pytest.mark.parametrize("kind", ["image", "text"])
    def test_other_preprocessing_that_no_hash_tells(self, places, made, kind):
        # vectors as another way to resize, or another tokeniser, would have given them, sealed anew
        folder = made / f"{kind}-vectors"
        file = folder / "vectors-00000.npy"
        np.save(file, np.roll(np.load(file), 1, axis=0))
        (folder / "sealed.json").unlink()
        seal(folder, 24 if kind == "image" else len(np.load(file)))
        with pytest.raises(WeightsError, match="a cosine of"):
            self.run(places, made)

    def test_tokens_of_another_tokeniser(self, places, tmp_path):
        attar.distill_vl(config(places, tmp_path / "first", features=str(tmp_path / "features"), **SMALL_TEXT))
        folder = tmp_path / "features/text-tokens"
        tokens = np.load(folder / "tokens-00000.npy")
        np.save(folder / "tokens-00000.npy", np.where(tokens > 1, tokens - 1, tokens))
        about = json.loads((folder / "sealed.json").read_text())
        about["sha256"]["tokens-00000.npy"] = sha256_file(folder / "tokens-00000.npy")
        (folder / "sealed.json").write_text(json.dumps(about))
        with pytest.raises(WeightsError, match=r"tokens in .* are not those of the teacher's tokeniser today") as found:
            self.run(places, tmp_path / "features", **SMALL_TEXT)
        about["made_by"]["tokens of a probe"] = "abc"
        (folder / "sealed.json").write_text(json.dumps(about))
        with pytest.raises(WeightsError, match=r"the teacher's tokens in .*tokens of a probe was abc"):
            self.run(places, tmp_path / "features", **SMALL_TEXT)
        shutil.rmtree(folder)
        assert f"Remove {folder} " in str(found.value)
        self.run(places, tmp_path / "features", **SMALL_TEXT)

    def test_what_is_to_be_removed_is_all_that_must_go(self, places, made):
        # stale vectors lie in the pool, too, from which they would come back
        (shard,) = (made / "images").glob("shard-*.parquet")
        table = pq.read_table(shard)
        turned = table.column("embedding").take(np.roll(np.arange(24), 1))
        pq.write_table(table.set_column(2, table.schema.field(2), turned), shard)
        manifest = json.loads((made / "images/manifest.json").read_text())
        manifest["shards"][0] |= {"sha256": sha256_file(shard), "size_bytes": shard.stat().st_size}
        (made / "images/manifest.json").write_text(json.dumps(manifest))
        shutil.rmtree(made / "image-vectors")
        with pytest.raises(WeightsError, match="a cosine of") as found:
            self.run(places, made)
        remove_as_told(found.value)
        self.run(places, made)

    def test_a_pool_of_another_teacher_is_told_in_words_of_this_verb(self, places, made):
        shutil.rmtree(made / "text-vectors")  # which would be refused first
        with pytest.raises(WeightsError, match=r"the teacher's images in .* were made otherwise") as found:
            self.run(places, made, seed=1)
        shutil.rmtree(made / "image-vectors")
        shutil.rmtree(made / "text-vectors")
        with pytest.raises(RunDirectoryError, match=f"here its --data is --images, its --out {made}/images"):
            self.run(places, made, seed=1)
        (made / "image-vectors").mkdir(exist_ok=True)
        remove_as_told(found.value)
        self.run(places, made, seed=1)


def remove_as_told(error):
    """Remove the folders that a message names, and nothing else."""
    (said,) = re.findall(r"emove ([^,]*?)[,.] ?(?:or give|$)", str(error))
    for folder in said.split(" and "):
        shutil.rmtree(folder)


class TestKeptViewsThatDoNotMatch:
    """Check (f) for `matched` with `cached_views`."""

    @pytest.fixture
    def made(self, places, tmp_path):
        """The folder of features after five of six steps, with a teacher that no seed changes."""
        small_clip.write_teacher(tmp_path / "teacher")
        self.run(places, tmp_path, "first", max_steps=5)
        return tmp_path

    def run(self, places, root, name="second", **changes):
        teacher = {
            "teacher": str(root / "teacher"),
            "teacher_weights": "pretrained",
            "features": str(root / "features"),
        }
        settings = MATCHED | {"cached_views": 2} | teacher | changes
        return attar.distill_vl(config(places, root / name, **settings))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"seed": 1}, r"view\.seed was 0, now 1"),
            ({"cached_views": 3}, "views was 2, now 3"),
            ({"img_size": 40, "student": TINY}, r"view\.img_size was 32, now 40"),
            ({"views": {"crop_scale": (0.5, 1.0)}}, r"view\.settings\.crop_scale"),
        ],
        ids=["seed", "views", "size", "crops"],
    )
    def test_other_views(self, changes, said, places, made):
        with pytest.raises(WeightsError, match=f"the teacher's views in .*{said}.*--features"):
            self.run(places, made, **changes)

    def test_another_teacher(self, places, made):
        towers = load_two_towers(str(made / "teacher"))
        with torch.no_grad():
            next(towers.image.parameters()).add_(0.1)
        write_two_towers(made / "teacher", towers.image, towers.text, card="", scale=100.0)
        shutil.rmtree(made / "features/text-vectors")  # which would be refused first
        with pytest.raises(WeightsError, match=r"the teacher's views in .*teacher\.fingerprint was"):
            self.run(places, made)

    def test_answers_that_the_teacher_would_not_give(self, places, made):
        # whole answers with their checksums, of other views: as another way to make views would have left them
        values = np.memmap(made / "features/views/values.f32", np.float32, "r+").reshape(48, 16)
        sums = np.memmap(made / "features/views/sums.u32", np.uint32, "r+")
        kept = np.flatnonzero(sums)
        values[kept], sums[kept] = values[np.roll(kept, 1)], sums[np.roll(kept, 1)]
        with pytest.raises(WeightsError, match=r"view \d of \d\d\.png has a cosine of"):
            self.run(places, made)

    def test_a_damaged_description_is_no_reason_to_stop(self, places, made):
        (made / "features/views/about.json").write_text("{")
        (made / "features/views/values.f32").unlink()
        assert self.run(places, made).run.name == "second"


def test_an_image_that_can_be_read_again_is_asked_about(places, tmp_path):
    shutil.copytree(places / "images", tmp_path / "images")
    file = tmp_path / "images/07.png"
    whole = file.read_bytes()
    changes = {"images": str(tmp_path / "images"), "features": str(tmp_path / "features"), "max_bad_share": 0.1}
    file.write_bytes(b"not yet there")
    attar.distill_vl(config(places, tmp_path / "one", **changes))
    stored = tmp_path / "features/image-vectors/vectors-00000.npy"
    assert np.flatnonzero(~np.load(stored).any(axis=1)).tolist() == [7]
    file.write_bytes(whole)
    second = attar.distill_vl(config(places, tmp_path / "two", **changes))
    assert "1 could not be read before" in (second.run / "log.txt").read_text()
    fresh = attar.distill_vl(config(places, tmp_path / "three", **changes | {"features": None}))
    np.testing.assert_allclose(
        np.load(stored), np.load(fresh.run / "features/image-vectors/vectors-00000.npy"), atol=1e-3
    )


def test_a_text_file_that_was_touched_or_moved_is_the_same_text(places, tmp_path):
    shared = {"features": str(tmp_path / "features")}
    shutil.copy(places / "text.txt", tmp_path / "text.txt")
    one = attar.distill_vl(config(places, tmp_path / "one", sentences=str(tmp_path / "text.txt"), **shared))
    os.utime(tmp_path / "text.txt", (1, 1))
    two = attar.distill_vl(config(places, tmp_path / "two", sentences=str(tmp_path / "text.txt"), **shared))
    moved = attar.distill_vl(config(places, tmp_path / "three", **shared))
    assert weights_of(one) == weights_of(two) == weights_of(moved)


def test_other_captions_are_another_run(places, tmp_path):
    changes = {"dime_fm": {"contrastive_weight": 1.0}, "captions": str(tmp_path / "captions.tsv")}
    shutil.copy(places / "captions.tsv", tmp_path / "captions.tsv")
    report = attar.distill_vl(config(places, tmp_path / "run", **changes))
    text = (tmp_path / "captions.tsv").read_text()
    (tmp_path / "captions.tsv").write_text(text.replace(" a ", " some "))
    with pytest.raises(
        RunDirectoryError, match=r"file was [\d,]+ bytes of 20\d\d-.*, now [\d,]+ bytes of 20\d\d-.*--features"
    ):
        attar.distill_vl(config(places, tmp_path / "run", **changes))
    shutil.rmtree(report.run / "features")
    with pytest.raises(CheckpointError, match="captions"):
        attar.distill_vl(config(places, tmp_path / "run", **changes))


def test_a_folder_of_features_that_cannot_be_written_is_named_by_its_flag(places, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunDirectoryError, match=r"cannot write .*file/features.*--features\."):
        attar.distill_vl(config(places, tmp_path / "run", features=str(tmp_path / "file/features")))


def test_what_killed_runs_left_half_of_texts_is_removed(places, tmp_path):
    leftovers = [tmp_path / "features" / name for name in (".corpus.abc", ".captions.xyz")]
    for leftover in leftovers:
        leftover.mkdir(parents=True)
    changes = {"features": str(tmp_path / "features"), "captions": str(places / "captions.tsv"), "max_steps": 1}
    attar.distill_vl(config(places, tmp_path / "run", **changes, **CONTRASTIVE))
    assert not any(leftover.exists() for leftover in leftovers)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("changes", "resting"),
    [({}, {"image"}), (SMALL_TEXT, {"image", "text"}), (SMALL_TEXT | MATCHED, {"text"}), (MATCHED, set())],
)
def test_towers_whose_features_are_stored_leave_the_gpu_for_the_steps(changes, resting, places, tmp_path):
    device = torch.device("cuda")
    built = assemble_towers(config(places, tmp_path / "run", device="cuda", **changes), device)
    towers = {"image": built.teacher.image, "text": built.teacher.text}

    def away():
        return {name for name, tower in towers.items() if next(tower.parameters()).device.type == "cpu"}

    with teacher_at_rest(built):
        assert away() == resting
    assert away() == set()


def test_a_run_waits_for_another_that_makes_the_same_features(places, tmp_path):
    (tmp_path / "features").mkdir()
    with holder(tmp_path / "features/.features-lock", 1.0) as other:
        report = attar.distill_vl(config(places, tmp_path / "run", features=str(tmp_path / "features")))
        assert other.poll() == 0
    assert "by another run: waiting for it" in (report.run / "log.txt").read_text()


def test_what_could_not_ship_is_told_before_the_first_step(places, tmp_path):
    with pytest.raises(ConfigError, match="reg"):
        attar.distill_vl(config(places, tmp_path / "run", student=TINY + "&reg_tokens=2"))
    assert not (tmp_path / "run/checkpoints").exists()


CONTRASTIVE = {"dime_fm": {"contrastive_weight": 1.0}}


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sentences": "nowhere.txt"}, DataError, "nowhere.txt does not exist"),
        (CONTRASTIVE | {"captions": "nowhere.tsv"}, DataError, r"captions nowhere\.tsv do not exist"),
        (CONTRASTIVE | {"captions": "captions.csv"}, DataError, "in no format known here"),
        ({"img_size": 36}, ShapeError, "Try --img-size 40"),
        ({"student": "resnet10t", "optim": {"accumulate": 2}}, ConfigError, "which has batch norms"),
    ],
)
def test_what_needs_no_teacher_is_checked_before_it_is_loaded(changes, error, said, places, tmp_path):
    with pytest.raises(error, match=said):
        attar.distill_vl(config(places, tmp_path / "run", teacher="open_clip:never-asked-for", **changes))


def test_captions_are_read_before_sentences_are_embedded(places, tmp_path):
    (tmp_path / "captions.tsv").write_text("00.png a star\n")
    with pytest.raises(DataError, match="is no IMAGE<TAB>CAPTION"):
        attar.distill_vl(config(places, tmp_path / "run", captions=str(tmp_path / "captions.tsv"), **CONTRASTIVE))
    assert not (tmp_path / "run/features/text-vectors").exists()


def test_texts_of_which_nothing_can_be_learned_are_refused_and_not_kept(places, tmp_path):
    (tmp_path / "one.txt").write_text("a red star\n" * 3)
    with pytest.raises(DataError, match="all 3 lines of --sentences are one sentence, 'a red star'"):
        attar.distill_vl(config(places, tmp_path / "run", sentences=str(tmp_path / "one.txt")))
    captions = tmp_path / "captions.tsv"
    captions.write_text("".join(f"{index:02}.png\ta star\n" for index in range(24)))
    changes = CONTRASTIVE | {"captions": str(captions), "max_steps": 1}
    with pytest.raises(DataError, match=r"all 24 captions in .* are 'a star'"):
        attar.distill_vl(config(places, tmp_path / "run", **changes))
    shutil.copy(places / "captions.tsv", captions)
    attar.distill_vl(config(places, tmp_path / "run", **changes))


def test_a_step_larger_than_what_there_is_is_told(places, tmp_path):
    report = attar.distill_vl(config(places, tmp_path / "run", batch_size=32, text_batch_size=50, max_steps=1))
    log = (report.run / "log.txt").read_text()
    assert "a batch of 32 holds several views of each of the 24 images" in log
    assert "a step's 50 sentences hold each of the " in log


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
