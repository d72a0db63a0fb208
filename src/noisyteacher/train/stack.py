"""Models of one architecture as one: row m of every common tensor is model m's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from noisyteacher.checkpoint import frozen_record
from noisyteacher.data import Batch
from noisyteacher.device import full_precision
from noisyteacher.errors import UsageError
from noisyteacher.models import Classifier, logits_of
from noisyteacher.optimizers import RULE, build_optimizer
from noisyteacher.refusals import refuse_gradients
from noisyteacher.rng import kept_draws, stream
from noisyteacher.train.loop import Loop

STEP = "step"
"""What an optimizer keeps of a parameter that is no tensor of its shape, and the same for all: how many updates."""


class Stack:
    """The models and update rules of several trainings that stand at one step, in common tensors `[M, ...]`.

    While they are in it, the parameters and buffers of each model are rows of the common ones, so a model can be
    evaluated and saved as ever; `lend` does the same for what its optimizer keeps.
    """

    def __init__(self, loops: Sequence[Loop]) -> None:
        self.loops = list(loops)
        networks = [loop.model.network for loop in loops]
        self.front: nn.Module = loops[0].model.preprocess
        self.skeleton = copy.deepcopy(networks[0]).train()  # on `meta`, tied weights would be so no more
        self.parameters = {
            name: nn.Parameter(_common([dict(one.named_parameters())[name].detach() for one in networks]))
            for name, _ in networks[0].named_parameters()
        }
        self.buffers = {
            name: torch.stack([dict(one.named_buffers())[name] for one in networks])
            for name, _ in networks[0].named_buffers()
        }
        for row, network in enumerate(networks):
            for name, parameter in network.named_parameters():
                self.parameters[name].requires_grad_(parameter.requires_grad)
                parameter.data = self.parameters[name].data[row]
            _put_buffers(network, {name: value[row] for name, value in self.buffers.items()})
        self.seeds, self.places = seeds_of(loops)
        self.still: dict[int, list[Tensor]] = {}
        """What models hold that learn no more, by their row."""
        self.which = torch.tensor(self.places, device=loops[0].device)
        settings = loops[0].settings
        rule = {name: settings[name] for name in RULE}
        self.rule = build_optimizer(**rule, parameters=self.parameters.values(), stacked=True)
        self.learned = [one for one in self.parameters.values() if one.requires_grad]
        for place, common in enumerate(self.learned):
            slots = [_slots(loop, place) for loop in loops]
            for name in slots[0]:
                kept = [one[name] for one in slots]
                self.rule.state[common][name] = kept[0].clone() if name == STEP else _common(kept)

    def __call__(self, batches: Sequence[Batch]) -> Tensor:
        """The logits `[M, B, K]` of every model for the batch of its seed, of one batch per seed in `seeds`."""
        with full_precision(batches[0].images.device):
            seen = torch.stack([self.front(one.images) for one in batches]).contiguous()
        if len(batches) == 1:
            return vmap(self._one, (0, 0, None), randomness="error")(self.parameters, self.buffers, seen[0])
        return vmap(self._one, randomness="error")(self.parameters, self.buffers, seen[self.which])

    def _one(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return logits_of(functional_call(self.skeleton, {**parameters, **buffers}, (images,)))

    def gradient_sums(self) -> Tensor:
        """The sum `[M]` of all elements of each model's gradients: not finite where one of them is not."""
        grads = [one.grad.reshape(len(self.loops), -1) for one in self.learned if one.grad is not None]
        found = [grad.sum(1, dtype=torch.float32) for grad in grads]
        return torch.stack(found).sum(0)

    def refuse_gradients(self, row: int, step: int) -> None:
        """Raises TrainingError naming a parameter of the model whose gradient is not finite, if there is one."""
        network: nn.Module = self.loops[row].model.network
        own = dict(network.named_parameters())
        for name, common in self.parameters.items():
            own[name].grad = None if common.grad is None else common.grad[row]
        try:
            refuse_gradients(self.loops[row].named, step)
        finally:
            network.zero_grad(set_to_none=True)

    def update(self, but: Sequence[int]) -> None:
        """One step of the update rule for all models but those: what they hold stays as it is now, from now on."""
        commons = [*self.learned, *self.buffers.values()]
        for row in but:
            if row not in self.still:
                self.still[row] = [one.detach()[row].clone() for one in commons]
        self.rule.step()
        with torch.no_grad():
            for row, kept in self.still.items():
                for one, before in zip(commons, kept, strict=True):
                    one[row] = before

    def lend(self) -> None:
        """Let every training's own optimizer see what is kept for its model."""
        for row, loop in enumerate(self.loops):
            for place, common in enumerate(self.learned):
                loop.optimizer.state[_learned(loop)[place]] = {
                    name: value if name == STEP else value[row] for name, value in self.rule.state[common].items()
                }

    def part(self) -> None:
        """Give every model and optimizer tensors of its own again."""
        self.lend()
        for loop in self.loops:
            network: nn.Module = loop.model.network
            for parameter in network.parameters():
                parameter.data = parameter.data.clone()
            _put_buffers(network, {name: value.clone() for name, value in network.named_buffers()})
            for slots in loop.optimizer.state.values():
                slots.update({name: value.clone() for name, value in slots.items()})


