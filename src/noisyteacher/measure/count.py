"""Which module multiplies how often, and how many bytes live at once: two listeners on torch's operations."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from noisyteacher.measure.multiplications import FORMULAS, is_free, operation_name


class MultiplicationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside `listening()`: adds up multiplications per module, and collects the operations it has no formula for.

    `macs` and `shapes` are keyed by module name ("" is the whole model); `unsupported` holds (module, operation).
    """

    def __init__(self, model: nn.Module) -> None:
        """Modules of `model` are told apart by hooks that live only inside `listening()`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.macs: defaultdict[str, int] = defaultdict(int)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.unsupported: dict[tuple[str, str], None] = {}
        self._inside: list[str] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block every forward call of the model, and nothing before or after it, is counted."""
        handles: list[Any] = []
        try:
            for name, module in self.model.named_modules():
                handles.append(module.register_forward_pre_hook(self._enter(name)))
                handles.append(module.register_forward_hook(self._leave(name), always_call=True))
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        formula = FORMULAS.get(name)
        if formula is None and not is_free(func):
            # Composite operations arrive whole in some modes: what they are made of comes back here, piece by piece.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self.unsupported[self._where(), name] = None
        result = func(*args, **kwargs)
        if formula is not None:
            self.macs[self._where()] += formula(args, result)
        return result

    def _where(self) -> str:
        return self._inside[-1] if self._inside else ""

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._inside.append(name)

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._inside.pop()
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if tensors:
                self.shapes[name] = tuple(tensors[0].shape[1:])

        return hook


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, follows the storages that operations make: `peak` is the most bytes alive at one moment.

    Storages that were there before (weights, buffers) are not followed; views and in-place results count once; scratch
    memory inside a kernel is invisible from here.
    """

    def __init__(self, known: list[Tensor]) -> None:
        """`known` are tensors whose storages are not to be followed."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return result

    def follow(self, tensor: Tensor) -> None:
        """Count this tensor's storage from now until nobody holds it."""
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key).atexit = False

    def _freed(self, key: int) -> None:
        self.live -= self._alive.pop(key)


@contextmanager
def undisguised() -> Iterator[None]:
    """Inside the block attention, LSTMs and encoder layers run as the products they are made of, not as one fused
    call."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    with torch.backends.cudnn.flags(enabled=False):
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch.backends.mkldnn.enabled = onednn
