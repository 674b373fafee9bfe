from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from attar.config import OptimConfig, ProteusConfig
from attar.errors import Interrupted, NonFiniteError
from attar.methods import Proteus
from attar.models import load_backbone
from attar.train import Callback, LoopSettings, Schedule, StepRecord, TrainState, build_state, fit
from attar.train.callbacks import NoEffect
from attar.types import Batch, StepOutput
from attar.utils.signals import polite_stop

TINY = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"


class Record(NoEffect):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.stopped_at: list[int] = []

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        self.records.append(record)

    def on_stop(self, state: TrainState) -> None:
        self.stopped_at.append(state.step)


def method_of(kind: type[Proteus] = Proteus) -> Proteus:
    teacher = load_backbone(TINY, weights="random", img_size=16, seed=5)
    student = load_backbone(TINY, weights="random", img_size=16, seed=6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(teacher, student, ProteusConfig(), seed=0)


def batches(num_steps: int, *, start: int = 0, parts: int = 1, size: int = 8) -> Iterator[Batch]:
    for step in range(start, num_steps):
        generator = torch.Generator().manual_seed(step)
        views = torch.rand(size, 3, 16, 16, generator=generator)
        for part in range(parts):
            chosen = torch.arange(size).chunk(parts)[part]
            names = tuple(f"image {step}.{int(i)}" for i in chosen)
            yield Batch(views[chosen], chosen, torch.zeros_like(chosen), chosen, step, size, names)


def run(
    method: Proteus, state: TrainState, stream: Iterator[Batch], steps: int, *callbacks: Callback, **settings: object
) -> None:
    schedule = Schedule(1e-3, steps, 4.0, OptimConfig())
    fit(method, state, stream, schedule, LoopSettings(total_steps=steps, **settings), callbacks)  # type: ignore[arg-type]


def test_loop_counts_steps_and_tells_callbacks() -> None:
    method, record = method_of(), Record()
    state = build_state(method.learner, method.student, OptimConfig())
    run(method, state, batches(3), 3, record)
    assert [r.step for r in record.records] == [1, 2, 3]
    assert record.stopped_at == [3]
    assert all(set(r.terms) == {"token", "feature", "patch"} and r.images == 8 for r in record.records)
    assert record.records[0].loss == pytest.approx(sum(record.records[0].terms.values()))


def test_accumulated_parts_give_the_step_of_the_whole_batch() -> None:
    # catches a mean of means with unequal masked counts, a division by parts, clipping per part
    whole, split = method_of(), method_of()
    records = []
    for method, parts in ((whole, 1), (split, 4)):
        method.learner.double()
        method.teacher.double()
        state, record = build_state(method.learner, method.student, OptimConfig()), Record()
        stream = (replace(b, views=b.views.double()) for b in batches(3, parts=parts))
        run(method, state, stream, 3, record, micro_batches=parts, clip_norm=0.5)
        records.append(record.records)
    for one, other in zip(*records, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-9)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-9)
    for a, b in zip(whole.learner.parameters(), split.learner.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_a_run_in_two_halves_equals_one_run() -> None:
    straight, halves = method_of(), method_of()
    state = build_state(straight.learner, straight.student, OptimConfig())
    run(straight, state, batches(6), 6)

    first = build_state(halves.learner, halves.student, OptimConfig())
    schedule = Schedule(1e-3, 6, 4.0, OptimConfig())
    fit(halves, first, batches(3), replace(schedule), LoopSettings(total_steps=3), [])
    other = method_of()
    second = build_state(other.learner, other.student, OptimConfig())
    second.load_tensors({name: value.clone() for name, value in first.tensors().items()})
    second.step = 3
    fit(other, second, batches(6, start=3), schedule, LoopSettings(total_steps=6), [])
    for name, value in state.tensors().items():
        assert torch.equal(value, second.tensors()[name]), name


def test_non_finite_input_stops_before_the_weights_change_and_names_step_and_images() -> None:
    method = method_of()
    state = build_state(method.learner, method.student, OptimConfig())

    def poisoned() -> Iterator[Batch]:
        for batch in batches(5):
            if batch.step == 2:
                batch.views[3, 0, 0, 0] = float("nan")
                before.update(copy.deepcopy(method.learner.state_dict()))
            yield batch

    before: dict[str, torch.Tensor] = {}
    with pytest.raises(NonFiniteError, match=r"(?s)step 3 .*image 2\.3"):
        run(method, state, poisoned(), 5)
    assert state.step == 2
    assert all(torch.equal(before[name], value) for name, value in method.learner.state_dict().items())


def test_non_finite_gradient_stops_before_the_weights_change() -> None:
    method = method_of()
    state = build_state(method.learner, method.student, OptimConfig())
    method.student.model.cls_token.register_hook(lambda grad: grad * float("inf"))  # type: ignore[union-attr, operator]
    before = copy.deepcopy(method.learner.state_dict())
    with pytest.raises(NonFiniteError, match="gradient of step 1"):
        run(method, state, batches(1), 1)
    assert all(torch.equal(before[name], value) for name, value in method.learner.state_dict().items())


class Offset(Proteus):
    """Proteus with a constant in its loss, as a term has whose teacher is spoiled where nothing learned has a share."""

    offset = 0.0

    def training_step(self, batch: Batch) -> StepOutput:
        output = super().training_step(batch)
        return replace(output, loss=output.loss + self.offset)


@pytest.mark.parametrize("offset", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_though_its_gradient_is(offset: float) -> None:
    method = method_of(Offset)
    state = build_state(method.learner, method.student, OptimConfig())
    before = copy.deepcopy(method.learner.state_dict())
    run(method, state, batches(1), 1)
    sound = copy.deepcopy(method.learner.state_dict())
    assert any(not torch.equal(before[name], value) for name, value in sound.items())
    method.offset = offset  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match=r"(?s)the loss of step 2 is .*image 1\.0"):
        run(method, state, batches(2, start=1), 2)
    assert state.step == 1
    assert all(torch.equal(sound[name], value) for name, value in method.learner.state_dict().items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_with_the_right_code(number: int) -> None:
    method, record = method_of(), Record()
    state = build_state(method.learner, method.student, OptimConfig())

    def signalled() -> Iterator[Batch]:
        for batch in batches(9):
            if batch.step == 4:
                os.kill(os.getpid(), number)
            yield batch

    with polite_stop(), pytest.raises(Interrupted, match="after step 5") as caught:
        run(method, state, signalled(), 9, record)
    assert caught.value.exit_code == 128 + number
    assert record.stopped_at == [5]


def test_clipping_limits_the_gradient_and_reports_the_norm_before_it() -> None:
    method, record = method_of(), Record()
    state = build_state(method.learner, method.student, OptimConfig())
    used: list[float] = []

    def keep(*_: object) -> None:
        used.append(float(torch.nn.utils.get_total_norm([p.grad for p in method.learner.parameters()])))  # type: ignore[misc]

    state.optimizer.register_step_pre_hook(keep)
    run(method, state, batches(1), 1, record, clip_norm=1e-3)
    assert used == [pytest.approx(1e-3, rel=1e-3)]
    assert record.records[0].grad_norm > 1e-2


def test_an_interruption_inside_a_callback_still_lets_the_others_save() -> None:
    class Long(NoEffect):
        def on_step(self, state: TrainState, record: StepRecord) -> None:
            if record.step == 2:
                raise Interrupted(signal.SIGTERM, "stopped while judging")

    method, record = method_of(), Record()
    state = build_state(method.learner, method.student, OptimConfig())
    with pytest.raises(Interrupted):
        run(method, state, batches(5), 5, Long(), record)
    assert record.stopped_at == [2]


def test_bf16_changes_the_forward_and_stays_finite() -> None:
    plain, half = Record(), Record()
    for record, bf16 in ((plain, False), (half, True)):
        method = method_of()
        run(method, build_state(method.learner, method.student, OptimConfig()), batches(2), 2, record, bf16=bf16)
    assert plain.records[0].loss != half.records[0].loss
    assert plain.records[0].loss == pytest.approx(half.records[0].loss, rel=2e-2)
