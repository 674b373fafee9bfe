"""Settings complain in the same words wherever they come from."""

from __future__ import annotations

import pickle

import pytest

import attar
from attar.config import OptimConfig
from attar.errors import ConfigError

GIVEN = {"student": "s", "teacher": "t", "data": "d", "out": "o"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sed": 1}, "unknown setting 'sed'. Did you mean 'seed'?"),
        ({"optim": {"lr": -1}}, "setting 'optim.lr' is -1"),
        ({"student": None}, "setting 'student' is None"),
        ({"method": "protheus"}, "Did you mean 'proteus'?"),
    ],
)
def test_python_hears_what_the_command_line_hears(changes, says):
    with pytest.raises(ConfigError) as called:
        attar.DistillConfig(**GIVEN | changes)
    with pytest.raises(ConfigError) as built:
        attar.DistillConfig.build(GIVEN | changes)
    assert str(called.value) == str(built.value)
    assert says in str(called.value)


def test_settings_are_still_what_pydantic_makes():
    config = attar.DistillConfig(**GIVEN, optim=OptimConfig(lr=1.0))
    assert pickle.loads(pickle.dumps(config)) == config
