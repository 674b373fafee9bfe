"""`attar distill` with `cached_views`: the teacher is asked once a view, and teaches what it would have taught."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import attar
from attar.errors import RunDirectoryError, WeightsError
from attar.methods import Hint, LogitDistillation, Proteus, SoftLogits
from attar.methods.teacher_cache import TeacherCache
from attar.recipes.assembly import assemble
from attar.recipes.distill import views_of
from attar.recipes.kept_answers import check_room, keep_answers
from attar.utils.io import read_lines
from small_runs import MODEL, run_on_ranks, write_pictures

TOKENS_ALONE = {"feature_weight": 0.0, "patch_weight": 0.0}
LEARNS = {
    "proteus": {},
    "tokens": {"proteus": TOKENS_ALONE},
    "hint": {"method": "hint"},
    "logits": {"method": "logits"},
    "soft_logits": {"method": "soft_logits"},
}
CLASSES = {"proteus": Proteus, "tokens": Proteus, "hint": Hint, "logits": LogitDistillation, "soft_logits": SoftLogits}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 pictures of two classes, a teacher's weights and its classifier."""
    folder = tmp_path_factory.mktemp("answers")
    for name in ("cat", "dog"):
        write_pictures(folder / "images" / name, 12)
    torch.save({"fc.weight": torch.randn(2, 32, generator=torch.Generator().manual_seed(0))}, folder / "fc.pth")
    write_teacher(folder / "teacher.pth", 1)
    return folder


def write_teacher(path, seed):
    torch.save(attar.load_backbone(MODEL, weights="random", img_size=32, seed=seed).model.state_dict(), path)


def config_of(folder, out, **changes):
    """Six steps, two epochs of 24 pictures, of which the second shows the views of the first."""
    method = changes.get("method", "proteus")
    settings = {
        "teacher": MODEL,
        "teacher_weights": str(folder / "teacher.pth"),
        "student": MODEL,
        "data": str(folder / "images"),
        "out": str(out),
        "teacher_classifier": str(folder / "fc.pth") if "logits" in method else None,
        "img_size": 32,
        "batch_size": 8,
        "max_steps": 6,
        "cached_views": 1,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "optim": {"lr": 1e-3},
    }
    return attar.DistillConfig.build(settings | changes)


def weights_of(report):
    return load_file(report.run / "student-last/model.safetensors")


def losses_of(report):
    return [line["loss"] for line in read_lines(report.run / "metrics.jsonl") if "loss" in line]


def said(report):
    return (report.run / "log.txt").read_text()


@pytest.mark.parametrize("learns", LEARNS)
def test_float32_teaches_what_the_teacher_would_have_taught_and_asks_once(learns, folder, tmp_path, monkeypatch):
    asked, ask = [], CLASSES[learns].ask
    monkeypatch.setattr(CLASSES[learns], "ask", lambda self, views: asked.append(len(views)) or ask(self, views))
    cached = attar.distill(config_of(folder, tmp_path / "cached", **LEARNS[learns]))
    in_steps = sum(asked)
    monkeypatch.setattr(TeacherCache, "__call__", lambda self, batch, ask: ask(batch.views))
    plain = attar.distill(config_of(folder, tmp_path / "plain", **LEARNS[learns]))
    assert sum(asked) - in_steps == in_steps - 1 + 24  # the second epoch, and none for the shapes
    assert losses_of(cached) == losses_of(plain)
    ours, theirs = weights_of(cached), weights_of(plain)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture(scope="module")
def exact(folder, tmp_path_factory):
    """Losses of the run with float32."""
    return losses_of(attar.distill(config_of(folder, tmp_path_factory.mktemp("exact") / "run")))


@pytest.mark.parametrize(
    ("kept_as", "most"), [("float16", 1e-4), ("int8", 5e-3), ("pca:31", 5e-3), ("pca:8", 0.5)], ids=str
)
def test_what_a_smaller_format_changes(kept_as, most, exact, folder, tmp_path):
    report = attar.distill(config_of(folder, tmp_path / "small", cache={"format": kept_as}))
    changed = max(abs(ours / theirs - 1) for ours, theirs in zip(losses_of(report), exact, strict=True))
    print(f"{kept_as}: losses change by {changed:.2g} at most")
    assert 0 < changed < most
    told = json.loads((report.run / "about.json").read_text())["teacher's answers"]
    shares = [float(share) for share in re.findall(r"keep ([\d.]+) % of their variance", told)]
    assert re.findall("(class|patch) tokens keep", told) == ["class", "patch"]
    assert (99 < min(shares) <= 100) is (kept_as != "pca:8")
    assert told.replace("; ", "\n           ") in said(report)  # and what is said is recorded


@pytest.mark.parametrize("kept_as", ["float32", "int8", "pca:8"])
def test_a_run_goes_on_exactly_and_asks_about_no_view_again(kept_as, folder, tmp_path):
    config = config_of(folder, tmp_path / "run", cache={"format": kept_as}, checkpoint={"every": 2, "keep": 9})
    report = attar.distill(config)
    losses, weights = losses_of(report), weights_of(report)
    for step in (4, 6):  # as if it had been stopped after the second step
        shutil.rmtree(report.run / f"checkpoints/step-0000000{step}")
    again = attar.distill(config)
    assert "24 answers were there before" in said(again)
    assert losses_of(again) == losses
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(again).items())


def test_class_tokens_alone_take_little_room(folder, tmp_path):
    report = attar.distill(config_of(folder, tmp_path / "run", proteus=TOKENS_ALONE))
    assert (report.run / "teacher_cache/values.f32").stat().st_size == 24 * 32 * 4


