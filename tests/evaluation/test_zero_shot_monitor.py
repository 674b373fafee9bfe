"""Zero-shot while a student trains: two halves that do not meet, and class vectors of the tower as it is now."""

import numpy as np
import pytest
import torch

from attar.data.labelled import Labelled
from attar.data.sources import open_source
from attar.errors import ConfigError, DataError
from attar.evaluation import ZeroShotMonitor, text_classifier, zero_shot_logits
from attar.evaluation.embedding import seen
from attar.models import with_projection
from small_models import backbone, text_tower
from small_runs import write_pictures


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitor")
    for name in ("a_cat", "dog", "horse"):
        write_pictures(folder / name, 9)
    source = open_source(str(folder))
    labels, names = source.labels()
    return Labelled(source, np.arange(len(source)), np.asarray(labels, dtype=np.int64), names)


def monitor_of(images, **changes):
    settings = {"limit": 20, "seed": 0, "crop_pct": 1.0, "workers": 0} | changes
    return ZeroShotMonitor(images, settings.pop("templates", ["a photo of a {}."]), **settings)


def test_halves_do_not_meet_and_are_written_down(images):
    rows = {name: part["rows"] for name, part in monitor_of(images).describe().items()}
    assert len(rows["select"]) == len(rows["report"]) == 10
    assert not set(rows["select"]) & set(rows["report"])
    assert monitor_of(images).describe() == monitor_of(images).describe()
    assert monitor_of(images, seed=1).describe() != monitor_of(images).describe()


def test_scores_are_those_of_zero_shot_by_hand(images):
    monitor, text = monitor_of(images), text_tower()
    tower = with_projection(backbone(), 24)
    scores = dict(monitor.beside(text).run(tower))
    classifier = text_classifier(text.encode, ["a cat", "dog", "horse"], ["a photo of a {}."])
    for half in ("select", "report"):
        part = monitor.views.parts[half]
        features, labels = seen(tower.embed, part, monitor.views.batches(half, 32))
        right = (zero_shot_logits(features, classifier).argmax(1) == labels).double().mean()
        assert scores[f"zero_shot_{half}"] == pytest.approx(right.item())
    assert scores["zero_shot_images"] == 10


def test_a_tower_that_has_learned_meanwhile_gives_other_classes(images):
    # catches class vectors that are made once: a small text tower changes with each step
    monitor, text, tower = monitor_of(images), text_tower(), with_projection(backbone(), 24)
    judge = monitor.beside(text)
    before = judge.classifier()
    with torch.no_grad():
        text.model.layers[-1].bias.add_(torch.randn(24, generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(judge.classifier(), before)
    assert dict(judge.run(tower))


def test_templates_and_images_that_make_no_monitor_are_refused(images):
    with pytest.raises(ConfigError, match="no place for the class name"):
        monitor_of(images, templates=["a photo."])
    with pytest.raises(DataError, match="1 image"):
        monitor_of(images.take(np.arange(1)))
    assert monitor_of(images).protocol["prompts"] != monitor_of(images, templates=["one {}"]).protocol["prompts"]


def test_numbers_are_no_names_and_wordnets_are_read(images):
    def called(*names):
        return Labelled(images.source, images.rows, images.labels, names)

    with pytest.raises(ConfigError, match="called 0, 1, 2"):
        monitor_of(called("0", "1", "2"))
    assert monitor_of(called("n01440764", "n01443537", "n01484850")).names == ["tench", "goldfish", "great white shark"]


def test_other_images_are_another_protocol(images):
    part = images.take(np.arange(0, 27, 2))
    other = images.take(np.arange(1, 27, 2))
    assert monitor_of(part, limit=12).protocol["select"] == monitor_of(other, limit=12).protocol["select"]
    assert monitor_of(part, limit=12).protocol != monitor_of(other, limit=12).protocol
