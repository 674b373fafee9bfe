"""`attar report` end to end: what is shown of a run, what is said of what is missing, and how a browser takes it."""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import attar
from attar.cli import main
from attar.config.files import read_settings
from attar.errors import ConfigError, DataError, RunDirectoryError, UserError
from attar.recipes.quickstart import quickstart_config
from attar.recipes.report_images import sample_images, spread
from attar.recipes.report_maps import saved_head
from attar.reports import Result, write_result
from attar.train.checkpoint import saved_learner
from attar.utils.io import read_json, read_lines, sha256_file, write_json
from small_pools import make_pool
from small_runs import MODEL, distill_words, picture
from small_transfer import config_of

MONITOR = "playground:1?n=80&variety=0"
MOST_BYTES = 8_000_000


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_classes(root: Path, names: tuple[str, ...] = ("cat", "d<o>g"), count: int = 10) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for image in range(count):
            picture(image + 100 * number).save(root / name / f"{image}.png")
    return root


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickstart of two steps."""
    out = tmp_path_factory.mktemp("quick") / "run"
    small: dict[str, Any] = {"data": "playground:0?n=64&variety=0", "monitor": MONITOR, "max_steps": 2, "workers": 0}
    attar.distill(quickstart_config(str(out)).replace(**small, device="cpu", monitoring={"every": 1}, log_every=1))
    return out


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on files as CIFAR-10's mirrors have them: tables of 32 px images, ten classes, train beside test."""
    folder = tmp_path_factory.mktemp("cifar")
    labels = [number % 10 for number in range(60)]
    for part, first in (("train", 0), ("test", 100)):
        images = [png(picture(first + number, size=(32, 32))) for number in range(len(labels))]
        (folder / "cifar10").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"cifar10/{part}.parquet")
    more = ("--data", str(folder / "cifar10/train.parquet"), "--monitor", str(folder / "cifar10"))
    assert main(distill_words(folder, *more, "--log-every", "1")) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def transferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transfer whose teacher was not adapted."""
    return attar.transfer(config_of(tmp_path_factory.mktemp("transfer") / "run", pretrain="cosine")).run


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transfer set: four images have asked a pool of twenty."""
    folder = tmp_path_factory.mktemp("set")
    write_classes(folder / "queries/train", count=2)
    write_classes(folder / "queries/test", count=1)
    make_pool(folder / "embedded", [str(write_classes(folder / "pool", ("a", "b")))])
    settings = {"pool": str(folder / "embedded"), "queries": str(folder / "queries"), "out": str(folder / "set")}
    settings |= {"budget": 12, "device": "cpu", "workers": 0, "leak_threshold": None, "duplicate_threshold": None}
    return attar.curate(attar.CurateConfig.build(settings)).out


@pytest.fixture
def run(quick: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quick, tmp_path / "quick<b>"))


def reported(run: Path, *more: Path, **settings: Any) -> str:
    fixed = {"limit": 60, "maps": 3, "rows": 2, "workers": 0, "device": "cpu"}
    return attar.report(attar.ReportConfig(runs=(str(run), *map(str, more)), **(fixed | settings))).read_text()


def test_the_page_of_a_run_shows_maps_neighbours_classes_and_costs(run: Path) -> None:
    text = reported(run)
    assert len(re.findall('<img class="tokens"', text)) == 6
    assert "of the run&#39;s monitor, searched for among 30" in text
    for heading in ("What the patch tokens see", "Nearest images", "Where they disagree most", "Classes lost and"):
        assert heading in text
    assert "images a second here" in text
    assert "quick&lt;b&gt;" in text
    assert "<b>quick" not in text
    assert (run / "report.html").read_text() == text


def settings_of(run: Path, **proteus: Any) -> dict[str, Any]:
    settings = read_settings(run / "config.yaml")
    return settings | {"proteus": settings["proteus"] | proteus}


