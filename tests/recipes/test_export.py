"""`attar export` from the command to the folder: what is written says what the model says, or is not there."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import attar
from attar.cli import main
from attar.data.decode import open_image
from attar.data.views import EvaluationView
from attar.export import write_task_model
from attar.export.onnx import OnnxModel
from attar.models import TaskModel, load_backbone, load_two_towers, terms_of
from attar.recipes import export_judging
from attar.utils.io import sha256_file
from small_models import TINY
from small_runs import distill_words, under_licence, write_pictures
from small_transfer import config_of

ALONE = """
import sys
ALLOWED = {*sys.stdlib_module_names, "onnxruntime", "numpy", "PIL", "preprocess"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ImportError(f"{name} is not part of this environment")
sys.meta_path.insert(0, Refuse())
import runpy
folder = sys.argv.pop(1)
sys.path.insert(0, folder)
runpy.run_path(f"{folder}/run_onnx.py", run_name="__main__")
"""


def export_words(model, out, *more, img_size=32):
    """A quick export of random weights."""
    flags = ("--weights", "random", "--img-size", str(img_size), "--repeats", "1", "--workers", "0")
    return ["export", model, "--out", str(out), *flags, *more]


def photos(folder, count=4):
    """JPEG files of several shapes, one of them turned."""
    folder.mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (6, 7, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        Image.fromarray(noise).resize((90 + 31 * number, 70), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", exif=exif
        )
    return folder


def labelled(folder):
    """Two classes, one dark and one bright."""
    for name, low in (("dark", 0), ("light", 150)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(low, low + 100, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def alone(folder, image):
    """What the example prints where only onnxruntime, numpy and pillow can be imported."""
    command = [sys.executable, "-c", ALONE, str(folder), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A ViT with int8, exported once; photos and labelled images."""
    place = tmp_path_factory.mktemp("export")
    pictures, classes = photos(place / "photos"), labelled(place / "labelled")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setenv("ATTAR_CACHE", str(place / "cache"))
        words = ("--images", str(pictures), "--calibration", str(pictures), "--knn", str(classes))
        assert main(export_words(TINY, place / "vit", *words)) == 0
    return place


def test_folder_holds_both_files_the_example_and_what_was_measured(folders):
    found = {path.name for path in (folders / "vit").iterdir()}
    assert found == {
        *("model.onnx", "model_int8.onnx", "preprocessor.json", "preprocess.py", "run_onnx.py"),
        *("README.md", "export.json"),
    }
    about = json.loads((folders / "vit/export.json").read_text())
    assert about["parity"]["model.onnx"]["apart"] <= 1e-5
    assert about["parity"]["model_int8.onnx"]["cosine"] > 0.98
    assert set(about["judged"]) == {"model.onnx", "model_int8.onnx"}
    assert about["judged"]["model.onnx"]["images"] == 4  # half of the half that is not known
    assert set(about["speed"]) == {"torch", "model.onnx", "model_int8.onnx"}
    small, large = (about["files"][name]["bytes"] for name in ("model_int8.onnx", "model.onnx"))
    assert small < large / 2
    card = (folders / "vit/README.md").read_text()
    assert "k-NN top-1" in card
    assert "random and nobody's" in card


@pytest.mark.parametrize("number", [0, 1, 3])
def test_example_gives_attars_vector_where_only_onnxruntime_numpy_and_pillow_are(folders, number):
    file = folders / f"photos/{number}.jpg"
    printed = alone(folders / "vit", file).split(")", 1)
    assert printed[0] == "embedding (1, 32"
    backbone = load_backbone(TINY, weights="random", img_size=32)
    view = EvaluationView(32)(open_image(file.read_bytes(), name="photo"))
    np.testing.assert_allclose([float(x) for x in printed[1].split()], backbone.embed(view[None])[0].numpy(), atol=1e-5)


def test_a_file_that_differs_is_not_left_behind_and_the_exit_code_is_one(folders, tmp_path, capsys):
    words = export_words(TINY, tmp_path / "out", "--images", str(folders / "photos"), "--tolerance", "1e-12")
    assert main(words) == 1
    assert "ExportError: model.onnx differs from the model by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_int8_that_loses_too_much_is_refused_with_its_loss():
    lost = {
        "model.onnx": export_judging.Judged("k-NN top-1", 0.9, (0.8, 1.0), 100),
        "model_int8.onnx": export_judging.Judged("k-NN top-1", 0.85, (0.7, 0.9), 100),
    }
    assert export_judging.check_drop(lost, "model.onnx", "model_int8.onnx", most=5.1) == pytest.approx(5)
    with pytest.raises(attar.AttarError, match=r"int8 loses 5.0 points of k-NN top-1 \(90.0 to 85.0"):
        export_judging.check_drop(lost, "model.onnx", "model_int8.onnx", most=4.9)


REGISTERS = "vit_small_patch14_reg4_dinov2?embed_dim=48&depth=1&num_heads=2"
OTHERS = {"resnet10t": 64, "mobilevitv2_050": 64, REGISTERS: 56}  # conv, hybrid and registers, input in pixels


@pytest.mark.slow
@pytest.mark.parametrize("model", OTHERS)
def test_conv_hybrid_and_registers_pass_with_normalisation_inside_patch_tokens_and_int8(
    folders, tmp_path, capsys, model
):
    inside = ("--preprocess", "inside", "--outputs", "embedding,patch_tokens")
    pictures = str(folders / "photos")
    int8 = ("--calibration", pictures, "--knn", str(folders / "labelled"))
    words = export_words(model, tmp_path / "out", "--images", pictures, *inside, *int8, img_size=OTHERS[model])
    assert main(words) == 0
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert about["parity"]["model_int8.onnx"]["cosine"] > 0.9
    lost = [about["judged"][name]["value"] for name in ("model.onnx", "model_int8.onnx")]
    assert f"int8 loses {100 * (lost[0] - lost[1]):.1f} points" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out/preprocessor.json").read_text())
    assert settings["outputs"] == ["embedding", "patch_tokens"]
    assert settings["input"].startswith("image: uint8 (B, S, S, 3)")
    lines = alone(tmp_path / "out", folders / "photos/2.jpg").splitlines()
    assert [line.split()[0] for line in lines] == ["embedding", "patch_tokens"]


@pytest.mark.parametrize("model", [TINY, *(pytest.param(model, marks=pytest.mark.slow) for model in OTHERS)])
def test_folder_of_timm_and_of_transformers_give_identical_features(folders, tmp_path, model):
    size = OTHERS.get(model, 32)
    for target in ("timm", "transformers"):
        more = ("--to", target, "--images", str(folders / "photos"))
        words = export_words(model, tmp_path / target, *more, img_size=size)
        assert main([*words, "--tolerance", "1e-30"]) == 0  # identical
    back = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    own = load_backbone(model, weights="random", img_size=size)
    images = torch.rand(1, 3, size, size)
    features = back.forward_features((images - own.mean) / own.std)
    torch.testing.assert_close(features, own.model.forward_features((images - own.mean) / own.std), rtol=0, atol=0)
    assert "local-dir" in (tmp_path / "timm/README.md").read_text()


@pytest.mark.slow
def test_program_of_torch_runs_by_its_example(folders, tmp_path):
    inside = ("--preprocess", "inside", "--images", str(folders / "photos"))
    assert main(export_words(TINY, tmp_path / "out", "--to", "torch", *inside)) == 0
    command = [sys.executable, str(tmp_path / "out/run_torch.py"), str(folders / "photos/0.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("embedding (1, 32)"), done.stderr
    assert "Warning" not in done.stderr  # such as that of an array that cannot be written to


def test_student_of_a_run_keeps_the_chain_of_hashes(folders, tmp_path, capsys):
    write_pictures(tmp_path / "images")
    assert main(distill_words(tmp_path)) == 0
    card = (tmp_path / "out/student/README.md").read_text()
    about = json.loads((tmp_path / "out/about.json").read_text())
    assert about["student weights"] in card
    assert "## Limits" in card
    report = attar.export(attar.ExportConfig(model=str(tmp_path / "out"), out=str(tmp_path / "shipped"), to="timm"))
    assert report.parity["timm"].apart == 0
    for folder in ("out/student", "shipped"):  # as the monitor judged it
        assert json.loads((tmp_path / folder / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == 0.875
    shipped = (tmp_path / "shipped/README.md").read_text()
    digest = about["student weights"].split()[-1]
    assert digest in shipped
    assert about["images"] in shipped
    assert "playground" not in capsys.readouterr().out  # compared on the run's own images
    last = tmp_path / "out/student-last"
    attar.export(attar.ExportConfig(model=str(last), out=str(tmp_path / "last"), to="timm"))
    said = (tmp_path / "last/README.md").read_text()
    assert about["images"] in said
    assert "weights kept" not in said  # those are the best student's
    assert "student weights" not in said
    assert sha256_file(last / "model.safetensors") in said


def test_images_for_int8_of_which_none_can_be_read_are_refused_before_anything_is_traced(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / f"photos/{number}.jpg").write_bytes(b"no picture")
    assert main(export_words(TINY, tmp_path / "out", "--calibration", str(tmp_path / "photos"))) == 2
    said = capsys.readouterr()
    assert "none of the 3 images for int8 can be read" in said.err
    assert "same?" not in said.out
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_export_is_never_replaced(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(export_words(TINY, tmp_path)) == 2
    assert "is there and no export of attar's" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "timm", "--calibration", "x"), "calibration is set and to is timm"),
        (("--max-drop", "1"), "no --calibration images ask for int8"),
        (("--max-drop", "1", "--calibration", "x"), "what int8 loses cannot be measured: no labelled images are known"),
        (
            ("--max-drop", "1", "--calibration", "x", "--outputs", "patch_tokens"),
            "what int8 loses cannot be measured: the first output, patch_tokens, is no vector",
        ),
        (("--knn", "x", "--outputs", "patch_tokens,embedding"), "the first output, patch_tokens, is no vector"),
        (("--to", "timm", "--outputs", "embedding"), "outputs and preprocess shape traced files"),
        (("--outputs", "logits"), "has no classes"),
        (("--outputs", "vector"), "outputs"),
        (("--calibration", "not/there"), "not/there"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(tmp_path, capsys, words, message):
    assert main(export_words(TINY, tmp_path / "out", *words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [("--knn", "x"), ("--calibration", "x", "--max-drop", "1")])
def test_a_map_of_logits_is_not_judged_as_if_it_were_classes(tmp_path, capsys, flags):
    backbone = load_backbone(TINY, weights="random", img_size=32)
    model = TaskModel.segmenter(backbone, ["sky", "tree"], head="linear", short_side=32, stride=16)
    write_task_model(tmp_path / "model", model, card="")
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "out"), *flags]) == 2
    assert "the first output, logits, is no vector" in capsys.readouterr().err


def test_int8_of_a_run_whose_monitor_has_moved_is_written_and_judged_by_nothing(folders, tmp_path, capsys):
    write_pictures(tmp_path / "images")
    monitor = labelled(tmp_path / "monitor")
    assert main(distill_words(tmp_path, "--monitor", str(monitor))) == 0
    monitor.rename(tmp_path / "elsewhere")
    words = ["export", str(tmp_path / "out"), "--calibration", str(folders / "photos"), "--repeats", "0"]
    assert main([*words, "--out", str(tmp_path / "shipped"), "--workers", "0"]) == 0
    assert "judged   nothing by the run's monitor" in capsys.readouterr().out
    assert (tmp_path / "shipped/model_int8.onnx").is_file()
    assert main([*words, "--out", str(tmp_path / "strict"), "--max-drop", "1"]) == 2
    assert not (tmp_path / "strict").exists()


def test_a_teacher_that_is_not_for_commercial_use_is_named_at_start_in_the_card_and_in_the_export(tmp_path, capsys):
    write_pictures(tmp_path / "images")
    teacher = under_licence(tmp_path / "teacher", "cc-by-nc-4.0")
    whom = ("--teacher", teacher, "--teacher-weights", "pretrained")
    assert main(distill_words(tmp_path, *whom)) == 0
    assert "its licence is cc-by-nc-4.0: NOT for commercial use" in capsys.readouterr().out
    assert "**does not allow commercial use**" in (tmp_path / "out/student/README.md").read_text()
    attar.export(attar.ExportConfig(model=str(tmp_path / "out"), out=str(tmp_path / "shipped"), to="timm"))
    assert "licence  cc-by-nc-4.0: NOT for commercial use" in capsys.readouterr().out
    assert "**does not allow commercial use**" in (tmp_path / "shipped/README.md").read_text()
    assert json.loads((tmp_path / "shipped/export.json").read_text())["licence"] == "cc-by-nc-4.0"


def test_the_licence_of_what_a_student_started_from_binds_it_and_its_own_students(tmp_path, capsys):
    write_pictures(tmp_path / "images")
    start = under_licence(tmp_path / "start", "cc-by-nc-4.0")
    words = distill_words(tmp_path, "--student", start, "--student-weights", "pretrained")
    assert main(words) == 0
    assert "its licence is cc-by-nc-4.0: NOT for commercial use" in capsys.readouterr().out
    digest = sha256_file(tmp_path / "start/model.safetensors")
    for card in ("out/student/README.md", "out/student-last/README.md"):
        text = (tmp_path / card).read_text()
        assert "**does not allow commercial use**" in text
        assert digest in text
    attar.export(attar.ExportConfig(model=str(tmp_path / "out"), out=str(tmp_path / "shipped"), to="timm"))
    assert json.loads((tmp_path / "shipped/export.json").read_text())["licence"] == "cc-by-nc-4.0"
    for folder in ("out/student", "shipped"):  # the second generation
        again = load_backbone(str(tmp_path / folder))
        assert terms_of(again.source).is_commercial is False


def test_so_it_is_after_a_transfer_with_the_hashes_of_teacher_and_student(tmp_path, capsys):
    teacher, start = (
        under_licence(tmp_path / "teacher", "cc-by-nc-4.0"),
        under_licence(tmp_path / "start", "apple-ascl"),
    )
    few = {"transfer": {"max_steps": 1, "batch_size": 4}, "finetune": {"max_steps": 1, "batch_size": 4}}
    models = {"teacher": teacher, "teacher_img_size": 32, "student": start, "student_weights": "pretrained"}
    run = attar.transfer(config_of(tmp_path / "run", pretrain="cosine", scratch=False, **models, **few)).run
    said = capsys.readouterr().out
    assert "its licence is cc-by-nc-4.0: NOT for commercial use" in said
    assert "its licence is apple-ascl" in said
    hashes = {name: sha256_file(tmp_path / name / "model.safetensors") for name in ("teacher", "start", "run/student")}
    page, card = (run / "report.html").read_text(), (run / "student/README.md").read_text()
    for known in (*hashes.values(), "cc-by-nc-4.0", "apple-ascl"):
        assert known in page
        assert known in card
    for model, out in ((run, "shipped"), (run / "transfer/student", "before")):
        attar.export(attar.ExportConfig(model=str(model), out=str(tmp_path / out), to="timm"))
        assert "licence  cc-by-nc-4.0 and apple-ascl: NOT for commercial use" in capsys.readouterr().out
        shipped = (tmp_path / out / "README.md").read_text()
        assert "**does not allow commercial use**" in shipped
        assert hashes["teacher"] in shipped
        assert (hashes["run/student"] in shipped) == (model == run)
        assert json.loads((tmp_path / out / "export.json").read_text())["licence"] == "cc-by-nc-4.0 and apple-ascl"


def test_task_model_gives_logits_with_its_classes_beside_and_int8_is_judged_by_accuracy(folders, tmp_path):
    backbone = load_backbone(TINY, weights="random", img_size=32)
    model = TaskModel.classifier(backbone, ["dark", "light"]).eval()
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    write_task_model(tmp_path / "model", model, card="")
    pictures = str(folders / "photos")
    words = ("--images", pictures, "--calibration", pictures, "--knn", str(folders / "labelled"), "--repeats", "0")
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--workers", "0", *words]) == 0
    assert (tmp_path / "out/classes.txt").read_text() == "dark\nlight\n"
    judged = json.loads((tmp_path / "out/export.json").read_text())["judged"]
    assert {found["kind"] for found in judged.values()} == {"accuracy"}
    printed = alone(tmp_path / "out", folders / "photos/0.jpg").split(")", 1)
    view = EvaluationView(32)(open_image((folders / "photos/0.jpg").read_bytes(), name="photo"))
    np.testing.assert_allclose([float(x) for x in printed[1].split()], model.logits(view[None])[0].numpy(), atol=1e-4)


@pytest.mark.slow
def test_both_towers_of_a_small_clip_become_two_files(folders, tmp_path):
    pytest.importorskip("open_clip")
    import small_clip

    small_clip.write_teacher(tmp_path / "clip")
    words = ("--images", str(folders / "photos"), "--repeats", "0")
    assert main(["export", str(tmp_path / "clip"), "--out", str(tmp_path / "out"), *words]) == 0
    towers = load_two_towers(str(tmp_path / "clip"))
    tokens = towers.text.tokenise(["a cat", "two dogs by the sea", "x"])
    text = OnnxModel(tmp_path / "out/text.onnx", {"img_size": 0})(tokens.numpy())[0]
    np.testing.assert_allclose(text, towers.text.encode(["a cat", "two dogs by the sea", "x"]).numpy(), atol=1e-5)
    settings = json.loads((tmp_path / "out/preprocessor.json").read_text())
    image = OnnxModel(tmp_path / "out/model.onnx", settings)
    view = EvaluationView(32)(open_image((folders / "photos/2.jpg").read_bytes(), name="photo"))[None]
    torch.testing.assert_close(image.tokens(view).cls, towers.image.embed(view), rtol=0, atol=1e-5)  # projected
    assert "`text.onnx` takes `tokens`" in (tmp_path / "out/README.md").read_text()