def test_a_run_of_its_own_begins_its_answers_anew(folder, tmp_path):
    config = config_of(folder, tmp_path / "run", checkpoint={"every": 2, "keep": 9})
    report = attar.distill(config)
    for name in ("checkpoints", "student-last"):  # nothing is left to go on from: other settings are no error
        shutil.rmtree(report.run / name)
    attar.distill(config.replace(seed=1))
    assert "0 answers were there before" in said(report)


# --- a folder that runs share ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(folder, tmp_path_factory):
    """A folder that a run has filled."""
    answers = tmp_path_factory.mktemp("shared") / "answers"
    sharing(answers, folder, answers.parent / "first")
    return answers


def sharing(answers, folder, out, **changes):
    cache = {"format": "int8", "folder": str(answers)} | changes.pop("cache", {})
    return attar.distill(config_of(folder, out, cache=cache, **changes))


def test_another_student_reads_what_the_first_one_was_told(filled, folder, tmp_path):
    wider = {"student": MODEL.replace("embed_dim=32", "embed_dim=48"), "views": {"repeats": 1}, "batch_size": 12}
    second = sharing(filled, folder, tmp_path / "second", **wider)
    assert "24 answers were there before" in said(second)
    assert not (second.run / "teacher_cache").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, r"view\.seed was 0, now 1"),
        ({"cached_views": 2}, "views was 1, now 2"),
        ({"views": {"flip": 0.0}}, r"view\.settings\.flip was 0.5, now 0.0"),
        ({"cache": {"format": "pca:8"}}, "format was int8, now pca:8"),
        ({"proteus": TOKENS_ALONE}, "answers was .*'patch tokens'"),
        ({"teacher_weights": "random"}, r"teacher\.fingerprint was"),
    ],
    ids=["seed", "views", "augmentation", "format", "terms", "teacher"],
)
def test_other_answers_in_a_shared_folder_are_refused(changes, told, filled, folder, tmp_path):
    before = (filled / "values.i8").read_bytes()
    with pytest.raises(WeightsError, match=f"were made otherwise: .*{told}.*--cache.folder"):
        sharing(filled, folder, tmp_path / "second", **changes)
    assert (filled / "values.i8").read_bytes() == before


def test_answers_that_the_teacher_would_not_give_are_refused(filled, folder, tmp_path):
    # whole answers with their checksums, of other views: as another way to make views would have left them
    answers = shutil.copytree(filled, tmp_path / "answers")
    values = np.memmap(answers / "values.i8", np.uint8, "r+").reshape(24, -1)
    sums = np.memmap(answers / "sums.u32", np.uint32, "r+")
    values[:], sums[:] = values[::-1].copy(), sums[::-1].copy()
    values.flush()
    sums.flush()
    with pytest.raises(WeightsError, match=r"are not what it says today: .* % off, .* --cache.folder"):
        sharing(answers, folder, tmp_path / "second")


def test_answers_that_do_not_fit_on_the_disk_are_told_before_the_first_step(folder, tmp_path):
    built = assemble(config_of(folder, tmp_path / "run"), torch.device("cpu"))
    kept = keep_answers(built, views_of(built), tmp_path / "answers")
    check_room(kept)
    assert kept.bytes == 24 * 4 * (17 * 32 + 1)
    with pytest.raises(RunDirectoryError, match=r"will take .* GB more in .*, and .* are free there.*--cache.format"):
        check_room(replace(kept, bytes_per_view=1 << 50))


@pytest.mark.slow
def test_two_ranks_make_the_student_of_one_process(folder, tmp_path):
    students = []
    for ranks in (1, 2):
        config = config_of(folder, tmp_path / str(ranks), cached_views=2, max_steps=12, cache={"format": "int8"})
        run_on_ranks("distill", config, ranks)
        students.append(load_file(tmp_path / f"{ranks}/student-last/model.safetensors"))
    for name, tensor in students[0].items():
        torch.testing.assert_close(students[1][name], tensor, rtol=1e-3, atol=1e-4)  # int8 may round to either side


@pytest.mark.parametrize("before", [0, 3])
def test_all_views_can_be_asked_about_before_the_first_step(folder, tmp_path, monkeypatch, before):
    asked = []
    ask = Proteus.ask
    monkeypatch.setattr(Proteus, "ask", lambda self, views: asked.append(len(views)) or ask(self, views))
    shared = {"folder": str(tmp_path / "shared"), "beforehand": True}
    if before:  # three steps of another run, of 24 views
        attar.distill(config_of(folder, tmp_path / "first", cache=shared | {"beforehand": False}, max_steps=before))
    plain = attar.distill(config_of(folder, tmp_path / "plain"))
    asked.clear()
    report = attar.distill(config_of(folder, tmp_path / "out", cache=shared))
    compared = sum(1 for views in asked if views == 1)  # at the start, one by one
    assert sum(asked) - compared == 24 - 8 * before
    one, other = (load_file(run.student / "model.safetensors") for run in (plain, report))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_ranks_share_the_asking(folder, tmp_path):
    config = config_of(folder, tmp_path / "out", cache={"beforehand": True}, max_steps=1)
    assert "asking" not in run_on_ranks("distill", config, 2)  # done in a blink, so that no progress is shown
    whole = assemble(config, torch.device("cpu"))
    kept = keep_answers(whole, views_of(whole), tmp_path / "out" / "teacher_cache")
    assert kept.cache.num_kept() == 24
