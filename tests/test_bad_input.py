"""Wrong inputs through the front door: each gets its exit code and a sentence with value, rule and remedy.

One row of the table is one wrong input. `make` builds it in a fresh folder, which holds twelve sound pictures in
`images`, and returns flags that go behind those of a sound command (`small_runs.distill_words`). Rows with exit code 0
are inputs that must be survived; `after` says what must be true then.
"""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from attar.cli import main
from attar.methods import Proteus
from attar.models import load_backbone
from small_runs import MODEL, attar_process, distill_words, environment, picture, write_pictures

ALL_AT_ONCE = ("--batch-size", "64", "--max-steps", "1")  # one step that shows every image of a folder of 60


@dataclass(frozen=True)
class Row:
    """One wrong input, what the command must answer, and what must be true afterwards."""

    name: str
    make: Callable[[Path], list[str]]
    code: int
    says: tuple[str, ...]
    after: Callable[[Path], None] = lambda folder: None


# --- how wrong things are made --------------------------------------------------------------------------------------


def flags(*words):
    return lambda folder: list(words)


def config(text):
    """A config file that holds `text`."""

    def make(folder):
        (folder / "run.yaml").write_bytes(os.fsencode(text))
        return ["--config", str(folder / "run.yaml")]

    return make


def image(name, write, *more):
    """The twelve pictures and one odd file, all of them in the one batch of the run."""

    def make(folder):
        write(folder / "images" / name)
        return ["--batch-size", "13", "--max-steps", "1", *more]

    return make


def only(write, *more):
    """Images are what `write` puts into an empty folder."""

    def make(folder):
        (folder / "only").mkdir()
        write(folder / "only")
        return ["--data", str(folder / "only"), *more]

    return make


def weights(write, *more):
    """Teacher weights from the file that `write` makes."""

    def make(folder):
        write(folder / "teacher.pth")
        return ["--teacher-weights", str(folder / "teacher.pth"), *more]

    return make


def monitor(**classes):
    """A folder with so many pictures in each class folder."""

    def make(folder):
        for name, count in classes.items():
            write_pictures(folder / "monitor" / name, count)
        return ["--monitor", str(folder / "monitor")]

    return make


def after_a_run(change, *more):
    """A sound run first, then `change` of its folder, then the command with `more`."""

    def make(folder):
        assert main(distill_words(folder)) == 0
        change(folder / "out")
        return list(more)

    return make


def unfinished(change):
    """The same of a run that was cut off: what is best so far may lie there, the last student does not."""

    def before_its_end(out):
        shutil.rmtree(out / "student-last")
        change(out)

    return after_a_run(before_its_end)


def sixty(*broken):
    """Sixty pictures, some of them cut short, and one batch that shows all."""

    def make(folder):
        write_pictures(folder / "sixty", 60)
        for number in broken:
            truncated_jpeg(folder / "sixty" / f"{number:03}.jpg")
            (folder / "sixty" / f"{number:03}.png").unlink()
        return ["--data", str(folder / "sixty"), *ALL_AT_ONCE]

    return make


def classes(count):
    """Pictures in so many class folders."""

    def make(folder):
        for number in range(count):
            write_pictures(folder / "classes" / str(number), 4)
        return ["--data", str(folder / "classes")]

    return make


def learning(method, num_classes, features, *more):
    """A method that learns classes, with a classifier of that shape, on pictures of two classes."""

    def make(folder):
        torch.save({"fc.weight": torch.ones(num_classes, features)}, folder / "classifier.pth")
        return [*with_classifier(method)(folder), *classes(2)(folder), *more]

    return make


def with_classifier(method, write=None):
    """A method and the file that `write` makes for its classifier."""

    def make(folder):
        if write is not None:
            write(folder / "classifier.pth")
        return ["--method", method, "--teacher-classifier", str(folder / "classifier.pth")]

    return make


def truncated_jpeg(path):
    picture(3, (64, 64)).save(path, quality=90)
    path.write_bytes(path.read_bytes()[:900])


def huge_png(path):
    """A header that announces 20000 x 20000 px, with next to nothing behind it; beside it, the memory used so far."""
    (path.parents[1] / "peak").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(60001)))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def deep_png(path):
    Image.new("I;16", (9, 9), 40000).save(path)