def choose(run: Path, **best: Any) -> None:
    """Let the newest checkpoint say that another student was kept."""
    newest = max((run / "checkpoints").glob("step-*"))
    state = read_json(newest / "state.json")
    state["notes"]["best"] = {"selected": 0.5, "role": "student", "step": state["step"]} | best
    write_json(newest / "state.json", state)
    manifest = read_json(newest / "manifest.json")
    file = newest / "state.json"
    manifest["files"]["state.json"] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    write_json(newest / "manifest.json", manifest)


WIDTHS = {"student_dim": 96, "teacher_dim": 128}


def test_maps_use_the_runs_own_head_and_say_so(run: Path) -> None:
    choose(run)
    assert "by the run&#39;s own feature head at step 2." in reported(run)
    choose(run, step=1)
    assert "by least squares on 30 other images, as the student that was kept" in reported(run)


def test_the_head_is_that_of_the_checkpoint(run: Path) -> None:
    choose(run)
    head, _ = saved_head(run, settings_of(run), **WIDTHS)
    _, tensors = saved_learner(run / "checkpoints", "feature_head.") or ({}, {})
    assert head is not None
    tokens = torch.randn(2, 4, 96)
    normed = torch.nn.functional.layer_norm(tokens, (96,), tensors["0.weight"], tensors["0.bias"], eps=1e-5)
    assert torch.allclose(head(tokens), normed @ tensors["1.weight"].T + tensors["1.bias"], atol=1e-5)


@pytest.mark.parametrize(
    ("best", "proteus", "why"),
    [
        ({"step": 1}, {}, "at another step"),
        ({"role": "ema"}, {}, "at another step"),
        ({}, {"standardise_targets": True}, "standardised"),
        ({}, {"feature_weight": 0.0}, "by no head"),
    ],
)
def test_a_head_that_does_not_belong_to_the_kept_student_is_not_used(
    run: Path, best: dict[str, Any], proteus: dict[str, Any], why: str
) -> None:
    choose(run, **best)
    head, told = saved_head(run, settings_of(run, **proteus), **WIDTHS)
    assert head is None
    assert why in told


def test_a_head_is_gone_with_its_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert "gone" in saved_head(run, settings_of(run), **WIDTHS)[1]


def test_own_images_are_searched_among_themselves(run: Path, tmp_path: Path) -> None:
    images = write_classes(tmp_path / "images")
    text = reported(run, images=(str(images),), out=str(tmp_path / "page.html"))
    assert "20 of the images given" in text
    assert "d&lt;o&gt;g" in text
    assert "d<o>g" not in text
    assert "searched for among" not in text


def test_images_without_classes_and_few_of_them_do(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    choose(run, step=1)  # so that the run's own head is not the student's
    text = reported(run, images=(str(folder),))
    assert "least squares on these very images, which flatters the student" in text
    assert "Classes lost and" not in text
    assert "Nearest images" in text


def test_a_student_of_another_grid_and_a_conv_teacher_have_maps(tmp_path: Path) -> None:
    write_classes(tmp_path / "images")
    teacher = "resnet10t?channels=(8,16,24,32)&output_stride=8"
    more = ("--teacher", teacher, "--proteus.patch-weight", "0", "--proteus.resample-tokens", "--img-size", "32")
    student = MODEL.replace("patch_size=8", "patch_size=16")
    assert main([*distill_words(tmp_path, *more), "--student", student, "--method", "proteus"]) == 0
    text = reported(tmp_path / "out", maps=2)
    assert len(re.findall('<img class="tokens"', text)) == 4
    assert "2x2 tokens of 32" in text
    assert "4x4 tokens of 32" in text


@pytest.mark.parametrize("gone", ["teacher", "monitor"])
def test_what_is_missing_is_said_and_the_rest_is_shown(run: Path, tmp_path: Path, capsys: Any, gone: str) -> None:
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(f"^{gone}: .*$", f"{gone}: /nowhere/at/all", settings, flags=re.M))
    text = reported(run)
    assert "None of what teacher and student see is shown" in text
    assert "/nowhere/at/all" in text
    assert "<polyline" in text
    assert "without pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"images": ("/nowhere/at/all",)}, "/nowhere/at/all"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"device": "tpu"}, "none that attar runs on"),
    ],
)
def test_what_the_user_names_must_be_there(run: Path, wrong: dict[str, Any], says: str) -> None:
    before = (run / "report.html").read_text()
    with pytest.raises(UserError, match=says):
        reported(run, **wrong)
    assert (run / "report.html").read_text() == before


