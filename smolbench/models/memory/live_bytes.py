"""How many bytes of tensors live at one time, with or without data in them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # of its base
    """Follows every storage that operations make under it, from its making to its end.

    As torch's own ``MemTracker`` (torch.distributed._tools) does it, without telling apart what
    the storages are for.

    Args:
        own: Storages that do not count, by their ``_cdata``.

    Attributes:
        now: Bytes that live.
        peak: The most that have lived at one time.
    """

    def __init__(self, own: Collection[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._own = frozenset(own)
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run an operation, and take down what it makes."""
        # a branch on a drawn number, without data: layers that are dropped at random all run
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return False
        if func is torch.ops.aten._grouped_mm.default:
            made: object = _grouped_product(*args[:3])
        else:
            made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known or storage._cdata in self._own:
            return
        size = storage.nbytes()
        self._known[storage] = True
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size


def _grouped_product(first: torch.Tensor, second: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """What experts' products give; without data torch knows only those in bfloat16.

    Args:
        first: Rows of all experts ``(M, K)``, or by experts ``(E, M, K)``.
        second: Matrices of all experts ``(K, N)``, or by experts ``(E, K, N)``.
        ends: Where each expert's part ends, shape ``(E,)``.
    """
    by_expert = first.ndim == second.ndim  # both: the parts of what is summed over; or neither
    rows, columns = first.shape[-2], second.shape[-1]
    return first.new_empty((len(ends), rows, columns) if by_expert else (rows, columns))
