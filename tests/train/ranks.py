"""What ranks do in tests/train/test_parallel.py: one small world in float64 that any number of ranks can live in.

Started by torchrun with a folder and the names of scenes; each scene leaves a file of plain tensors there. The test
plays the same scenes on one process and compares.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attar.config import DimeFmConfig, LogitsConfig, OptimConfig, ProteusConfig, ViewsConfig
from attar.data.loader import ViewDataset, training_batches
from attar.data.sampler import ViewOrder
from attar.data.sentence_stream import SentenceStream
from attar.data.sources import open_source
from attar.errors import AttarError, Interrupted
from attar.methods import DimeFm, Hint, LogitDistillation, Method, Proteus, Supervised, online_targets
from attar.methods.proteus import draw_masks
from attar.models import Backbone, LinearClassifier, TaskModel, load_backbone, with_projection
from attar.train import (
    Callback,
    Checkpoints,
    LoopSettings,
    Metrics,
    Monitor,
    Schedule,
    TrainState,
    build_state,
    fit,
    load_checkpoint,
    save_checkpoint,
)
from attar.train.parallel import Engine, is_sharded, shard, whole
from attar.types import Batch, StepOutput
from attar.utils.distributed import gather, is_main, leave, process_group, rank, world_size
from attar.utils.progress import Log
from attar.utils.signals import polite_stop
from small_models import sentences, text_tower

CPU = torch.device("cpu")
STUDENT = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=2&num_heads=2&init_values=1.0"
TEACHER = "vit_tiny_patch16_224?patch_size=8&embed_dim=48&depth=2&num_heads=2"
BATCH, MICRO_BATCHES, STEPS = 8, 2, 6
IDENTITY = {"run_id": "ranks", "data_fingerprint": "playground"}
ONE_MASKED = ProteusConfig(mask_probability=1 / BATCH)  # one image of eight: each other rank has none
PATCH_ALONE = ONE_MASKED.replace(token_weight=0.0, feature_weight=0.0)  # without it a rank has nothing to compute
DIME = DimeFmConfig(udist_weight=0.2, feature_weight=3.0)
WITH_TEXT = DIME.replace(contrastive_weight=0.2, text_mode="small_student")
Result = dict[str, Any]


def backbone(reference: str, seed: int) -> Backbone:
    return load_backbone(reference, weights="random", img_size=32, seed=seed).double()


def tower(reference: str, seed: int, dtype: torch.dtype) -> Backbone:
    return with_projection(backbone(reference, seed).float(), 24).to(dtype)


def method_of(name: str = "proteus", config: ProteusConfig | None = None) -> Method:
    teacher, student = backbone(TEACHER, 1), backbone(STUDENT, 2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if name == "hint":
            method: Method = Hint(teacher, student)
        elif name == "labels":
            method = Supervised(TaskModel.classifier(student, [str(label) for label in range(12)]))
        else:
            method = Proteus(teacher, student, config or ProteusConfig(), seed=0)
    method.learner.double()
    return method


def batches(*, start: int = 0, stop: int = STEPS, micro_batches: int = MICRO_BATCHES) -> Iterator[Batch]:
    """This rank's share of steps of playground scenes, in float64."""
    source = open_source("playground:0?n=300")
    labels = source.labels()
    assert labels is not None
    dataset = ViewDataset(source, ViewOrder(len(source), 0, 3), ViewsConfig(), 32, labels=labels[0])
    stream = training_batches(
        dataset,
        batch_size=BATCH,
        start_step=start,
        num_steps=stop,
        micro_batches=micro_batches,
        rank=rank(),
        world_size=world_size(),
    )
    floats = (batch.to(torch.device("cpu")) for batch in stream)
    return (replace(batch, views=batch.views.double()) for batch in floats)


def together(own: Result) -> Result:
    """The tensors of all ranks, one behind the other."""
    shares = gather(own)
    return {name: torch.cat([share[name] for share in shares]) for name in own}


def scene_views(_folder: Path, _engine: Engine) -> Result:
    """Order, views and masks of three steps."""
    found: dict[str, list[Tensor]] = {}
    for batch in batches(stop=3):
        masks = draw_masks(batch, 16, ProteusConfig(), seed=0)
        hidden = torch.zeros(len(batch.positions), 16, dtype=torch.bool)
        hidden[masks.rows] = masks.hidden
        assert batch.labels is not None
        place = batch.positions + BATCH * batch.step
        parts = {"place": place, "samples": batch.samples, "view_ids": batch.view_ids, "labels": batch.labels}
        for name, value in (parts | {"views": batch.views, "hidden": hidden}).items():
            found.setdefault(name, []).append(value)
    everything = together({name: torch.cat(values) for name, values in found.items()})
    order = everything["place"].argsort()
    return {name: value[order] for name, value in everything.items()}


