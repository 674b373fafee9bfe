"""Judgements timed on few images, and scaled."""

import time

import pytest

from attar.data.labelled import open_labelled
from attar.evaluation.embedding import MonitorViews
from attar.recipes.planning.monitoring import Judgements, images_to_look_at, known_from, loader_start, scaled
from attar.recipes.planning.parts import MEASURED

EACH, ONCE = 0.001, 0.05  # seconds


class Slow:
    """Takes a while for each image, and a while for all."""

    img_size = 32

    def __init__(self, images):
        self.images = images

    def run(self, backbone):
        time.sleep(ONCE + EACH * self.images)
        yield "knn_select", 1.0


def views(count):
    images, _ = open_labelled(f"playground:0?n={2 * count}", seed=0)
    return MonitorViews({"bank": images}, crop_pct=1.0, workers=0)


def test_a_probe_looks_at_about_as_much_as_a_few_steps_do():
    assert images_to_look_at(8, 5000) == 128
    assert images_to_look_at(64, 5000) == 256
    assert images_to_look_at(1024, 5000) == 512
    assert images_to_look_at(64, 40) == 40
    assert known_from(40, 40) == MEASURED
    assert known_from(512, 5000) == "measured on 512 of 5,000 images, scaled"


def test_seconds_are_scaled_but_for_what_is_done_once():
    few, whole = views(20), views(100)
    part = Judgements(few, whole, once=lambda: time.sleep(ONCE)).part("judged", Slow(20), Slow(20), times=3)
    assert part.seconds == pytest.approx(ONCE + EACH * whole.count, rel=0.3)
    assert part.total == pytest.approx(3 * part.seconds)


def test_loader_processes_start_once_a_pass_and_only_for_more_than_a_batch():
    assert scaled(3.0, [100, 100], [1000, 1000], start=0.5) == pytest.approx((3 - 1) * 10 + 1)
    assert scaled(2.0, [50], [500], start=0.5) == pytest.approx(2 * 10 + 0.5)  # the few were made in this process
    assert scaled(0.1, [100], [1000], start=0.5) == 0.5
    assert loader_start(0) == 0
    assert loader_start(1) > 0


def test_views_of_few_images_are_kept_if_those_of_all_would_be():
    few, whole = views(20), views(100)
    whole.count = 1_000_000
    judge = Judgements(few, whole)
    list(few.batches("bank", 32))
    assert few._kept == {}
    judge.part("judged", Slow(20), Slow(20))
    assert judge.more_bytes == 0  # none are kept


def test_the_run_keeps_the_views_that_the_probe_did_not_make():
    few, whole = views(20), views(100)
    looked_at = few.count
    judge = Judgements(few, whole)
    assert judge.more_bytes == 0
    judge.part("judged", Slow(20), Slow(20))
    assert judge.more_bytes == (whole.count - looked_at) * 3 * 32 * 32
