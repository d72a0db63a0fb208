"""Models of one architecture as one: row m of every common tensor belongs to model m."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from noisyteacher.data import Batch
from noisyteacher.device import full_precision
from noisyteacher.errors import UsageError
from noisyteacher.models import Classifier, logits_of
from noisyteacher.rng import generator, kept_draws

STEP = "step"
"""The slot in which an optimizer counts updates: the same for all models."""
PROBE_IMAGES = 8
TOLERANCE = 0.02
"""Largest difference of a stacked model's logits from those of the single model, relative to the largest logit."""


class Stack:
    """Models and optimizers of several trainings in common tensors `[M, ...]`.

    While they are stacked, the parameters and buffers of each model are rows of the common ones, so a model can be
    evaluated and saved as usual; `sync_optimizers` does the same for the slots of its optimizer.
    """

    def __init__(
        self,
        members: Sequence[tuple[Classifier, torch.optim.Optimizer]],
        make_optimizer: Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        self.members = list(members)
        networks = [model.network for model, _ in members]
        self.preprocess: nn.Module = members[0][0].preprocess
        self.skeleton = copy.deepcopy(networks[0]).train()  # on `meta`, tied weights would no longer be tied
        first = dict(networks[0].named_parameters())
        self.parameters = {
            name: nn.Parameter(value, requires_grad=first[name].requires_grad)
            for name, value in _stacked([dict(network.named_parameters()) for network in networks]).items()
        }
        self.buffers = _stacked([dict(network.named_buffers()) for network in networks])
        for row, network in enumerate(networks):
            for name, parameter in network.named_parameters():
                parameter.data = self.parameters[name].data[row]
            _set_buffers(network, {name: value[row] for name, value in self.buffers.items()})
        self.saved_rows: dict[int, list[Tensor]] = {}
        """Parameters and buffers, by row, of models that are not to be updated any more."""
        self.optimizer = make_optimizer(self.parameters)
        self.learned = _learned(self.optimizer)
        for index, parameter in enumerate(self.learned):
            slots = [optimizer.state.get(_learned(optimizer)[index], {}) for _, optimizer in members]
            for name in slots[0]:
                values = [slot[name] for slot in slots]
                self.optimizer.state[parameter][name] = values[0].clone() if name == STEP else _stack(values)

    def __call__(
        self,
        batches: Sequence[Batch],
        seed_index: Sequence[int],
        noises: Sequence[Callable[[Tensor], Tensor] | None] = (),
    ) -> Tensor:
        """The logits `[M, B, K]` of every model, each for the batch of its seed: batches[seed_index[m]].

        noises: of each model, on its preprocessed images.
        """
        with full_precision(batches[0].images.device):
            images = torch.stack([self.preprocess(batch.images) for batch in batches]).contiguous()
        if len(batches) == 1 and not any(noises):
            return _stacked_logits(self.skeleton, self.parameters, self.buffers, images[0])
        per_model = images[torch.tensor(seed_index, device=images.device)]
        for row, noise in enumerate(noises):
            if noise is not None:
                per_model[row] = noise(per_model[row])
        return _stacked_logits(self.skeleton, self.parameters, self.buffers, per_model, per_model=True)

    def gradient_sums(self) -> Tensor:
        """The sum `[M]` of all elements of each model's gradients: not finite if one of them is not."""
        gradients = [parameter.grad for parameter in self.learned if parameter.grad is not None]
        return torch.stack([part.reshape(len(part), -1).sum(1, dtype=torch.float32) for part in gradients]).sum(0)

    def gradients_of(self, row: int) -> list[tuple[str, Tensor | None]]:
        """Names (as in the whole model) and gradients of one model's parameters."""
        return [
            (f"network.{name}", None if common.grad is None else common.grad[row])
            for name, common in self.parameters.items()
        ]

    def update(self, failed: Collection[int]) -> None:
        """One optimizer step for all models but the failed ones, whose tensors stay as they are from now on."""
        tensors = [*self.learned, *self.buffers.values()]
        for row in set(failed) - self.saved_rows.keys():
            self.saved_rows[row] = [tensor.detach()[row].clone() for tensor in tensors]
        self.optimizer.step()
        with torch.no_grad():
            for row, saved in self.saved_rows.items():
                for tensor, before in zip(tensors, saved, strict=True):
                    tensor[row] = before

    def sync_optimizers(self) -> None:
        """Give each training's own optimizer the slots that are kept for its model."""
        for row, (_, optimizer) in enumerate(self.members):
            for parameter, common in zip(_learned(optimizer), self.learned, strict=True):
                optimizer.state[parameter] = {
                    name: value if name == STEP else value[row] for name, value in self.optimizer.state[common].items()
                }

    def release(self) -> None:
        """Give every model and optimizer tensors of its own again."""
        self.sync_optimizers()
        for model, optimizer in self.members:
            for parameter in model.network.parameters():
                parameter.data = parameter.data.clone()
            _set_buffers(model.network, {name: value.clone() for name, value in model.network.named_buffers()})
            for slots in optimizer.state.values():
                slots.update({name: value.clone() for name, value in slots.items()})


def check_stackable(models: Sequence[Classifier]) -> None:
    """Raises UsageError unless the models can be trained as one: equal but for the values of their weights, none of
    them shared, with preprocessing that learns nothing and a network without random draws.
    """
    first = models[0]
    for number, model in enumerate(models):
        if _signature(model) != _signature(first) or not _equal_states(model.preprocess, first.preprocess):
            raise UsageError(
                f"model {number} differs from model 0 in network, options, preprocessing or in what is frozen: only "
                "models of one architecture can be trained as one"
            )
    tensors = [{id(tensor) for tensor in (*model.parameters(), *model.buffers())} for model in models]
    if len(set().union(*tensors)) < sum(map(len, tensors)):
        raise UsageError("two of the models share weights, or are one: make copies of them by copy.deepcopy")
    if any(True for _ in first.preprocess.parameters()):
        raise UsageError(f"{first.name!r} learns its preprocessing: train such models one by one")
    if first.input_shape is None:
        raise UsageError(f"the input shape of {first.name!r} is not known: build it by build_model(..., data)")
    device = next(first.parameters()).device
    draws = generator(0, "stack")
    images = torch.randint(0, 256, (PROBE_IMAGES, *first.input_shape), dtype=torch.uint8, generator=draws)
    with torch.no_grad(), kept_draws(device):
        _check_equal_logits(models, first.preprocess(images.to(device)))


def _check_equal_logits(models: Sequence[Classifier], images: Tensor) -> None:
    """Compare the logits of copies of the models, each alone and in the stack, for differences in no attribute."""
    networks = [copy.deepcopy(model.network).train() for model in models]
    refusal = f"{models[0].name!r} cannot be trained as one with others"
    parameters = _stacked([dict(network.named_parameters()) for network in networks])
    buffers = _stacked([dict(network.named_buffers()) for network in networks])
    try:
        common = _stacked_logits(copy.deepcopy(networks[0]), parameters, buffers, images)
    except RuntimeError as error:
        why = "draws random numbers (dropout)" if "random" in str(error) else f"fails: {str(error).splitlines()[0]}"
        raise UsageError(f"{refusal}: its forward pass under torch.vmap {why}; train such models one by one") from error
    for number, network in enumerate(networks):
        before = {name: id(buffer) for name, buffer in network.named_buffers()}
        logits = logits_of(network(images))
        for name, buffer in network.named_buffers():
            if before.get(name) != id(buffer):
                raise UsageError(
                    f"{refusal}: it replaces its buffer {name!r} by a new tensor; let it change the buffer in place, "
                    "or train such models one by one"
                )
        gap = float((logits - common[number]).abs().max())
        if not gap <= TOLERANCE * max(1.0, float(logits.abs().max())):
            raise UsageError(
                f"model {number} has other logits alone than in the stack (by {gap:.2g}): it differs from model 0 in "
                "more than its weights; train such models one by one"
            )


def _stacked_logits(
    skeleton: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Tensor,
    per_model: bool = False,
) -> Tensor:
    """The logits `[M, B, K]` of M models, of the same preprocessed images, or each of its own `images[m]`."""

    def logits(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return logits_of(functional_call(skeleton, {**parameters, **buffers}, (images,)))

    return vmap(logits, (0, 0, 0 if per_model else None), randomness="error")(parameters, buffers, images)


def _stacked(tables: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    return {name: _stack([table[name].detach() for table in tables]) for name in tables[0]}


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stacked in contiguous order; `contiguous` alone would leave 1x1 kernels as they are."""
    return torch.stack(tensors).clone(memory_format=torch.contiguous_format)


def _signature(model: Classifier) -> tuple[object, ...]:
    """Layers, shapes, and which weights are learned."""
    shapes = {name: value.shape for name, value in model.network.state_dict().items()}
    return model.architecture, str(model.network), shapes, [value.requires_grad for value in model.parameters()]


def _equal_states(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return (
        type(first) is type(second)
        and states[0].keys() == states[1].keys()
        and all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    )


def _learned(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _set_buffers(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        network.get_submodule(owner)._buffers[leaf] = value
