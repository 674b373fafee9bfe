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
    def values(model: str, task: str, metric: str) -> list[float]:
        return [line.value for line in published_of(model, task, metric)]

    assert values("Proteus-S/14", "linear:imagenet", "top1") == [0.818]
    assert values("Proteus-S/14", "dpt:nyuv2", "rmse") == [0.404, 0.35]  # frozen and fine-tuned
    assert values("Proteus-S/14", "linear:imagenet", "rmse") == []


def test_no_two_figures_claim_the_same_place() -> None:
    places = [(line.model, line.task, line.metric, line.source, line.note) for line in published()]
    assert len(set(places)) == len(places)


def test_models_are_known_in_any_case_and_others_refused() -> None:
    assert known_models("proteus-s/14,DINOv2-S/14") == ["Proteus-S/14", "DINOv2-S/14"]
    with pytest.raises(ConfigError, match="Did you mean 'Proteus-S/14'"):
        known_models("DINOv2-S/14,Proteus-S/41")


def test_every_model_is_found_by_its_name_commas_and_all() -> None:
    models = list(dict.fromkeys(line.model for line in published()))
    assert any("," in model for model in models)
    assert [known_models(model) for model in models] == [[model] for model in models]
    assert known_models(", ".join(models)) == models
