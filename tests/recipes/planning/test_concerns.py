"""Each warning appears where something is wrong, and does not where all is well."""

import pytest

from attar.models import load_backbone
from attar.models.backbone import Provenance
from attar.recipes.planning import concerns
from attar.recipes.planning.parts import Part
from small_runs import MODEL

WIDER = MODEL.replace("embed_dim=32", "embed_dim=64")
DEEPER = MODEL.replace("depth=1", "depth=2")
FINER = MODEL.replace("patch_size=8", "patch_size=4")


def model(reference, img_size=32):
    return load_backbone(reference, weights="random", img_size=img_size)


def text(found):
    (concern,) = found
    return f"{concern.subject}: {concern.text}"


def test_too_few_images():
    assert "--data holds 999 images, fewer than 1,000" in text(concerns.too_few_images(999, "data"))
    assert not list(concerns.too_few_images(1000, "data"))
    assert "fewer than 20" in text(concerns.too_few_images(19, "labelled", least=20))


def test_too_few_images_to_judge():
    assert "99 images of --monitor" in text(concerns.too_few_to_judge(99, "monitor"))
    assert not list(concerns.too_few_to_judge(100, "monitor"))


def test_more_time_for_the_monitor_than_for_the_rest():
    def parts(checks):
        return [Part("training steps", 0.5, 10), Part(concerns.CHECKS, checks, 3)]

    assert "its checks take 64%" in text(concerns.much_judging(parts(3.0)))
    assert not list(concerns.much_judging(parts(1.6)))


def test_a_teacher_smaller_than_its_student():
    assert "smaller" in text(concerns.unequal_models(model(MODEL), model(DEEPER)))
    assert not list(concerns.unequal_models(model(DEEPER), model(MODEL)))
    assert not list(concerns.unequal_models(model(MODEL), model(MODEL)))


def test_a_student_wider_than_a_larger_teacher():
    deep = MODEL.replace("depth=1", "depth=8")
    said = text(concerns.unequal_models(model(deep), model(WIDER)))
    assert "64 channels, its teacher 32" in said


def test_grids_that_do_not_match_and_the_size_at_which_they_would():
    teacher, student = model(FINER), model(MODEL)
    said = text(concerns.unequal_grids(teacher, student))
    assert "8x8 tokens at 32 px, the student 4x4 at 32 px" in said
    assert "--teacher-img-size 16" in said
    assert not list(concerns.unequal_grids(model(FINER, 16), student))


def test_a_teacher_that_knows_nothing():
    assert "random" in text(concerns.untrained_teacher(model(MODEL)))
    trained = model(MODEL)
    trained.source = Provenance("x", weights="timm")
    assert not list(concerns.untrained_teacher(trained))


@pytest.mark.parametrize("said", ["cc-by-nc-4.0", "Non-commercial use", "research only", "CC BY-NC-SA 3.0", "FAIR NC"])
def test_a_licence_that_does_not_allow_all(said):
    assert said.lower() in text(concerns.licence(Provenance("x", weights="timm", licence=said)))


@pytest.mark.parametrize("said", ["apache-2.0", "mit", "bsd-3-clause"])
def test_a_licence_that_allows_all(said):
    assert not list(concerns.licence(Provenance("x", weights="timm", licence=said)))


@pytest.mark.parametrize("said", ["unknown", None])
def test_a_licence_that_nobody_knows_unless_there_is_nothing_to_license(said):
    assert "is unknown" in text(concerns.licence(Provenance("x", weights="timm", licence=said)))
    assert not list(concerns.licence(Provenance("x", weights="random", licence=said)))


def test_more_to_write_than_there_is_room_for():
    needed = {"checkpoints": 3_000_000_000, "students": 1_000_000_000}
    assert "4.0 GB are needed at --out o, and 3.5 GB are free" in text(
        concerns.too_little_room(needed, 3_500_000_000, "o")
    )
    assert not list(concerns.too_little_room(needed, 4_000_000_000, "o"))
