"""Batches are a pure function of the step: whoever loads them, wherever they start, whatever is broken between."""

import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from attar.config import ViewsConfig
from attar.data.decode import open_image
from attar.data.loader import (
    EvaluationDataset,
    ViewDataset,
    default_workers,
    evaluation_batches,
    images_in,
    is_readable,
    training_batches,
)
from attar.data.sampler import ViewOrder
from attar.data.sources import open_source
from attar.data.views import EvaluationView, training_view
from attar.errors import DataError
from small_runs import environment, write_pictures

BATCH = 8
SIZE = 16
TENSORS = ("views", "samples", "view_ids", "positions")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("loader") / "images", 50)


def dataset_of(folder, *, seed=3, repeats=1, config=None):
    source = open_source(str(folder))
    return ViewDataset(source, ViewOrder(len(source), seed, repeats), config or ViewsConfig(), SIZE)


def batches(dataset, *, start=0, stop=6, **options):
    """As a device gets them."""
    return [batch.to(torch.device("cpu")) for batch in sent_batches(dataset, start=start, stop=stop, **options)]


def sent_batches(dataset, *, start=0, stop=6, **options):
    """As a loader hands them over."""
    options = {"batch_size": BATCH} | options
    return list(training_batches(dataset, start_step=start, num_steps=stop, **options))


def assert_equal(one, other):
    """Every field of two batches, bit by bit."""
    for name in TENSORS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("step", "global_batch_size", "names", "bad_files"):
        assert getattr(one, name) == getattr(other, name), name


def assert_all_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert_equal(one, other)


# --- what is in a batch ---------------------------------------------------------------------------------------------


def test_a_batch_says_what_it_holds(images):
    dataset = dataset_of(images)
    for step, batch in enumerate(batches(dataset)):
        samples, views = dataset.order.at(np.arange(step * BATCH, (step + 1) * BATCH))
        assert (batch.step, batch.global_batch_size) == (step, BATCH)
        assert batch.samples.tolist() == samples.tolist()
        assert batch.view_ids.tolist() == views.tolist()
        assert batch.positions.tolist() == list(range(BATCH))
        assert batch.names == tuple(f"{sample:03}.png" for sample in samples)
        assert batch.bad_files == ()
        assert batch.views.shape == (BATCH, 3, SIZE, SIZE)
        assert batch.views.dtype == torch.float32


def test_each_view_is_that_of_its_sample_and_view_number(images):
    dataset = dataset_of(images)
    batch = batches(dataset, start=6, stop=7)[0]  # places 48 to 55: two epochs in one batch
    assert sorted(set(batch.view_ids.tolist())) == [0, 1]
    for view, sample, number in zip(batch.views, batch.samples.tolist(), batch.view_ids.tolist(), strict=True):
        image = open_image((images / f"{sample:03}.png").read_bytes(), name="x")
        expected = training_view(image, seed=3, sample=sample, view=number, img_size=SIZE, config=ViewsConfig())
        assert torch.equal(view, expected.values())


