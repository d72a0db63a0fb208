"""The whole way from a teacher to a measured student, and its single steps, each leaving a run folder."""

from noisyteacher.pipeline.compression import compress, compress_config, resume_compress
from noisyteacher.pipeline.result import Result, Row
from noisyteacher.pipeline.single import distil_config, extract_config, resume_single, train_config
from noisyteacher.pipeline.steps import Trained, Watch, load_config_data, load_teacher, names_a_file, train_run

__all__ = [
    "Result",
    "Row",
    "Trained",
    "Watch",
    "compress",
    "compress_config",
    "distil_config",
    "extract_config",
    "load_config_data",
    "load_teacher",
    "names_a_file",
    "resume_compress",
    "resume_single",
    "train_config",
    "train_run",
]
