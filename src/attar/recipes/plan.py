"""`attar plan`: a dry run of another verb. Nothing is written but temporary files, which are gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from attar.config import (
    Config,
    CurateConfig,
    DistillConfig,
    DistillVlConfig,
    EmbedConfig,
    EvaluateConfig,
    PlanConfig,
    TransferConfig,
)
from attar.errors import ConfigError, Interrupted
from attar.recipes import dime_fm, proteus
from attar.recipes.planning.distill import plan_distill
from attar.recipes.planning.distill_vl import plan_distill_vl
from attar.recipes.planning.embedding import plan_embed
from attar.recipes.planning.finding import plan_curate, plan_evaluate
from attar.recipes.planning.parts import Plan
from attar.recipes.planning.transfer import plan_transfer
from attar.utils.distributed import launched_ranks
from attar.utils.io import write_json
from attar.utils.progress import Log
from attar.utils.run_directory import flat_changes
from attar.utils.signals import polite_stop

_Planner = Callable[[Any, PlanConfig, Path], Plan]

PLANNERS: Mapping[type[Config], _Planner] = {
    DistillConfig: plan_distill,
    DistillVlConfig: plan_distill_vl,
    TransferConfig: plan_transfer,
    EmbedConfig: plan_embed,
    CurateConfig: plan_curate,
    EvaluateConfig: plan_evaluate,
}
"""What plans each verb, by its settings."""

_RECIPES: Mapping[type[Config], tuple[Mapping[str, Callable[..., Config]], tuple[str, ...]]] = {
    DistillConfig: (proteus.RECIPES, proteus.PLACES),
    DistillVlConfig: (dime_fm.RECIPES, dime_fm.PLACES),
}


def plan(config: Config, settings: PlanConfig | None = None) -> Plan:
    """What a verb would find, take and cost with these settings, and what is wrong with them.

    The verb's own parts are built, and a little of its work is done and timed: the images that judge are looked at in
    part, each training makes some steps. What is not measured is scaled, and says so. Indexes of image folders go to
    the cache, as with any verb.

    Args:
        config: Settings of the verb.
        settings: Of the plan.

    Raises:
        ConfigError: If there is no plan for such settings, or several ranks were launched.
        UserError: If the verb itself would refuse.
        Interrupted: If SIGINT or SIGTERM came.

    Example:
        >>> import attar
        >>> model = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"
        >>> settings = {"teacher": model, "teacher_weights": "random", "student": model, "img_size": 32, "workers": 0}
        >>> settings |= {"data": "playground:0?n=20", "out": "runs/never", "batch_size": 8, "max_steps": 1000}
        >>> planned = attar.plan(attar.DistillConfig(**settings), attar.PlanConfig(probe_steps=2))
        >>> [part.times for part in planned.parts if part.what == "training steps"]
        [1000]
    """
    settings = settings or PlanConfig()
    planner = PLANNERS.get(type(config))
    if planner is None:
        known = ", ".join(sorted(kind.__name__ for kind in PLANNERS))
        raise ConfigError(f"there is no plan for {type(config).__name__}. There is one for {known}.")
    if (ranks := launched_ranks()) > 1:
        raise ConfigError(f"{ranks} ranks were launched, and a plan is made by one process. Leave torchrun out.")
    with polite_stop(), tempfile.TemporaryDirectory(prefix="attar-plan-") as folder:
        try:
            planned = planner(config, settings, Path(folder))
        except Interrupted as stop:
            raise Interrupted(stop.args[0], "stopped while planning; nothing is left behind.") from None
    planned = replace(planned, found={"settings": _changed(config, planned.settings), **planned.found})
    if settings.json_file is not None:
        write_json(Path(settings.json_file).expanduser(), planned.as_json())
    Log().say(f"  plan     attar {planned.verb}; nothing was written into --out\n{planned}")
    return planned


def _changed(config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not what they are by default, or by the recipe that they name."""
    defaults = type(config).model_construct().model_dump(mode="json")
    if (name := settings.get("recipe")) is not None:
        recipes, places = _RECIPES[type(config)]
        start = recipes[name](**dict.fromkeys(places, "-")).model_dump(mode="json", exclude=set(places))
        if settings.get("method") != start.get("method"):
            del start["proteus"]  # which the recipe says for its own method
        defaults |= start
    return {name: now for name, (_, now) in flat_changes(defaults, dict(settings)).items()}
