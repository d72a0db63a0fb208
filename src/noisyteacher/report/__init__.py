"""Reports on run folders of any kind: one self-contained HTML page, or Markdown, JSON, CSV.

Read-only: nothing here trains, measures or writes. matplotlib and jinja2 are loaded when a page is built.
"""

from __future__ import annotations

from collections.abc import Iterable

from noisyteacher.errors import FileFormatError, NoisyTeacherError
from noisyteacher.report.load import MALFORMED, RunLike, read_studies
from noisyteacher.report.study import Study
from noisyteacher.text import unknown_name

FORMATS = ("html", "md", "json", "csv")

__all__ = ["FORMATS", "Study", "build_report", "read_studies"]


def build_report(runs: RunLike | Iterable[RunLike], format: str = "html") -> str:  # noqa: A002
    """The report on one or more run folders as text (UTF-8 once written): `html`, `md`, `json` or `csv`.

    runs: run folders or `Run` objects of any kind; each is shown once, in this order. Equal folders give equal text.
    Unfinished and failed runs are reported as such. Raises UnknownNameError for another format, UsageError without
    runs or for a path that is no run folder, FileFormatError naming a file that is damaged.
    """
    from noisyteacher.report.formats import RENDERERS

    if format not in FORMATS:
        raise unknown_name("format of a report", format, FORMATS)
    studies = read_studies(runs)
    try:
        text = RENDERERS[format](studies)
    except NoisyTeacherError:
        raise
    except MALFORMED as error:
        paths = ", ".join(str(study.run.path) for study in studies)
        raise FileFormatError(
            f"{paths}: a result.json or config.json there does not hold what such a run writes "
            f"({type(error).__name__}: {error!s:.200}): report on the runs one by one to find which"
        ) from error
    return text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair cannot be written as UTF-8
