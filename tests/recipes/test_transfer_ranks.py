"""`attar transfer` on two ranks is the run of one process, stage by stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from small_runs import run_on_ranks
from small_transfer import config_of

SHORT = {"max_steps": 3, "batch_size": 8, "optim": {"lr": 1e-3}}


def run(folder: Path, ranks: int, **changes) -> Path:
    """The run directory of a command on so many ranks."""
    settings = config_of(folder / "out", scratch=False, finetune=SHORT, **changes)
    said = run_on_ranks("transfer", settings, ranks)
    assert said.count("pretrain ") == 1  # one rank speaks
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pretrain", "cached"),
    [("task", 1), ("contrastive", None)],  # ranks share a cache; contrastive compares images of both ranks
)
def test_two_ranks_make_the_student_of_one_process(pretrain: str, cached: int | None, tmp_path: Path) -> None:
    longer = {"max_steps": 12, "cached_views": cached} if cached else {}  # into the second epoch
    changes = {"pretrain": pretrain, "transfer": SHORT | longer}
    alone, together = (run(tmp_path / str(ranks), ranks, **changes) for ranks in (1, 2))
    for part in ("transfer/student", "student"):
        ours, theirs = (load_file(out / part / "model.safetensors") for out in (alone, together))
        worst = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
        start = max(tensor.abs().max().item() for tensor in ours.values())
        assert worst < 1e-4 * start, part
    for file in sorted((alone / "results").glob("finetune-*.json")):
        one, two = (json.loads((out / "results" / file.name).read_text()) for out in (alone, together))
        assert one["n"] == two["n"]
