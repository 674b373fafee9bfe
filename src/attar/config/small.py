"""Settings of verbs that have next to none."""

from __future__ import annotations

from pydantic import Field

from attar.config.base import Config


class QuickstartConfig(Config):
    """Distil the playground teacher into a student a quarter its size, and say whether it helped."""

    out: str = Field("runs/quickstart", description="run directory; the same command in the same directory resumes")


class DoctorConfig(Config):
    """Look at this machine: Python, torch and its companions, GPU, image decoders, cache, disk."""
