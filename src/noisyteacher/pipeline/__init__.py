"""The whole way from a teacher to a measured student, and its single steps, each leaving a run folder."""

from noisyteacher.pipeline.compression import compress as compress
from noisyteacher.pipeline.compression_result import Result as Result
