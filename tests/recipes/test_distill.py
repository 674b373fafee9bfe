"""Each method through the whole run: it learns, says who it is, and goes on exactly where it stopped."""

import json
import shutil

import pytest
import torch

import attar
from attar.errors import CheckpointError
from small_runs import MODEL, picture, write_pictures

METHODS = {
    "proteus": "Proteus",
    "labels": "labels only",
    "logits": "logit distillation",
    "soft_logits": "soft logits",
    "hint": "hint on the class token",
}


def config_of(method, folder):
    """Two steps on two classes of six pictures, with a classifier where the method asks for one."""
    if not (folder / "images").exists():
        for name in ("cat", "dog"):
            write_pictures(folder / "images" / name, 6)
        torch.save({"fc.weight": torch.randn(2, 32, generator=torch.Generator().manual_seed(0))}, folder / "fc.pth")
    return attar.DistillConfig(
        teacher=MODEL,
        teacher_weights="random",
        student=MODEL,
        data=str(folder / "images"),
        out=str(folder / "run"),
        method=method,
        teacher_classifier=str(folder / "fc.pth") if "logits" in method else None,
        img_size=32,
        batch_size=8,
        max_steps=2,
        workers=0,
        device="cpu",
        precision="fp32",
        checkpoint={"every": 1, "keep": 5},
        log_every=1,
        optim={"lr": 1e-3},
    )


def test_a_monitor_that_changes_after_the_end_does_not_change_what_ships(tmp_path):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "monitor" / name, 12)
    config = config_of("proteus", tmp_path).replace(
        monitor=str(tmp_path / "monitor"), monitoring={"every": 1, "k": 3}, optim={"lr": 0.05}, max_steps=3, seed=2
    )
    report = attar.distill(config)
    file = report.student / "model.safetensors"
    best, last = file.read_bytes(), (report.run / "student-last/model.safetensors").read_bytes()
    assert best != last  # 17, 67 and 50 % of the selection half
    picture(99).save(tmp_path / "monitor/cat/new.png")
    again = attar.distill(config.replace(reindex=True))
    assert file.read_bytes() == best
    assert "what was the best then is judged anew and stays" in (report.run / "log.txt").read_text()
    assert again.results != report.results  # of the images of now


def steps_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for changing in ("time", "images_per_second"):
            del line[changing]
    return lines


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_each_method_goes_on_exactly(method, tmp_path):
    config = config_of(method, tmp_path)
    report = attar.distill(config)
    steps, weights = steps_of(report.run), (report.student / "model.safetensors").read_bytes()
    assert [line["step"] for line in steps] == [1, 2]
    shutil.rmtree(report.run / "checkpoints/step-00000002")  # as if it had been stopped after the first step
    shutil.rmtree(report.student)
    again = attar.distill(config)
    assert "from step-00000001" in (report.run / "log.txt").read_text()
    assert steps_of(again.run) == steps
    assert (again.student / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": {"algorithm": "muon"}},
        {"optim": {"recompute": True}},
        {"student": f"{MODEL}&dynamic_img_size=true", "proteus": {"small_size": 16}},
    ],
    ids=["muon", "recompute", "small views"],
)
def test_a_run_with_other_steps_goes_on_exactly_from_each_of_them(settings, tmp_path):
    # of small views the second step is the last one, so that a run goes on within either phase and at its end
    config = config_of("proteus", tmp_path).replace(teacher=f"{MODEL}&dynamic_img_size=true", max_steps=4, **settings)
    report = attar.distill(config)
    steps, weights = steps_of(report.run), (report.student / "model.safetensors").read_bytes()
    for stopped in (1, 2, 3):
        for step in range(stopped + 1, 5):
            shutil.rmtree(report.run / f"checkpoints/step-{step:08d}")
        shutil.rmtree(report.student)
        again = attar.distill(config)
        assert f"from step-{stopped:08d}" in (report.run / "log.txt").read_text()
        assert steps_of(again.run) == steps
        assert (again.student / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(("method", "title"), METHODS.items())
def test_console_card_and_page_name_the_method(method, title, tmp_path):
    report = attar.distill(config_of(method, tmp_path))
    card = (report.student / "README.md").read_text()
    assert f"  method   {title}" in (report.run / "log.txt").read_text()
    assert f"| method | {title}" in card
    assert title in (report.run / "report.html").read_text()
    assert ("teacher classifier | fc.pth" in card) is ("logits" in method)
    assert ("from labels" in card) is (method == "labels")  # its teacher is only measured
    assert ("(taught nothing)" in card) is (method == "labels")


@pytest.mark.parametrize("which", ["teacher", "classifier"])
def test_another_teacher_does_not_go_on_with_a_run_unless_asked_to(which, tmp_path):
    # the same path and settings, other weights in the file
    config = config_of("soft_logits", tmp_path).replace(teacher_weights=str(tmp_path / "teacher.pth"))

    def write_teacher(seed):
        torch.save(attar.load_backbone(MODEL, weights="random", img_size=32, seed=seed).model.state_dict(), weights)

    weights = tmp_path / "teacher.pth"
    write_teacher(1)
    attar.distill(config)
    attar.distill(config)  # nothing changed: goes on
    if which == "teacher":
        write_teacher(2)
    else:
        torch.save({"fc.weight": torch.randn(2, 32, generator=torch.Generator().manual_seed(9))}, tmp_path / "fc.pth")
    with pytest.raises(CheckpointError, match=rf"another {which if which == 'teacher' else 'teacher classifier'} \("):
        attar.distill(config)
    attar.distill(config.replace(resume_anyway=True))


def test_a_run_goes_on_with_changed_images_when_asked_to_and_says_so(tmp_path):
    config = config_of("hint", tmp_path)
    run = attar.distill(config).run
    before = steps_of(run)
    shutil.rmtree(run / "checkpoints/step-00000002")  # as if it had been stopped after the first step
    write_pictures(tmp_path / "images/fox", 5)
    with pytest.raises(CheckpointError, match=r"other data: .*/images had 12 images \(.*, now 17 images \("):
        attar.distill(config)
    report = attar.distill(config.replace(resume_anyway=True))
    after = steps_of(run)
    assert after[0] == before[0]
    assert after[1]["loss"] != before[1]["loss"]  # of other images
    change = f"with other data: {tmp_path}/images had 12 images ("
    assert f"  resume   anyway: step-00000001 was made {change}" in (run / "log.txt").read_text()
    for text in ((report.student / "README.md").read_text(), (run / "report.html").read_text()):
        assert f"up to step 1 {change}" in text
    attar.distill(config)  # the newest checkpoint belongs to the images of now


def test_a_classifier_of_no_use_is_told_before_the_first_step(tmp_path):
    config = config_of("logits", tmp_path)
    torch.save({"fc.weight": torch.zeros(2, 32), "fc.bias": torch.tensor([1.0, 0.0])}, tmp_path / "fc.pth")
    said = (attar.distill(config).run / "log.txt").read_text()
    check = said.index("  check    the teacher's classifier and the labels agree on ")
    assert check < said.index("           that is no better than chance") < said.index("  step 1  ")
