"""Every verb's settings as frozen pydantic models."""

from attar.config.base import Config, explain
from attar.config.distill import (
    VOLATILE,
    CheckpointConfig,
    DistillConfig,
    LogitsConfig,
    MonitorConfig,
    OptimConfig,
    ParallelConfig,
    ProteusConfig,
    ViewsConfig,
)

__all__ = [
    "VOLATILE",
    "CheckpointConfig",
    "Config",
    "DistillConfig",
    "LogitsConfig",
    "MonitorConfig",
    "OptimConfig",
    "ParallelConfig",
    "ProteusConfig",
    "ViewsConfig",
    "explain",
]
