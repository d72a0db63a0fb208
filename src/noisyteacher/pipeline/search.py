"""The student that is chosen on validation by short runs, among the networks within the limits."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec

from torch import nn

from noisyteacher.config import LIMITS, Config, limit
from noisyteacher.data import Splits
from noisyteacher.errors import MismatchError, TrainingError, UsageError
from noisyteacher.io.files import Json
from noisyteacher.measure import Costs, measure
from noisyteacher.models import COMPACT, PAPER, SHRINK, Classifier, build_model
from noisyteacher.pipeline.experiment import Experiment, Logits, StudentTask, TrainedModel, train_student
from noisyteacher.pipeline.latency import Timings
from noisyteacher.pipeline.pretrained import build_network, display_name
from noisyteacher.pipeline.resolve import with_epochs
from noisyteacher.pipeline.results import COSTS
from noisyteacher.pipeline.timing import Pace, StageTitles
from noisyteacher.progress import message
from noisyteacher.runs import folder_name
from noisyteacher.text import few, plural

RATIOS = tuple(number / 16 for number in range(1, 16))  # of the channels of a teacher that a narrower copy keeps
WIDTHS = tuple(number / 32 for number in range(1, 129))  # of a compact network
NARROWER = (0.75, 0.5)  # parts of the largest width or ratio within the limits that are candidates too
GREY = ("lenet", "mlp800")
MEANT_FOR = {(1, 28, 28): GREY, (3, 32, 32): tuple(name for name in PAPER if name not in (*GREY, "mlp128"))}
"""Shape of the images -> the paper's networks that are candidates for it, and for no other shape."""
SMALL = "mobilenetv3_small_050 mobilenetv3_small_075 mobilenetv3_small_100 mobilenetv4_conv_small_050"
MOBILE = tuple(
    f"timm:{name}" for name in f"{SMALL} mobilenetv4_conv_small lcnet_050 lcnet_100 efficientnet_lite0".split()
)
"""Untrained candidates where timm is installed and images are not smaller than SMALLEST_MOBILE pixels."""
SMALLEST_MOBILE = 32  # they divide an image's sides by 32
LITTLE = 0.25  # a candidate that uses less than this share of every limit is tried after those that use more
MOST_ROWS = 12  # of the table of networks, unless more were tried; the nearest over a limit is one more


@dataclass(frozen=True)
class Candidate:
    """A network that could be the student, what it costs, and the limits it breaks."""

    name: str
    macs: int
    bytes: int
    parameters: int
    over: tuple[str, ...]
    latency: float | None = None
    """Milliseconds, the upper end of the interval; None where it is not limited, or not measured yet."""
    lower_bound: bool = False
    """Whether it has more multiplications than `macs`: those of some of its operations are unknown."""

    @property
    def family(self) -> str:
        """`paper`, `compact`, `shrink`, `timm`, or what stands before the colon of any other name."""
        return "paper" if self.name in PAPER else re.split("[:-]", self.name)[0]

    @property
    def design(self) -> str:
        """Its name without the width: `compact-s`, `shrink`, `timm:mobilenetv3_small`."""
        return re.sub(r"[:_][\d.]+$", "", self.name)