def animated_gif(path):
    frames = [picture(number) for number in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)


def broken_pictures(folder):
    for number in range(5):
        (folder / f"{number}.jpg").write_text("no picture")


def broken_monitor(folder):
    for name in ("cat", "dog"):
        (folder / "monitor" / name).mkdir(parents=True)
        broken_pictures(folder / "monitor" / name)
    return ["--monitor", str(folder / "monitor")]


def teacher_state():
    return load_backbone(MODEL, weights="random", img_size=32).model.state_dict()


def save_prefixed(path):
    torch.save({f"net.encoder.{key}": value for key, value in teacher_state().items()}, path)


def save_other_architecture(path):
    torch.save(load_backbone("test_resnet", weights="random", img_size=32).model.state_dict(), path)


def save_other_width(path):
    wide = MODEL.replace("embed_dim=32", "embed_dim=48")
    torch.save(load_backbone(wide, weights="random", img_size=32).model.state_dict(), path)


def save_with_nan(path):
    state = teacher_state()
    state["norm.weight"][3] = float("nan")
    torch.save(state, path)


def save_truncated(path):
    torch.save(teacher_state(), path)
    path.write_bytes(path.read_bytes()[:2000])


class Touch:
    """Unpickling this creates a file: the canary that must stay absent."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def save_with_code(path):
    torch.save({"model": Touch(path.with_name("canary"))}, path)


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_newest(out):
    flip_byte(max(out.glob("checkpoints/step-*")) / "tensors.safetensors")


def add_picture(out):
    picture(99).save(out.parent / "images" / "new.png")


def damage_all(out):
    for checkpoint in out.glob("checkpoints/step-*"):
        (checkpoint / "manifest.json").unlink()


# --- what must be true afterwards -----------------------------------------------------------------------------------


def trained(folder):
    """The run came to its end and left a student."""
    assert (folder / "out/student/model.safetensors").is_file()
    assert not (folder / "out/bad_files.jsonl").exists()


def replaced(name, *reason):
    """The run came to its end, and `name` alone is in bad_files.jsonl, with the reason."""

    def check(folder):
        assert (folder / "out/student/model.safetensors").is_file()
        lines = [json.loads(line) for line in (folder / "out/bad_files.jsonl").read_text().splitlines()]
        assert [line["path"] for line in lines] == [name]
        assert all(word in lines[0]["reason"] for word in reason), lines[0]["reason"]

    return check


def nothing_started(folder):
    assert not (folder / "out").exists()


def then_runs(*more):
    """The remedy that the message names works."""

    def check(folder):
        assert main(distill_words(folder, *more)) == 0

    return check


def setting(**expected):
    """The run's own config file holds these settings of the optimizer."""

    def check(folder):
        saved = yaml.safe_load((folder / "out/config.yaml").read_text())
        assert {key: saved["optim"][key] for key in expected} == expected

    return check


def no_canary(folder):
    assert not (folder / "canary").exists()
    nothing_started(folder)


