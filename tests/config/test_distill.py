"""What settings allow together; where images lie, written so that older runs still compare equal."""

import pytest
import yaml

from attar.cli import DISTILL
from attar.config import DistillConfig
from attar.config.files import read_settings, to_yaml
from attar.errors import ConfigError, RunDirectoryError
from attar.utils.io import write_text
from attar.utils.run_directory import open_run, record_settings, start_run

NEEDED = {"teacher": "t", "student": "s", "out": "o"}
FLAGS = ["--teacher", "t", "--student", "s", "--out", "o"]


@pytest.mark.parametrize(
    ("given", "data"), [("a", ("a",)), (["a"], ("a",)), (["a", "b"], ("a", "b")), (("a", "b"), ("a", "b"))]
)
def test_one_place_or_several(given, data):
    assert DistillConfig.build({**NEEDED, "data": given}).data == data
    assert DistillConfig(**NEEDED, data=given).replace(seed=1).data == data


@pytest.mark.parametrize("given", ["", [], ["a", ""], 3, None, [["a"]]])
def test_no_place_is_an_error(given):
    with pytest.raises(ConfigError, match="setting 'data"):
        DistillConfig.build({**NEEDED, "data": given})


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (["--data", "a"], ("a",)),
        (["--data", "a", "b?weight=2", "c"], ("a", "b?weight=2", "c")),
        (["--data=a", "b"], ("a", "b")),
        (["--data", "a", "b", "--seed", "1"], ("a", "b")),
        (["--data", "a", "--seed", "1", "--data", "b", "c"], ("b", "c")),  # as with any flag, the last one holds
    ],
)
def test_flags_take_several_places(words, data):
    assert DISTILL.parse([*FLAGS, *words]).data == data
    assert DISTILL.parse([*words, *FLAGS]).data == data


def test_no_place_after_the_flag_is_an_error():
    with pytest.raises(ConfigError, match="--data needs 1 value"):
        DISTILL.parse(["--data", *FLAGS])


@pytest.mark.parametrize(("data", "written"), [("a", "a"), (("a", "b"), ["a", "b"])])
def test_yaml_holds_a_string_for_one_place_and_a_list_for_several(tmp_path, data, written):
    config = DistillConfig(**NEEDED, data=data)
    write_text(tmp_path / "run.yaml", to_yaml(config))
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["data"] == written
    assert DistillConfig.build(read_settings(tmp_path / "run.yaml")) == config


def test_a_run_whose_settings_name_one_place_as_a_string_resumes(tmp_path):
    config = DistillConfig(**NEEDED, data="a")
    with open_run(tmp_path / "run", config) as opened:
        run = start_run(opened)
    record_settings(run, config, version="0.1")
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    assert "\ndata: a\n" in (tmp_path / "run/config.yaml").read_text()
    with open_run(tmp_path / "run", DistillConfig(**NEEDED, data=("a",))) as again:
        assert not again.is_new


# --- methods --------------------------------------------------------------------------------------------------------


def config_of(**settings):
    return DistillConfig(**NEEDED, data="a", **settings)


@pytest.mark.parametrize("method", ["logits", "soft_logits"])
def test_methods_that_learn_the_teachers_classes_need_its_classifier(method):
    with pytest.raises(ConfigError, match=rf"method {method} learns .* Try --teacher-classifier FILE"):
        config_of(method=method)
    assert config_of(method=method, teacher_classifier="c.pth").method == method


@pytest.mark.parametrize("method", ["proteus", "labels", "hint"])
def test_a_classifier_that_nobody_reads_is_an_error(method):
    # most likely --method was forgotten, and the run would be another than meant
    with pytest.raises(ConfigError, match=rf"teacher_classifier is c.pth, and method {method} has no use for it"):
        config_of(method=method, teacher_classifier="c.pth")


@pytest.mark.parametrize("method", ["labels", "hint"])
def test_rules_of_proteus_bind_proteus_alone(method):
    assert config_of(method=method, batch_size=1).method == method
    with pytest.raises(ConfigError, match="nothing to learn"):
        config_of(proteus={"token_weight": 0.0, "feature_weight": 0.0, "patch_weight": 0.0})


