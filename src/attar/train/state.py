"""Everything a run learns with: what a checkpoint must hold for the next step to be the same step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import Muon, param_groups_weight_decay
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from attar.config import OptimConfig
from attar.models import Backbone
from attar.train.groups import Groups, tables_apart
from attar.train.parallel import Engine, distribute, shard, share_like, synchronise_statistics, whole
from attar.utils.distributed import is_main, world_size

CPU = torch.device("cpu")


@dataclass
class TrainState:
    """Learner, optimizer, moving average and position of a run.

    Attributes:
        learner: All that is trained, on this rank.
        student: The backbone inside it.
        optimizer: AdamW or Muon over the learner's parameters.
        ema: Moving average of the student backbone, or None.
        wrapped: What to call in place of the learner: itself, or DDP around it.
        twin: A plain backbone that sharded students are copied into to be judged and shipped; on the main rank only,
            None where students are not sharded.
        step: Optimizer steps done.
        notes: What callbacks must remember across a resume, as plain JSON values (the best score so far).
    """

    learner: nn.Module
    student: Backbone
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    wrapped: nn.Module
    twin: Backbone | None = None
    step: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def has_converged(self) -> bool:
        """Whether a callback has found that more steps do not help; remembered across a resume."""
        return bool(self.notes.get("converged"))

    def update_ema(self) -> None:
        """Let the moving average follow the student by one step."""
        if self.ema is not None:
            # timm's average copies the student outright when it is told of step 1; without warm-up it is not told
            self.ema.update(self.student, step=self.step if self.ema.use_warmup else None)

    @property
    def roles(self) -> tuple[str, ...]:
        """What may be judged and shipped: `student`, and `ema`, its moving average, where there is one."""
        return ("student",) if self.ema is None else ("student", "ema")

    def plain(self, role: str) -> Backbone:
        """The backbone of a role as a plain module, to be judged or shipped on the main rank.

        Where students are sharded it is a copy, gathered from all ranks (a collective operation); the next call
        overwrites it, and other ranks get the share they hold.
        """
        backbone: Backbone = self.student if role == "student" or self.ema is None else self.ema.module
        own = None if self.twin is None else self.twin.state_dict()
        for name, value in backbone.state_dict().items():
            full = whole(value)
            if own is not None:
                own[name].copy_(full)
        return self.twin or backbone

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, whole and on the CPU, for a checkpoint; none on ranks other than the main one.

        Optimizer state is keyed by parameter name, not by number. Shares of sharded tensors are gathered one by one, a
        collective operation.
        """
        found: dict[str, Tensor] = {}
        for name, value in self._parts():
            full = whole(value.detach())
            if is_main():
                found[name] = full.cpu().contiguous()
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the whole tensors of a checkpoint; where this run is sharded, each rank keeps its share.

        Raises:
            RuntimeError: If names or shapes of learner or average do not agree.
            KeyError: If the optimizer's state belongs to a parameter that is not there, or to another optimizer.
        """
        self._check_algorithm(tensors)
        modules = {"learner": self.learner} | ({} if self.ema is None else {"ema": self.ema.module})
        own = {section: module.state_dict() for section, module in modules.items()}
        loaded: dict[str, dict[str, Tensor]] = {section: {} for section in modules}
        parameters = dict(self.learner.named_parameters())
        self.optimizer.state.clear()
        for name, value in tensors.items():
            section, _, key = name.partition("/")
            if section == "optimizer":
                owner, _, key = key.rpartition("/")
                mine = (
                    self._counter(value, parameters[owner]) if key == "step" else share_like(value, parameters[owner])
                )
                self.optimizer.state.setdefault(parameters[owner], {})[key] = mine.clone()
            elif section in modules:
                loaded[section][key] = share_like(value, own[section][key]) if key in own[section] else value
        for section, module in modules.items():
            module.load_state_dict(loaded[section], strict=True)

    def _check_algorithm(self, tensors: Mapping[str, Tensor]) -> None:
        kept = [name for name in tensors if name.startswith("optimizer/")]
        is_muon = isinstance(self.optimizer, Muon)
        if kept and is_muon != any(name.endswith("/momentum_buffer") for name in kept):
            raise KeyError(f"its optimizer is {'adamw' if is_muon else 'muon'}, by another optim.algorithm")

    def _counter(self, steps: Tensor, owner: Tensor) -> Tensor:
        """The steps of a parameter where its optimizer counts them: fused AdamW beside it, others on the CPU."""
        return steps.to(owner.device) if self.optimizer.defaults.get("fused") else steps

    def _parts(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.learner.state_dict().items():
            yield f"learner/{name}", value
        for name, parameter in self.learner.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():  # none where no gradient ever came
                if isinstance(value, Tensor):  # Muon also notes whom it leaves to AdamW, which it knows by the shape
                    yield f"optimizer/{name}/{key}", value
        if self.ema is not None:
            for name, value in self.ema.module.state_dict().items():
                yield f"ema/{name}", value


def build_state(
    learner: nn.Module,
    student: Backbone,
    config: OptimConfig,
    *,
    engine: Engine = "ddp",
    device: torch.device = CPU,
    groups: Groups = param_groups_weight_decay,
) -> TrainState:
    """Optimizer and moving average for a learner, spread over the ranks where there are several.

    Tensors with two or more dimensions decay, among them class token, position table and mask token; norms,
    LayerScale and biases do not (Proteus §2, §6.10). The average follows the student backbone only.

    Args:
        learner: Equal on all ranks; sharded in place by `fsdp2`.
        student: The backbone inside it.
        config: Settings of optimizer and average.
        engine: How several ranks share the learner.
        device: This rank's.
        groups: (learner, weight decay) -> parameter groups; one with `lr_scale` learns at that share of the rate.
    """
    synchronise_statistics(learner, device)
    ema, twin = None, None
    if config.ema_decay:
        ema = ModelEmaV3(student, decay=config.ema_decay, use_warmup=config.ema_warmup)
    if engine == "fsdp2" and world_size() > 1:  # both copies come before the shares: these cannot be copied
        twin = copy.deepcopy(student) if is_main() else None
        if ema is not None:
            shard(ema.module, device)
    if config.recompute:
        student.recompute_blocks()
    wrapped = distribute(learner, engine=engine, device=device)
    found = groups(learner, config.weight_decay)
    optimizer = build_optimizer(tables_apart(found, learner) if config.algorithm == "muon" else found, config)
    return TrainState(learner, student, optimizer, ema, wrapped, twin)


def build_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW in one kernel; or timm's Muon, which gives AdamW what is no matrix: biases, norms, tables, tokens.

    A convolution is a matrix of its outputs by all else. An update of Muon is scaled so that it is as large as one of
    AdamW usually is (root mean square 0.2), so that learning rate and decay mean the same (arXiv 2502.16982).

    Args:
        groups: Of parameters; one with `use_fallback` is AdamW's under Muon too.
        config: Settings; learning rates are set before each step.
    """
    if config.algorithm == "muon":
        muon: torch.optim.Optimizer = Muon(
            groups, lr=0.0, momentum=0.95, betas=config.betas, eps=1e-8, adjust_lr_fn="match_rms_adamw"
        )
        return muon
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=1e-8, fused=True)