def little_memory(folder):
    replaced("huge.png", "400,000,000 pixels", "64,000,000")(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - int((folder / "peak").read_text())
    assert grown < 600_000, f"{grown} kB more; its pixels would be 1,200,000"


# --- the table ------------------------------------------------------------------------------------------------------

COARSE = MODEL.replace("patch_size=8", "patch_size=16")

SETTINGS = [
    Row("unknown flag", flags("--teecher", "x"), 2, ("unknown flag '--teecher'", "Did you mean '--teacher'?")),
    Row("word without a flag", flags("runs/a"), 2, ("'runs/a' belongs to no flag", "--name value")),
    Row("flag without a value", flags("--seed"), 2, ("--seed needs 1 value, got 0",)),
    Row("one of two values", flags("--views.crop-scale", "0.5"), 2, ("--views.crop-scale needs 2 values, got 1",)),
    Row("required setting none", flags("--out", "none"), 2, ("setting 'out' is None", "string")),
    Row("unknown recipe", flags("--recipe", "proteus_z"), 2, ("no recipe 'proteus_z'", "Did you mean", "proteus_ti,")),
    Row("epochs 0", flags("--max-steps", "none", "--epochs", "0"), 2, ("setting 'epochs' is '0'", "greater than 0")),
    Row("epochs and max_steps", flags("--epochs", "10"), 2, ("epochs and max_steps are both set (10, 2). Keep one.",)),
    Row("batch of 0", flags("--batch-size", "0"), 2, ("setting 'batch_size' is '0'", "greater than or equal to 1")),
    Row("batch of words", flags("--batch-size", "many"), 2, ("setting 'batch_size' is 'many'", "integer")),
    Row(
        "batch of one",
        flags("--batch-size", "1"),
        2,
        ("mask_probability 0.5 of 1 images masks none", "Try --batch-size 2, or --proteus.mask-probability 1"),
        then_runs("--batch-size", "1", "--proteus.mask-probability", "1"),
    ),
    Row(
        "mask ratio too small",
        flags("--proteus.mask-ratio", "0.05"),
        2,
        ("mask_ratio 0.05 hides none of the 16 patches", "Try --proteus.mask-ratio 0.07"),
        then_runs("--proteus.mask-ratio", "0.07"),
    ),
    Row("data an empty word", flags("--data", ""), 2, ("setting 'data.0' is ''", "at least 1 character")),
    Row("seed -1", flags("--seed", "-1"), 2, ("setting 'seed' is '-1'", "greater than or equal to 0")),
    Row("precision unknown", flags("--precision", "fp16"), 2, ("'precision' is 'fp16'", "'auto', 'bf16' or 'fp32'")),
    Row("learning rate inf", flags("--optim.lr", "inf"), 2, ("setting 'optim.lr' is 'inf'", "finite")),
    Row("momentum above 1", flags("--optim.betas", "0.9", "1.5"), 2, ("optim.betas", "1.5", "0 <= beta < 1")),
    Row("crop scale reversed", flags("--views.crop-scale", "1", "0.5"), 2, ("crop_scale is (1.0, 0.5)", "low <= high")),
    Row("accumulate 3 of 8", flags("--optim.accumulate", "3"), 2, ("batch_size 8", "x 3 micro", "Try --batch-size 9")),
    Row(
        "nothing to learn",
        flags("--proteus.token-weight", "0", "--proteus.feature-weight", "0", "--proteus.patch-weight", "0"),
        2,
        ("nothing to learn", "Give one term a weight"),
    ),
    Row("mask probability 0", flags("--proteus.mask-probability", "0"), 0, ("token", "feature"), trained),
    Row("device unknown", flags("--device", "gpu"), 2, ("device 'gpu'", "Give auto, cpu, cuda")),
    Row("device of no use", flags("--device", "meta"), 2, ("device 'meta'", "Give auto, cpu, cuda")),
    Row("device absent", flags("--device", "cuda:99"), 2, ("device 'cuda:99'", "CUDA devices", "--device auto")),
    Row("img_size below 8", flags("--img-size", "4"), 2, ("setting 'img_size' is '4'", "greater than or equal to 8")),
]

CONFIG_FILES = [
    Row("config absent", flags("--config", "nowhere.yaml"), 2, ("config file nowhere.yaml", "No such file")),
    Row("config is a folder", lambda folder: ["--config", str(folder)], 2, ("config file", "directory")),
    Row("config of 2 MB", config("teacher: " + "a" * 2_000_000), 2, ("has 2,000,009 bytes", "the limit is 1,048,576")),
    Row("config broken", config("optim: [1, 2"), 2, ("no valid YAML", "line 1")),
    Row("config in no encoding", config("data: \udcff"), 2, ("no valid YAML", "utf-8")),
    Row("config a list", config("- teacher\n- student\n"), 2, ("holds a list", "'key: value' lines")),
    Row("key unknown", config("optim:\n  weight_decai: 1\n"), 2, ("'optim.weight_decai'", "mean 'weight_decay'?")),
    Row("key far from any", config("optim:\n  zzz: 1\n"), 2, ("'optim.zzz'", "Known here: algorithm, lr, lr_per_512")),
    Row("key twice", config("optim:\n  lr: 1\n  lr: 2\n"), 2, ("run.yaml", "'lr' is given twice. Keep one.")),
    Row("key is a list", config("? [lr]\n: 1\n"), 2, ("run.yaml", "['lr']", "'name: value'")),
    Row("key is a number", config("8: 1\n"), 2, ("unknown setting '8'", "Known here: teacher")),
    Row("alias", config("optim: &a\n  lr: 1\nviews: *a\n"), 2, ("aliases (*a) are not allowed", "Write the value out")),
    Row("number in words", config("optim:\n  lr: quick\n"), 2, ("setting 'optim.lr' is 'quick'", "number")),
    Row("date that is none", config("out: 2024-13-45\n"), 2, ("no valid YAML", "month")),
    Row("section a number", config("optim: 3\n"), 2, ("'optim' is 3", "settings of its own: algorithm, lr")),
    Row("recipe a list", config("recipe: [proteus_s]\n"), 2, ("no recipe ['proteus_s']", "Known: proteus_ti")),
    Row("nested too deep", config("optim: " + "[" * 500), 2, ("no valid YAML", "nested too deep")),
    Row("1e-3", config("optim:\n  lr: 1e-3\n"), 0, (), setting(lr=0.001)),
]

MODELS = [
    Row(
        "teacher unknown",
        flags("--teacher", "vit_smal_patch14_dinov2"),
        2,
        ("no model 'vit_smal_patch14_dinov2'", "Did you mean 'vit_small_patch14_dinov2'?"),
    ),
    Row("argument unknown", flags("--student", f"{MODEL}&depht=2"), 2, ("cannot be built", "depht")),
    Row("student a weight file", flags("--student", "a.pth"), 2, ("'a.pth' is no folder", "architecture")),
    Row("teacher an empty folder", lambda folder: ["--teacher", str(folder)], 2, ("no config.json", "student/ folder")),
    Row("module absent", flags("--teacher", "module:no.net:build"), 2, ("'no.net' cannot be imported", "PYTHONPATH")),
    Row("module no model", flags("--teacher", "module:os:getcwd"), 2, ("returned a str, not a torch.nn.Module",)),
    Row(
        "img_size no multiple",
        flags("--img-size", "30", "--teacher-img-size", "32"),
        2,
        ("at 30 px", "patches of 8 px leave a rest of 6 px", "Try --img-size 32"),
    ),
    Row(
        "grids differ",
        flags("--teacher", COARSE),
        2,
        (
            "student patch 8 at 32 px gives 4x4",
            "teacher patch 16 at 32 px gives 2x2",
            "Try --proteus.resample-tokens, or --img-size 16",
        ),
        then_runs("--teacher", COARSE, "--img-size", "16", "--teacher-img-size", "32"),
    ),
    Row(
        "conv student",
        flags("--student", "test_resnet"),
        2,
        ("conv net", "proteus.patch_weight is 1", "Try --proteus.patch-weight 0"),
        then_runs("--student", "test_resnet", "--proteus.patch-weight", "0", "--proteus.resample-tokens"),
    ),
    Row("student wider", flags("--student", MODEL.replace("=32", "=48")), 0, ("than its teacher (48 and 32",), trained),
]

WEIGHTS = [
    Row("weights absent", flags("--teacher-weights", "no.pth"), 2, ("no.pth does not exist", "random, pretrained")),
    Row("weights a folder", lambda folder: ["--teacher-weights", str(folder)], 2, ("weight file", "random")),
    Row(
        "weights without network",
        flags("--teacher", "vit_tiny_patch16_224", "--teacher-weights", "pretrained"),
        2,
        ("could not be fetched", "give a weight file", "--teacher-weights"),
    ),
    Row("weights cut short", weights(save_truncated), 2, ("teacher.pth cannot be read", "damaged or cut short")),
    Row("weights a text", weights(lambda path: path.write_text("hello")), 2, ("teacher.pth cannot be read",)),
    Row("weights with code", weights(save_with_code), 2, ("teacher.pth cannot be read", "never does"), no_canary),
    Row("weights of another net", weights(save_other_architecture), 2, ("do not fit", "another architecture")),
    Row("weights of another width", weights(save_other_width), 2, ("do not fit", "(1, 17, 48)", "of another size")),
    Row("weights with a prefix", weights(save_prefixed), 2, ("do not fit", "'net.encoder.'", "strip that prefix")),
    Row("NaN in weights", weights(save_with_nan), 1, ("loss of step 1 is nan", "were not changed", ".png", "Try")),
]

IMAGES = [
    Row("data absent", flags("--data", "no/such"), 2, ("no/such does not exist", "nearest folder"), nothing_started),
    Row("data a file", lambda folder: ["--data", str(folder / "images/000.png")], 2, ("is a file", "Give a folder")),
    Row("data empty", only(lambda folder: None), 2, ("holds no image (0 other files)", ".jpeg"), nothing_started),
    Row("data only texts", only(lambda folder: (folder / "a.txt").touch()), 2, ("holds no image (1 other files)",)),
    Row("playground malformed", flags("--data", "playground:x"), 2, ("'playground:x'", "playground:SEED?n=COUNT")),
    Row("playground no number", flags("--data", "playground:²"), 2, ("'playground:²'", "playground:SEED?n=COUNT")),
    Row(
        "all broken",
        only(broken_pictures, "--teacher", "no_such_model"),  # before any model is asked for
        2,
        ("images in a row cannot be read", "not a readable", "folder of images"),
        nothing_started,
    ),
    Row(
        "2 of 60 broken",
        sixty(3, 7),
        2,
        ("2 of 60 images cannot be read", "limit of 1", "bad_files.jsonl", "--max-bad-share"),
    ),
    Row("1 of 60 broken", sixty(3), 0, ("unreadable file replaced",), replaced("003.jpg", "truncated")),
    Row("text as .jpg", image("a.jpg", lambda path: path.write_text("hi")), 0, (), replaced("a.jpg", "not a readable")),
    Row("no bytes", image("a.jpg", Path.touch), 0, (), replaced("a.jpg", "0 bytes")),
    Row("link to nowhere", image("a.jpg", lambda path: path.symlink_to("gone")), 0, (), replaced("a.jpg", "No such")),
    Row("20000 x 20000 px", image("huge.png", huge_png), 0, (), little_memory),
    Row("a pipe", image("a.jpg", os.mkfifo), 0, (), trained),
    Row("name in no encoding", image(os.fsdecode(b"\xff.png"), lambda path: picture().save(path)), 0, (), trained),
    Row("1 x 1 px", image("a.png", lambda path: picture(size=(1, 1)).save(path)), 0, (), trained),
    Row("1 x 500 px", image("a.png", lambda path: picture(size=(1, 500)).save(path)), 0, (), trained),
    Row("16-bit PNG", image("a.png", deep_png), 0, (), trained),
    Row("CMYK JPEG", image("a.jpg", lambda path: picture().convert("CMYK").save(path)), 0, (), trained),
    Row("greyscale", image("a.png", lambda path: picture().convert("L").save(path)), 0, (), trained),
    Row("palette", image("a.png", lambda path: picture().convert("P").save(path, transparency=0)), 0, (), trained),
    Row("animated GIF", image("a.gif", animated_gif), 0, (), trained),
    Row("one image", only(lambda folder: picture().save(folder / "a.png")), 0, ("several views of each",), trained),
    Row(
        "batch above the data",
        lambda folder: ["--data", str(write_pictures(folder / "fifty", 50)), *ALL_AT_ONCE],
        0,
        ("a batch of 64 holds several views of each of the 50 images",),
        trained,
    ),
]

MONITOR = [
    Row("monitor absent", flags("--monitor", "no/such"), 2, ("no/such does not exist",), nothing_started),
    Row("monitor unsorted", lambda folder: ["--monitor", str(folder / "images")], 2, ("without labels", "of its own")),
    Row("monitor of one class", monitor(cat=10), 2, ("one class only ('cat')", "two at least")),
    Row("monitor of 3 images", monitor(cat=2, dog=1), 2, ("2 + 1 images", "each class"), nothing_started),
    Row("monitor all broken", broken_monitor, 2, ("none of the", "monitor images can be read", "cat/0.jpg")),
]

RUN_DIRECTORY = [
    Row("out a file", lambda folder: ["--out", str(folder / "images/000.png")], 2, ("is a file. Give a directory",)),
    Row("out in a file", lambda folder: ["--out", str(folder / "images/000.png/run")], 2, ("cannot write", "--out")),
    Row("out too long", lambda folder: ["--out", str(folder / ("x" * 300))], 2, ("name too long", "with --out")),
    Row("out of nobody", flags("--out", "~nobody-of-this-name/run"), 2, ("leads nowhere", "Give another directory")),
    Row("out in use", lambda folder: ["--out", str(folder / "images")], 2, ("holds no attar run", "new directory")),
    Row(
        "out of another run",
        after_a_run(lambda out: None, "--seed", "1", "--optim.lr", "0.1"),
        2,
        ("seed was 0, now 1", "optim.lr was not set, now 0.1", "--resume-anyway"),
        then_runs("--seed", "1", "--optim.lr", "0.1", "--resume-anyway"),
    ),
    Row(
        "out with other limits",
        after_a_run(lambda out: None, "--max-bad-share", "0.5", "--checkpoint.keep", "3"),
        0,
        ("from step-00000002",),
        trained,
    ),
    Row("run.json damaged", after_a_run(lambda out: (out / "run.json").write_text("{")), 2, ("damaged", "new --out")),
    Row(
        "images added",
        after_a_run(add_picture),
        2,
        ("other data: ", "/images had 12 images (", "), now 13 images (", "new --out", "--resume-anyway"),
        then_runs("--resume-anyway"),
    ),
    Row("newest checkpoint damaged", after_a_run(damage_newest), 0, ("step-00000002 is damaged", "from step-00000001")),
    Row("checkpoints damaged", unfinished(damage_all), 0, ("step-00000001 is damaged", "from the beginning"), trained),
    Row("cut off before a checkpoint", unfinished(lambda out: shutil.rmtree(out / "checkpoints")), 0, (), trained),
    Row(
        "checkpoints of a finished run damaged",
        after_a_run(damage_all),
        2,
        ("holds a finished run and no whole checkpoint", "choose a new --out"),
        trained,
    ),
    Row(
        "checkpoints of a finished run removed",
        after_a_run(lambda out: shutil.rmtree(out / "checkpoints"), "--seed", "1"),
        2,
        ("holds a finished run and no whole checkpoint", "choose a new --out"),
        trained,
    ),
]

METHODS = [
    Row("method unknown", flags("--method", "logit"), 2, ("setting 'method' is 'logit'", "'soft_logits' or 'hint'")),
    Row(
        "settings of another method",
        flags("--method", "hint", "--proteus.mask-ratio", "0.4"),
        2,
        ("settings of proteus are given", "method hint", "Try --method proteus"),
    ),
    Row("logits without classifier", flags("--method", "logits"), 2, ("method logits", "Try --teacher-classifier")),
    Row("classifier without logits", with_classifier("proteus"), 2, ("no use for it", "Try --method logits")),
    Row("classifier absent", with_classifier("soft_logits"), 2, ("classifier.pth does not exist",), nothing_started),
    Row("classifier cut short", with_classifier("soft_logits", save_truncated), 2, ("classifier.pth cannot be read",)),
    Row("classifier in code", with_classifier("soft_logits", save_with_code), 2, ("never does",), no_canary),
    Row(
        "classifier a backbone",
        with_classifier("soft_logits", lambda path: torch.save(teacher_state(), path)),
        2,
        ("holds no linear classifiers", "fc.weight"),
    ),
    Row(
        "classifier of another width",
        learning("soft_logits", 2, 48),
        2,
        ("reads 48 features", "has 32", "class token and mean patch"),
        nothing_started,
    ),
    Row(
        "classifier of other classes",
        learning("logits", 3, 32),
        2,
        ("has 3 classes, the data has 2", "Try --method soft_logits"),
        lambda folder: then_runs(*with_classifier("soft_logits")(folder))(folder),
    ),
    Row("classifier that fits", learning("logits", 2, 32), 0, ("labels", "logits"), trained),
    Row(
        "labels of none",
        flags("--method", "labels", "--teacher", "no_such_model"),  # the cheap question comes first
        2,
        ("method labels learns from labels", "has none", "a folder of its own", "--method proteus"),
        nothing_started,
    ),
    Row(
        "labels of one class",
        lambda folder: ["--method", "labels", *classes(1)(folder)],
        2,
        ("of class '0'", "two classes at least"),
        nothing_started,
    ),
    Row("hint with a rest", flags("--method", "hint", "--img-size", "30"), 2, ("leave a rest", "Try --img-size 32")),
    Row("hint of one view", flags("--method", "hint", "--batch-size", "1"), 0, ("hint",), trained),
]

TABLE = [*SETTINGS, *CONFIG_FILES, *MODELS, *WEIGHTS, *IMAGES, *MONITOR, *METHODS, *RUN_DIRECTORY]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in TABLE])
def test_wrong_input_is_answered_in_words(row, tmp_path, capsys):
    write_pictures(tmp_path / "images")
    extra = row.make(tmp_path)
    capsys.readouterr()
    code = main(distill_words(tmp_path, *extra))
    out, err = capsys.readouterr()
    assert code == row.code, err
    assert "Traceback" not in err
    assert "not an error attar knows" not in err
    assert bool(err) == bool(code), err
    for words in row.says:
        assert words in (err if code else out)
    row.after(tmp_path)