def scene_gradients(_folder: Path, engine: Engine) -> Result:
    """Gradients of one step of each method, before anything is updated."""
    found: Result = {}
    methods = {
        "proteus": method_of(),
        "one masked": method_of(config=ONE_MASKED),
        "patch alone": method_of(config=PATCH_ALONE),
        "paper": method_of(config=ProteusConfig(mask_rule="paper")),
        "hint": method_of("hint"),
        "labels": method_of("labels"),
    }
    for name, method in methods.items():
        state = started(method, engine)
        if engine == "fsdp2" and world_size() > 1 and hasattr(method, "teacher"):
            shard(method.teacher, CPU)
        found |= _gradients_only(name, method, state)
    return found


def _gradients_only(name: str, method: Method, state: TrainState, **options: Any) -> Result:
    """One step of the real loop with an optimizer that changes nothing; the gradients stay."""
    state.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    state.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign, assignment]
    losses: list[float] = []
    fit_steps(method, state, stop=1, losses=losses, **options)
    found = {f"{name}/loss": torch.tensor(losses[0], dtype=torch.float64)}
    for key, parameter in state.learner.named_parameters():
        assert parameter.grad is not None, (name, key)
        found[f"{name}/{key}"] = whole(parameter.grad).clone()
    return found


def dime(config: DimeFmConfig, *, pieces: int, dtype: torch.dtype) -> Method:
    """DIME-FM: eight images and twelve sentences a step."""
    student = tower(STUDENT, 2, dtype)
    return DimeFm(
        online_targets(tower(TEACHER, 1, dtype)),
        SentenceStream(sentences(dtype=dtype), 12, seed=0),
        student,
        config,
        text=text_tower().to(dtype) if config.text_mode == "small_student" else None,
        captions=sentences(300, seed=1, dtype=dtype) if config.contrastive_weight else None,
        pieces=pieces,
    )


def scene_dime(_folder: Path, engine: Engine) -> Result:
    """Gradients of one step whose scores span all ranks, encoded at once and in pieces; in float32 too."""
    found: Result = {}
    variants = {"frozen": (DIME, 1), "text": (WITH_TEXT, 1), "pieces": (WITH_TEXT, 2), "float32": (WITH_TEXT, 2)}
    for name, (config, pieces) in variants.items():
        dtype = torch.float32 if name == "float32" else torch.float64
        method = dime(config, pieces=pieces, dtype=dtype)
        (batch,) = batches(stop=1, micro_batches=1)
        stream = iter([replace(batch, views=batch.views.to(dtype))])
        found |= _gradients_only(name, method, started(method, engine), stream=stream, micro_batches=1)
    return found


class Losses:
    """Keeps the loss of each step."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_start(self, state: TrainState) -> None: ...
    def on_stop(self, state: TrainState) -> None: ...
    def on_exit(self) -> None: ...
    def on_step(self, state: TrainState, record: Any) -> None:
        self.losses.append(record.loss)


def fit_steps(
    method: Method,
    state: TrainState,
    *,
    stop: int,
    losses: list[float],
    stream: Iterator[Batch] | None = None,
    callbacks: Sequence[Callback] = (),
    micro_batches: int = MICRO_BATCHES,
) -> None:
    schedule = Schedule(1e-3, STEPS, 4.0, OptimConfig())
    settings = LoopSettings(total_steps=stop, micro_batches=micro_batches)
    callbacks = [Losses(losses), *callbacks]
    fit(method, state, stream or batches(start=state.step, stop=stop), schedule, settings, callbacks)


def started(method: Method, engine: Engine) -> TrainState:
    state = build_state(method.learner, method.student, OptimConfig(ema_decay=0.9), engine=engine, device=CPU)
    method.learner = state.wrapped
    return state


def scene_two_more_steps(folder: Path, engine: Engine) -> Result:
    """Go on from the checkpoint in the folder by two steps, save, and say what came out."""
    method = method_of()
    state = started(method, engine)
    load_checkpoint(folder / "checkpoints", state, IDENTITY)
    losses: list[float] = []
    fit_steps(method, state, stop=state.step + 2, losses=losses)
    assert is_sharded(state.learner) == (engine == "fsdp2" and world_size() > 1)
    save_checkpoint(folder / "checkpoints", state, IDENTITY, keep=9)
    students = {}
    for role in state.roles:
        weights = state.plain(role).state_dict()
        students |= {f"{role}/{key}": value.clone() for key, value in weights.items() if is_main()}
    return {"losses": torch.tensor(losses, dtype=torch.float64), "step": state.step, **students}


def scene_muon(_folder: Path, engine: Engine) -> Result:
    """Three steps of Muon, the blocks computed twice: what was learned."""
    method = method_of()
    config = OptimConfig(algorithm="muon", recompute=True, ema_decay=0.0)
    state = build_state(method.learner, method.student, config, engine=engine, device=CPU)
    method.learner = state.wrapped
    losses: list[float] = []
    fit_steps(method, state, stop=3, losses=losses)
    weights = {name: whole(parameter.detach()).clone() for name, parameter in state.learner.named_parameters()}
    return {"losses": torch.tensor(losses, dtype=torch.float64), **weights}


class PastForward(Proteus):
    """What nobody may do: ask the student past the learner's forward."""

    def training_step(self, batch: Batch) -> StepOutput:
        tokens = self.student(batch.views)
        return StepOutput((tokens.cls - self.target(batch.views).cls.mean()).square().mean() / 4)


