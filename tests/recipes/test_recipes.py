from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import yaml

from attar.config import DistillConfig, OptimConfig, PlanConfig
from attar.config.distill import PlainViewsConfig
from attar.data.labelled import open_labelled
from attar.errors import ConfigError, Interrupted
from attar.evaluation import KnnMonitor
from attar.models import load_backbone
from attar.recipes.distill import distill
from attar.recipes.plan import plan
from attar.recipes.proteus import RECIPES, completed, from_recipe
from attar.recipes.quickstart import playground_teacher, quickstart_config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_names_models_that_exist(name: str) -> None:
    config = RECIPES[name](data="images", out="run")
    for reference in (config.teacher, config.student):
        assert timm.is_model(reference.partition("?")[0])
    assert (config.epochs, config.max_steps) == ((None, 2000) if name == "fast" else (300, None))
    if name == "fast":
        assert config.batch_size == 64
    assert config.img_size == 224
    is_paper = name.endswith("_paper")
    assert (config.optim.schedule, config.proteus.mask_rule) == (("paper", "paper") if is_paper else ("step", "random"))
    assert config.optim.ema_warmup is not is_paper


@pytest.mark.parametrize(("name", "teacher", "student"), [("proteus_ti", 384, 192), ("proteus_s", 768, 384)])
def test_pairings_are_one_size_up(name: str, teacher: int, student: int) -> None:
    config = RECIPES[name](data="images", out="run")
    for reference, width in ((config.teacher, teacher), (config.student, student)):
        shallow = reference + ("&" if "?" in reference else "?") + "depth=1"
        found = load_backbone(shallow, weights="random", img_size=224)
        assert (found.embed_dim, found.patch_size, found.grid) == (width, 14, (16, 16))
    student_blocks = load_backbone(shallow, weights="random", img_size=224).model.blocks
    assert torch.equal(student_blocks[0].ls1.gamma, torch.ones(width))  # type: ignore[index, union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["proteus_ti", "proteus_s_paper", "fast"])
def test_recipes_do_two_steps_at_their_input_size(name: str, tmp_path: Path) -> None:
    config = RECIPES[name](data="playground:0?n=300", out=str(tmp_path / "run"))
    shallow = [
        reference + ("&" if "?" in reference else "?") + "depth=1" for reference in (config.teacher, config.student)
    ]
    config = config.replace(
        teacher=shallow[0],
        student=shallow[1],
        teacher_weights="random",
        epochs=None,
        max_steps=2,
        batch_size=4,
        workers=0,
    )
    assert distill(config).student.is_dir()


def test_fast_takes_any_pair_and_length_and_leaves_its_other_settings() -> None:
    asked = {"recipe": "fast", "data": "images", "out": "run", "teacher": "a", "student": "b"}
    plain, longer = from_recipe(asked), from_recipe(asked | {"epochs": 3})
    assert (plain.teacher, plain.student, plain.max_steps, plain.epochs) == ("a", "b", 2000, None)
    assert longer == plain.replace(epochs=3, max_steps=None)
    assert (plain.optim.algorithm, plain.proteus.patch_weight, plain.proteus.standardise_targets) == ("muon", 0, True)
    other = from_recipe(asked | {"optim": {"lr": 1e-3}})
    assert other == plain.replace(optim={"lr": 1e-3})
    adamw = from_recipe(asked | {"optim": {"algorithm": "adamw"}}).optim
    assert (adamw.lr, adamw.lr_per_512) == (None, OptimConfig().lr_per_512)  # Muon's rate is not for others
    both = from_recipe(asked | {"optim": {"algorithm": "adamw", "lr": 1e-3}})
    assert (both.optim.algorithm, both.optim.lr) == ("adamw", 1e-3)
    with pytest.raises(ConfigError, match=r"epochs and max_steps are both set \(3, 9\)"):
        from_recipe(asked | {"epochs": 3, "max_steps": 9})


def test_a_recipe_named_from_python_says_what_nobody_set() -> None:
    given = {"recipe": "fast", "data": "images", "out": "run", "teacher": "a", "student": "b"}
    for own in (
        {},
        {"max_steps": 7},
        {"epochs": 3},
        {"optim": {"lr": 1e-3}},
        {"method": "hint"},
        {"optim": {"algorithm": "adamw"}},
    ):
        whole = from_recipe(given | own)
        assert completed(DistillConfig(**given).replace(**own)) == whole == completed(DistillConfig(**given, **own))
        assert completed(whole) == whole
        assert completed(whole.replace(optim={"algorithm": "adamw"})).optim.algorithm == "adamw"
        assert completed(whole.replace(optim=OptimConfig())).optim == OptimConfig()
    named = DistillConfig(**given, optim=OptimConfig(lr=1e-3), views=PlainViewsConfig())
    assert completed(named).optim == from_recipe(given | {"optim": {"lr": 1e-3}}).optim
    assert completed(named).views.model_dump() == PlainViewsConfig().model_dump()
    del given["recipe"]
    alone = DistillConfig(**given, views=PlainViewsConfig())
    assert completed(alone) == alone
    assert alone.replace(seed=1).views.model_dump() == PlainViewsConfig().model_dump()


