"""Numbers: a value that is not finite, wherever it arises, ends the run before the weights change."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.harness import (
    SAVE_EVERY,
    STEPS,
    Trial,
    chance,
    differences,
    distil_words,
    forked,
    golden_run,
    numbered,
    outcome,
    whole_checkpoints,
)

NAN, INF = math.nan, math.inf


def in_teacher(at: int, value: float) -> None:
    """What the teacher says of one image."""
    from attar.methods import Proteus

    ask, calls = Proteus.ask, [0]

    def spoiled(self: Any, views: Any) -> Any:
        answers = ask(self, views)
        calls[0] += 1
        if calls[0] == at:
            answers[0][3, 0] = value
        return answers

    Proteus.ask = spoiled  # type: ignore[method-assign]


def in_views(at: int, value: float) -> None:
    """A pixel."""
    from attar.types import Batch

    move = Batch.to

    def spoiled(self: Any, device: Any) -> Any:
        batch = move(self, device)
        if batch.step == at - 1:
            batch.views[2, 0, 1, 1] = value
        return batch

    Batch.to = spoiled  # type: ignore[method-assign]


def in_student(at: int, value: float) -> None:
    """A token of the student."""
    from attar.methods.proteus import ProteusLearner

    passes, calls = ProteusLearner._passes, [0]

    def spoiled(self: Any, views: Any, masks: Any) -> Any:
        clean, masked = passes(self, views, masks)
        calls[0] += 1
        if calls[0] == at:
            clean.patch.data[0, 0, 0] = value
        return clean, masked

    ProteusLearner._passes = spoiled  # type: ignore[method-assign]


def in_loss(at: int, value: float) -> None:
    """One term."""
    from attar.methods.proteus import ProteusLearner

    terms, calls = ProteusLearner.forward, [0]

    def spoiled(self: Any, *arguments: Any) -> Any:
        found = terms(self, *arguments)
        calls[0] += 1
        if calls[0] == at:
            found["feature"] = found["feature"] * value
        return found

    ProteusLearner.forward = spoiled  # type: ignore[method-assign]


def in_constant(at: int, value: float) -> None:
    """A part of one term that nothing learned has a share in: all gradients are sound, and only the loss is not."""
    from attar.methods.proteus import ProteusLearner

    terms, calls = ProteusLearner.forward, [0]

    def spoiled(self: Any, *arguments: Any) -> Any:
        found = terms(self, *arguments)
        calls[0] += 1
        if calls[0] == at:
            found["feature"] = found["feature"] + value
        return found

    ProteusLearner.forward = spoiled  # type: ignore[method-assign]


def in_gradient(at: int, value: float) -> None:
    """One number of one parameter's gradient, the loss being sound."""
    from torch import Tensor

    backward, calls = Tensor.backward, [0]

    def spoiled(self: Any, *arguments: Any, **options: Any) -> Any:
        from attar.methods.proteus import ProteusLearner

        result = backward(self, *arguments, **options)
        calls[0] += 1
        if calls[0] == at:
            import gc

            learner = next(one for one in gc.get_objects() if isinstance(one, ProteusLearner))
            next(learner.token_head.parameters()).grad.view(-1)[0] = value  # type: ignore[union-attr]
        return result

    Tensor.backward = spoiled  # type: ignore[method-assign]


def in_weights(at: int, value: float) -> None:
    """A weight, as a flipped bit in memory leaves it."""
    from attar.methods import Proteus

    step, calls = Proteus.training_step, [0]

    def spoiled(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            next(self.student.parameters()).data.view(-1)[0] = value
        return step(self, batch)

    Proteus.training_step = spoiled  # type: ignore[method-assign]


PLACES: dict[str, Callable[[int, float], None]] = {
    "views": in_views,
    "teacher": in_teacher,
    "student": in_student,
    "loss": in_loss,
    "constant": in_constant,
    "gradient": in_gradient,
    "weights": in_weights,
}


def not_finite(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """NaN or infinity in pixels, the teacher's answers, the student's tokens, a loss term, its constant part, a
    gradient or a weight, at a random step: the run ends with 1 and names step, term or gradient and images; no
    checkpoint holds such a number; the same command, the fault gone, ends with the undisturbed bytes (check i)."""
    golden, _ = golden_run(folder)
    for number in numbered(trials, only):
        rng, began = chance(seed, number), time.monotonic()
        place, value = list(PLACES)[number % len(PLACES)], rng.choice((NAN, INF))
        at = rng.randint(2, STEPS - 1)
        run, log = folder / f"run-{number}", folder / f"run-{number}.log"
        ended = forked(distil_words(run), before=lambda p=place, a=at, v=value: PLACES[p](a, v), log=log)  # type: ignore[misc]
        problem = _named(ended.code, ended.said, at) or _kept_finite(run, at)
        ended = forked(distil_words(run), log=log)
        problem = problem or (f"exit code {ended.code}: {ended.said[-300:]}" if ended.code else "")
        problem = problem or differences(outcome(run), golden)
        fault = f"{value} in {place} at step {at}"
        yield Trial(number, fault, "wrong" if problem else "recovered", problem, time.monotonic() - began)
        if not problem:
            shutil.rmtree(run)


def _named(code: int, said: str, step: int) -> str:
    if code != 1:
        return f"exit code {code}: {said[-300:]}"
    wanted = (f"of step {step}", "the weights were not changed", "images: playground")
    missing = [words for words in wanted if words not in said]
    return f"not said: {missing} in {said[-400:]}" if missing or "Traceback" in said else ""


def _kept_finite(run: Path, at: int) -> str:
    """Whether all checkpoints are from before the fault, and finite."""
    import torch
    from safetensors.torch import load_file

    for step in whole_checkpoints(run):
        tensors = load_file(run / f"checkpoints/step-{step:08d}/tensors.safetensors")
        if step >= at:
            return f"a checkpoint of step {step} was written"
        wrong = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.double()).all()]
        if wrong:
            return f"checkpoint {step} holds numbers that are not finite: {wrong[:3]}"
    newest = max(whole_checkpoints(run), default=0)
    return "" if newest >= at - 1 - SAVE_EVERY else f"the newest checkpoint is {newest}"
