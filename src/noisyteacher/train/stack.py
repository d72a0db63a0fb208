"""Models of one architecture as one: row m of every common tensor belongs to model m."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from noisyteacher.data import Batch
from noisyteacher.device import full_precision
from noisyteacher.errors import UsageError
from noisyteacher.models import Classifier, logits_of
from noisyteacher.rng import kept_draws, stream

STEP = "step"
"""The slot in which an optimizer counts updates: the same for all models."""
PROBE_IMAGES = 8
TOLERANCE = 0.02
"""Difference of logits, relative to the largest, up to which a stacked model counts as equal to the single one."""


class Stack:
    """Models and optimizers of several trainings in common tensors `[M, ...]`.

    While they are stacked, the parameters and buffers of each model are rows of the common ones, so a model can be
    evaluated and saved as usual; `sync_optimizers` does the same for the slots of its optimizer.
    """

    def __init__(
        self,
        members: Sequence[tuple[Classifier, torch.optim.Optimizer]],
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        self.members = list(members)
        networks: list[nn.Module] = [model.network for model, _ in members]
        self.preprocess: nn.Module = members[0][0].preprocess
        self.skeleton = copy.deepcopy(networks[0]).train()  # on `meta`, tied weights would no longer be tied
        self.parameters = {
            name: nn.Parameter(value, requires_grad=first.requires_grad)
            for (name, value), first in zip(
                stacked(networks, nn.Module.named_parameters).items(), networks[0].parameters(), strict=True
            )
        }
        self.buffers = stacked(networks, nn.Module.named_buffers)
        for row, network in enumerate(networks):
            for name, parameter in network.named_parameters():
                parameter.data = self.parameters[name].data[row]
            _set_buffers(network, {name: value[row] for name, value in self.buffers.items()})
        self.saved_rows: dict[int, list[Tensor]] = {}
        """Parameters and buffers, by row, of models that are not to be updated any more."""
        self.optimizer = make_optimizer(self.parameters.values())
        self.learned = [parameter for parameter in self.parameters.values() if parameter.requires_grad]
        for index, parameter in enumerate(self.learned):
            slots = [optimizer.state.get(_learned(optimizer)[index], {}) for _, optimizer in members]
            for name in slots[0]:
                values = [slot[name] for slot in slots]
                self.optimizer.state[parameter][name] = values[0].clone() if name == STEP else _stack(values)

    def __call__(self, batches: Sequence[Batch], seed_index: Sequence[int]) -> Tensor:
        """The logits `[M, B, K]` of every model, each for the batch of its seed: batches[seed_index[m]]."""
        with full_precision(batches[0].images.device):
            images = torch.stack([self.preprocess(batch.images) for batch in batches]).contiguous()
        if len(batches) == 1:
            return vmap(self._logits, (0, 0, None), randomness="error")(self.parameters, self.buffers, images[0])
        own = images[torch.tensor(seed_index, device=images.device)]
        return vmap(self._logits, randomness="error")(self.parameters, self.buffers, own)

    def _logits(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return logits_of(functional_call(self.skeleton, {**parameters, **buffers}, (images,)))

    def gradient_sums(self) -> Tensor:
        """The sum `[M]` of all elements of each model's gradients: not finite if one of them is not."""
        gradients = [parameter.grad for parameter in self.learned if parameter.grad is not None]
        sums = [gradient.reshape(len(self.members), -1).sum(1, dtype=torch.float32) for gradient in gradients]
        return torch.stack(sums).sum(0)

    def gradients_of(self, row: int) -> list[tuple[str, nn.Parameter]]:
        """Names (as in the whole model) and parameters of one model, with its gradients."""
        named = []
        for name, common in self.parameters.items():
            parameter = nn.Parameter(common.detach()[row], requires_grad=common.requires_grad)
            parameter.grad = None if common.grad is None else common.grad[row]
            named.append((f"network.{name}", parameter))
        return named

    def update(self, failed: Collection[int]) -> None:
        """One optimizer step for all models but the failed ones, whose tensors stay as they are from now on."""
        commons = [*self.learned, *self.buffers.values()]
        for row in failed:
            if row not in self.saved_rows:
                self.saved_rows[row] = [common.detach()[row].clone() for common in commons]
        self.optimizer.step()
        with torch.no_grad():
            for row, saved in self.saved_rows.items():
                for common, before in zip(commons, saved, strict=True):
                    common[row] = before

    def sync_optimizers(self) -> None:
        """Give each training's own optimizer the slots that are kept for its model."""
        for row, (_, optimizer) in enumerate(self.members):
            for parameter, common in zip(_learned(optimizer), self.learned, strict=True):
                slots = self.optimizer.state[common]
                optimizer.state[parameter] = {
                    name: value if name == STEP else value[row] for name, value in slots.items()
                }

    def release(self) -> None:
        """Give every model and optimizer tensors of its own again."""
        self.sync_optimizers()
        for model, optimizer in self.members:
            network: nn.Module = model.network
            for parameter in network.parameters():
                parameter.data = parameter.data.clone()
            _set_buffers(network, {name: value.clone() for name, value in network.named_buffers()})
            for slots in optimizer.state.values():
                slots.update({name: value.clone() for name, value in slots.items()})


