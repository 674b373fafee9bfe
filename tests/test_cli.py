"""The command line: help at once, settings from three places in one order, and signals answered politely."""

import copy
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from rich.console import Console

import attar
from attar import cli
from attar.cli import main
from attar.config import Config, DistillConfig
from attar.config.flags import parse_flags
from attar.errors import ConfigError
from attar.models import load_backbone
from attar.recipes import distill as distill_recipe
from attar.recipes.doctor import mixed_flavours
from attar.recipes.proteus import RECIPES
from attar.utils import progress
from small_runs import MODEL, attar_process, distill_words, environment, write_pictures

NEEDED = ("--teacher", "t", "--student", "s", "--data", "d", "--out", "o")
PINNED = {
    "teacher": "t",
    "teacher_weights": "t.pth",
    "student": "s",
    "student_weights": "pretrained",
    "data": "d",
    "out": "o",
    "recipe": "proteus_s",
    "img_size": 196,
    "batch_size": 512,
    "max_steps": 7,
    "monitor": "m",
    "seed": 3,
    "device": "cuda:1",
}


def printed(capsys, *words):
    """The settings that `attar distill WORDS --print-config` prints."""
    capsys.readouterr()
    assert main(["distill", *words, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


# --- help -----------------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
from attar.cli import main
for words in ([], ["--help"], ["--version"], ["distill", "--help"], ["distill", "--list-recipes"], ["doctor", "-h"],
              ["evaluate", "--help"], ["report", "--help"], ["distill-vl", "--help"], ["distill-vl", "--list-recipes"],
              ["quickstart", "-h"], ["plan", "-h"], ["plan", "distill", "-h"],
              "distill --recipe proteus_s --data d --out o --print-config".split()):
    assert main(words) == 0, words
    heavy = {"torch", "timm", "torchvision", "sklearn", "pyarrow"} & set(sys.modules)
    assert not heavy, (words, heavy)
"""


def test_help_version_and_settings_need_no_torch():
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], env=environment(), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("words", [(), ("distill",), ("distill-vl",), ("evaluate",), ("quickstart",), ("doctor",)])
def test_help_takes_less_than_a_second(words):
    def seconds():
        """Processor time of the child: what the clock says on a machine with nothing else to do."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert attar_process(*words, "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(2)) < 1


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_verb(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"attar {verb}" in out for verb in cli.VERBS)


def is_flag(word):
    try:
        parse_flags(DistillConfig, [word])
    except ConfigError as error:
        return "unknown flag" not in str(error)  # but that a value is missing
    return True


def test_help_of_distill_shows_the_flags_there_are_and_no_other(capsys):
    assert main(["distill", "--help"]) == 0
    shown = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", capsys.readouterr().out))
    shown -= {"--help", "--config", "--print-config", "--list-recipes"}
    assert not [flag for flag in shown if not is_flag(flag)]
    assert {f"--{name.replace('_', '-')}" for name in PINNED} | {"--epochs"} <= shown
    assert {"--optim.lr", "--views.crop-scale", "--proteus.mask-ratio"} <= shown


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag, capsys):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"{attar.__version__}\n"


