"""The whole way from a teacher to a measured student, and its single steps, each leaving a run folder."""

from noisyteacher.pipeline.candidates import SHOWN
from noisyteacher.pipeline.card import Story, story_of
from noisyteacher.pipeline.checking import CHECKING_TEACHER, checked_teacher
from noisyteacher.pipeline.choosing import explain_choice
from noisyteacher.pipeline.compression import compress, compress_config, resume_compress
from noisyteacher.pipeline.conditions import further_answers, its_answers, its_training, the_teacher
from noisyteacher.pipeline.given import is_given, names_a_file
from noisyteacher.pipeline.names import wrong_names
from noisyteacher.pipeline.origin import data_settings_of, other_data
from noisyteacher.pipeline.overlap import seen_before, trained_on
from noisyteacher.pipeline.plan import (
    Plan,
    network_name,
    refuse_auto,
    refuse_early,
    run_title,
    settled,
    with_papers_student,
)
from noisyteacher.pipeline.profiling import profile_notes, profile_table
from noisyteacher.pipeline.result import Result, Row
from noisyteacher.pipeline.shipping import ship
from noisyteacher.pipeline.single import distil_config, extract_config, resume_single, train_config
from noisyteacher.pipeline.steps import load_config_data, load_teacher, options_of
from noisyteacher.pipeline.summary import REPORT, closing_lines, compression_verdict
from noisyteacher.pipeline.training import Trained, Training, train_run, train_runs
from noisyteacher.pipeline.tried import student_table
from noisyteacher.progress import Watch

__all__ = [
    "CHECKING_TEACHER",
    "REPORT",
    "SHOWN",
    "Plan",
    "Result",
    "Row",
    "Story",
    "Trained",
    "Training",
    "Watch",
    "checked_teacher",
    "closing_lines",
    "compress",
    "compress_config",
    "compression_verdict",
    "data_settings_of",
    "distil_config",
    "explain_choice",
    "extract_config",
    "further_answers",
    "is_given",
    "its_answers",
    "its_training",
    "load_config_data",
    "load_teacher",
    "names_a_file",
    "network_name",
    "options_of",
    "other_data",
    "profile_notes",
    "profile_table",
    "refuse_auto",
    "refuse_early",
    "resume_compress",
    "resume_single",
    "run_title",
    "seen_before",
    "settled",
    "ship",
    "story_of",
    "student_table",
    "the_teacher",
    "train_config",
    "train_run",
    "train_runs",
    "trained_on",
    "with_papers_student",
    "wrong_names",
]
