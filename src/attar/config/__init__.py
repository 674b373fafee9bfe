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
from attar.config.embed import EmbedConfig, RayConfig
from attar.config.evaluate import (
    DenseProbeConfig,
    ElevaterConfig,
    EvaluateConfig,
    FewShotConfig,
    KnnProbeConfig,
    LinearProbeConfig,
    LogisticProbeConfig,
    ZeroShotConfig,
)

__all__ = [
    "VOLATILE",
    "CheckpointConfig",
    "Config",
    "DenseProbeConfig",
    "DistillConfig",
    "ElevaterConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "FewShotConfig",
    "KnnProbeConfig",
    "LinearProbeConfig",
    "LogisticProbeConfig",
    "LogitsConfig",
    "MonitorConfig",
    "OptimConfig",
    "ParallelConfig",
    "ProteusConfig",
    "RayConfig",
    "ViewsConfig",
    "ZeroShotConfig",
    "explain",
]