@pytest.mark.parametrize("settings", [{"teacher_weight": 0.0}, {"teacher_weight": 1.0}, {"temperature": 0.0}])
def test_shares_that_leave_a_side_out_and_no_temperature_are_errors(settings):
    with pytest.raises(ConfigError, match=f"'logits.{next(iter(settings))}'"):
        DistillConfig.build({**NEEDED, "data": "a", "logits": settings})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"student_layers": "uniform"}, "student_layers is uniform, and the student does not start from its teacher"),
        (
            {"logits": {"temperature": 2.0}},
            "settings of logits are given, and method proteus has no use .* --method logits or soft_logits, or leave",
        ),
        (
            {"method": "hint", "proteus": {"mask_ratio": 0.4}},
            "settings of proteus are given, and method hint has no use .* --method proteus, or leave them out",
        ),
        ({"img_size": 64, "proteus": {"small_size": 64}}, "small_size is 64, no smaller than img_size 64.*-size 32"),
        ({"proteus": {"small_share": 0.2}}, "small_share is 0.2, and proteus.small_size is not set.*--proteus.small"),
        ({"proteus": {"small_size": 64}, "cached_views": 2}, "small_size is 64, and cached_views is 2: what is kept"),
    ],
)
def test_settings_without_use_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        DistillConfig.build({**NEEDED, "data": "d", **settings})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cache": {"format": "int8"}}, "settings of cache are given, and cached_views is not set.*--cached-views 4"),
        (
            {"cached_views": 2, "cache": {"format": "int4"}},
            "cache.format is 'int4'. Give float32, float16, int8, or pca",
        ),
        ({"cached_views": 2, "cache": {"format": "pca:0"}}, "cache.format is 'pca:0'"),
        ({"cached_views": 2, "method": "labels"}, "cached_views is 2, and method labels asks no teacher"),
        ({"cached_views": 2, "parallel": {"shard_teacher": True}}, "and parallel.shard_teacher is set"),
        ({"cached_views": 2, "cache": {"format": "pca:9"}, "method": "hint"}, "pca:9, and no patch tokens are learned"),
        (
            {
                "cached_views": 2,
                "cache": {"format": "pca:9"},
                "proteus": {"feature_weight": 0.0, "mask_probability": 0.0},
            },
            "pca:9, and no patch tokens are learned from.*float16",
        ),
    ],
    ids=["no views", "unknown", "no components", "labels", "sharded", "hint", "class tokens"],
)
def test_answers_that_cannot_be_kept_so_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        DistillConfig.build({**NEEDED, "data": "d", **settings})


def test_a_folder_of_answers_may_move_between_a_run_and_its_resumption(tmp_path):
    config = config_of(cached_views=2, cache={"format": "int8"}).replace(out=str(tmp_path / "run"))
    with open_run(tmp_path / "run", config) as opened:
        run = start_run(opened)
    record_settings(run, config, version="0.1")
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    with open_run(tmp_path / "run", config.replace(cache={"folder": "elsewhere"})) as again:
        assert not again.is_new
    with (
        pytest.raises(RunDirectoryError, match=r"cache\.format was int8, now float16"),
        open_run(tmp_path / "run", config.replace(cache={"format": "float16"})),
    ):
        pass


def test_a_section_that_says_the_defaults_is_no_setting():
    # config.yaml of a run writes every section out
    config = config_of(method="hint")
    assert DistillConfig.build(config.model_dump()) == config


def test_a_recipes_method_gives_way_with_its_settings():
    words = [*FLAGS, "--data", "a", "--recipe", "proteus_b_clip_paper"]
    assert DISTILL.parse(words).proteus.feature_weight == 0.0
    assert DISTILL.parse([*words, "--method", "hint"]).normalisation == "imagenet"  # the rest of it stays
    with pytest.raises(ConfigError, match="settings of proteus are given, and method hint"):
        DISTILL.parse([*words, "--method", "hint", "--proteus.mask-ratio", "0.4"])


def test_a_rate_per_512_beside_a_rate_would_do_nothing_and_is_refused():
    with pytest.raises(ConfigError, match=r"optim.lr is 0.01 and optim.lr_per_512 is 0.001.*--optim.lr none"):
        DISTILL.parse([*FLAGS, "--data", "a", "--recipe", "fast", "--optim.lr-per-512", "1e-3"])
    words = [*FLAGS, "--data", "a", "--recipe", "fast", "--optim.lr", "none", "--optim.lr-per-512", "1e-3"]
    assert DISTILL.parse(words).optim.lr is None
