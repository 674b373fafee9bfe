"""Settings of `attar plan` itself; those of the verb that it plans are the verb's own."""

from __future__ import annotations

from pydantic import Field

from attar.config.base import Config


class PlanConfig(Config):
    """Dry run of a verb: what it would find, take and cost, and what is wrong, before it is paid for."""

    price_per_hour: float | None = Field(None, ge=0, description="of the machine, in any currency, for the cost")
    probe_steps: int = Field(20, ge=1, description="steps of each training that are timed, after those that warm up")
    json_file: str | None = Field(None, min_length=1, description="file to write the plan to, as JSON (--json)")
