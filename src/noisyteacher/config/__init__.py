"""Settings as typed code: read them, check them, explain them."""

from noisyteacher.config.explaining import as_toml, explain, template
from noisyteacher.config.limits import LIMITS, limit
from noisyteacher.config.reading import (
    build_config,
    completed,
    describe,
    flat_grids,
    parse_grid,
    parse_value,
    put,
    read_config,
)
from noisyteacher.config.settings import (
    PRESETS,
    Choice,
    Config,
    Data,
    NoiseSettings,
    Recipe,
    RunSettings,
    Student,
    Target,
    Teacher,
)

__all__ = [
    "LIMITS",
    "PRESETS",
    "Choice",
    "Config",
    "Data",
    "NoiseSettings",
    "Recipe",
    "RunSettings",
    "Student",
    "Target",
    "Teacher",
    "as_toml",
    "build_config",
    "completed",
    "describe",
    "explain",
    "flat_grids",
    "limit",
    "parse_grid",
    "parse_value",
    "put",
    "read_config",
    "template",
]
