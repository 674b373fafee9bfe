from __future__ import annotations

from attar.reports import Result
from attar.reports.comparison import comparison_table


def result(task: str, role: str, value: float, *, metric: str = "top1", mode: str = "honest") -> Result:
    return Result(task, role, "m", metric, value, (value - 0.01, value + 0.02), 100, mode=mode)


def cells(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def test_roles_and_modes_stand_beside_each_other() -> None:
    found = cells(
        comparison_table(
            [
                result("logistic:cifar10", "student", 0.5),
                result("logistic:cifar10", "teacher", 0.8),
                result("logistic:cifar10", "teacher", 0.81, mode="paper"),
            ]
        )
    )
    assert found["task"] == ["metric", "student, honest", "teacher, honest", "teacher, paper"]
    assert found["logistic:cifar10"] == ["top1", "50.0 (49.0–52.0)", "80.0 (79.0–82.0)", "81.0 (80.0–83.0)"]


def test_published_figures_have_columns_and_a_source() -> None:
    table = comparison_table(
        [result("logistic:cifar10", "student", 0.5), result("dpt:nyuv2", "student", 0.5, metric="rmse")],
        published=["Proteus-S/14"],
    )
    found = cells(table)
    assert found["task"][-1] == "Proteus-S/14"
    assert found["logistic:cifar10"][-1] == "97.8 [1]"
    assert found["dpt:nyuv2"][1:] == ["0.500 (0.490–0.520)", "0.404 [2]; 0.350 [3]"]  # metres, not per cent
    assert "[1] Proteus, Tables 1 and 4, read off figures." in table
    assert "[2] Proteus, Tables 2, 3, 5, 6, 7: DPT, frozen." in table


def test_where_papers_differ_each_figure_stands_with_its_source() -> None:
    # the first line of the file alone would hide the other; equal figures stand once
    tasks = ("logistic:aircraft", "logistic:cifar10")
    table = comparison_table(
        [
            result(task, "model", 0.5, metric=metric)
            for task, metric in zip(tasks, ("mean_per_class", "top1"), strict=True)
        ],
        published=["DINOv2-S/14"],
    )
    found = cells(table)
    assert found["logistic:aircraft"][-1] == "74.4 [1]; 74.0 [2]"
    assert found["logistic:cifar10"][-1] == "97.7 [1][2]"
    assert "[2] DINOv2, Table 8: features not standardised." in table


def test_the_published_mean_of_a_suite_has_a_source() -> None:
    table = comparison_table([result("a", "model", 0.5)], published=["Proteus-S/14"], suites={"proteus12": ["a"]})
    (figure, mark) = cells(table)["**proteus12**"][-1].split()
    assert figure == "85.8"
    assert f"{mark} Proteus, Tables 1 and 4" in table


def test_a_suite_has_a_mean_only_where_all_its_tasks_are_measured() -> None:
    results = [result("a", "student", 0.5), result("b", "student", 0.7), result("a", "teacher", 0.9)]
    found = cells(comparison_table(results, suites={"both": ["a", "b"], "more": ["a", "b", "c"]}))
    assert found["**both**"] == ["mean", "60.0", ""]
    assert "**more**" not in found


def test_two_models_of_one_role_have_a_column_each_and_no_mean_together() -> None:
    # by role alone the second would take the first one's place, and a suite's mean would mix both
    one, two = (result("a", "model", 0.5), result("b", "model", 0.7))
    two.source["fingerprint"] = "0123456789"
    table = comparison_table([one, two], suites={"both": ["a", "b"]})
    found = cells(table)
    assert found["task"] == ["metric", "model m , honest", "model m 01234567, honest"]
    assert found["a"] == ["top1", "50.0 (49.0–52.0)", ""]
    assert "**both**" not in found


def test_models_without_a_figure_on_these_tasks_take_no_column() -> None:
    table = comparison_table([result("knn:mine", "model", 0.5)], published=["Proteus-S/14"])
    assert table.splitlines()[0].count("|") == 4
    assert table.endswith("Nothing is published on these tasks of: Proteus-S/14.")
