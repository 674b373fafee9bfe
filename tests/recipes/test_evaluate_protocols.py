"""ELEVATER's probe, the few-shot probe and retrieval through `attar evaluate`, and the papers' suites."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import attar
from attar.cli import main
from attar.config.evaluate import TASK_PROTOCOLS, TASK_SUITES
from attar.evaluation.datasets import SUITES as DATASETS_OF
from attar.evaluation.elevater_protocol import Elevater, first_of_each_class
from attar.evaluation.suite import DENSE, PROTOCOLS, SHIFTS, SUITES, Task, means, parse_tasks, protocol_of
from small_runs import MODEL, picture, write_pictures

PLACE = "playground:1?n=160&variety=0"
SHORT = ("--elevater.epochs", "1", "--elevater.final-epochs", "2")


def words(out: Path, tasks: str, *more: str, model: str = MODEL) -> list[str]:
    fixed = ("--weights", "random", "--img-size", "32", "--device", "cpu", "--workers", "0")
    return ["evaluate", model, "--tasks", tasks, "--out", str(out), *fixed, *more]


def results(out: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    return {one["task"]: one for one in found}


def test_what_flags_take_for_a_task_is_one() -> None:
    assert set(TASK_PROTOCOLS) == {*PROTOCOLS, *DENSE}
    assert set(TASK_SUITES) == set(SUITES)


def test_few_shot_is_the_mean_of_its_draws_with_their_spread(tmp_path: Path) -> None:
    assert main(words(tmp_path, f"few_shot:{PLACE}", "--few-shot.shots", "3")) == 0
    (found,) = results(tmp_path).values()
    values = found["details"]["by_seed"]
    assert len(values) == 3
    assert found["value"] == pytest.approx(sum(values) / 3)
    assert found["details"]["spread"] > 0
    assert found["ci95"][0] < found["value"] < found["ci95"][1]
    assert found["protocol"]["shots"] == 3


def test_elevaters_probe_starts_from_zeros_without_text_and_its_modes_differ(tmp_path: Path) -> None:
    for mode in ("honest", "paper"):
        assert main(words(tmp_path / mode, f"elevater:{PLACE}", "--mode", mode, *SHORT)) == 0
        (found,) = results(tmp_path / mode).values()
        assert found["protocol"]["start"] == "zeros"
        assert 66 <= found["protocol"]["trainings"] <= 90
        assert len(found["details"]["by_epoch"]) == 2
        reported = found["details"]["by_epoch"][found["protocol"]["epoch"] - 1]
        assert found["value"] == reported
        assert reported == max(found["details"]["by_epoch"]) if mode == "paper" else found["protocol"]["epoch"] == 2


def test_a_clip_starts_elevaters_probe_and_retrieves(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    import small_clip

    small_clip.register()
    write_pictures(tmp_path / "captioned/pictures", 4)
    lines = [f"pictures/{number:03}.png\ta photo of {number}" for number in (0, 1, 2, 3, 3)]
    (tmp_path / "captioned/captions.tsv").write_text("\n".join(lines))
    for name in ("cat", "dog"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number in range(8):
            picture(number + 100 * (name == "dog")).save(tmp_path / "mine" / name / f"{number}.png")
    tasks = f"elevater:{tmp_path / 'mine'},retrieval:{tmp_path / 'captioned'}"
    assert main(words(tmp_path / "out", tasks, *SHORT, model=small_clip.REFERENCE)) == 0
    probe, retrieval = (found for _, found in sorted(results(tmp_path / "out").items()))
    assert probe["protocol"]["start"] == "class names"
    assert (retrieval["metric"], retrieval["n"], retrieval["protocol"]["captions"]) == ("text_to_image@1", 4, 5)
    assert retrieval["details"]["image_to_text@10"] == 1.0  # there are five captions
    assert retrieval["value"] == retrieval["details"]["text_to_image@1"]


def test_retrieval_without_a_text_tower_is_refused(tmp_path: Path, capsys) -> None:
    assert main(words(tmp_path / "out", f"retrieval:{tmp_path}")) == 2
    assert "has no text tower" in capsys.readouterr().err


def test_suites_hold_the_papers_tasks() -> None:
    assert len(SUITES["proteus12"]) == len(set(SUITES["proteus12"])) == 12
    assert set(SUITES["proteus12"]) < set(SUITES["proteus19"])
    assert Task("linear", "imagenet-c") in SUITES["proteus19"]
    assert len(SUITES["elevater20"]) == 40
    assert [len(tasks) for tasks in means().values()] == [12, 20, 20, 5]
    assert not any(task.endswith(":imagenet") for name, tasks in means().items() if "levater" in name for task in tasks)
    assert {task.place for task in SUITES["robustness5"]} < set(SHIFTS)
    assert len(SUITES["proteus19"]) == 19
    assert {Task("upernet", "ade20k"), Task("dpt", "nyuv2")} < set(SUITES["proteus19"])
    assert {task.place for task in SUITES["apple5"]} == set(DATASETS_OF["apple5"])
    assert parse_tasks(["robustness5", "zero_shot:imagenet-a"]) == list(SUITES["robustness5"])


def test_every_protocol_of_a_suite_can_be_made() -> None:
    config = attar.EvaluateConfig(model="m", tasks="knn:x", out="o")
    kinds = {type(protocol_of(task, config)).__name__ for tasks in SUITES.values() for task in tasks}
    assert kinds == {"Knn", "Linear", "LinearOnShift", "Logistic", "ZeroShot", "Elevater", "DenseTask"}
    assert isinstance(protocol_of(Task("elevater", "pcam"), config), Elevater)


def test_pcams_search_sees_the_first_images_of_each_class() -> None:
    seen, rest = first_of_each_class(np.array([0, 1, 1, 0, 0, 1]), 2)
    assert seen.tolist() == [0, 1, 2, 3]
    assert rest.tolist() == [4, 5]