def test_given_images_of_which_none_can_be_read_are_an_error(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/image.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        reported(run, images=(str(tmp_path / "broken"),))


def test_two_runs_stand_side_by_side(run: Path, quick: Path, tmp_path: Path) -> None:
    text = reported(run, quick, out=str(tmp_path / "both.html"))
    assert text.count('<section id="s') == 2
    assert "Patch tokens, side by side" in text  # one teacher, the same images
    assert text.count('class="mark run-2"') >= 2


def test_a_transfer_shows_its_teacher_adapted_or_not_and_its_price(transferred: Path) -> None:
    text = reported(transferred, price_per_hour=3600.0)
    assert len(re.findall('<img class="tokens"', text)) == 6
    assert "as finetuning has moved it since a teacher taught it" in text
    seconds = sum(stage["seconds"] for stage in read_json(transferred / "compute.json")["stages"].values())
    assert f"{seconds:,.2f} at 3600 an hour" in text
    assert "teacher licence" in text  # which the run noted as it began


def test_an_adapted_teacher_is_the_one_of_the_run(tmp_path: Path) -> None:
    attar.transfer(config_of(tmp_path / "run", scratch=False))
    text = reported(tmp_path / "run", maps=1)
    assert len(re.findall('<img class="tokens"', text)) == 2
    shutil.rmtree(tmp_path / "run/adapt/teacher")
    assert "None of what teacher and student see is shown" in reported(tmp_path / "run")


def test_a_set_shows_who_asked_and_what_was_fetched_while_its_images_are_there(
    chosen: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    text = reported(chosen, out=str(tmp_path / "page.html"))
    assert len(re.findall('<figure class="thumb query"><img', text)) == 4
    assert "No image is shown" not in text
    moved = Path(shutil.copytree(chosen, tmp_path / "set"))
    manifest = read_json(moved / "manifest.json")
    manifest["places"][0]["references"] = ["/nowhere/at/all"]
    write_json(moved / "manifest.json", manifest)
    monkeypatch.chdir(tmp_path)
    text = reported(moved)
    assert "No image is shown" in text
    assert "<h2>Left out" in text


def test_the_price_is_of_the_training(run: Path) -> None:
    assert main(["report", str(run), "--no-pictures", "--price-per-hour", "720000"]) == 0
    seconds = sum(32 / line["images_per_second"] for line in read_lines(run / "metrics.jsonl") if "loss" in line)
    found = re.search(r"<b>([\d,.]+) at 720000 an hour</b><span>price", (run / "report.html").read_text())
    assert found is not None
    assert float(found[1].replace(",", "")) == pytest.approx(200 * seconds, rel=0.01)


def test_without_pictures_no_model_is_loaded(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "student")
    assert "they were not asked for" in reported(run, pictures=False)


def test_a_directory_of_results_has_a_table_with_published_figures(tmp_path: Path) -> None:
    write_result(tmp_path / "results", "a", Result("zero_shot:imagenet", "model", "m<b>", "top1", 0.6, (0.5, 0.7), 100))
    text = reported(tmp_path, published="CLIP-B/32, DINOv2-S/14")
    assert "63.3 [1]" in text
    assert "[1] CLIP_benchmark" in text
    assert "Nothing is published on these tasks of: DINOv2-S/14." in text
    assert "m&lt;b&gt;" in text
    assert "m<b>" not in text


def test_what_was_judged_in_a_run_and_what_papers_report_stand_on_its_page(run: Path) -> None:
    judged = Result("logistic:pets", "student", "s", "mean_per_class", 0.5, (0.4, 0.6), 100)
    write_result(run / "judged/results", "pets", judged)
    text = reported(run, published="DINOv2-S/14", pictures=False)
    judged_by, elsewhere = text.split("Judged by attar evaluate")[1].split("Published elsewhere")
    assert "50.0 (40.0–60.0)" in judged_by
    assert "95.1 [1]" in judged_by  # DINOv2-S/14 on the same task
    assert "logistic:pets" not in elsewhere
    assert re.search("linear:imagenet.*top1.*81.1 \\[1\\]", elsewhere)
    assert "Published elsewhere" not in reported(run, pictures=False)


def test_a_directory_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds no run"):
        reported(tmp_path)
    with pytest.raises(RunDirectoryError, match="is no directory"):
        reported(tmp_path / "none")


@pytest.mark.parametrize("settings", [{}, {"out": "report.html"}])
def test_no_other_page_is_overwritten(
    run: Path, quick: Path, tmp_path: Path, monkeypatch: Any, settings: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("report.html").write_text("<title>Accounts</title>")
    with pytest.raises(ConfigError, match="no page of attar"):
        reported(run, quick, pictures=False, **settings)
    Path("report.html").unlink()
    reported(run, quick, pictures=False, **settings)
    reported(run, quick, pictures=False, **settings)  # over its own
    assert "2 side by side" in Path("report.html").read_text()


def test_a_file_that_is_no_page_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "student.safetensors").write_bytes(b"\xff\x00weights")
    with pytest.raises(ConfigError, match="no page of attar"):
        reported(run, out=str(tmp_path / "student.safetensors"), pictures=False)
    assert (tmp_path / "student.safetensors").read_bytes() == b"\xff\x00weights"


def test_the_command_takes_runs_first_and_has_help(run: Path, capsys: Any) -> None:
    assert main(["report", str(run), "--no-pictures"]) == 0
    assert "report   " in capsys.readouterr().out
    assert main(["report", "--help"]) == 0
    assert "--price-per-hour" in capsys.readouterr().out
    assert main(["report"]) == 2


def test_every_class_comes_once_before_one_comes_twice() -> None:
    assert spread(np.array([7, 7, 7, 3, 3])).tolist() == [0, 3, 1, 4, 2]


def test_the_monitors_images_are_those_of_the_figures(run: Path) -> None:
    config = attar.ReportConfig(runs=str(run), limit=1000)
    sample = sample_images(config, settings_of(run), workers=0)
    rows = read_json(run / "monitor.json")
    assert sorted(sample.bank.rows.tolist()) == rows["bank"]["rows"]
    assert sorted(sample.queries.rows.tolist()) == rows["report"]["rows"]


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Any:
    """Chromium without a screen; where there is none the tests are skipped, unless ATTAR_NEEDS_BROWSER is set."""
    missing = pytest.fail if os.environ.get("ATTAR_NEEDS_BROWSER") else pytest.skip
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("playwright is not installed (extra: test)")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])  # None is playwright's own
        except Error as error:
            missing(f"no Chromium on PATH, and playwright has none: {error}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of `attar evaluate`."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_result(folder / "results", "a", Result("logistic:pets", "model", "m", "top1", 0.6, (0.5, 0.7), 100))
    return folder


PAGES = {
    "quick": (("quick",), "run", 20),
    "cifar": (("cifar",), "out", 20),
    "transferred": (("transferred",), "run", 20),
    "chosen": (("chosen",), "set", 12),
    "evaluated": (("evaluated",), None, 0),
    "side by side": (("quick", "cifar"), "2 side by side", 40),
}
"""Directories on each page, its title, and how many pictures it has at least."""

SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module", params=PAGES)
def page_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """The file of a page, its title, and its least number of pictures."""
    names, title, pictures = PAGES[request.param]
    folders = [request.getfixturevalue(name) for name in names]
    file = tmp_path_factory.mktemp("page") / "page.html"
    reported(*folders, out=str(file), price_per_hour=2.5, published="DINOv2-S/14")
    return file, title or folders[0].name, pictures


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_a_browser_shows_all_and_asks_nobody(
    browser: Any, page_of: tuple[Path, str, int], width: int, scheme: str
) -> None:
    file, title, pictures = page_of
    assert file.stat().st_size < MOST_BYTES
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert page.title() == f"{title} · attar"
    assert page.locator(".verdict").first.is_visible()
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= pictures
    assert all(widths)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    luminance = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (luminance < 128) == (scheme == "dark")
    page.close()
