"""A plan of `attar distill-vl`, with a CLIP of random weights as teacher."""

import numpy as np
import pytest
from PIL import Image

import attar
from attar.data.arrangements import COMBINATIONS, render_arrangement
from attar.data.playground_sentences import draw_sentence
from attar.recipes.planning.distill_vl import Repeated
from small_models import TINY

pytest.importorskip("open_clip", reason="needs the extra vl")
import small_clip

IMAGES, SENTENCES = 24, 40
QUICK = attar.PlanConfig(probe_steps=1)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Images with captions, sentences that belong to none, and labelled images."""
    small_clip.register()
    root = tmp_path_factory.mktemp("vl")
    (root / "images").mkdir()
    captions = []
    for index in range(IMAGES):
        scene = render_arrangement(0, index, size=32)
        Image.fromarray(scene.image).save(root / f"images/{index:02}.png")
        captions.append(f"{index:02}.png\t{scene.caption}\n")
    (root / "captions.tsv").write_text("".join(captions))
    (root / "text.txt").write_text("\n".join(draw_sentence(0, index).text for index in range(SENTENCES)))
    for index in range(8):
        scene = render_arrangement(1, index, size=32)
        folder = root / "test" / "_".join(COMBINATIONS["seen"][scene.label])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(folder / f"{index}.png")
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
        "max_steps": 9,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
    return attar.DistillVlConfig.build(settings | changes)


def times(planned):
    return {part.what: part.times for part in planned.parts}


def test_few_rows_stand_for_many():
    few = np.arange(6).reshape(3, 2)
    many = Repeated(few, 10)
    assert (len(many), many.shape, many.ndim) == (10, (10, 2), 2)
    assert many[np.array([0, 4, 9])].tolist() == [[0, 1], [2, 3], [0, 1]]


def test_what_the_teacher_is_asked_is_counted_and_nothing_is_written(places, tmp_path):
    planned = attar.plan(config(places, tmp_path / "out", monitor=str(places / "test")), QUICK)
    counted = times(planned)
    kept = planned.found["texts"]["sentences"]
    assert counted["images seen by the teacher"] == IMAGES
    assert counted["texts embedded"] == kept <= SENTENCES
    assert counted["training steps"] == 9
    assert planned.disk["text vectors"] == 2 * 16 * kept
    assert {"few images", "few images to judge", "random teacher"} <= {c.subject for c in planned.concerns}
    assert not (tmp_path / "out").exists()


def test_what_a_run_has_kept_is_not_asked_again(places, tmp_path):
    first = config(places, tmp_path / "run", features=str(tmp_path / "features"), max_steps=1)
    attar.distill_vl(first)
    counted = times(attar.plan(config(places, tmp_path / "out", features=str(tmp_path / "features")), QUICK))
    assert not {"images seen by the teacher", "texts embedded"} & set(counted)
    assert counted["training steps"] == 9


def test_a_text_tower_that_learns_needs_tokens_and_captions_are_asked_too(places, tmp_path):
    learning = {
        "dime_fm": {"text_mode": "small_student", "contrastive_weight": 1.0},
        "text": {"depth": 1, "width": 8, "num_heads": 2},
        "captions": str(places / "captions.tsv"),
    }
    planned = attar.plan(config(places, tmp_path / "out", **learning), QUICK)
    counted = times(planned)
    assert counted["captions embedded"] == counted["captions tokenised"] == IMAGES
    assert counted["texts tokenised"] == planned.found["texts"]["sentences"]
    assert planned.disk["caption tokens"] == 4 * 12 * IMAGES


def test_steps_that_read_what_the_teacher_said_of_a_view_are_told_apart(places, tmp_path):
    kept = config(places, tmp_path / "out", teacher_views="matched", cached_views=1, max_steps=9)
    counted = times(attar.plan(kept, QUICK))
    assert counted["training steps, teacher asked"] == 3  # 24 images by 8
    assert counted["training steps, answers read"] == 6
    online = times(attar.plan(config(places, tmp_path / "out", teacher_views="matched"), QUICK))
    assert online["training steps"] == 9
