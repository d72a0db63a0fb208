"""The settings of a compression as typed code: one dataclass per part, a docstring per field, all problems at once.

No torch here, so that a wrong setting is told before anything heavy is loaded. The defaults below are the one place
where a command's defaults stand; the functions further down take plain arguments.
"""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from noisyteacher.errors import ConfigError
from noisyteacher.text import nearest

STRICT = ConfigDict(extra="forbid")
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(kw_only=True)
class Data:
    """Which images."""

    __pydantic_config__ = STRICT

    name: str = "mnist-5k"
    """A data set by name (mnist-5k, mnist, cifar10, svhn), an .npz file, or a folder of images by class."""
    root: str | None = None
    """Where the official files of mnist, cifar10 and svhn lie or are downloaded to (default: the user's cache)."""
    verify: bool = True
    """Compare the official files with their published MD5 sums; false for files changed on purpose."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Side in pixels to which the images of a folder are scaled; needed where their sizes differ."""


@dataclass(kw_only=True)
class Recipe:
    """A network and how it is trained."""

    __pydantic_config__ = STRICT

    name: str = ""
    """Which network."""
    epochs: Count = 20
    """Passes over the training split."""
    batch_size: Count = 64
    """Samples per update; the paper's 64."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The paper's Adam; adamw decouples weight decay; sgd has momentum."""
    lr: Positive = 1e-3
    """Base learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum of sgd (default 0.9); without effect, and refused, elsewhere."""
    weight_decay: NotNegative = 0.0
    """L2 term of the update (decoupled with adamw)."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "linear"
    """How the rate falls over the run after the warm-up."""
    warmup_epochs: NotNegative = 0.0
    """Epochs over which the rate rises linearly to its base."""
    views: list[str] = field(default_factory=lambda: ["clean"])
    """Augmentations: clean, mirror, crop, mirror*crop, or single views; a random one per image and epoch."""
    every_view: bool = False
    """True: an epoch shows every image under every view (the paper's doubling of CIFAR-10 by mirror images)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 autocast with fp32 weights."""
    patience: Count | None = None
    """Stop after so many epochs without a better validation error; empty: never."""
    keep: Literal["best", "last"] = "best"
    """Which weights are used: of the epoch with the best validation error, or of the last."""


@dataclass(kw_only=True)
class Teacher(Recipe):
    """The network that is compressed, and how it is trained when it is not given."""

    name: str = "lenet"
    """A network by name, pkg.module:factory, or a trained one: a run folder or a weights file."""


@dataclass(kw_only=True)
class Student(Recipe):
    """The small network, and how it learns."""

    name: str = "mlp800"
    """A network by name or pkg.module:factory."""
    loss: Literal["logit_regression", "soft_targets"] = "logit_regression"
    """The paper's regression on logits, or Hinton's soft targets."""
    temperature: Positive | None = None
    """Temperature of soft_targets (default 4); without effect, and refused, elsewhere."""
    label_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the cross-entropy on labels; the rest goes to the teacher's term."""


@dataclass(kw_only=True)
class NoiseSettings:
    """The noise on logits: z' = (1 + xi) z with xi ~ N(0, sigma^2) for a share alpha of the samples."""

    __pydantic_config__ = STRICT

    sigma: NotNegative | tuple[NotNegative, NotNegative] = 0.8
    """Standard deviation of xi, or a range [low, high] drawn uniformly per batch."""
    alpha: Share = 0.15
    """Probability that a sample is perturbed."""
    draw: Literal["batch", "row", "scalar"] = "batch"
    """One xi per mini-batch (the paper's Algorithm 1 read literally), per sample, or one number per sample."""
    kind: Literal["multiplicative", "additive"] = "multiplicative"
    """The paper's factor 1 + xi, or xi added to the logits."""
    distribution: Literal["gaussian", "uniform", "laplace"] = "gaussian"
    """Shape of xi; its standard deviation is sigma in each case."""
    target: Literal["teacher", "student"] = "teacher"
    """Whose logits are perturbed."""
    frozen: bool = False
    """True: one draw per sample for the whole run instead of a new one at every step."""


@dataclass(kw_only=True)
class RunSettings:
    """How often, where and on what."""

    __pydantic_config__ = STRICT

    seeds: Count = 1
    """Students per condition, with seeds 0, 1, ...; intervals need at least 2, claims more."""
    baselines: bool = True
    """Also train the same students on labels alone and by clean logit regression: without them no claim can be made."""
    output_dir: str = "runs"
    """Folder in which the run's folder is made."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: Count | None = None
    """CPU threads for torch (default: torch's own choice)."""


@dataclass(kw_only=True)
class Config:
    """Everything `noisyteacher compress` needs to know."""

    __pydantic_config__ = STRICT

    data: Data = field(default_factory=Data)
    """Which images."""
    teacher: Teacher = field(default_factory=Teacher)
    """The network that is compressed."""
    student: Student = field(default_factory=Student)
    """The small network."""
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    """The noise on the logits."""
    run: RunSettings = field(default_factory=RunSettings)
    """How often, where and on what."""


def build_config(given: Mapping[str, Any]) -> Config:
    """The Config of nested settings. Raises ConfigError with every problem at once, each naming its key."""
    try:
        config = TypeAdapter(Config).validate_python(dict(given))
    except ValidationError as error:
        found = error.errors()
        if any(one["type"] != "tuple_type" for one in found):  # of a union's two complaints, the telling one
            found = [one for one in found if one["type"] != "tuple_type"]
        raise ConfigError(_listed(map(_sentence, found))) from error
    problems = list(_contradictions(config, given))
    if problems:
        raise ConfigError(_listed(problems))
    return config


def read_config(path: str | Path | None, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """The nested settings of a TOML file with `a.b=c` overrides put in; not yet checked (`build_config` does that).

    Raises ConfigError naming the file and line, or the override, that cannot be read.
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from error
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {override!r}: expected KEY=VALUE, for example student.epochs=5")
        put(given, key.strip(), parse_value(value.strip()))
    return given


def put(given: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested settings. `put({}, "noise.sigma", 0.5)` makes `{"noise": {"sigma": 0.5}}`."""
    *path, last = key.split(".")
    for part in path:
        inner = given.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {part} is a value, not a table")
        given = inner
    given[last] = value


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself when it is none: `0.5`, `true`, `["a", "b"]`, `mlp800`."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def describe(config: Config) -> dict[str, Any]:
    """The resolved config as nested JSON-able settings; `build_config` makes the same Config of it."""
    return asdict(config)


def explain(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Every setting as (dotted key, type, default, docstring), in order."""
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        inner = hints[one.name]
        if is_dataclass(inner) and isinstance(inner, type):
            yield from explain(inner, f"{prefix}{one.name}.")
        else:
            default = getattr(kind(), one.name)
            yield f"{prefix}{one.name}", type_name(inner), default, field_docs(kind)[one.name]


def type_name(hint: Any) -> str:
    """A type as a person reads it. `type_name(int | None) == "whole number or empty"`."""
    origin = getattr(hint, "__origin__", None)
    if hasattr(hint, "__metadata__"):
        return type_name(hint.__origin__)
    if origin is Literal:
        return " | ".join(map(str, hint.__args__))
    if origin is list:
        return "list of text"
    if origin is tuple:
        return "[low, high]"
    if hasattr(hint, "__args__"):
        return " or ".join(type_name(one) for one in hint.__args__)
    names = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "empty"}
    return names.get(hint, str(hint))


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a settings class, its parents' included."""
    found: dict[str, str] = {}
    for owner in reversed([one for one in kind.__mro__ if is_dataclass(one)]):
        body = ast.parse(inspect.getsource(owner)).body[0]
        assert isinstance(body, ast.ClassDef)
        for this, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(this, ast.AnnAssign) and isinstance(this.target, ast.Name) and isinstance(after, ast.Expr):
                assert isinstance(after.value, ast.Constant)
                found[this.target.id] = " ".join(str(after.value.value).split())
    return found


def template() -> str:
    """A TOML file with every setting at its default, each with its meaning; `build_config` accepts it unchanged."""
    lines, part = ["# noisyteacher compress CONFIG"], ""
    for key, kind, default, doc in explain():
        table, name = key.split(".", 1)
        if table != part:
            part = table
            lines += ["", f"[{table}]"]
        lines += [f"# {doc} ({kind})", f"{'# ' if default is None else ''}{name} = {_toml(default)}"]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _sentence(problem: Any) -> str:
    """One of pydantic's problems as `key: what was given and what was expected`."""
    place = [
        str(part) for part in problem["loc"] if not str(part).startswith(("constrained", "tuple[", "float", "list["))
    ]
    key = ".".join(place)
    if problem["type"] == "unexpected_keyword_argument":
        *path, wrong = place
        known = [one.name for one in fields(_at(path))]
        close = nearest(wrong, known)
        hint = f"did you mean {'.'.join([*path, close])!r}?" if close else f"known are {', '.join(known)}"
        return f"{key}: unknown setting; {hint}"
    if problem["type"] in ("dataclass_type", "dataclass_exact_type"):
        return f"{key}: given {problem['input']!r}, expected a table of settings ([{key}] in TOML)"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    expected = problem.get("ctx", {}).get("expected")
    if problem["type"] == "literal_error" and expected:
        close = nearest(str(problem["input"]), expected.replace("'", "").replace(" or ", ", ").split(", "))
        message = f"expected {expected}" + (f"; did you mean {close!r}?" if close else "")
    return f"{key}: given {problem['input']!r}; {message}"


def _at(path: list[str]) -> type:
    kind: type = Config
    for part in path:
        kind = get_type_hints(kind)[part]
    return kind


def _contradictions(config: Config, given: Mapping[str, Any]) -> Iterator[str]:
    """Settings that are each possible but refute each other, or have no effect."""
    for part, recipe in (("teacher", config.teacher), ("student", config.student)):
        if recipe.momentum is not None and recipe.optimizer != "sgd":
            yield f"{part}.momentum: {recipe.momentum} has no effect with optimizer {recipe.optimizer!r}: leave it out"
        if recipe.every_view and len(recipe.views) == 1 and recipe.views[0] in ("clean", "mirror"):
            yield f"{part}.every_view: has no effect with the one view {recipe.views[0]!r}"
        if not recipe.views:
            yield f"{part}.views: the list is empty; give at least clean"
    if config.student.temperature is not None and config.student.loss != "soft_targets":
        yield f"student.temperature: has no effect with loss {config.student.loss!r}: leave it out"
    sigma = config.noise.sigma
    if isinstance(sigma, tuple) and sigma[0] > sigma[1]:
        yield f"noise.sigma: given {list(sigma)}; a range is [low, high] with low <= high"
    if isinstance(sigma, tuple) and config.noise.frozen:
        yield "noise.frozen: a range of sigma is drawn per batch, frozen noise only once: give one number"
    if config.data.name == "mnist-5k" and config.data.root is not None:
        yield "data.root: has no effect with mnist-5k, which comes with the package: leave it out"


def _listed(problems: Any) -> str:
    found = list(dict.fromkeys(problems))
    if len(found) == 1:
        return str(found[0])
    return f"{len(found)} settings are wrong:\n" + "\n".join(f"  {one}" for one in found)
