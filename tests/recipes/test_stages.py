"""A stage of a transfer: which of its weights ships, also after an interruption, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from attar.config.transfer import FinetuneConfig
from attar.errors import CheckpointError
from attar.methods import Supervised
from attar.models import load_backbone
from attar.recipes.stages import Stage, run_stage
from attar.recipes.tasks import open_task
from attar.recipes.training import Training
from attar.utils.progress import Log
from attar.utils.seeding import seeded_torch
from small_transfer import STUDENT, config_of


class PowerCutError(Exception):
    """Ends a process before it can save."""


class Scores:
    """Judges whatever it is shown by scores known beforehand, and remembers the head that it was shown."""

    def __init__(self, *scores):
        self.scores, self.heads = iter(scores), []

    def __call__(self):
        score = next(self.scores)
        if score is None:
            raise PowerCutError
        self.heads.append(self.head.weight.detach().clone())
        return score


def run(out, scores, **changes):
    """Four steps of finetuning, judged after each, saved after each second; the head that ships and the outcome."""
    section = FinetuneConfig(max_steps=4, batch_size=4, optim={"lr": 1e-2})
    config = config_of(out, finetune=section.model_dump(), checkpoint={"every": 2})
    task = open_task(config, workers=0)
    student = load_backbone(STUDENT, weights="random", img_size=32)
    with seeded_torch(0, "head"):
        model = task.new_model(student, head="linear")
    scores.head = model.head
    training = Training(
        method=Supervised(model, task.losses),
        stream=task.stream(student, section),
        batch_size=4,
        optim=section.optim,
        total_steps=4,
        device=torch.device("cpu"),
        workers=0,
    )
    settings = {"every": 1, "identity": {}} | changes
    stage = Stage(folder=out / "finetune", section=section, training=training, judge=scores, **settings)
    outcome = run_stage(stage, config, Log(out / "log.txt"))
    return model.head.weight.detach(), outcome


def test_of_equal_scores_the_one_that_learned_longer_ships(tmp_path, capsys):
    scores = Scores(0.5, 0.25, 0.5, 0.5, 0.25)
    head, outcome = run(tmp_path, scores, from_start=True)
    assert outcome.best == {"score": 0.5, "step": 3}
    torch.testing.assert_close(head, scores.heads[3], rtol=0, atol=0)
    assert not torch.equal(head, scores.heads[0])
    said = capsys.readouterr().out
    assert "what it started from" not in said
    assert "stopped at" not in said


def test_equal_scores_do_not_keep_a_stage_going(tmp_path, capsys):
    outcome = run(tmp_path, Scores(1.0, 1.0, 1.0), patience=2)[1]
    assert (outcome.steps, outcome.best) == (3, {"score": 1.0, "step": 3})
    said = capsys.readouterr().out
    assert "  finetune stopped at step 3: val got no better 2 times in a row (--finetune.patience)\n" in said


def test_a_stage_that_taught_nothing_says_that_its_start_ships(tmp_path, capsys):
    scores = Scores(0.5, *[0.25] * 4)
    head, outcome = run(tmp_path, scores, from_start=True)
    assert outcome.best["step"] == 0
    torch.testing.assert_close(head, scores.heads[0], rtol=0, atol=0)
    assert "finetune ships what it started from: no step scored as high" in capsys.readouterr().out


def test_after_a_crash_the_weights_that_ship_are_those_of_the_step_that_is_named(tmp_path):
    first = Scores(0.5, 0.25, 0.75, None)  # the checkpoint of step 2 names step 1; step 3 is kept, then the light goes
    with pytest.raises(PowerCutError):
        run(tmp_path, first)
    assert [path.name for path in (tmp_path / "finetune/checkpoints").iterdir()] == ["step-00000002"]
    head, outcome = run(tmp_path, Scores(0.25, 0.25))  # on a GPU the same steps may score another way
    assert outcome.best == {"score": 0.5, "step": 1}
    torch.testing.assert_close(head, first.heads[0], rtol=0, atol=0)


def test_weights_that_no_checkpoint_names_are_removed(tmp_path):
    run(tmp_path, Scores(0.1, 0.2, 0.3, 0.4))
    kept = sorted((tmp_path / "finetune/best").iterdir())
    assert [path.name for path in kept] == ["step-00000002.safetensors", "step-00000004.safetensors"]
    kept[1].unlink()
    with pytest.raises(CheckpointError, match="chose at step 4"):
        run(tmp_path, Scores())


def test_where_the_end_ships_nothing_is_called_the_best(tmp_path, capsys):
    scores = Scores(0.25, 0.75, 0.5, 0.5)
    head, outcome = run(tmp_path, scores, keeps_best=False)
    torch.testing.assert_close(head, scores.heads[3], rtol=0, atol=0)
    said = capsys.readouterr().out
    assert outcome.best is None
    assert "val      50.0 at step 3\n" in said
    assert "best" not in said
    assert not (tmp_path / "finetune/best").exists()
