"""Linear classifiers that differ in learning rate alone, trained at once: one product of matrices serves them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attar.utils.seeding import torch_generator

MOMENTUM = 0.9
_INIT_STD = 0.01


class ProbeHeads:
    """H linear heads of K classes on the same W channels, each with a learning rate and a start of its own.

    A step is what `torch.optim.SGD` with momentum 0.9 and no weight decay does to each head alone on its mean
    cross-entropy: the sum of losses of heads that share nothing has their gradients side by side. Weights start as
    N(0, 0.01^2), biases as 0 (spec evaluation §1.1).

    Args:
        width: W.
        num_classes: K.
        learning_rates: H of them, before a schedule.
        seed: Names the weights, together with `name`.
        name: Of what the heads read.
        dtype: Of weights and products.
        device: Where they are.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        learning_rates: Sequence[float],
        *,
        seed: int,
        name: str,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.weight = torch.empty(len(learning_rates), num_classes, width)
        for number, weight in enumerate(self.weight):  # a stream each: a head is the same in any company
            weight.normal_(std=_INIT_STD, generator=torch_generator(seed, "linear probe", name, number))
        self.weight = self.weight.to(device, dtype)
        self.bias = self.weight.new_zeros(len(learning_rates), num_classes)
        self.learning_rates = self.weight.new_tensor(learning_rates)
        self._velocity, self._bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def logits(self, features: Tensor) -> Tensor:
        """(H, K, B) for features (B, W): images last, as softmax over few classes is slow where classes are."""
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()[:, None]
        return torch.addmm(bias, weight, features.T).view(*self.bias.shape, len(features))

    def step(self, features: Tensor, labels: Tensor, *, factor: float) -> None:
        """One step of every head on a batch (B, W) with labels (B,); `factor` is the schedule's, common to all."""
        error = self.logits(features).softmax(1)
        error[:, labels, torch.arange(len(labels), device=labels.device)] -= 1  # d cross-entropy / d logits
        velocity, share = self._velocity.flatten(0, 1), 1 / len(labels)  # of an image in the mean
        torch.addmm(velocity, error.flatten(0, 1), features, beta=MOMENTUM, alpha=share, out=velocity)
        self._bias_velocity.mul_(MOMENTUM).add_(error.sum(2), alpha=share)
        rates = self.learning_rates[:, None] * factor
        self.weight.addcmul_(self._velocity, rates[..., None], value=-1)
        self.bias.addcmul_(self._bias_velocity, rates, value=-1)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        return {
            "weight": self.weight,
            "bias": self.bias,
            "velocity": self._velocity,
            "bias_velocity": self._bias_velocity,
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` of the same heads gave."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
