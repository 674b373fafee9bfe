"""Compiled blocks: the same training, judged by the plain model; where nothing can be compiled, a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from attar.config import OptimConfig, ProteusConfig
from attar.methods import Proteus
from attar.models import Backbone, load_backbone
from attar.train import LoopSettings, Schedule, StepRecord, TrainState, build_state, fit
from attar.train.callbacks import NoEffect
from attar.train.compiling import compile_blocks, compiled_in_steps
from attar.types import Batch

TINY = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=2&num_heads=2"
CPU = torch.device("cpu")


class Judge(NoEffect):
    """Asks the student for features of batches of ever new sizes, and notes losses and what has been translated."""

    def __init__(self, student: Backbone) -> None:
        self.student, self.losses, self.graphs = student, list[float](), list[int]()

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        self.losses.append(record.loss)
        self.student.embed(torch.full((record.step, 3, 16, 16), 0.5))
        self.graphs.append(counters["stats"]["unique_graphs"])


def train(*, compiled: bool, steps: int = 4) -> Judge:
    teacher, student = (load_backbone(TINY, weights="random", img_size=16, seed=seed) for seed in (5, 6))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = Proteus(teacher, student, ProteusConfig(), seed=0)
    if compiled:
        assert compile_blocks([method.learner, teacher], CPU) is None
    counters.clear()
    judge = Judge(student)
    state = build_state(method.learner, student, OptimConfig(), device=CPU)
    settings = LoopSettings(steps, compiled=compiled)
    with compiled_in_steps():
        fit(method, state, batches(steps), Schedule(1e-2, steps, 4.0, OptimConfig()), settings, [judge])
    return judge


def batches(steps: int):
    for step in range(steps):
        views = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        rows = torch.arange(8)
        yield Batch(views, rows, torch.zeros_like(rows), rows, step, 8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the translator looks at all that a tensor has
def test_the_same_training_comes_out_and_nothing_but_steps_is_translated() -> None:
    plain, compiled = train(compiled=False), train(compiled=True)
    assert plain.graphs == [0] * 4
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)
    assert compiled.graphs[0] == compiled.graphs[-1] > 0  # one block for all that are alike, no other batch size
    assert counters["frames"]["ok"] == counters["frames"]["total"]


def test_what_has_no_blocks_says_so() -> None:
    assert "no model here has transformer blocks" in str(compile_blocks([nn.Linear(2, 2)], CPU))


def test_where_nothing_can_be_compiled_the_reason_is_given_and_the_model_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (str(tmp_path / "no-compiler"),))
    monkeypatch.setattr(config, "force_disable_caches", True)
    torch.compiler.reset()
    backbone = load_backbone(TINY, weights="random", img_size=16, seed=0)
    reason = compile_blocks([backbone], CPU)
    assert reason is not None
    assert "torch cannot compile here" in reason
    assert "\n" not in reason
    assert all(block._compiled_call_impl is None for block in backbone.model.blocks)  # type: ignore[union-attr]
