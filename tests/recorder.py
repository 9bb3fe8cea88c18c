"""A stand-in for CUDA's recorder of graphs, on a machine without a GPU.

What CUDA does with kernels it does with the operations of a block: it notes them, with the memory
that they read and wrote, and a replay does all of them again into the same memory. Until then
the results are NaN, as nothing that is recorded is run.
"""

import contextlib

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pyrovae import recording


class Tape(TorchDispatchMode):
    """The operations of a block, in their order."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, *map(_where_it_lies, (args, kwargs or {}, found))))
        return found

    def __exit__(self, *raised):
        super().__exit__(*raised)
        for _, args, kwargs, found in self.calls:
            given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
            for made in _tensors(found):
                if made.is_floating_point() and made.untyped_storage().data_ptr() not in given:
                    made.fill_(torch.nan)

    def replay(self):
        for func, args, kwargs, found in self.calls:
            for old, new in zip(_tensors(found), _tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _where_it_lies(values):
    """The same memory, whatever becomes of the tensors that lie there now."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, values)


def _tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Stream:
    """A stream of a device that has but one."""

    def wait_stream(self, other):
        pass

    def is_capturing(self):
        return False


def stand_in(monkeypatch):
    """Has recordings made on the CPU."""
    monkeypatch.setattr(recording, "PLACE", "cpu")
    for name, stand_in in {
        "CUDAGraph": Tape,
        "graph": lambda tape, **options: tape,
        "device": lambda device: contextlib.nullcontext(),
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