@dataclass(frozen=True)
class StudentSearch:
    """The limits in absolute numbers, the teacher's own costs, and the candidates, most multiplications first."""

    limits: Mapping[str, float]
    teacher: Mapping[str, int]
    candidates: tuple[Candidate, ...] = ()
    named: bool = False  # in the settings: they may then be larger than the teacher where no limit is set
    notes: tuple[str, ...] = ()  # sentences on networks that are no candidates and why

    @property
    def allowed(self) -> dict[str, float]:
        """The most that a candidate may cost: its limits, and in all else what the teacher has."""
        return {**{name: most for name, most in self.teacher.items() if most and not self.named}, **self.limits}

    @property
    def fitting(self) -> tuple[Candidate, ...]:
        """The candidates within all limits, in the order in which they are tried.

        The largest of each family comes first, then the second, of another design where there is one: the largest is
        not always what learns best. Those that use little of what they may cost come last.
        """
        ranked = sorted(
            (candidate for candidate in self.candidates if not candidate.over), key=self.share_used, reverse=True
        )
        for group in ("design", "family"):  # the first of each group, then the second of each, and so on
            turns: dict[Candidate, int] = {}
            counter: Counter[str] = Counter()
            for candidate in ranked:
                turns[candidate] = counter[getattr(candidate, group)]
                counter[getattr(candidate, group)] += 1
            ranked = sorted(turns, key=turns.__getitem__)
        return tuple(sorted(ranked, key=lambda candidate: self.share_used(candidate) < LITTLE))

    def share_used(self, candidate: Candidate) -> float:
        """The share that a network uses of the limit that is tightest for it; above 1 it breaks that limit."""
        costs = {name: getattr(candidate, name) for name in self.allowed}
        return max((cost / self.allowed[name] for name, cost in costs.items() if cost is not None), default=0.0)

    def binding(self, chosen: Candidate) -> tuple[str, ...]:
        """The limits that kept out the next larger network; empty where there is none."""
        over = [candidate for candidate in self.candidates if candidate.over]
        larger = [candidate for candidate in over if candidate.macs >= chosen.macs] or over
        return min(larger, key=self.share_used).over if larger else ()

    def excess(self, candidate: Candidate) -> str:
        """By how much a network breaks its limits. `1.08 times target.macs, 2.96 times the teacher's bytes`."""
        words = []
        for key in candidate.over:
            times = f"{getattr(candidate, key) / self.allowed[key]:,.2f} times {self.limit_name(key)}"
            unknown = key == "macs" and candidate.lower_bound
            words.append(f"at least {times} (not all of its operations can be counted)" if unknown else times)
        return ", ".join(words)

    def limit_name(self, key: str) -> str:
        """`target.macs`, or `the teacher's MACs` where the settings do not limit them."""
        return f"target.{key}" if key in self.limits else f"the teacher's {COSTS[key][0]}"


def price_candidates(config: Config, teacher: nn.Module, data: Splits) -> StudentSearch:
    """Every candidate with its costs. Raises UsageError where none keeps within the limits, with the nearest.

    Networks that are not named keep below the teacher, which need not be trained yet, in every cost, limited or not.
    """
    target, costs = config.target, limited(costs_of(teacher, data))
    limits = {name: limit(most, costs[name]) for name in LIMITS if (most := getattr(target, name)) is not None}
    search = StudentSearch(limits, costs, named=bool(target.students))
    # One preprocessing for all, since its statistics take a pass over the data; named networks have their own.
    front = None if target.students else build_network(config.student, "compact-xs", data).preprocess

    def price(name: str) -> Candidate:
        if front is None or name.startswith(SHRINK):  # these have the teacher's
            model = build_network(config.student, name, data, teacher=teacher)
        else:
            model = build_model(name, data, preprocess=front)
        measured = costs_of(model, data)
        costs, unknown = limited(measured), bool(measured.unsupported)
        above = {key for key, most in search.allowed.items() if costs[key] > most}
        above |= {"macs"} & limits.keys() if unknown else set()  # a lower bound is not within a limit
        over = tuple(key for key in search.allowed if key in above)
        return Candidate(name, **costs, over=over, lower_bound=unknown)

    if target.students:
        candidates, notes = list(map(price, target.students)), list[str]()
    else:
        candidates, notes = all_candidates(price, data.input_shape, target.latency is not None)
    candidates = sorted(set(candidates), key=lambda network: (-network.macs, network.bytes, network.name))
    search = replace(search, candidates=tuple(candidates), notes=tuple(notes))
    if not search.fitting:
        raise none_fits(search)
    return search