def test_the_canary_would_sing(tmp_path):
    save_with_code(tmp_path / "teacher.pth")
    torch.load(tmp_path / "teacher.pth", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--teecher", "x"), "unknown flag '--teecher'"),
        (("--config", "nowhere.yaml"), "config file nowhere.yaml cannot be read"),
        pytest.param(("--data", "no/such"), "image folder", marks=pytest.mark.slow),
    ],
)
def test_a_process_ends_with_the_exit_code_and_without_traceback(more, says, tmp_path):
    finished = attar_process(*distill_words(tmp_path, *more))
    assert finished.returncode == 2
    assert says in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""


def as_nobody():
    """A command prefix that takes the right to write everywhere from root, or skips the test."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv to become somebody else")
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    needed = "import attar.recipes.distill"  # and all packages; attar alone imports none
    probe = subprocess.run([*prefix, sys.executable, "-c", needed], env=environment(), capture_output=True)
    if probe.returncode != 0:
        pytest.skip("another user cannot run this Python, or read this checkout")
    return prefix


@pytest.mark.slow
def test_output_that_may_not_be_written_is_named_before_anything_is_loaded():
    prefix = as_nobody()
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        write_pictures(folder / "images")
        (folder / "out").mkdir()
        (folder / "out").chmod(0o555)
        folder.chmod(0o755)
        finished = attar_process(*distill_words(folder), before=prefix, ATTAR_CACHE=str(folder / "cache"))
    assert finished.returncode == 2
    assert finished.stderr == (
        f"RunDirectoryError: cannot write {folder.resolve()}/out: Permission denied."
        " Choose a folder you may write with --out.\n"
    )


FULL_DISK = """
import resource, sys
from attar.cli import main
from attar.methods import Proteus
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_full_disk_is_one_sentence_and_the_same_command_goes_on_once_there_is_room(tmp_path):
    write_pictures(tmp_path / "images")
    command = [sys.executable, "-c", FULL_DISK, *distill_words(tmp_path)]
    finished = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 2
    assert finished.stderr.startswith("RunDirectoryError: cannot write ")
    assert "File too large" in finished.stderr
    assert finished.stderr.endswith("Free some space, then give the same command again.\n")
    assert list((tmp_path / "out/checkpoints").iterdir()) == []  # nothing half written
    assert main(distill_words(tmp_path)) == 0


