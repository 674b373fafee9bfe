"""`attar transfer` on two ranks is the run of one process, stage by stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from attar.config.files import to_yaml
from small_runs import environment
from small_transfer import config_of

SHORT = {"max_steps": 3, "batch_size": 8, "optim": {"lr": 1e-3}}


def run(folder: Path, ranks: int, **changes) -> Path:
    """The run directory of a command on so many ranks."""
    settings = config_of(folder / "out", scratch=False, finetune=SHORT, **changes)
    file = folder / "settings.yaml"
    folder.mkdir()
    file.write_text(to_yaml(settings))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "--"]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else ["-m"]), "attar", "transfer", "--config", str(file)],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("pretrain ") == 1  # one rank speaks
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
