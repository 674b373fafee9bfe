"""Everything a run learns with: what a checkpoint must hold for the next step to be the same step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from attar.config import OptimConfig
from attar.models import Backbone


@dataclass
class TrainState:
    """Learner, optimizer, moving average and position of a run.

    Attributes:
        learner: All that is trained.
        optimizer: AdamW over the learner's parameters.
        ema: Moving average of the student backbone, or None.
        step: Optimizer steps done.
        notes: What callbacks must remember across a resume, as plain JSON values (the best score so far).
    """

    learner: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    step: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def ema_student(self) -> Backbone | None:
        """The averaged student."""
        return None if self.ema is None else self.ema.module

    def update_ema(self, student: Backbone) -> None:
        """Let the moving average follow the student by one step."""
        if self.ema is not None:
            # timm's average copies the student outright when it is told of step 1; without warm-up it is not told
            self.ema.update(student, step=self.step if self.ema.use_warmup else None)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for a checkpoint. Optimizer state is keyed by parameter name, not by number."""
        found = {f"learner/{name}": value for name, value in self.learner.state_dict().items()}
        for name, parameter in self.learner.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():  # none where no gradient ever came
                found[f"optimizer/{name}/{key}"] = value
        if self.ema is not None:
            found |= {f"ema/{name}": value for name, value in self.ema.module.state_dict().items()}
        return found

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors of a checkpoint.

        Raises:
            RuntimeError: If names or shapes of learner or average do not agree.
            KeyError: If the optimizer's state belongs to a parameter that is not there.
        """
        sections: dict[str, dict[str, Tensor]] = {"learner": {}, "optimizer": {}, "ema": {}}
        for name, value in tensors.items():
            section, _, key = name.partition("/")
            sections[section][key] = value
        self.learner.load_state_dict(sections["learner"], strict=True)
        if self.ema is not None:
            self.ema.module.load_state_dict(sections["ema"], strict=True)
        parameters = dict(self.learner.named_parameters())
        self.optimizer.state.clear()
        for name, value in sections["optimizer"].items():
            owner, _, key = name.rpartition("/")
            parameter = parameters[owner]
            # AdamW counts its steps on the CPU
            state = self.optimizer.state.setdefault(parameter, {})
            state[key] = value.clone() if key == "step" else value.to(parameter.device, copy=True)


def build_state(learner: nn.Module, student: Backbone, config: OptimConfig) -> TrainState:
    """Optimizer and moving average for a learner.

    Tensors with two or more dimensions decay, among them class token, position table and mask token; norms,
    LayerScale and biases do not (Proteus §2, §6.10). The average follows the student backbone only.
    """
    groups = param_groups_weight_decay(learner, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=1e-8)
    ema = None
    if config.ema_decay:
        ema = ModelEmaV3(student, decay=config.ema_decay, use_warmup=config.ema_warmup)
    return TrainState(learner, optimizer, ema)