def test_cache_that_may_not_be_written_is_named_with_its_own_remedy(tmp_path, monkeypatch, capsys):
    write_pictures(tmp_path / "images")
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "images/000.png/cache"))
    assert main(distill_words(tmp_path)) == 2
    assert "Set ATTAR_CACHE to a folder you may write" in capsys.readouterr().err


def test_too_many_broken_files_are_accepted_once_the_limit_is_raised(tmp_path):
    more = sixty(3, 7)(tmp_path)
    assert main(distill_words(tmp_path, *more)) == 2
    assert main(distill_words(tmp_path, *more, "--max-bad-share", "0.1")) == 0


def test_too_little_memory_names_the_setting_to_turn(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 2."
        )

    write_pictures(tmp_path / "images")
    monkeypatch.setattr(Proteus, "training_step", fail)
    assert main(distill_words(tmp_path, "--optim.accumulate", "2")) == 1
    assert capsys.readouterr().err == (
        "TrainingError: 4 views at a time need too much memory (CUDA out of memory. Tried to allocate 20.00 GiB)."
        " Try --optim.accumulate 4, the same batch in smaller pieces.\n"
    )
    assert main(distill_words(tmp_path, "--optim.accumulate", "8")) == 1
    assert "1 views at a time" in (err := capsys.readouterr().err)
    assert "Try a smaller --img-size or model." in err