def seeds_of(loops: Sequence[Loop]) -> tuple[list[int], list[int]]:
    """The seeds, each once, and of every training the place of its own among them."""
    seeds = [loop.settings["seed"] for loop in loops]
    known = list(dict.fromkeys(seeds))
    return known, [known.index(seed) for seed in seeds]


def refuse_to_stack(models: Sequence[Classifier]) -> None:
    """Raises UsageError unless the models can be trained as one: equal but for the values of their weights, none
    of them shared, with preprocessing that learns nothing and a network without random draws of its own.
    """
    first, shape = models[0], models[0].input_shape
    for number, model in enumerate(models):
        if not (_describe(model) == _describe(first) and _same(model.preprocess, first.preprocess)):
            raise UsageError(
                f"model {number} is another one than model 0 (network, options, preprocessing, or what is frozen): "
                "only models of one architecture can be trained as one"
            )
    tensors = [{id(one) for one in (*model.parameters(), *model.buffers())} for model in models]
    if len(set().union(*tensors)) < sum(map(len, tensors)):
        raise UsageError("two of the models share weights, or are one: copy.deepcopy makes others of them")
    if any(True for _ in first.preprocess.parameters()):
        raise UsageError(f"{first.name!r} learns its preprocessing: such models are trained one by one")
    if shape is None:
        raise UsageError(f"the input shape of {first.name!r} is not known: build it by build_model(..., data)")
    device = next(first.parameters()).device
    images = torch.randint(0, 256, (8, *shape), dtype=torch.uint8, generator=stream(0, "stack")).to(device)
    with torch.no_grad(), kept_draws(device):
        _refuse_unlike(models, first.preprocess(images))


def _refuse_unlike(models: Sequence[Classifier], images: Tensor) -> None:
    """Ask every model as it is and all as one: what no attribute tells shows in the answers."""
    copies = [copy.deepcopy(model.network).train() for model in models]
    tensors = [
        {name: _common([dict(found(one))[name].detach() for one in copies]) for name, _ in found(copies[0])}
        for found in (nn.Module.named_parameters, nn.Module.named_buffers)
    ]
    name, skeleton = models[0].name, copy.deepcopy(copies[0])
    try:
        common = vmap(
            lambda parameters, buffers: logits_of(functional_call(skeleton, {**parameters, **buffers}, (images,))),
            randomness="error",
        )(*tensors)
    except RuntimeError as error:
        why = "draws random numbers (dropout)" if "random" in str(error) else f"fails: {str(error).splitlines()[0]}"
        raise UsageError(
            f"{name!r} cannot be trained as one with others: its forward pass under torch.vmap {why}; train such "
            "models one by one"
        ) from error
    for number, network in enumerate(copies):
        before = {key: id(one) for key, one in network.named_buffers()}
        own = logits_of(network(images))
        replaced = [key for key, one in network.named_buffers() if before.get(key) != id(one)]
        if replaced:
            raise UsageError(
                f"{name!r} cannot be trained as one with others: it puts a new tensor in the place of its buffer "
                f"{replaced[0]!r}; let it change the buffer in place, or train such models one by one"
            )
        gap = float((own - common[number]).abs().max())
        if not gap <= 0.02 * max(1.0, float(own.abs().max())):
            raise UsageError(
                f"model {number} answers otherwise by itself than as one with the others (by {gap:.2g}): it differs "
                "from model 0 in more than its weights; train such models one by one"
            )


def _common(tensors: list[Tensor]) -> Tensor:
    """Stacked, in plain order: channels-last kernels know no stacks, and `contiguous` leaves 1x1 ones as they are."""
    return torch.stack(tensors).clone(memory_format=torch.contiguous_format)


def _describe(model: Classifier) -> tuple[Any, ...]:
    """What its layers are, how large, and which of their weights are learned."""
    tensors = {name: value.shape for name, value in model.network.state_dict().items()}
    return model.architecture, str(model.network), tensors, frozen_record(model)


def _same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    same = type(one) is type(other) and ours.keys() == theirs.keys()
    return same and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def _learned(loop: Loop) -> list[Tensor]:
    return [one for group in loop.optimizer.param_groups for one in group["params"]]


def _slots(loop: Loop, place: int) -> dict[str, Tensor]:
    return dict(loop.optimizer.state.get(_learned(loop)[place], {}))


def _put_buffers(network: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        network.get_submodule(owner)._buffers[leaf] = value