def test_a_run_and_a_plan_take_what_the_recipe_says(tmp_path: Path) -> None:
    config = DistillConfig(
        recipe="fast",
        teacher="vit_tiny_patch16_224?depth=1",
        teacher_weights="random",
        student="vit_tiny_patch16_224?depth=1",
        data="playground:0?n=60",
        out=str(tmp_path / "run"),
        img_size=32,
        batch_size=4,
        workers=0,
    )
    planned = plan(config, PlanConfig(probe_steps=2))
    assert [part.times for part in planned.parts if part.what == "training steps"] == [2000]
    assert planned.settings["optim"]["algorithm"] == "muon"
    told = planned.found["settings"]  # what is neither the default nor the recipe's
    assert told == {
        "recipe": "fast",
        **{name: getattr(config, name) for name in ("teacher", "teacher_weights", "student", "out")},
        "data": "playground:0?n=60",
        **{name: getattr(config, name) for name in ("img_size", "batch_size", "workers")},
    }
    run = distill(config.replace(max_steps=2)).run
    recorded = DistillConfig.build(yaml.safe_load((run / "config.yaml").read_text()))
    assert (recorded.recipe, recorded.optim.algorithm, recorded.proteus.patch_weight) == ("fast", "muon", 0)


@pytest.mark.parametrize("method", ["proteus", "hint"])
def test_fast_teaches_a_conv_net_whose_grid_is_another(method: str, tmp_path: Path) -> None:
    config = from_recipe(
        {
            "recipe": "fast",
            "teacher": "vit_tiny_patch16_224?depth=1",
            "teacher_weights": "random",
            "student": "resnet10t",  # 2 x 2 places at 64 px, the teacher has 4 x 4
            "method": method,
            "data": "playground:0?n=60",
            "out": str(tmp_path / "run"),
            "img_size": 64,
            "batch_size": 4,
            "max_steps": 2,
            "workers": 0,
        }
    )
    assert distill(config).student.is_dir()


def test_an_interrupted_last_judgement_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quickstart_config(str(tmp_path / "run")).replace(
        max_steps=2, monitor="playground:1?n=140&variety=0", workers=0, batch_size=8
    )
    judge, calls = KnnMonitor.run, []

    def interrupted(self, backbone):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:  # teacher, random, then the student after its last step
            raise Interrupted(15, "stopped while judging")
        return judge(self, backbone)

    with monkeypatch.context() as patch:
        patch.setattr(KnnMonitor, "run", interrupted)
        with pytest.raises(Interrupted):
            distill(config)
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
    report = distill(config)
    assert [result.role for result in report.results] == ["student", "teacher", "random"]
    assert '"student_knn_select"' in (report.run / "metrics.jsonl").read_text()


def test_replace_validates_again() -> None:
    config = RECIPES["proteus_s"](data="images", out="run")
    assert config.replace(optim={"lr": 1e-3}).optim.lr == 1e-3
    assert config.replace(optim={"lr": 1e-3}).optim.weight_decay == config.optim.weight_decay
    with pytest.raises(ConfigError, match="batch_size"):
        config.replace(batch_size=0)
    with pytest.raises(ConfigError, match="Did you mean 'weight_decay'"):
        config.replace(optim={"weight_decai": 1})


def test_shipped_teacher_is_small_and_good_and_a_random_student_is_not() -> None:
    folder = playground_teacher()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    config = quickstart_config()
    train, test = open_labelled(str(config.monitor), seed=0)
    monitor = KnnMonitor(train, test, limit=600, k=10, seed=0, crop_pct=1.0, workers=0)
    teacher = load_backbone(str(folder), img_size=64)
    random = load_backbone(config.student, weights="random", img_size=64)
    assert dict(monitor.run(teacher))["knn_report"] >= 0.85
    assert dict(monitor.run(random))["knn_report"] <= 0.50


def test_a_run_leaves_everything_the_design_promises(tmp_path: Path) -> None:
    config = quickstart_config(str(tmp_path / "run")).replace(
        max_steps=4,
        monitor="playground:1?n=140&variety=0",
        monitoring={"every": 2},
        workers=0,
        batch_size=8,
        log_every=1,
    )
    report = distill(config)
    left = {path.name for path in report.run.iterdir()}
    wanted = {"config.yaml", "run.json", "metrics.jsonl", "log.txt", "checkpoints", "student", "student-last"}
    assert wanted | {"results", "report.html", "monitor.json"} <= left
    assert [result.role for result in report.results] == ["student", "teacher", "random"]
    assert (report.student / "README.md").read_text().count("| teacher |") >= 1
    again = distill(config)  # a finished run says its results and changes nothing
    assert again.results == report.results
    assert (report.run / "metrics.jsonl").read_text().count('"step": 4, "loss"') == 1


def test_python_config_takes_nested_mappings() -> None:
    config = DistillConfig.build(
        {"teacher": "a", "student": "b", "data": "c", "out": "d", "proteus": {"mask_ratio": 0.4}}
    )
    assert config.proteus.mask_ratio == 0.4
