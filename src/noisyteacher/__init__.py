"""Small, fast classifiers by distillation from noisy teachers, with numbers you can believe.

The table below is the whole public API; each name is loaded when it is first used, so that `import noisyteacher` and
the command line's help do not wait for torch. See docs/architecture.md for how the parts hang together.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noisyteacher.classify import Prediction as Prediction
    from noisyteacher.classify import classify as classify
    from noisyteacher.data import Batch as Batch
    from noisyteacher.data import Packed as Packed
    from noisyteacher.data import Split as Split
    from noisyteacher.data import Splits as Splits
    from noisyteacher.data import load_data as load_data
    from noisyteacher.data import pack_data as pack_data
    from noisyteacher.errors import ConfigError as ConfigError
    from noisyteacher.errors import DataError as DataError
    from noisyteacher.errors import DataWarning as DataWarning
    from noisyteacher.errors import ExportError as ExportError
    from noisyteacher.errors import FileFormatError as FileFormatError
    from noisyteacher.errors import MismatchError as MismatchError
    from noisyteacher.errors import NoisyTeacherError as NoisyTeacherError
    from noisyteacher.errors import StoreError as StoreError
    from noisyteacher.errors import TrainingError as TrainingError
    from noisyteacher.errors import UnknownNameError as UnknownNameError
    from noisyteacher.errors import UsageError as UsageError
    from noisyteacher.errors import WriteError as WriteError
    from noisyteacher.evaluate import Scores as Scores
    from noisyteacher.evaluate import calibrate as calibrate
    from noisyteacher.evaluate import evaluate as evaluate
    from noisyteacher.evaluate import predict as predict
    from noisyteacher.export import Exported as Exported
    from noisyteacher.export import export as export
    from noisyteacher.export import fake_quantized as fake_quantized
    from noisyteacher.extract import extract as extract
    from noisyteacher.losses import logit_regression as logit_regression
    from noisyteacher.losses import soft_targets as soft_targets
    from noisyteacher.measure import Costs as Costs
    from noisyteacher.measure import measure as measure
    from noisyteacher.models import Classifier as Classifier
    from noisyteacher.models import build_model as build_model
    from noisyteacher.models import load_model as load_model
    from noisyteacher.models import pretrained as pretrained
    from noisyteacher.models import save_model as save_model
    from noisyteacher.noise import Noise as Noise
    from noisyteacher.noise import perturb as perturb
    from noisyteacher.objectives import Objective as Objective
    from noisyteacher.objectives import distil as distil
    from noisyteacher.objectives import supervised as supervised
    from noisyteacher.pipeline import Result as Result
    from noisyteacher.pipeline import compress as compress
    from noisyteacher.store import LogitStore as LogitStore
    from noisyteacher.sweep import SweepResult as SweepResult
    from noisyteacher.sweep import sweep as sweep
    from noisyteacher.teachers import NoisyTeacher as NoisyTeacher
    from noisyteacher.train import History as History
    from noisyteacher.train import fit as fit
    from noisyteacher.train import fit_many as fit_many

__version__ = "0.1.0"

NAMES = {
    "classify": "Prediction classify",
    "data": "Batch Packed Split Splits load_data pack_data",
    "errors": (
        "ConfigError DataError DataWarning ExportError FileFormatError MismatchError NoisyTeacherError StoreError "
        "TrainingError UnknownNameError UsageError WriteError"
    ),
    "evaluate": "Scores calibrate evaluate predict",
    "export": "Exported export fake_quantized",
    "extract": "extract",
    "losses": "logit_regression soft_targets",
    "measure": "Costs measure",
    "models": "Classifier build_model load_model pretrained save_model",
    "noise": "Noise perturb",
    "objectives": "Objective distil supervised",
    "pipeline": "Result compress",
    "store": "LogitStore",
    "sweep": "SweepResult sweep",
    "teachers": "NoisyTeacher",
    "train": "History fit fit_many",
}
"""Module -> the public names that it defines."""
PUBLIC = {name: module for module, names in NAMES.items() for name in names.split()}
__all__ = sorted(PUBLIC)


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module 'noisyteacher' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"noisyteacher.{PUBLIC[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])


class _Package(ModuleType):
    """The package as a module whose public functions stay when a submodule of the same name, such as
    `noisyteacher.evaluate`, is imported.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
