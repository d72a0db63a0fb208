"""Reports on run folders of any kind: one self-contained HTML page, or Markdown, JSON, CSV.

Read-only: nothing here trains, measures or writes. matplotlib and jinja2 are loaded when a page is built.
"""

from __future__ import annotations

from collections.abc import Iterable

from noisyteacher.errors import FileFormatError, NoisyTeacherError
from noisyteacher.report.reading import Asked, read_studies
from noisyteacher.report.study import Study

FORMATS = ("html", "md", "json", "csv")

__all__ = ["FORMATS", "Study", "build_report", "read_studies"]


def build_report(runs: Asked | Iterable[Asked], format: str = "html") -> str:  # noqa: A002
    """The report on one or more run folders as text (UTF-8 once written): `html`, `md`, `json` or `csv`.

    runs: run folders or `Run` objects of any kind; each is shown once, in the order given. Equal folders give equal
    text. Unfinished and failed runs are reported as such. Raises UnknownNameError for another format, UsageError
    without runs or for a path that is no run folder, FileFormatError naming a file that is damaged.

    `build_report(["runs/20261122T1246Z-compress-mlp800-7f3a9c"])` begins with `<!DOCTYPE html>`.
    """
    from noisyteacher.text import unknown_name

    if format not in FORMATS:
        raise unknown_name("format of a report", format, FORMATS)
    studies = read_studies(runs)
    try:
        text = _written(studies, format)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        if isinstance(error, NoisyTeacherError):
            raise
        told = ", ".join(str(study.path) for study in studies)
        raise FileFormatError(
            f"{told}: a result.json or config.json there holds something else than such a run writes "
            f"({type(error).__name__}: {error!s:.200}): report on the runs one by one to find which"
        ) from error
    # Half of a surrogate pair can stand in a JSON file and cannot be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def _written(studies: tuple[Study, ...], format: str) -> str:  # noqa: A002
    if format == "html":
        from noisyteacher.report.page import page

        return page(studies)
    from noisyteacher.report import plain

    return {"md": plain.markdown, "json": plain.as_json, "csv": plain.as_csv}[format](studies)
