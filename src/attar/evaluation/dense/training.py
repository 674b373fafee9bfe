"""The training of a head on a backbone: one plain loop, by step, that an interruption does not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.data.crops import Crop, Crops, CropStream, crop_batches
from attar.data.pairs import Pair
from attar.errors import Interrupted, NonFiniteError
from attar.evaluation.dense.model import DenseModel, parameter_groups
from attar.evaluation.dense.recipe import Recipe
from attar.evaluation.dense.state import Progress, StateFolder
from attar.evaluation.dense.targets import Target
from attar.utils.progress import track
from attar.utils.seeding import seeded_torch


@dataclass(frozen=True)
class Choice:
    """How the weights are chosen: the best of several moments of the training.

    Attributes:
        judge: The value at a moment.
        moments: How many, evenly over the steps; the last step is one.
        higher_is_better: The direction; of equals the first is taken.
    """

    judge: Callable[[], float]
    moments: int
    higher_is_better: bool

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the head is judged after a step."""
        return step in {round(steps * moment / self.moments) for moment in range(1, self.moments + 1)}

    def is_best(self, checks: Sequence[dict[str, float]]) -> bool:
        """Whether the last value is better than all before."""
        sign = 1 if self.higher_is_better else -1
        values = [sign * check["value"] for check in checks]
        return all(values[-1] > value for value in values[:-1])


def fit(
    model: DenseModel,
    pairs: Sequence[Pair],
    target: Target,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    workers: int = 0,
    choice: Choice | None = None,
    state: StateFolder | None = None,
    save_every: int = 500,
) -> list[dict[str, float]]:
    """Train what learns of a model, and leave it with the weights of the best moment, or of the last step.

    Crops, their order and dropout are pure functions of seed and step, so that a training that goes on from its state
    ends, on a CPU, with the same bits.

    Returns:
        What was found at each moment: `step` and `value`.

    Raises:
        NonFiniteError: If a loss is not a number.
        Interrupted: If a signal came; the state is saved.
    """
    optimizer = torch.optim.AdamW(parameter_groups(model.to(device), recipe), lr=recipe.lr)
    progress = state.load(model, optimizer) if state else Progress()
    crops = Crops(recipe.geometry, recipe.scales, target.void, seed)
    steps = range(progress.step, recipe.steps)
    stream = CropStream(pairs, target.read, crops)
    batches = crop_batches(stream, batch_size=recipe.batch_size, steps=steps, workers=workers)
    model.train()
    try:
        for batch in track(batches, "training head", total=len(steps), unit="steps"):
            with seeded_torch(seed, "dropout", progress.step, device=device):
                _step(model, optimizer, batch, target, recipe, step=progress.step)
            progress.step += 1
            if choice and choice.is_due(progress.step, recipe.steps):
                _check(model, choice, progress)
            if state and progress.step % save_every == 0:
                state.save(model, optimizer, progress)
    except Interrupted:
        if state:
            state.save(model, optimizer, progress)
        raise
    if progress.best:
        model.load_state_dict(progress.best)
    model.eval()
    return progress.checks


def _step(
    model: DenseModel, optimizer: torch.optim.Optimizer, batch: Crop, target: Target, recipe: Recipe, *, step: int
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * recipe.rate(step) * group["lr_scale"]
    device = next(model.head.parameters()).device
    images, truth = (part.to(device, non_blocking=True) for part in batch)
    loss = target.loss(model(images), truth, step)
    if not torch.isfinite(loss):  # device-to-host sync
        raise NonFiniteError(f"the loss of the head is {loss.item()} in step {step}. Try a lower --dense.lr.")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    optimizer.step()


def _check(model: DenseModel, choice: Choice, progress: Progress) -> None:
    progress.checks.append({"step": progress.step, "value": choice.judge()})
    if choice.is_best(progress.checks):
        progress.best = {name: _copy(tensor) for name, tensor in model.state_dict().items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
