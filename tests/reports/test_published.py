from __future__ import annotations

from statistics import fmean

import pytest

from attar.errors import ConfigError
from attar.reports.published import known_models, published, published_of

MEANS = {  # spec/proteus.md 6.13, computed from the same table independently
    "Proteus-S/14": 85.767,
    "Proteus-B/14": 88.575,
    "Proteus-L/14": 91.033,
    "DINOv2-S/14": 87.600,
    "DINOv2-B/14": 89.992,
    "DINOv2-L/14": 91.025,
}


@pytest.mark.parametrize("model", MEANS)
def test_means_of_the_twelve_are_those_of_the_paper(model: str) -> None:
    # a figure in the wrong column or a wrong digit moves the mean by more than 0.001
    own = [p for p in published() if p.model == model and p.source.startswith("Proteus, Tables 1")]
    twelve = [p.value for p in own if p.task.startswith("logistic:")]
    assert len(twelve) == 12
    assert 100 * fmean(twelve) == pytest.approx(MEANS[model], abs=6e-4)
    assert 100 * next(p.value for p in own if p.task == "proteus12") == pytest.approx(MEANS[model], abs=0.051)


def test_every_figure_has_a_source_and_lies_where_it_can() -> None:
    for line in published():
        assert line.source
        assert 0 < line.value < (1 if line.metric != "rmse" else 10), line


def test_figures_are_found_by_model_task_and_metric() -> None:
    assert published_of("Proteus-S/14", "linear:imagenet", "top1").value == 0.818
    assert published_of("Proteus-S/14", "depth:nyuv2", "rmse").value == 0.404
    assert published_of("Proteus-S/14", "linear:imagenet", "rmse") is None


def test_models_are_known_in_any_case_and_others_refused() -> None:
    assert known_models(["proteus-s/14"]) == ["Proteus-S/14"]
    with pytest.raises(ConfigError, match="Did you mean 'Proteus-S/14'"):
        known_models(["Proteus-S/41"])
