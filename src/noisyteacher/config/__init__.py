"""Settings as typed code: read them, check them, explain them."""

from noisyteacher.config.explaining import explain, template
from noisyteacher.config.reading import (
    build_config,
    describe,
    filled,
    flat_grids,
    leaves,
    parse_grid,
    parse_value,
    put,
    read_config,
)
from noisyteacher.config.settings import Choice, Config, Data, NoiseSettings, Recipe, RunSettings, Student, Teacher

__all__ = [
    "Choice",
    "Config",
    "Data",
    "NoiseSettings",
    "Recipe",
    "RunSettings",
    "Student",
    "Teacher",
    "build_config",
    "describe",
    "explain",
    "filled",
    "flat_grids",
    "leaves",
    "parse_grid",
    "parse_value",
    "put",
    "read_config",
    "template",
]
