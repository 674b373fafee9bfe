"""Linear heads that differ in learning rate and weight decay, trained at once from the same start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attar.evaluation.probe_heads import MOMENTUM


class DecayedHeads:
    """R linear heads of K classes on the same D channels, each with a learning rate and a weight decay of its own.

    A step is what `torch.optim.SGD` with momentum 0.9 does to each head alone, weight decay on weight and bias alike
    (whether ELEVATER spares the bias is unconfirmed). A head that diverges does not touch the others.

    Args:
        start: (K, D) weight that all begin with; biases begin with 0.
        learning_rates: R of them.
        weight_decays: R of them.
        is_multi_label: Whether targets are (B, K) of 0 and 1, and each class has a binary loss of its own.
    """

    def __init__(
        self, start: Tensor, learning_rates: Sequence[float], weight_decays: Sequence[float], *, is_multi_label: bool
    ) -> None:
        self.weight = start.expand(len(learning_rates), *start.shape).clone()  # (R, K, D)
        self.bias = self.weight.new_zeros(self.weight.shape[:2])
        self._rates, self._decays = self.weight.new_tensor(learning_rates), self.weight.new_tensor(weight_decays)
        self._velocity, self._bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self._is_multi_label = is_multi_label

    def __len__(self) -> int:
        return len(self.weight)

    def logits(self, features: Tensor) -> Tensor:
        """(B, R, K) for features (B, D)."""
        flat = torch.addmm(self.bias.flatten(), features, self.weight.flatten(0, 1).T)
        return flat.view(len(features), *self.bias.shape)

    def logits_of(self, head: int, features: Tensor) -> Tensor:
        """(B, K) of one head."""
        return torch.addmm(self.bias[head], features, self.weight[head].T)

    def step(self, features: Tensor, targets: Tensor) -> None:
        """One step of every head on a batch (B, D)."""
        error = self._error(self.logits(features), targets).flatten(1)  # (B, R * K)
        gradient, bias_gradient = (error.T @ features).view_as(self.weight), error.sum(0).view_as(self.bias)
        decays, rates = self._decays[:, None], self._rates[:, None]
        self._velocity.mul_(MOMENTUM).add_(gradient).addcmul_(decays[..., None], self.weight)
        self._bias_velocity.mul_(MOMENTUM).add_(bias_gradient).addcmul_(decays, self.bias)
        self.weight.addcmul_(rates[..., None], self._velocity, value=-1)
        self.bias.addcmul_(rates, self._bias_velocity, value=-1)

    def _error(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Derivative of each head's mean loss by its logits."""
        if self._is_multi_label:
            return (logits.sigmoid() - targets[:, None]) / targets.numel()
        error = logits.softmax(2)
        error[torch.arange(len(targets), device=targets.device), :, targets] -= 1
        return error / len(targets)
