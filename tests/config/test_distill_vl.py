"""Settings of `attar distill-vl`: the released defaults, and what contradicts itself."""

import pytest

from attar.cli import DISTILL_VL
from attar.config import DistillVlConfig
from attar.errors import ConfigError
from attar.recipes.dime_fm import RECIPES, completed, from_recipe

FLAGS = ["--teacher", "open_clip:ViT-B-32", "--student", "vit_tiny_patch16_224", "--images", "a", "--sentences", "b"]
FLAGS += ["--out", "c"]


def test_defaults_are_those_of_the_released_code():
    # spec dime_fm §1.3, §3
    config = DISTILL_VL.parse(FLAGS)
    terms = config.dime_fm
    assert (terms.vl_weight, terms.pvl_weight, terms.udist_weight) == (0.7, 0.3, 0.0)
    assert (terms.vl_temperature, terms.pvl_temperature, terms.udist_temperature, terms.scale) == (1, 3, 7, 100)
    optim = config.optim
    assert (optim.lr, optim.warmup_lr, optim.min_lr, optim.warmup_epochs) == (8e-4, 4e-6, 4e-5, 4)
    assert (optim.weight_decay, optim.betas, optim.clip_norm, optim.ema_decay) == (0.05, (0.9, 0.999), None, 0.0)
    assert (config.batch_size, config.teacher_views) == (640, "fixed")
    views = config.views
    assert (views.crop_scale, views.flip, views.randaugment, views.erase, views.repeats) == (
        (0.08, 1),
        0.5,
        False,
        0,
        1,
    )


def test_one_nested_setting_leaves_the_others_as_released():
    config = DISTILL_VL.parse([*FLAGS, "--optim.lr", "1e-3", "--views.flip", "0"])
    assert (config.optim.lr, config.optim.warmup_epochs, config.optim.ema_decay) == (1e-3, 4, 0.0)
    assert (config.views.flip, config.views.randaugment) == (0, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cached-views", "2"], "teacher-views matched"),
        (["--captions", "c.tsv"], "contrastive_weight is 0"),
        (["--batch-size", "1"], "batch_size is 1.*--batch-size 2 or more"),
        (["--text-batch-size", "1"], "--text-batch-size 2 or more"),
        (["--dime-fm.contrastive-weight", "1"], "captions is not set"),
        (["--text.depth", "3"], "small_student"),
        (["--dime-fm.text-mode", "small_student", "--optim.ema-decay", "0.9"], "ema_decay"),
        (["--epochs", "1", "--max-steps", "3"], "Keep one"),
        (["--teacher-view", "fixed"], "teacher-views"),
        (["--data", "folder"], "Did you mean '--images'"),
    ],
)
def test_settings_that_contradict_each_other_are_told(words, said):
    with pytest.raises(ConfigError, match=said):
        DISTILL_VL.parse([*FLAGS, *words])


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_take_the_teacher_and_data_of_the_command_line(name):
    words = ["--recipe", name, "--images", "i", "--sentences", "s", "--out", "o"]
    config = DISTILL_VL.parse(words)
    assert config.teacher == "open_clip:ViT-L-14-quickgelu?pretrained=openai"
    assert (config.images, config.batch_size, config.epochs) == (("i",), 640, 100)
    assert DISTILL_VL.parse([*words, "--max-steps", "3"]).epochs is None
    assert isinstance(DISTILL_VL.parse([*words, "--batch-size", "64"]), DistillVlConfig)
    assert (config.dime_fm.udist_weight > 0) is name.endswith("regularised")


def test_a_recipe_named_from_python_says_what_nobody_set():
    given = {"recipe": "dime_fm_b32", "teacher": "t", "student": "s", "images": "i", "sentences": "s", "out": "o"}
    whole = completed(DistillVlConfig(**given, max_steps=3))
    assert whole == from_recipe(given | {"max_steps": 3})
    assert (whole.batch_size, whole.teacher, whole.epochs) == (640, "t", None)


def test_an_unknown_recipe_is_told():
    with pytest.raises(ConfigError, match="dime_fm_b32"):
        DISTILL_VL.parse(["--recipe", "dime_fm_b16", "--images", "i", "--sentences", "s", "--out", "o"])