def scene_past_forward(_folder: Path, engine: Engine) -> Result:
    method = PastForward(backbone(TEACHER, 1), backbone(STUDENT, 2), ProteusConfig(), seed=0)
    method.learner.double()
    return complaint(lambda: fit_steps(method, started(method, engine), stop=2, losses=[]))


def scene_not_finite(_folder: Path, engine: Engine) -> Result:
    """A view that is not finite, on the last rank only."""
    method = method_of()
    stream = batches()
    if rank() == world_size() - 1:
        stream = (replace(batch, views=batch.views * float("nan")) for batch in stream)
    return complaint(lambda: fit_steps(method, started(method, engine), stop=2, losses=[], stream=stream))


def scene_stopped(_folder: Path, engine: Engine) -> Result:
    """A signal that only the last rank gets, before the second step."""
    method = method_of()

    def stream() -> Iterator[Batch]:
        for batch in batches():
            if rank() == world_size() - 1 and batch.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with polite_stop():
        return complaint(lambda: fit_steps(method, started(method, engine), stop=4, losses=[], stream=stream()))


class Stopping:
    """A judge of students whom a signal stops."""

    def run(self, _backbone: Backbone) -> Iterator[tuple[str, float]]:
        yield "knn_select", 0.5
        raise Interrupted(signal.SIGTERM, "stopped by SIGTERM while judging.")


def scene_stopped_while_judging(folder: Path, engine: Engine) -> Result:
    """A signal while the main rank judges and the others wait for it; a step later there would be a checkpoint."""
    method = method_of()
    log = Log(folder / "log.txt", is_silent=True)
    metrics = Metrics(folder / "metrics.jsonl", every=1, total_steps=STEPS)
    judge = partial(Monitor, Stopping(), metrics, log, every=1, total_steps=STEPS, title="", beside="", keep_best=print)
    saves = folder / f"judged-{engine}"
    callbacks = [judge(), Checkpoints(saves, IDENTITY, every=2, keep=1)]
    found = complaint(lambda: fit_steps(method, started(method, engine), stop=4, losses=[], callbacks=callbacks))
    return found | {"saved": [path.name for path in saves.iterdir()]}


def complaint(run: Any) -> Result:
    """The error of each rank."""
    try:
        run()
        found = "no error"
    except (AttarError, RuntimeError) as error:
        found = f"{type(error).__name__}: {error}"
    return {"errors": gather(found)}


def scene_agreement(_folder: Path, _engine: Engine) -> Result:
    """What the logit method says of the teacher's classes and the labels."""
    head = torch.randn(14, 48, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    classifier = LinearClassifier(head, None, embed_dim=48).double()
    method = LogitDistillation(backbone(TEACHER, 1), classifier, backbone(STUDENT, 2), LogitsConfig())
    return {"said": gather(method.prepare(batches()))}


SCENES = {
    "agreement": scene_agreement,
    "views": scene_views,
    "gradients": scene_gradients,
    "dime": scene_dime,
    "muon": scene_muon,
    "two more steps": scene_two_more_steps,
    "past forward": scene_past_forward,
    "not finite": scene_not_finite,
    "stopped": scene_stopped,
    "stopped while judging": scene_stopped_while_judging,
}


def main(folder: str, engine: Engine, *names: str) -> None:
    with process_group(CPU, timeout_s=60.0):
        for name in names:
            result = partial(SCENES[name], Path(folder), engine)()
            if is_main():
                torch.save(result, Path(folder) / f"{name}.{engine}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
    leave(0)
