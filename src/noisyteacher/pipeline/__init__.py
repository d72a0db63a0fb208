"""The whole way from a teacher to a measured student, and its single steps, each leaving a run folder."""

from noisyteacher.pipeline.compression import compress, compress_config, resume_compress
from noisyteacher.pipeline.result import Result, Row
from noisyteacher.pipeline.steps import Trained, load_teacher, train_run

__all__ = [
    "Result",
    "Row",
    "Trained",
    "compress",
    "compress_config",
    "load_teacher",
    "resume_compress",
    "train_run",
]