def none_fits(search: StudentSearch) -> UsageError:
    """The error where no candidate is within the limits: it names the nearest."""
    if not search.candidates:
        return UsageError(f"target: no candidate has a latency ({'; '.join(search.notes)}): see --candidates")
    nearest, names = min(search.candidates, key=search.share_used), [network.name for network in search.candidates]
    return UsageError(
        f"target: none of {len(names)} networks ({few(names)}) keeps within the limits; the nearest, {nearest.name!r}, "
        f"has {search.excess(nearest)}: allow more, or name a smaller network in target.students"
    )


def within_latency(search: StudentSearch, timings: Timings, build: Callable[[str], Classifier]) -> StudentSearch:
    """The search with the latencies of the candidates that may be tried; those whose interval is not within are over.

    build: the untrained network of a name. Networks that cannot be exported, or that a device's record lacks, are left
    out. Raises UsageError where none is within the limits.
    """
    tries = timings.config.target.search
    while untimed := [candidate for candidate in search.fitting[:tries] if candidate.latency is None]:
        networks = {candidate.name: build(candidate.name) for candidate in untimed}
        unknown = {name: network for name, network in networks.items() if timings.find(network) is None}
        if unknown and not timings.device:
            timings.measure(unknown)
        candidates = list(search.candidates)
        for candidate in untimed:
            timing, index = timings.find(networks[candidate.name]), candidates.index(candidate)
            if timing is None:
                timings.missing.setdefault(candidate.name, f"not in {timings.device}")
                del candidates[index]
                continue
            search = replace(search, limits={"latency": timing.most_ms, **search.limits})
            _, _, high = timing.share
            over = (*candidate.over, "latency") if high > 1 else candidate.over
            candidates[index] = replace(candidate, latency=high * search.limits["latency"], over=over)
        search = replace(search, candidates=tuple(candidates))
    if rest := sum(candidate.latency is None for candidate in search.fitting):
        search = replace(search, notes=(*search.notes, f"{plural(rest, 'network')} not to be tried were not timed"))
    if timings.missing:
        names, reason = few(list(timings.missing)), next(iter(timings.missing.values()))
        search = replace(search, notes=(*search.notes, f"without a timing, and left out: {names} ({reason})"))
    if not search.fitting:
        raise none_fits(search)
    return search


def costs_of(model: nn.Module, data: Splits) -> Costs:
    """What a model costs, without its latency.

    Raises UsageError for a model that cannot be measured, such as a torch.jit module.
    """
    try:
        return measure(model, data.input_shape, device="auto", latency=False)
    except Exception as error:  # whatever a user's network raises
        problem = f"{type(model).__name__} cannot be measured ({error}), so no limit can be compared with its costs"
        raise UsageError(f"{problem}: name the student, and set no target") from error


def limited(costs: Costs) -> dict[str, int]:
    """Multiplications per image, bytes of the weights file and parameters of a model, by the names of their limits."""
    return {name: int(getattr(costs, name)) for name in LIMITS}


def larger_than_teacher(name: str, student: Mapping[str, float], teacher: Mapping[str, float]) -> str | None:
    """A sentence where the student costs more than its teacher in multiplications, bytes or parameters; else None."""
    ratios = {COSTS[key][0]: student[key] / teacher[key] for key in LIMITS if teacher[key]}
    more = [f"{ratio:.2f} times its {noun}" for noun, ratio in ratios.items() if ratio > 1]
    return f"the student {name} is LARGER than its teacher: {', '.join(more)}" if more else None