def test_views_of_several_places_are_those_of_each(images):
    dataset = dataset_of(images, repeats=2)
    places = [3, 49, 50, 51, 120]
    for place, item in zip(places, dataset.__getitems__(places), strict=True):
        alone = dataset[place]
        assert (item.place, item.sample, item.view_id) == (place, alone.sample, alone.view_id)
        assert torch.equal(item.view.values(), alone.view.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_views_travel_as_bytes_and_erased_boxes_beside_them(images, workers):
    dataset = dataset_of(images, config=ViewsConfig(erase=0.5))
    for batch in sent_batches(dataset, workers=workers):
        assert batch.views.dtype == torch.uint8
        items = [dataset[batch.step * BATCH + place] for place in range(BATCH)]
        assert torch.equal(batch.views, torch.stack([item.view.pixels for item in items]))
        assert [box[0] for box in batch.erased.boxes] == [n for n, item in enumerate(items) if item.view.erased]
        there = batch.to(torch.device("cpu"))
        assert there.erased is None
        assert torch.equal(there.views, torch.stack([item.view.values() for item in items]))
        assert there.to(torch.device("cpu")).views is there.views
    plain = dataset_of(images, config=ViewsConfig(erase=0))
    assert all(batch.erased is None for batch in sent_batches(plain, workers=workers))


def test_a_batch_may_be_larger_than_the_folder(images):
    (batch,) = batches(dataset_of(images), stop=1, batch_size=64)
    assert sorted(batch.samples[:50].tolist()) == list(range(50))
    assert batch.view_ids.tolist() == [0] * 50 + [1] * 14
    again = {sample: place for place, sample in enumerate(batch.samples[:50].tolist())}
    for place in range(50, 64):  # the same image once more, but another view of it
        assert not torch.equal(batch.views[place], batch.views[again[batch.samples[place].item()]])


def test_one_image_fills_batches_with_views_of_it(tmp_path):
    write_pictures(tmp_path / "one", 1)
    (batch,) = batches(dataset_of(tmp_path / "one"), stop=1)
    assert batch.view_ids.tolist() == list(range(BATCH))
    assert len({view.numpy().tobytes() for view in batch.views}) > BATCH // 2


# --- exactness ------------------------------------------------------------------------------------------------------


def test_a_stream_that_starts_late_is_the_end_of_the_whole_one(images):
    whole = batches(dataset_of(images), stop=9)
    assert len(whole) == 9
    assert_all_equal(batches(dataset_of(images), start=3, stop=9), whole[3:])
    assert batches(dataset_of(images), start=9, stop=9) == []


def test_worker_processes_change_nothing(images):
    whole = batches(dataset_of(images), stop=9)
    assert_all_equal(batches(dataset_of(images), stop=9, workers=2), whole)
    assert_all_equal(batches(dataset_of(images), start=3, stop=9, workers=2), whole[3:])


def test_seeds_differ(images):
    one, other = (batches(dataset_of(images, seed=seed), stop=1)[0] for seed in (3, 4))
    assert one.samples.tolist() != other.samples.tolist()
    assert not torch.equal(one.views, other.views)


@pytest.mark.parametrize(("parts", "workers"), [(2, 0), (4, 0), (8, 0), (4, 2)])
def test_parts_put_together_are_the_whole_batch(images, parts, workers):
    whole = batches(dataset_of(images), start=2, stop=5)
    pieces = batches(dataset_of(images), start=2, stop=5, micro_batches=parts, workers=workers)
    assert [piece.step for piece in pieces] == [step for step in (2, 3, 4) for _ in range(parts)]
    for number, batch in enumerate(whole):
        mine = pieces[number * parts : (number + 1) * parts]
        assert {len(piece.views) for piece in mine} == {BATCH // parts}
        together = replace(
            mine[0],
            **{name: torch.cat([getattr(piece, name) for piece in mine]) for name in TENSORS},
            names=sum((piece.names for piece in mine), ()),
        )
        assert_equal(together, batch)


def test_a_batch_that_does_not_divide_into_its_parts_is_refused(images):
    with pytest.raises(AssertionError, match="no 3 equal shares"):
        batches(dataset_of(images), micro_batches=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generators_alone(images, workers):
    def states():
        name, keys, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), random.getstate(), (name, keys.tolist(), *rest)

    before = states()
    batches(dataset_of(images), stop=2, workers=workers)
    rows = EvaluationDataset(open_source(str(images)), np.arange(4), EvaluationView(SIZE, 1.0))
    list(evaluation_batches(rows, batch_size=2, workers=workers))
    assert states() == before


DIGEST = """
import hashlib
from attar.config import ViewsConfig
from attar.data.loader import ViewDataset, training_batches
from attar.data.sampler import ViewOrder
from attar.data.sources import open_source

source = open_source("playground:9?n=300")
dataset = ViewDataset(source, ViewOrder(300, 1, 3), ViewsConfig(), 16)
digest = hashlib.sha256()
for batch in training_batches(dataset, batch_size=8, start_step=0, num_steps=3):
    digest.update(batch.views.numpy().tobytes() + str(batch.samples.tolist()).encode())
print(digest.hexdigest())
"""


def test_another_process_makes_the_same_batches(capsys):
    exec(DIGEST, {})
    here = capsys.readouterr().out.strip()
    command = [sys.executable, "-c", DIGEST]
    there = subprocess.run(command, env=environment(PYTHONHASHSEED="77"), capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
    assert len(here) == 64


# --- unreadable images ----------------------------------------------------------------------------------------------


@pytest.fixture
def with_broken(images, tmp_path):
    """The same pictures, three of them broken in three ways, and the names of those."""
    for path in images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "004.png").write_bytes(b"")
    (tmp_path / "017.png").write_text("not a picture")
    (tmp_path / "033.png").write_bytes((images / "033.png").read_bytes()[:300])
    return tmp_path


BROKEN = {4, 17, 33}


def test_unreadable_images_are_replaced_and_reported(images, with_broken):
    sound, batch = (batches(dataset_of(folder), stop=1, batch_size=50)[0] for folder in (images, with_broken))
    wanted = sound.samples.tolist()
    places = {wanted.index(sample) for sample in BROKEN}
    assert {bad.sample for bad in batch.bad_files} == BROKEN
    assert {bad.name for bad in batch.bad_files} == {"004.png", "017.png", "033.png"}
    reasons = {bad.sample: bad.reason for bad in batch.bad_files}
    assert "empty" in reasons[4]
    assert "not a readable" in reasons[17]
    assert "cannot be decoded" in reasons[33]
    for place in range(50):
        assert batch.view_ids[place] == sound.view_ids[place]
        assert batch.names[place] == f"{batch.samples[place]:03}.png"
        if place in places:
            assert batch.samples[place].item() not in BROKEN
            assert torch.isfinite(batch.views[place]).all()
        else:  # a broken image changes no view but its own
            assert batch.samples[place] == sound.samples[place]
            assert torch.equal(batch.views[place], sound.views[place])


def test_what_is_readable_has_all_its_pixels(with_broken):
    source = open_source(str(with_broken))
    assert {row for row in range(len(source)) if not is_readable(source, row)} == BROKEN


def test_a_replacement_is_a_view_of_the_image_it_names(with_broken):
    (batch,) = batches(dataset_of(with_broken), stop=1, batch_size=50)
    for view, sample, number in zip(batch.views, batch.samples.tolist(), batch.view_ids.tolist(), strict=True):
        image = open_image((with_broken / f"{sample:03}.png").read_bytes(), name="x")
        expected = training_view(image, seed=3, sample=sample, view=number, img_size=SIZE, config=ViewsConfig())
        assert torch.equal(view, expected.values())


def test_replacements_are_the_same_each_time_and_in_workers(with_broken):
    whole = batches(dataset_of(with_broken), stop=12)
    assert sum(len(batch.bad_files) for batch in whole) >= 3
    assert_all_equal(batches(dataset_of(with_broken), start=3, stop=12, workers=2), whole[3:])


def test_replacements_are_drawn_from_all_images(tmp_path):
    # always the same one in place of an unreadable one would show it far more often than the others
    write_pictures(tmp_path / "images", 40)
    for number in range(20):
        (tmp_path / "images" / f"{number:03}.png").write_bytes(b"broken")
    (batch,) = batches(dataset_of(tmp_path / "images"), stop=1, batch_size=200)
    counts = np.bincount(batch.samples.numpy(), minlength=40)
    assert counts[:20].tolist() == [0] * 20
    assert (counts[20:] >= 5).all()  # in its own right, once in each of five epochs
    assert (counts[20:] > 5).sum() >= 18
    assert counts.max() < 18


@pytest.mark.parametrize("workers", [0, 1])
def test_twenty_unreadable_images_in_a_row_end_the_run(tmp_path, workers):
    for number in range(30):
        (tmp_path / f"{number}.jpg").write_text("not a picture")
    with pytest.raises(DataError) as caught:
        batches(dataset_of(tmp_path), workers=workers)
    message = str(caught.value)
    first = dataset_of(tmp_path).source.name(int(dataset_of(tmp_path).order.at(np.array([0]))[0][0]))
    assert message.startswith("20 images in a row cannot be read")
    assert first in message
    assert message.endswith("Is this a folder of images?")
    assert "Traceback" not in message
    assert "\n" not in message


def test_a_single_unreadable_image_ends_the_run_too(tmp_path):
    (tmp_path / "1.jpg").write_text("not a picture")
    with pytest.raises(DataError, match="20 images in a row"):
        batches(dataset_of(tmp_path))


def test_a_single_sound_image_among_few_is_found(tmp_path):
    write_pictures(tmp_path / "images", 3)
    for number in (0, 1):
        (tmp_path / "images" / f"{number:03}.png").write_bytes(b"broken")
    for batch in batches(dataset_of(tmp_path / "images"), stop=10):
        assert set(batch.samples.tolist()) == {2}
        assert {bad.sample for bad in batch.bad_files} == {0, 1}


def test_a_file_that_vanishes_while_the_run_reads_is_replaced(tmp_path):
    write_pictures(tmp_path / "images", 10)
    dataset = dataset_of(tmp_path / "images")
    (tmp_path / "images/004.png").unlink()
    (batch,) = batches(dataset, stop=1, batch_size=10)
    (bad,) = {bad.sample: bad for bad in batch.bad_files}.values()
    assert (bad.sample, bad.name) == (4, "004.png")
    assert "No such file" in bad.reason


# --- labels ---------------------------------------------------------------------------------------------------------


def labelled(folder):
    """The dataset with a label for each picture that no other number in a batch equals: 1000 and its row."""
    plain = dataset_of(folder)
    return ViewDataset(plain.source, plain.order, plain.config, SIZE, labels=1000 + np.arange(len(plain.source)))


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_follow_their_samples_through_the_stream(images, workers):
    for batch in batches(labelled(images), start=3, stop=9, workers=workers):  # places 48 to 55 are of two epochs
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == (1000 + batch.samples).tolist()


def test_a_replaced_image_brings_its_own_label(with_broken):
    # the label of the unreadable image beside another's view would teach a wrong class
    (batch,) = batches(labelled(with_broken), stop=1, batch_size=50)
    assert {bad.sample for bad in batch.bad_files} == BROKEN
    assert batch.labels.tolist() == (1000 + batch.samples).tolist()


def test_without_labels_wanted_there_are_none(images):
    assert {batch.labels for batch in batches(dataset_of(images), stop=2)} == {None}


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_once_through_the_chosen_rows(images, workers):
    rows = np.array([7, 3, 3, 49, 0, 20, 11])
    dataset = EvaluationDataset(open_source(str(images)), rows, EvaluationView(SIZE, 0.875))
    found = list(evaluation_batches(dataset, batch_size=3, workers=workers))
    assert [positions.tolist() for _, positions in found] == [[0, 1, 2], [3, 4, 5], [6]]
    for views, positions in found:
        assert views.dtype == torch.uint8
        for view, position in zip(views, positions.tolist(), strict=True):
            image = open_image((images / f"{rows[position]:03}.png").read_bytes(), name="x")
            assert torch.equal(view, EvaluationView(SIZE, 0.875)(image))


def test_a_single_batch_needs_no_workers_and_counts_its_readable_images(with_broken):
    rows = np.array([17, 2, 4, 33])
    dataset = EvaluationDataset(open_source(str(with_broken)), rows, EvaluationView(SIZE, 1.0))
    assert evaluation_batches(dataset, batch_size=4, workers=2).num_workers == 0
    assert evaluation_batches(dataset, batch_size=3, workers=2).num_workers == 2
    assert [images_in(batch) for batch in evaluation_batches(dataset, batch_size=3)] == [1, 0]


def test_evaluation_leaves_unreadable_images_out_and_keeps_positions(with_broken):
    rows = np.array([17, 2, 4, 33, 17, 5, 6, 7, 33])
    dataset = EvaluationDataset(open_source(str(with_broken)), rows, EvaluationView(SIZE, 1.0))
    found = list(evaluation_batches(dataset, batch_size=2))
    assert [positions.tolist() for _, positions in found] == [[1], [], [5], [6, 7], []]
    assert [tuple(views.shape[:2]) for views, _ in found] == [(1, 3), (0, 3), (1, 3), (2, 3), (0, 3)]
    whole = next(iter(evaluation_batches(dataset, batch_size=9)))
    assert torch.equal(whole[0], torch.cat([views for views, _ in found if len(views)]))
    assert whole[1].tolist() == [1, 5, 6, 7]


def test_the_default_leaves_a_core_to_training():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert default_workers() == min(8, cores - 1)
