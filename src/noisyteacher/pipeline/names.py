"""Names in a Config that mean nothing here, all of them at once: networks, views, the device, the data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

from noisyteacher.config import Config
from noisyteacher.data import DATASETS, expand_views
from noisyteacher.device import check_threads, resolve_device
from noisyteacher.errors import UsageError
from noisyteacher.models import (
    MODELS,
    OWN,
    PREPROCESS,
    SHRINK,
    is_preprocess,
    ratio_of,
    unknown_network,
    without_width,
)
from noisyteacher.pipeline.given import names_a_file
from noisyteacher.pipeline.plan import AUTO
from noisyteacher.text import unknown_name


def wrong_names(config: Config) -> list[str]:
    """A sentence per setting whose name is not known, `KEY: ...`; files are not looked for. Empty when all are fine."""
    return list(_problems(config))


def _problems(config: Config) -> Iterator[str]:
    checks: list[tuple[str, Callable[[], object]]] = [
        ("data.name", partial(_data, config.data.name)),
        ("teacher.name", partial(_network, config.teacher.name, True)),
        *((f"teacher.also.{number}", partial(_network, one, True)) for number, one in enumerate(config.teacher.also)),
        ("teacher.preprocess", partial(_preprocess, config.teacher.preprocess)),
        ("student.preprocess", partial(_preprocess, config.student.preprocess)),
        ("teacher.views", partial(_views, config.teacher.views)),
        ("student.name", partial(_network, config.student.name, False)),
        ("student.views", partial(_views, config.student.views)),
        ("run.device", partial(resolve_device, config.run.device)),
    ]
    if config.run.threads is not None:
        checks.append(("run.threads", partial(check_threads, config.run.threads)))
    for key, check in checks:
        try:
            check()
        except UsageError as error:
            yield f"{key}: {error}"


def _network(name: str, may_be_a_file: bool) -> None:
    if name.startswith(SHRINK):
        ratio_of(name)
        if may_be_a_file:
            raise UsageError(f"{name!r} narrows a teacher and cannot be one: name it as the student")
    if not may_be_a_file and name in ("", AUTO):
        return
    without_width(name)
    if name not in MODELS and ":" not in name and not (may_be_a_file and names_a_file(name)):
        raise unknown_network(name, MODELS)


def _views(views: list[str]) -> None:
    if views != [AUTO]:
        expand_views(views)


def _preprocess(name: str) -> None:
    if name and name != OWN and not is_preprocess(name):
        raise unknown_name("preprocessing", name, [*PREPROCESS, OWN])


def _data(name: str) -> None:
    if name not in DATASETS and not name.endswith(".npz") and os.sep not in name and not os.path.exists(name):
        raise unknown_name("data set", name, [*DATASETS, "a .npz file", "a folder"])
