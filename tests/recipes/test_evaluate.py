"""`attar evaluate` end to end on small real models: what is measured, written, skipped, and not done twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import attar
from attar.cli import main
from attar.errors import ConfigError
from attar.export import write_student
from attar.models import load_backbone
from attar.recipes.candidates import candidates
from small_runs import MODEL, distill_words, picture

PLACE = "playground:1?n=160&variety=0"


def words(out: Path, *more: str, model: str = MODEL, tasks: str = f"knn:{PLACE}") -> list[str]:
    fixed = ("--weights", "random", "--img-size", "32", "--device", "cpu", "--workers", "0", "--knn.k", "3", "5")
    return ["evaluate", model, "--tasks", tasks, "--out", str(out), *fixed, *more]


def results(out: Path) -> dict[tuple[str, str], dict]:
    found = [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    return {(one["task"], one["role"]): one for one in found}


def write_classes(root: Path, count: int = 6) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(number + 100 * (name == "dog")).save(root / name / f"{number}.png")
    return root


def test_a_result_says_what_was_measured_how_and_on_what(tmp_path: Path, capsys) -> None:
    assert main(words(tmp_path / "out", "--mode", "paper")) == 0
    ((key, found),) = results(tmp_path / "out").items()
    assert key == (f"knn:{PLACE}", "model")
    assert found["metric"] == "top1"
    assert found["n"] == found["source"]["judged"]["data"]["test"]["images"] > 60
    assert 0 <= found["ci95"][0] <= found["value"] <= found["ci95"][1] <= 1
    assert found["mode"] == "paper"
    assert found["protocol"]["chosen_on"] == "the images reported on"
    assert set(found["details"]["by_k"]) == {"3", "5"}
    assert found["value"] == max(found["details"]["by_k"].values())
    said = capsys.readouterr().out
    assert f"| knn:{PLACE} | top1 | {100 * found['value']:.1f} (" in " ".join(said.split())


def test_honest_mode_chooses_on_other_images_than_it_reports(tmp_path: Path) -> None:
    assert main(words(tmp_path / "out")) == 0
    found = results(tmp_path / "out")[f"knn:{PLACE}", "model"]
    assert found["protocol"]["chosen_on"] == "val"
    assert found["value"] == found["details"]["by_k"][str(found["protocol"]["k"])]
    assert found["source"]["judged"]["data"]["val"]["images"] > 0


def test_what_is_known_is_not_measured_again(tmp_path: Path, capsys) -> None:
    assert main(words(tmp_path / "out")) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/results").iterdir()}
    assert main(words(tmp_path / "out")) == 0
    assert "measured before" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/results").iterdir()}
    assert main(words(tmp_path / "out", "--knn.k", "7")) == 0
    assert set(results(tmp_path / "out")[f"knn:{PLACE}", "model"]["details"]["by_k"]) == {"7"}


def test_a_run_is_judged_with_its_teacher_and_a_random_student(tmp_path: Path, capsys) -> None:
    write_classes(tmp_path / "images")
    assert main(distill_words(tmp_path, "--teacher", MODEL.replace("embed_dim=32", "embed_dim=48"))) == 0
    run = tmp_path / "out"
    assert main([*words(tmp_path / "judged", model=str(run))[:-5], "--knn.k", "3", "--weights", "pretrained"]) == 0
    found = results(tmp_path / "judged")
    assert [role for _, role in found] == ["random", "student", "teacher"]
    assert len({one["source"]["fingerprint"] for one in found.values()}) == 3
    assert "student, honest | teacher, honest | random, honest" in capsys.readouterr().out


def test_roles_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="role teacher"):
        attar.evaluate(
            attar.EvaluateConfig(
                model=MODEL, weights="random", tasks=f"knn:{PLACE}", out=str(tmp_path), roles="teacher"
            )
        )


def test_a_missing_data_set_is_skipped_loudly_and_the_rest_is_done(tmp_path: Path, capsys) -> None:
    folder = write_classes(tmp_path / "mine")
    tasks = f"knn:cifar10,knn:{folder}"
    assert main(words(tmp_path / "out", "--data-root", str(tmp_path), tasks=tasks)) == 0
    skipped = json.loads((tmp_path / "out/skipped.json").read_text())
    assert list(skipped) == ["knn:cifar10"]
    assert "CIFAR-10" in skipped["knn:cifar10"]
    said = capsys.readouterr().out
    assert "skipped  knn:cifar10" in said
    assert "1 of 2 tasks" in said
    assert list(results(tmp_path / "out")) == [(f"knn:{folder}", "model")]


def test_reasons_to_skip_are_told_once_and_of_many_the_first(tmp_path: Path, capsys) -> None:
    folder = write_classes(tmp_path / "mine")
    names = ("cifar10", "cifar100", "dtd", "flowers102", "food101")
    tasks = [f"{protocol}:{name}" for name in names for protocol in ("knn", "logistic")]
    arguments = ("--data-root", str(tmp_path))
    assert main(words(tmp_path / "out", *arguments, tasks=",".join([*tasks, f"knn:{folder}"]))) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  skipped  ")]
    assert said[0].startswith("  skipped  knn:cifar10, logistic:cifar10: CIFAR-10 is not below")
    assert said[3].startswith(f"  skipped  {', '.join(tasks[6:])}: likewise")
    assert len(said) == 5  # with the number at the end
    assert list(json.loads((tmp_path / "out/skipped.json").read_text())) == tasks


def test_dense_tasks_ask_the_backbone_itself(tmp_path: Path, capsys) -> None:
    place = "playground:1?n=20&variety=0"
    assert main(words(tmp_path / "out", tasks=f"segmentation:{place}")) == 0
    found = results(tmp_path / "out")[f"segmentation:{place}", "model"]
    assert found["metric"] == "miou"
    assert found["n"] == 4
    assert 0 < found["value"] < 1
    assert main(words(tmp_path / "out", tasks=f"segmentation:{place}")) == 0
    assert "measured before" in capsys.readouterr().out


def test_nothing_to_do_is_an_error(tmp_path: Path, capsys) -> None:
    # an empty table and success would hide a mistyped folder
    assert main(words(tmp_path / "out", "--data-root", str(tmp_path), tasks="knn:cifar10")) == 2
    assert "none of the 1 tasks can be done" in capsys.readouterr().err
    assert main(words(tmp_path / "out", "--data-root", str(tmp_path / "typo"), tasks="knn:cifar10")) == 2
    assert "is no folder" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_told_and_limited(tmp_path: Path, capsys) -> None:
    folder = write_classes(tmp_path / "mine", 20)
    for number in range(15, 19):
        (folder / f"cat/{number}.png").write_bytes(b"no image")
    assert main(words(tmp_path / "out", tasks=f"knn:{folder}")) == 2
    assert re.search("cannot be read, such as cat/1[5-8].png", capsys.readouterr().err)
    assert main(words(tmp_path / "out", "--max-bad-share", "0.2", tasks=f"knn:{folder}")) == 0
    assert re.search("cannot be read, such as cat/1[5-8].png", capsys.readouterr().out)
    assert main(words(tmp_path / "out", "--max-bad-share", "0.2", tasks=f"knn:{folder}")) == 0
    assert "measured before" in capsys.readouterr().out
    assert main(words(tmp_path / "out", tasks=f"knn:{folder}")) == 2  # a kept figure is not a licence
    assert "more than --max-bad-share 0.01 allows" in capsys.readouterr().err


def test_a_single_image_that_cannot_be_read_stops_nothing(tmp_path: Path, capsys) -> None:
    folder = write_classes(tmp_path / "mine", 20)
    (folder / "cat/3.png").write_bytes(b"no image")
    for said in ("1 of ", "measured before"):  # it was done, so it is known
        assert main(words(tmp_path / "out", tasks=f"knn:{folder}")) == 0
        assert said in capsys.readouterr().out


def test_a_folder_is_judged_at_the_size_it_was_made_for(tmp_path: Path, capsys) -> None:
    write_student(tmp_path / "made", load_backbone(MODEL, weights="random", img_size=48), card="")
    assert main(["evaluate", str(tmp_path / "made"), "--tasks", f"knn:{PLACE}", "--out", str(tmp_path / "out")]) == 0
    assert "48 px" in capsys.readouterr().out  # and not 224, at which nobody ever used it


def test_a_name_of_timm_is_judged_at_224_px_whatever_lies_beside(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "resnet10t").mkdir()
    monkeypatch.chdir(tmp_path)
    config = attar.EvaluateConfig(model="timm:resnet10t", weights="random", tasks=("knn:x",), out="out")
    assert candidates(config)[0].load(None).img_size == 224


def test_paper_mode_on_images_of_ones_own_says_that_it_flatters(tmp_path: Path, capsys) -> None:
    folder = write_classes(tmp_path / "mine", 12)
    tasks = f"knn:{folder},logistic:{folder}"
    warning = f"knn:{folder}: chosen by the images reported on"  # a penalty is chosen on val in the paper too
    for mode, count in (("paper", 1), ("paper", 1), ("honest", 0)):
        assert main(words(tmp_path / mode, "--mode", mode, tasks=tasks)) == 0
        assert capsys.readouterr().out.count(warning) == count


def test_the_directory_of_a_run_is_refused(tmp_path: Path, capsys) -> None:
    write_classes(tmp_path / "images")
    assert main(distill_words(tmp_path)) == 0
    assert main(words(tmp_path / "out")) == 2
    assert "is the directory of a run" in capsys.readouterr().err


def test_images_that_a_run_was_trained_on_are_not_held_out(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "images", 8)
    write_classes(tmp_path / "others", 8)
    assert main(distill_words(tmp_path)) == 0
    tasks = f"knn:{folder},knn:{tmp_path}/others"
    more = ("--knn.k", "3", "--weights", "pretrained", "--roles", "student")
    assert main([*words(tmp_path / "judged", model=str(tmp_path / "out"), tasks=tasks)[:-5], *more]) == 0
    found = results(tmp_path / "judged")
    assert found[f"knn:{folder}", "student"]["held_out"] is False
    assert found[f"knn:{tmp_path}/others", "student"]["held_out"] is True


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ("knm:x", "Did you mean 'knn'"),
        ("robustnes5", "Did you mean 'robustness5'"),
        ("knn:", "names no images. Try knn:DIR"),
        ("knn:cifar10", "data_root is not set"),
    ],
)
def test_wrong_tasks_are_refused_with_a_remedy(tmp_path: Path, tasks: str, reason: str, capsys) -> None:
    assert main(words(tmp_path / "out", tasks=tasks)) == 2
    assert reason in capsys.readouterr().err
    assert (tmp_path / "out").exists() == (tasks == "knn:cifar10")  # nothing is made for tasks that cannot be read


def test_table_and_list_need_no_model(tmp_path: Path, capsys) -> None:
    assert main(words(tmp_path / "out")) == 0
    capsys.readouterr()
    assert main(["evaluate", "--table", "--out", str(tmp_path / "out"), "--published", "Proteus-S/14"]) == 0
    assert "Nothing is published on these tasks of: Proteus-S/14." in capsys.readouterr().out
    assert main(["evaluate", "--list", "--data-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "knn" in said
    assert f"no data set in {tmp_path}" in said
    assert "  cub200              CUB-200-2011, top1: CUB_200_2011. Unpack" in said
    (tmp_path / "CUB_200_2011").mkdir()
    assert main(["evaluate", "--list", "--data-root", str(tmp_path)]) == 0
    here, missing = capsys.readouterr().out.split("\nmissing data sets")
    assert f"CUB-200-2011, top1: {tmp_path}/CUB_200_2011" in here
    assert "cub200" not in missing