def all_candidates(
    price: Callable[[str], Candidate], shape: tuple[int, int, int], much_narrower: bool = False
) -> tuple[list[Candidate], list[str]]:
    """The candidates for images of this shape where none are named, and sentences on those that could not be.

    much_narrower: also give versions of each network far below the limits, for limits that are measured later.
    """
    parts = (*NARROWER, NARROWER[-1] / 2) if much_narrower else NARROWER
    notes: list[str] = []

    def priced(name: str) -> Candidate | None:
        with suppress(MismatchError, UsageError):  # a network that does not take the images
            return price(name)
        return None

    candidates = [candidate for member in COMPACT for candidate in _of_widths(priced, member, WIDTHS, parts, (1.0,))]

    def add(names: Sequence[str]) -> None:
        candidates.extend(candidate for candidate in map(priced, names) if candidate)

    add(MEANT_FOR.get(shape, ()))
    if min(shape[1:]) < SMALLEST_MOBILE:
        notes.append(f"timm's mobile networks are no candidates for images below {SMALLEST_MOBILE} pixels")
    elif find_spec("timm") is None:
        notes.append("timm is not installed (pip install 'noisyteacher[zoo]'): its mobile networks are no candidates")
    else:
        add(MOBILE)
    if find_spec("torch_pruning") is None:
        notes.append("torch-pruning is not installed (pip install 'noisyteacher[prune]'): no narrower teachers")
        return candidates, notes
    return [*candidates, *_of_widths(priced, SHRINK.rstrip(":"), RATIOS, parts)], notes


def _of_widths(
    priced: Callable[[str], Candidate | None],
    name: str,
    widths: Sequence[float],
    parts: Sequence[float],
    always: Sequence[float] = (),
) -> list[Candidate]:
    """A network at the largest of equally spaced widths within the limits, at parts of that, and at the next width.

    Costs grow with the width. `always` are widths that are candidates whatever they cost.
    """

    @cache
    def at(width: float) -> Candidate | None:
        return priced(name if width == 1 else f"{name}:{width:g}")

    index = bisect_left(widths, True, key=lambda width: bool(network.over) if (network := at(width)) else False)
    chosen, step = {*always, *widths[index : index + 1]}, widths[0]
    while index and at(widths[index - 1]) is None:  # one that does not take the images
        index -= 1
    if index:
        chosen |= {widths[index - 1], *(max(1, int(part * widths[index - 1] / step)) * step for part in parts)}
    last_wins = map(at, sorted(chosen, key=lambda width: width == 1))
    return list({(network.macs, network.parameters): network for network in last_wins if network}.values())


def search_student(
    experiment: Experiment, search: StudentSearch, logits: Logits, stages: StageTitles, pace: Pace
) -> tuple[Experiment, Json]:
    """The experiment with its student named and its epochs fitted to the time there is, and the evidence.

    Every candidate is distilled without noise, with seed 0, for a few epochs; the lowest validation error wins, and
    of equals the network with fewer multiplications. Test data are not looked at. Raises TrainingError where every
    try diverges.
    """
    work, student, n = pace.again("search"), experiment.config.student, len(experiment.data.val)
    epochs = work.short_epochs
    end = stages.number + pace.whole.tries
    trials: dict[Candidate, TrainedModel] = {}
    diverged: dict[Candidate, TrainingError] = {}

    def best() -> Candidate:
        return min(trials, key=lambda candidate: (trials[candidate].val_error, candidate.macs))

    def epoch_seconds(candidate: Candidate) -> float:
        training = trials[candidate].result["training"]
        return float(training["seconds"] / max(1, training["epochs"]))

    for index, candidate in enumerate(search.fitting[: work.tries]):
        if trials and not pace.time_for_try(index, epochs, epoch_seconds(best())):
            break
        short = experiment.with_student(candidate.name, with_epochs(student, epochs))
        run, title = folder_name(f"search-{candidate.name}", 120), stages.next(f"trying {display_name(candidate.name)}")
        try:
            trials[candidate] = train_student(StudentTask(short, run, "clean", None, 0, logits, title))
        except TrainingError as error:
            diverged[candidate] = error
            message(experiment.on_progress, "warning", f"{display_name(candidate.name)} cannot be chosen: {error}")
    if not trials:
        raise next(iter(diverged.values()))
    stages.number, chosen = end, best()
    pace.keep_tried([candidate.name for candidate in search.fitting if candidate in {*trials, *diverged}])
    measured = 0.0 if pace.speeds is None else pace.speeds.students[search.fitting.index(chosen)]
    work = pace.again("student", (max(epoch_seconds(chosen), measured),), tries=0)
    errors = {candidate.name: trial.val_error for candidate, trial in trials.items()}
    record: Json = {
        "by": "validation error",
        "n": n,
        "epochs": epochs,
        "seed": 0,
        "chosen": chosen.name,
        "bound": list(search.binding(chosen)),
        "limits": dict(search.limits),
        "teacher": dict(search.teacher),
        "known": len(search.candidates),
        "within": len(search.fitting),
        "table": search_rows(search, errors, experiment.config.target.search, {network.name for network in diverged}),
        "tried": [
            {
                "name": candidate.name,
                "val_error_%": trial.val_error,
                "training_s": trial.result["training"]["seconds"],
                "run": trial.run.path.name,
            }
            for candidate, trial in trials.items()
        ],
        "summary": explain_search(search, errors, chosen, n, epochs),
    }
    return experiment.with_student(chosen.name, with_epochs(student, work.student_epochs)), record