@pytest.mark.parametrize(("words", "code", "said"), [("--version", 0, attar.__version__), ("distil", 2, "no verb")])
def test_a_rank_leaves_with_its_code_and_all_it_said(words, code, said):
    finished = subprocess.run(
        [sys.executable, "-m", "attar", words],
        env=environment(WORLD_SIZE="2", RANK="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == code
    assert said in finished.stdout + finished.stderr


def test_output_into_a_closed_pipe_ends_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "attar.cli", "--help"]
    finished = subprocess.run(command, env=environment(), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (1, b"")


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PINNED)
def test_pinned_flags_arrive_in_the_settings(name, capsys):
    words = ("--" + name.replace("_", "-"), str(PINNED[name]))
    assert printed(capsys, *NEEDED, *words)[name] == PINNED[name]


def test_epochs_arrive_in_the_settings(capsys):
    assert printed(capsys, *NEEDED, "--epochs", "2.5")["epochs"] == 2.5


def test_the_flags_of_distill_vl_are_as_the_design_says(capsys):
    words = {"teacher": "open_clip:a", "student": "b", "images": "c", "sentences": "d", "out": "e"}
    flags = [word for name, value in words.items() for word in (f"--{name}", value)]
    assert main(["distill-vl", *flags, "--print-config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert {name: settings[name] for name in words} == words
    assert main(["distill-vl", "--help"]) == 0
    shown = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", capsys.readouterr().out))
    assert {"--monitor", "--features", "--teacher-views", "--dime-fm.vl-weight", "--text.depth", "--recipe"} <= shown


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_build_print_and_read_back(name, capsys, tmp_path):
    settings = printed(capsys, "--recipe", name, "--data", "d", "--out", "o")
    assert settings == RECIPES[name](data="d", out="o").model_dump(mode="json") | {"recipe": name}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert printed(capsys, "--config", str(tmp_path / "run.yaml")) == settings


def test_printed_settings_round_trip_byte_by_byte(capsys, tmp_path):
    words = [
        *NEEDED,
        "--optim.lr",
        "1e-5",
        "--views.crop-scale",
        "0.5",
        "1",
        "--optim.clip-norm",
        "none",
        "--epochs",
        "2",
    ]
    assert main(["distill", *words, "--print-config"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(first)
    assert main(["distill", f"--config={tmp_path / 'run.yaml'}", "--print-config"]) == 0
    assert capsys.readouterr().out == first


def test_flags_win_over_the_file_and_the_file_over_the_recipe(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "recipe: proteus_l_paper\ndata: d\nout: o\nseed: 1\nbatch_size: 64\noptim:\n  lr: 1.0\n  min_lr: 0.5\n"
    )
    settings = printed(capsys, "--config", str(tmp_path / "run.yaml"), "--batch-size", "32", "--optim.lr", "2")
    assert settings["batch_size"] == 32  # flag over file over the recipe's 256
    assert settings["optim"]["lr"] == 2  # nested too
    assert settings["optim"]["min_lr"] == 0.5  # the file's, beside a flag in the same section
    assert settings["seed"] == 1
    assert settings["optim"]["schedule"] == "paper"  # the recipe's, beside both
    assert settings["teacher"] == "vit_giant_patch14_dinov2"


def test_steps_take_the_place_of_a_recipes_epochs(capsys):
    settings = printed(capsys, "--recipe", "proteus_s", "--data", "d", "--out", "o", "--max-steps", "9")
    assert (settings["max_steps"], settings["epochs"]) == (9, None)


def test_epochs_take_the_place_of_a_recipes_steps(capsys):
    settings = printed(capsys, "--recipe", "fast", "--data", "d", "--out", "o", "--epochs", "2")
    assert (settings["max_steps"], settings["epochs"]) == (None, 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tensorboard"], True),
        (["--tensorboard", "true"], True),
        (["--tensorboard=false"], False),
        (["--no-tensorboard"], False),
        (["--tensorboard", "--no-tensorboard"], False),
    ],
)
def test_switches(words, expected, capsys):
    assert printed(capsys, *NEEDED, *words)["tensorboard"] is expected


@pytest.mark.parametrize("flag", ["--optim.no-ema-warmup", "--no-optim.ema-warmup", "--optim.no_ema_warmup"])
def test_switches_of_a_section_are_turned_off_in_its_name_or_before_it(flag, capsys):
    assert printed(capsys, *NEEDED, flag)["optim"]["ema_warmup"] is False


def test_switches_can_be_turned_off_over_a_file(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("tensorboard: true\noptim:\n  clip_norm: 1.0\n")
    words = ["--config", str(tmp_path / "run.yaml"), "--no-tensorboard", "--optim.clip-norm", "none"]
    settings = printed(capsys, *NEEDED, *words)
    assert settings["tensorboard"] is False
    assert settings["optim"]["clip_norm"] is None


def test_two_values_and_underscores(capsys):
    settings = printed(capsys, *NEEDED, "--views.crop_scale", "0.5", "1", "--max_steps", "4")
    assert settings["views"]["crop_scale"] == [0.5, 1.0]
    assert settings["max_steps"] == 4


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["distil"],
            "no verb 'distil'. Did you mean 'distill'? Known: distill, distill-vl, transfer, predict,",
        ),
        (["--seed", "3"], "no verb '--seed'. Known: distill"),
        (["plan", "distil", "--teacher", "x"], "no plan for 'distil'. Did you mean 'distill'? There is one for"),
        (["doctor", "--out", "x"], "unknown flag '--out'"),
        (["quickstart", "--ot", "x"], "unknown flag '--ot'. Did you mean '--out'?"),
        (["distill", "--batchsize", "3"], "unknown flag '--batchsize'. Did you mean '--batch-size'?"),
        (["distill", "--lr", "3"], "unknown flag '--lr'. Did you mean '--optim.lr'?"),
        (["transfer", "--max-steps", "3"], "'--adapt.max-steps' or '--transfer.max-steps' or '--finetune.max-steps'?"),
        (["distill", "--optim.learning-rate", "3"], "unknown flag '--optim.learning-rate'"),
        (["distill", "--no-seed"], "unknown flag '--no-seed'"),
        (["distill", "--config"], "--config needs a value"),
        (["transfer", "--labels", "5"], "--labels is for studies: give --study too. One run has --labels-per-class"),
        (["transfer", "--rows=scratch"], "--rows is for studies: give --study too."),
    ],
)
def test_wrong_words_are_answered_with_what_was_meant(words, says, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ConfigError: ")
    assert says in err


def test_what_predict_misses_may_stand_in_a_file(tmp_path, capsys):
    assert main(["predict", "run", "--out", "x.csv"]) == 2
    assert "'data' in --config" in capsys.readouterr().err
    (tmp_path / "predict.yaml").write_text("data: photos\n")
    assert main(["predict", "run", "--out", "x.csv", "--config", f"{tmp_path}/predict.yaml", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"] == "photos"


def test_all_missing_settings_are_named_at_once(capsys):
    assert main(["distill", "--seed", "-3"]) == 2
    err = capsys.readouterr().err
    for name in ("teacher", "student", "data", "out"):
        assert f"setting '{name}' is missing: give --{name}" in err
    assert "setting 'seed' is '-3'" in err


def test_debug_shows_where_an_error_comes_from(capsys):
    assert main(["distill", "--debug", "--config", "nowhere.yaml"]) == 2
    assert "Traceback" in capsys.readouterr().err


TABLE = [verb for verb in vars(cli).values() if isinstance(verb, cli.Verb)]


@pytest.mark.parametrize("verb", TABLE, ids=lambda verb: f"{verb.name}, {verb.settings}")
def test_what_a_verb_names_is_there(verb):
    # they are named in words, which no type checker reads
    assert issubclass(verb.model, Config)
    assert verb.function.__name__ == (verb.does.partition(":")[2] or verb.does)
    assert not verb.place or verb.place in verb.model.model_fields
    assert not verb.recipes or cli._recipe(verb.recipes).RECIPES


def test_an_error_that_nobody_foresaw_is_one_sentence(monkeypatch, capsys):
    def break_down(words):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setitem(cli.VERBS, "doctor", break_down)
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ZeroDivisionError: division by zero")
    assert "--debug" in err
    assert "Traceback" not in err


@pytest.fixture
def with_nan(tmp_path):
    """A command whose teacher answers with NaN."""
    write_pictures(tmp_path / "images")
    weights = load_backbone(MODEL, weights="random", img_size=32).model.state_dict()
    weights["norm.bias"][0] = float("nan")
    torch.save(weights, tmp_path / "teacher.pth")
    return distill_words(tmp_path, "--teacher-weights", str(tmp_path / "teacher.pth"))


def test_a_loss_that_is_not_finite_changes_nothing(with_nan, tmp_path, monkeypatch, capsys):
    states, build_state = [], distill_recipe.build_state

    def remember(*args, **settings):
        states.append(build_state(*args, **settings))
        states.append(copy.deepcopy(states[0].tensors()))
        return states[0]

    monkeypatch.setattr(distill_recipe, "build_state", remember)
    assert main(with_nan) == 1
    err = capsys.readouterr().err
    assert err.startswith("NonFiniteError: the loss of step 1 is nan (token is nan, feature is nan, patch is nan)")
    assert re.search(r"images: \d{3}\.png, \d{3}\.png", err)
    assert "Traceback" not in err
    state, before = states
    assert state.step == 0
    after = state.tensors()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not list((tmp_path / "out").glob("checkpoints/step-*"))


def test_an_error_in_training_gives_the_terminal_back(with_nan, monkeypatch, capsys):
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress, "console", terminal)
    assert main(with_nan) == 1
    shown = terminal.file.getvalue()
    assert "training" in shown  # there was a bar
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") > 0  # the cursor was hidden, and is back


# --- signals --------------------------------------------------------------------------------------------------------


def stop_in_training(words, out, number):
    """Start the command, send a signal to its whole group once it has made a step, as a terminal does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "attar.cli", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = out / "metrics.jsonl"
    seen = metrics.stat().st_size if metrics.exists() else 0
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size > seen):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no step in two minutes"
        time.sleep(0.005)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.slow
def test_signals_save_and_the_same_command_goes_on_to_the_end(tmp_path, capsys):
    write_pictures(tmp_path / "images")
    out = tmp_path / "out"
    steps = ("--max-steps", "100", "--log-every", "2", "--checkpoint.every", "1000", "--checkpoint.keep", "5")
    words = distill_words(tmp_path, *steps, "--workers", "1")
    saved = []
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        returned, err = stop_in_training(words, out, number)
        assert returned == code, err
        saved.append(max(int(path.name.removeprefix("step-")) for path in out.glob("checkpoints/step-*")))
        assert err == (
            f"Interrupted: stopped by {number.name} after step {saved[-1]}; a checkpoint is saved."
            " The same command goes on.\n"
        )
        assert (out / "log.txt").read_text().endswith(err)
    assert 0 < saved[0] < saved[1] < 100
    assert not (out / "student").exists()
    assert main(words) == 0
    assert f"from step-{saved[1]:08}" in capsys.readouterr().out
    assert (out / "student/model.safetensors").is_file()
    assert (out / "checkpoints/step-00000100").is_dir()


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong_here(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for subject in ("Python", "torch", "torchvision", "timm", "Pillow", "extras", "cache"):
        assert re.search(rf"^  (ok|note|WRONG) +{subject}|^   ok +{subject}", out, re.M), subject
    assert out.endswith("Nothing to mend.\n")


def test_doctor_names_a_cache_that_cannot_be_written(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "file" / "cache"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"WRONG +cache .*cannot be written", out)
    assert "-> set ATTAR_CACHE to a folder of yours" in out
    assert out.endswith("1 thing to mend.\n")


@pytest.mark.parametrize(
    ("torch_version", "torchvision_version", "state"),
    [
        ("2.13.0", "0.28.0", "ok"),
        ("2.13.0+cpu", "0.28.0+cpu", "ok"),
        ("2.13.0+cu130", "0.28.0+cu130", "ok"),
        ("2.13.0+cu130", "0.28.0", "ok"),  # the ordinary wheel of one, the named one of the other
        ("2.13.0+cpu", "0.28.0", "wrong"),
        ("2.13.0", "0.28.0+cpu", "wrong"),
        ("2.13.0+cpu", "0.28.0+cu130", "wrong"),
        ("2.13.0+cu130", "0.28.0+cu126", "wrong"),
    ],
)
def test_doctor_detects_mixed_flavours(torch_version, torchvision_version, state):
    finding = mixed_flavours(torch_version, torchvision_version)
    assert finding.state == state
    assert torch_version in finding.text
    assert torchvision_version in finding.text
    assert bool(finding.remedy) == (state == "wrong")
