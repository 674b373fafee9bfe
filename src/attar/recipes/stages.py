"""The stages of `attar transfer`, each a run of its own in a folder of its own, that goes on where it stopped.

Adapt the teacher on the labels, transfer its predictions on the pool, finetune the student on the labels
(spec task_transfer §1.2: the three stages are the paper's, their settings ours).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.optim import param_groups_weight_decay

from attar._version import __version__
from attar.config import Config, TransferConfig
from attar.errors import CheckpointError
from attar.recipes.training import Training, check_every, train
from attar.train import Callback, Clock, EarlyStop, Metrics, TrainState, build_state, load_checkpoint, saved_notes
from attar.train.groups import Groups
from attar.utils.distributed import from_main, is_main
from attar.utils.io import new_file, read_json, sha256_file, write_json
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory, open_run, record_settings, start_run

_BEST = "best"  # folder of the weights that validation chose, a file for each step that may be asked for


@dataclass(frozen=True)
class Outcome:
    """What a stage has done.

    Attributes:
        images: Views that were learned from.
        seconds: Of its steps, those before a resume too.
        steps: Optimizer steps.
        best: Score on validation images and step of what was kept; None where validation chose nothing.
        looks: Images that a fitted head's features took, beside those of the steps.
    """

    images: int
    seconds: float
    steps: int
    best: Mapping[str, Any] | None
    looks: int = 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A training with its folder.

    Attributes:
        folder: Of the run.
        section: Its settings.
        training: What is trained.
        judge: Score of what learns on validation images; None without.
        identity: What a checkpoint belongs to, beside the run and its images.
        every: Steps between validations.
        patience: Validations without a better one that end it.
        keeps_best: Ship what validation liked best, not what stood at the end.
        from_start: What it starts from counts as well.
        groups: Of parameters.
    """

    folder: Path
    section: Config
    training: Training
    judge: Callable[[], float] | None
    identity: Mapping[str, Any]
    every: int | None = None
    patience: int | None = None
    keeps_best: bool = True
    from_start: bool = False
    groups: Groups = param_groups_weight_decay

    @property
    def validates_every(self) -> int:
        """Steps between validations."""
        return check_every(self.every, self.training.total_steps, times=20)


def run_stage(stage: Stage, config: TransferConfig, log: Log) -> Outcome:
    """Train a stage, or what is left of it; afterwards the method's learner holds what ships.

    Raises:
        UserError: If the folder or its checkpoints belong to something else.
        NonFiniteError: If a loss or gradient is not finite.
        Interrupted: If SIGINT or SIGTERM came; a checkpoint is saved.
    """
    training, method = stage.training, stage.training.method
    with contextlib.ExitStack() as held:
        opened = open_run(stage.folder, stage.section, resume_anyway=config.resume_anyway)
        directory = from_main(lambda: held.enter_context(opened))
        run = from_main(lambda: start_run(directory))
        learner = method.learner
        state = build_state(learner, method.student, training.optim, device=training.device, groups=stage.groups)
        method.learner = state.wrapped
        identity = {"run_id": run.run_id, "data_fingerprint": training.stream.source.fingerprint, **stage.identity}
        resumed = load_checkpoint(run.checkpoints, state, identity, anyway=config.resume_anyway, say=log.say)
        is_done = state.step >= training.total_steps or state.has_converged
        if resumed is not None:
            log.say(f"  resume   {stage.folder.name} from {resumed.name}{' (complete)' if is_done else ''}")
        if is_main():
            record_settings(run, stage.section, version=__version__)
        if not is_done:
            judges = partial(_judges, stage, learner, run, state, log)
            train(training, config, run, state, log, identity=identity, judges=judges)
            if state.has_converged and state.step < training.total_steps:
                flag = "adapt" if stage.folder.name == "adapt" else "finetune"  # the untaught student has the latter's
                log.say(
                    f"  {stage.folder.name:8} stopped at step {state.step:,}: val got no better {stage.patience} times"
                    f" in a row (--{flag}.patience)"
                )
        method.learner = learner
        best = state.notes.get("best")
        if best is not None:
            _take_back(run, learner, best["step"])
            if best["step"] == 0:
                log.say(f"  {stage.folder.name:8} ships what it started from: no step scored as high on the val images")
        learner.eval()
    seconds = round(state.notes.get("seconds", 0.0), 1)
    return Outcome(state.step * training.batch_size, seconds, state.step, best)


def _judges(
    stage: Stage, learner: torch.nn.Module, run: RunDirectory, state: TrainState, log: Log, metrics: Metrics
) -> Sequence[Callback]:
    callbacks: list[Callback] = [Clock()]
    if stage.judge is not None:
        early = EarlyStop(
            stage.judge,
            partial(_keep, run, learner) if stage.keeps_best else None,
            metrics,
            log,
            every=stage.validates_every,
            total_steps=stage.training.total_steps,
            patience=stage.patience,
            from_start=stage.from_start,
        )
        callbacks.append(early)
    return callbacks


def _keep(run: RunDirectory, learner: torch.nn.Module, step: int) -> None:
    """Keep what has been learned, beside what checkpoints name: after an interruption the run goes back to one."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in learner.state_dict().items()}
    with new_file(_kept(run, step)) as temporary:
        save_file(tensors, temporary)
    steps = {step, *(notes["best"]["step"] for notes in saved_notes(run.checkpoints) if "best" in notes)}
    for old in set((run.path / _BEST).glob("step-*")) - {_kept(run, step) for step in steps}:
        old.unlink()


def _take_back(run: RunDirectory, learner: torch.nn.Module, step: int) -> None:
    path = _kept(run, step)
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not there: the weights that validation chose at step {step:,}. Restore the file, or choose a"
            " new --out."
        )
    learner.load_state_dict(load_file(path), strict=True)


def _kept(run: RunDirectory, step: int) -> Path:
    return run.path / _BEST / f"step-{step:08d}.safetensors"


def finished(folder: Path, identity: Mapping[str, Any], *, anyway: bool) -> dict[str, Any] | None:
    """What a stage's `done.json` says, None if it is not done.

    Raises:
        CheckpointError: If it was done with another teacher or other images.
    """
    path = folder / "done.json"
    if not path.is_file():
        return None
    about: dict[str, Any] = read_json(path)
    changed = [key for key, value in identity.items() if about["identity"].get(key) != value]
    if changed and not anyway:
        raise CheckpointError(
            f"{folder} was made with another {' and '.join(changed)}. Restore that, choose a new --out, or add"
            " --resume-anyway to take it as it is."
        )
    return about


def finish(folder: Path, identity: Mapping[str, Any], outcome: Outcome) -> None:
    """Write that a stage is done."""
    write_json(folder / "done.json", asdict(outcome) | {"identity": dict(identity)})


def weights_hash(folder: Path) -> str:
    """Hex SHA-256 of a model's weight files."""
    return " ".join(sha256_file(path) for path in sorted(folder.glob("*.safetensors")))
