"""How it runs: loop, optimizer, checkpoints, callbacks. No paper is known here."""

from attar.train.callbacks import (
    BadFiles,
    Checkpoints,
    Clock,
    ConsoleLog,
    EarlyStop,
    Metrics,
    Monitor,
    TensorBoard,
    most_bad,
    times_due,
)
from attar.train.checkpoint import load_checkpoint, save_checkpoint, saved_notes
from attar.train.compiling import compile_blocks, compiled_in_steps
from attar.train.groups import embeddings_spared, layer_decay_groups
from attar.train.loop import Callback, LoopSettings, StepRecord, fit
from attar.train.parallel import is_sharded, shard
from attar.train.schedule import Schedule, base_lr, cosine_lr
from attar.train.state import TrainState, build_state

__all__ = [
    "BadFiles",
    "Callback",
    "Checkpoints",
    "Clock",
    "ConsoleLog",
    "EarlyStop",
    "LoopSettings",
    "Metrics",
    "Monitor",
    "Schedule",
    "StepRecord",
    "TensorBoard",
    "TrainState",
    "base_lr",
    "build_state",
    "compile_blocks",
    "compiled_in_steps",
    "cosine_lr",
    "embeddings_spared",
    "fit",
    "is_sharded",
    "layer_decay_groups",
    "load_checkpoint",
    "most_bad",
    "save_checkpoint",
    "saved_notes",
    "shard",
    "times_due",
]
