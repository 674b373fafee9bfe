from __future__ import annotations

from typing import Any

import pytest

from attar.config import DenseProbeConfig, EvaluateConfig
from attar.config.flags import parse_flags
from attar.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dense.layers", "-1"], {"layers": (-1,)}),
        (["--dense.layers", "3,5,7,11"], {"layers": (3, 5, 7, 11)}),
        (["--dense.fine-tune", "true"], {"fine_tune": True}),
        (["--dense.steps", "500", "--dense.lr=1e-3"], {"steps": 500, "lr": 1e-3}),
        (["--dense.steps", "none"], {"steps": None}),
    ],
)
def test_flags_of_dense_heads(words: list[str], expected: dict[str, Any]) -> None:
    settings = parse_flags(EvaluateConfig, ["--model", "m", "--tasks", "knn:x", "--out", "o", *words])
    assert EvaluateConfig.build(settings).dense == DenseProbeConfig(**expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("knn:a,linear:b,proteus12", ("knn:a", "linear:b", "proteus12")),
        ("proteus12,dense", ("proteus12", "dense")),
        ("knn:/there/a,b", ("knn:/there/a,b",)),
        ("knn:/there/a,b,logistic:/there/c, d", ("knn:/there/a,b", "logistic:/there/c, d")),
        ("knn:a,b:c,linear:d", ("knn:a,b:c", "linear:d")),
        ("knn:a,dense_images", ("knn:a,dense_images",)),
        (("knn:a,linear:b", "proteus12"), ("knn:a", "linear:b", "proteus12")),
        (("knn:a,b", "knn:c"), ("knn:a,b", "knn:c")),
    ],
)
def test_only_a_comma_before_a_task_separates_tasks(given: Any, expected: tuple[str, ...]) -> None:
    assert EvaluateConfig(model="m", out="o", tasks=given).tasks == expected


def test_a_batch_of_one_has_no_statistics() -> None:
    with pytest.raises(ConfigError, match=r"'batch_size' is 1"):
        DenseProbeConfig.build({"batch_size": 1})
