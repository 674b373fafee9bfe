"""Every verb's settings as frozen pydantic models."""

from attar.config.base import Config, explain
from attar.config.curate import CurateConfig
from attar.config.dime_fm import WITH_REGULARISER, DimeFmConfig
from attar.config.distill import (
    VOLATILE,
    CacheConfig,
    CheckpointConfig,
    DistillConfig,
    LogitsConfig,
    MonitorConfig,
    OptimConfig,
    ParallelConfig,
    ProteusConfig,
    ViewsConfig,
)
from attar.config.distill_vl import DistillVlConfig, TextTowerConfig, ZeroShotMonitorConfig
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
from attar.config.export import ExportConfig
from attar.config.pack import PackConfig
from attar.config.plan import PlanConfig
from attar.config.report import ReportConfig
from attar.config.sentences import SentencesConfig
from attar.config.study import SetsConfig, StudyConfig
from attar.config.transfer import (
    AdaptConfig,
    FinetuneConfig,
    PredictConfig,
    TransferConfig,
    TransferStageConfig,
)

__all__ = [
    "VOLATILE",
    "WITH_REGULARISER",
    "AdaptConfig",
    "CacheConfig",
    "CheckpointConfig",
    "Config",
    "CurateConfig",
    "DenseProbeConfig",
    "DimeFmConfig",
    "DistillConfig",
    "DistillVlConfig",
    "ElevaterConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FewShotConfig",
    "FinetuneConfig",
    "KnnProbeConfig",
    "LinearProbeConfig",
    "LogisticProbeConfig",
    "LogitsConfig",
    "MonitorConfig",
    "OptimConfig",
    "PackConfig",
    "ParallelConfig",
    "PlanConfig",
    "PredictConfig",
    "ProteusConfig",
    "RayConfig",
    "ReportConfig",
    "SentencesConfig",
    "SetsConfig",
    "StudyConfig",
    "TextTowerConfig",
    "TransferConfig",
    "TransferStageConfig",
    "ViewsConfig",
    "ZeroShotConfig",
    "ZeroShotMonitorConfig",
    "explain",
]