def stacked(networks, named) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """The tensors that `named` lists of every network, stacked by name `[M, ...]`."""
    tables = [dict(named(network)) for network in networks]
    return {name: _stack([table[name].detach() for table in tables]) for name in tables[0]}


def check_stackable(models: Sequence[Classifier]) -> None:
    """Raises UsageError unless the models can be trained as one: equal but for the values of their weights, none of
    them shared, with preprocessing that learns nothing and a network without random draws.
    """
    first = models[0]
    for number, model in enumerate(models):
        if not (_signature(model) == _signature(first) and _equal_weights(model.preprocess, first.preprocess)):
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
    generator = stream(0, "stack")
    images = torch.randint(0, 256, (PROBE_IMAGES, *first.input_shape), dtype=torch.uint8, generator=generator)
    with torch.no_grad(), kept_draws(device):
        _check_equal_logits(models, first.preprocess(images.to(device)))


def _check_equal_logits(models: Sequence[Classifier], images: Tensor) -> None:
    """Compare the logits of each model with those of the stack: differences that no attribute tells show here."""
    networks = [copy.deepcopy(model.network).train() for model in models]
    skeleton, name = copy.deepcopy(networks[0]), models[0].name

    def forward(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return logits_of(functional_call(skeleton, {**parameters, **buffers}, (images,)))

    try:
        common = vmap(forward, randomness="error")(
            stacked(networks, nn.Module.named_parameters), stacked(networks, nn.Module.named_buffers)
        )
    except RuntimeError as error:
        why = "draws random numbers (dropout)" if "random" in str(error) else f"fails: {str(error).splitlines()[0]}"
        raise UsageError(
            f"{name!r} cannot be trained as one with others: its forward pass under torch.vmap {why}; train such "
            "models one by one"
        ) from error
    for number, network in enumerate(networks):
        buffers = {key: id(buffer) for key, buffer in network.named_buffers()}
        logits = logits_of(network(images))
        replaced = [key for key, buffer in network.named_buffers() if buffers.get(key) != id(buffer)]
        if replaced:
            raise UsageError(
                f"{name!r} cannot be trained as one with others: it replaces its buffer {replaced[0]!r} by a new "
                "tensor; let it change the buffer in place, or train such models one by one"
            )
        gap = float((logits - common[number]).abs().max())
        if not gap <= TOLERANCE * max(1.0, float(logits.abs().max())):
            raise UsageError(
                f"model {number} has other logits alone than in the stack (by {gap:.2g}): it differs from model 0 in "
                "more than its weights; train such models one by one"
            )


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stacked in contiguous order; `contiguous` alone would leave 1x1 kernels as they are."""
    return torch.stack(tensors).clone(memory_format=torch.contiguous_format)


def _signature(model: Classifier) -> tuple[object, ...]:
    """Layers, shapes, and which weights are learned."""
    shapes = {name: value.shape for name, value in model.network.state_dict().items()}
    learned = [parameter.requires_grad for parameter in model.parameters()]
    return model.architecture, str(model.network), shapes, learned


def _equal_weights(first: nn.Module, second: nn.Module) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return (
        type(first) is type(second)
        and left.keys() == right.keys()
        and all(torch.equal(value, right[name]) for name, value in left.items())
    )


def _learned(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _set_buffers(network: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        network.get_submodule(owner)._buffers[leaf] = value