def explain_search(
    search: StudentSearch, errors: Mapping[str, float], chosen: Candidate, n: int, epochs: int
) -> list[str]:
    """Sentences on the choice: its validation error (%), how sure that is, which limit kept larger networks out."""
    lowest, limits = errors[chosen.name], search.binding(chosen)
    share = min(max(lowest / 100, 1 / (n + 2)), (n + 1) / (n + 2))
    uncertainty = 100 * math.sqrt(2 * share * (1 - share) / n)  # of the difference of two errors of n images each
    near = [name for name, error in errors.items() if name != chosen.name and error - lowest <= uncertainty]
    bound = " and ".join(map(search.limit_name, limits))
    sentences = [
        f"chosen on validation (n = {n:,}) was {chosen.name}: error {lowest:.2f} %, the lowest of {len(errors)} tried "
        f"for {plural(epochs, 'epoch')} each, of {len(search.fitting)} within the limits"
    ]
    if near:
        sentences.append(f"{', '.join(near)} came within one standard error of it ({uncertainty:.2f} points)")
    sentences.append(f"the binding limit was {bound}" if bound else "no limit was binding: there is nothing larger")
    return [*sentences, *search.notes]


def search_rows(
    search: StudentSearch, errors: Mapping[str, float], tries: int, diverged: Collection[str] = ()
) -> list[Json]:
    """The rows of the table of networks: those tried by their error, others within the limits, the nearest over one.

    errors: validation error (%) by name of those that were tried. tries: how many were to be tried. diverged: names of
    those whose training diverged.
    """
    tried = [candidate for candidate in search.fitting if candidate.name in errors]
    tried.sort(key=lambda candidate: (errors[candidate.name], candidate.macs))
    lowest = errors[tried[0].name]
    outcomes = {candidate: f"error {errors[candidate.name] - lowest:.2f} points higher" for candidate in tried}
    outcomes[tried[0]] = "chosen"
    for index, candidate in enumerate(search.fitting[:MOST_ROWS]):
        reason = f"not tried: {'time' if index < tries else f'search = {tries}'}"
        outcomes.setdefault(candidate, "its training diverged" if candidate.name in diverged else reason)
    over = [candidate for candidate in search.candidates if candidate.over]
    outcomes |= {candidate: search.excess(candidate) for candidate in sorted(over, key=search.share_used)[:1]}
    rows = []
    for candidate, outcome in outcomes.items():
        keys = (*LIMITS, "latency") if "latency" in search.limits else LIMITS
        costs = {key: getattr(candidate, key) for key in keys}
        row = {"student": candidate.name, **costs, "val_error_%": errors.get(candidate.name), "outcome": outcome}
        rows.append(row | ({"lower_bound": True} if candidate.lower_bound else {}))
    return rows
