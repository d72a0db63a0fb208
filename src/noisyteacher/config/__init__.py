"""Settings as typed code: read them, check them, explain them."""

from noisyteacher.config.explaining import as_toml, explain, template
from noisyteacher.config.reading import (
    build_config,
    describe,
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
    "as_toml",
    "build_config",
    "describe",
    "explain",
    "flat_grids",
    "leaves",
    "parse_grid",
    "parse_value",
    "put",
    "read_config",
    "template",
]
