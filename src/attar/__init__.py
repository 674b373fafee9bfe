"""attar distils vision foundation models into small ones that people can deploy.

Example:
    >>> import attar
    >>> backbone = attar.load_backbone("vit_tiny_patch16_224?depth=1", weights="random", img_size=32)
    >>> import torch
    >>> backbone.tokens(torch.rand(2, 3, 32, 32)).cls.shape
    torch.Size([2, 192])
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attar._version import __version__

if TYPE_CHECKING:
    from attar.config import (
        CurateConfig,
        DistillConfig,
        DistillVlConfig,
        EmbedConfig,
        EvaluateConfig,
        ExportConfig,
        PackConfig,
        PlanConfig,
        PredictConfig,
        ReportConfig,
        SentencesConfig,
        StudyConfig,
        TransferConfig,
    )
    from attar.curation import Pool
    from attar.errors import AttarError, UserError
    from attar.models import Backbone, load_backbone
    from attar.recipes.curate import CurateReport, curate
    from attar.recipes.distill import DistillReport, distill
    from attar.recipes.distill_vl import DistillVlReport, distill_vl
    from attar.recipes.embed import embed
    from attar.recipes.evaluate import EvaluateReport, evaluate
    from attar.recipes.export import ExportReport, export
    from attar.recipes.pack import PackReport, pack
    from attar.recipes.plan import plan
    from attar.recipes.planning.parts import Plan
    from attar.recipes.predict import predict
    from attar.recipes.quickstart import quickstart
    from attar.recipes.report import report
    from attar.recipes.sentences import SentencesReport, curate_sentences
    from attar.recipes.study import StudyReport, study
    from attar.recipes.transfer import TransferReport, transfer
    from attar.types import Tokens

_HOMES = {
    "AttarError": "attar.errors",
    "Backbone": "attar.models",
    "CurateConfig": "attar.config",
    "CurateReport": "attar.recipes.curate",
    "DistillConfig": "attar.config",
    "DistillVlConfig": "attar.config",
    "DistillVlReport": "attar.recipes.distill_vl",
    "EmbedConfig": "attar.config",
    "EvaluateConfig": "attar.config",
    "EvaluateReport": "attar.recipes.evaluate",
    "DistillReport": "attar.recipes.distill",
    "ExportConfig": "attar.config",
    "ExportReport": "attar.recipes.export",
    "PackConfig": "attar.config",
    "PackReport": "attar.recipes.pack",
    "Plan": "attar.recipes.planning.parts",
    "PlanConfig": "attar.config",
    "Pool": "attar.curation",
    "PredictConfig": "attar.config",
    "ReportConfig": "attar.config",
    "SentencesConfig": "attar.config",
    "SentencesReport": "attar.recipes.sentences",
    "StudyConfig": "attar.config",
    "StudyReport": "attar.recipes.study",
    "Tokens": "attar.types",
    "TransferConfig": "attar.config",
    "TransferReport": "attar.recipes.transfer",
    "UserError": "attar.errors",
    "curate": "attar.recipes.curate",
    "curate_sentences": "attar.recipes.sentences",
    "distill": "attar.recipes.distill",
    "distill_vl": "attar.recipes.distill_vl",
    "embed": "attar.recipes.embed",
    "evaluate": "attar.recipes.evaluate",
    "load_backbone": "attar.models",
    "pack": "attar.recipes.pack",
    "plan": "attar.recipes.plan",
    "predict": "attar.recipes.predict",
    "quickstart": "attar.recipes.quickstart",
    "report": "attar.recipes.report",
    "study": "attar.recipes.study",
    "transfer": "attar.recipes.transfer",
}

__all__ = [
    "AttarError",
    "Backbone",
    "CurateConfig",
    "CurateReport",
    "DistillConfig",
    "DistillReport",
    "DistillVlConfig",
    "DistillVlReport",
    "EmbedConfig",
    "EvaluateConfig",
    "EvaluateReport",
    "ExportConfig",
    "ExportReport",
    "PackConfig",
    "PackReport",
    "Plan",
    "PlanConfig",
    "Pool",
    "PredictConfig",
    "ReportConfig",
    "SentencesConfig",
    "SentencesReport",
    "StudyConfig",
    "StudyReport",
    "Tokens",
    "TransferConfig",
    "TransferReport",
    "UserError",
    "__version__",
    "curate",
    "curate_sentences",
    "distill",
    "distill_vl",
    "embed",
    "evaluate",
    "export",
    "load_backbone",
    "pack",
    "plan",
    "predict",
    "quickstart",
    "report",
    "study",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `attar --help` does not wait for torch."""
    if name == "export":
        return import_module("attar.export")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'attar' has no attribute '{name}'")


class _Verb(ModuleType):
    """A room that is called as the verb of its name: `attar.export(config)`, and `from attar.export import ...`."""

    def __call__(self, config: ExportConfig) -> ExportReport:
        report: ExportReport = import_module("attar.recipes.export").export(config)
        return report


class _Face(ModuleType):
    """What `attar` is; Python sets a package's rooms as its attributes, and one of them is a verb too."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "export":
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __dir__() -> list[str]:
    """Public names, also those that were not used yet."""
    return sorted({*globals(), *__all__})
