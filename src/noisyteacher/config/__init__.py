"""Settings as typed code: read them, check them, explain them."""

from noisyteacher.config.load import build_config as build_config
from noisyteacher.config.load import config_error as config_error
from noisyteacher.config.load import describe as describe
from noisyteacher.config.load import drop_unused as drop_unused
from noisyteacher.config.load import explain as explain
from noisyteacher.config.load import flag_of as flag_of
from noisyteacher.config.load import flat_grids as flat_grids
from noisyteacher.config.load import parse_grid as parse_grid
from noisyteacher.config.load import parse_value as parse_value
from noisyteacher.config.load import put as put
from noisyteacher.config.load import read_config as read_config
from noisyteacher.config.load import template as template
from noisyteacher.config.load import type_adapter as type_adapter
from noisyteacher.config.load import validated as validated
from noisyteacher.config.schema import LIMITS as LIMITS
from noisyteacher.config.schema import PRESETS as PRESETS
from noisyteacher.config.schema import Choice as Choice
from noisyteacher.config.schema import Config as Config
from noisyteacher.config.schema import NoiseSettings as NoiseSettings
from noisyteacher.config.schema import Recipe as Recipe
from noisyteacher.config.schema import Student as Student
from noisyteacher.config.schema import Teacher as Teacher
from noisyteacher.config.schema import TrainSettings as TrainSettings
from noisyteacher.config.schema import Values as Values
from noisyteacher.config.schema import limit as limit
