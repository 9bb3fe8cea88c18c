"""A stand-in for a GPU, on a machine that has none: memory and noise of its own, and no speed.

Its memory is the CPU's, of which it knows what is its own. An operation on values of both is
refused as CUDA refuses it, values of the one have to be sent to the other, noise of either comes
from a generator of its own, and it notes what makes the CPU wait for it. Its recorder of graphs is
that of `recorder`. What it cannot show is Inductor's kernels, and how fast anything is.
"""

import contextlib
import traceback
from pathlib import Path

import torch
from recorder import Stream, Tape
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

PACKAGE = Path(__file__).parent.parent / "pyrovae"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GIGABYTE = 2**30

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._foreach_copy_.default}
INDEXED = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
# A number on the CPU, which other kernels take for one of Python's, is none for these.
WITHOUT_NUMBERS = ("aten::cat", "aten::stack", "aten::_fused_", "aten::_foreach_")
# What has to know values, or what a shape depends on.
WAITING = {
    aten._linalg_check_errors.default,
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}


class RealGPU:
    """What a test asks of either."""

    @contextlib.contextmanager
    def never_waits(self):
        """Refuses a block in which the CPU waits for it."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class PretendedGPU:
    """Which memory is the GPU's, and what has waited for it.

    Attributes:
        noise: What its noise is drawn from.
        waits: What the CPU has waited for it with, each with the line of the package.
        calls_here: Whether torch's own code is at work on values of its memory.
    """

    def __init__(self):
        self.noise = torch.Generator()
        self.waits = []
        self.calls_here = False
        self._memory = {}

    def holds(self, tensor):
        # Its address is no other's as long as it is referred to, be it weakly.
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self._memory

    def take(self, tensor):
        if self.holds(tensor):
            return
        reference = StorageWeakRef(tensor.untyped_storage())
        self._memory[reference.cdata] = reference
        if len(self._memory) % 4096 == 0:
            self._memory = {key: r for key, r in self._memory.items() if not r.expired()}

    def send(self, tensor, device, *, non_blocking=False):
        device = torch.device(device)
        if (device.type == "cuda") == self.holds(tensor):
            return tensor
        self.calls_here = False
        return aten._to_copy.default(tensor, device=device, non_blocking=non_blocking)

    @contextlib.contextmanager
    def never_waits(self):
        """Refuses a block in which the CPU waits for it."""
        before = len(self.waits)
        yield
        assert self.waits[before:] == []

    def wait(self, what):
        lines = [line for line in traceback.extract_stack() if str(PACKAGE) in line.filename]
        where = f"{Path(lines[-1].filename).name}:{lines[-1].lineno}" if lines else "the test"
        self.waits.append(f"{what} at {where}")


class Kernels(TorchDispatchMode):
    """Runs the operations of both devices on the CPU, and says whose memory the results lie in."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return func(*args, **kwargs)
        given = tensors((args, kwargs))
        held = [tensor for tensor in given if self.gpu.holds(tensor)]
        asked = kwargs.get("device")
        # Torch's own code asks for the CPU, as where its arguments seem to lie.
        if asked == CPU and self.gpu.calls_here and (held or not given):
            asked = kwargs["device"] = GPU
        is_here = bool(held) if asked is None else asked.type == "cuda"

        self._note_wait(func, args, kwargs, given, held)
        if func in COPIES:
            return func(*args, **kwargs)
        if asked is not None:
            kwargs["device"] = CPU
        elif held:
            self._refuse_both(func, args, given)
        if not is_here:
            return func(*args, **kwargs)
        is_draw = torch.Tag.nondeterministic_seeded in func.tags and not kwargs.get("generator")
        noise = self._own_noise() if is_draw else contextlib.nullcontext()
        with noise, traced_as_here(asked):
            found = func(*args, **kwargs)
        for tensor in tensors(found):
            self.gpu.take(tensor)
        return found

    def _note_wait(self, func, args, kwargs, given, held):
        if func in COPIES or func is aten._to_copy.default:
            goal = kwargs.get("device")
            crosses = (0 < len(held) < len(given)) or (
                goal is not None and (goal.type == "cuda") != bool(held)
            )
            in_time = kwargs.get("non_blocking") or any(arg is True for arg in args)
            waits = crosses and not in_time
        elif func in INDEXED:
            waits = bool(held) and any(map(self._is_awaited, args[1]))
        else:
            waits = bool(held) and func in WAITING
        if waits:
            self.gpu.wait(str(func))

    def _is_awaited(self, index):
        """Whether an index says by its values how many rows there are, or lies on the CPU."""
        if index is None:
            return False
        return index.dtype in (torch.bool, torch.uint8) or not self.gpu.holds(index)

    def _refuse_both(self, func, args, given):
        """Refuses values of both devices, but for numbers where a kernel takes these."""
        if func in INDEXED:  # rows may be named by the CPU
            given = [args[0], *args[2:3]]
        takes_numbers = not func._schema.name.startswith(WITHOUT_NUMBERS)
        for tensor in given:
            if not self.gpu.holds(tensor) and (tensor.dim() > 0 or not takes_numbers):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, cuda:0 and cpu! ({func})"
                )

    @contextlib.contextmanager
    def _own_noise(self):
        default, own = torch.default_generator, self.gpu.noise
        kept = default.get_state()
        default.set_state(own.get_state())
        try:
            yield
        finally:
            own.set_state(default.get_state())
            default.set_state(kept)


@contextlib.contextmanager
def traced_as_here(asked):
    """Where an operation is traced meanwhile, writes down that it is one of the GPU's.

    A tracer sees an operation after `Kernels` does, and so as one of the CPU's.
    """
    proxies = get_proxy_mode()
    if proxies is None:
        yield
        return
    nodes = proxies.tracer.graph.nodes
    last = next(iter(reversed(nodes)), None)
    yield
    for node in reversed(nodes):
        if node is last:
            break
        for value in tensors(node.meta.get("val")):
            value.fake_device = GPU
        if asked is not None and "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": GPU}


class Calls(TorchFunctionMode):
    """What the CPU's own code would answer before an operation is run."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu
        self.answers = {
            Tensor.numpy: self._numpy,
            Tensor.cpu: lambda tensor: gpu.send(tensor, CPU),
            Tensor.cuda: lambda tensor, device=None: gpu.send(tensor, GPU),
            Tensor.to: self._to,
            Tensor.tolist: self._tolist,
            Tensor.new: lambda tensor, *shape: tensor.new_empty(*shape),
            Tensor.new_tensor: self._new_tensor,
            Tensor.__deepcopy__: self._deepcopy,
            Tensor.pin_memory: lambda tensor: tensor,
            torch.tensor: self._tensor,
            torch.as_tensor: self._as_tensor,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, before = kwargs or {}, self.gpu.calls_here
        names_device = kwargs.get("device") is not None
        self.gpu.calls_here = not names_device and any(map(self.gpu.holds, tensors(args)))
        try:
            return self.answers.get(func, func)(*args, **kwargs)
        finally:
            self.gpu.calls_here = before

    def _numpy(self, tensor, **options):
        if self.gpu.holds(tensor):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        return tensor.numpy(**options)

    def _tolist(self, tensor):
        if self.gpu.holds(tensor):
            self.gpu.wait("tolist")
        return tensor.tolist()

    def _to(self, tensor, *args, copy=False, **kwargs):
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        moved = tensor
        if device is not None:
            moved = self.gpu.send(moved, device, non_blocking=non_blocking)
        if dtype is not None:
            moved = moved.to(dtype)
        return moved.clone() if copy and moved is tensor else moved

    def _tensor(self, data, *, device=None, requires_grad=False, **kwargs):
        device = torch.get_default_device() if device is None else torch.device(device)
        if device.type == "cpu":
            return torch.tensor(data, device=CPU, requires_grad=requires_grad, **kwargs)
        with _disable_current_modes():
            made = torch.tensor(data, device=CPU, **kwargs)
            self.gpu.take(made)
        self.gpu.wait("torch.tensor")
        return aten.lift_fresh.default(made).requires_grad_(requires_grad)

    def _as_tensor(self, data, dtype=None, device=None):
        if isinstance(data, Tensor):
            return self._to(data, data.device if device is None else device, dtype)
        return self._tensor(data, dtype=dtype, device=device)

    def _new_tensor(self, tensor, data, *, dtype=None, device=None, requires_grad=False):
        return self._tensor(
            data,
            dtype=dtype or tensor.dtype,
            device=device or tensor.device,
            requires_grad=requires_grad,
        )

    def _deepcopy(self, tensor, memo):
        made = tensor.__deepcopy__(memo)
        if self.gpu.holds(tensor):
            self.gpu.take(made)
        return made


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def pretended(monkeypatch):
    """Has a GPU for the length of a block.

    Yields:
        It.
    """
    gpu = PretendedGPU()
    noise = gpu.noise
    nothing = contextlib.nullcontext()
    for name, stand_in in {
        "CUDAGraph": Tape,
        "Stream": Stream,
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "current_stream": Stream,
        "default_generators": (noise,),
        "device": lambda device: nothing,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "a pretended GPU",
        "get_rng_state": lambda device=None: noise.get_state(),
        "graph": lambda tape, **options: tape,
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "manual_seed": noise.manual_seed,
        "manual_seed_all": noise.manual_seed,
        "mem_get_info": lambda device=None: (8 * GIGABYTE, 8 * GIGABYTE),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "set_rng_state": lambda state, device=None: noise.set_state(state),
        "stream": lambda stream: nothing,
        "synchronize": lambda device=None: gpu.wait("synchronize"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.accelerator, "current_stream", Stream)
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: False)
    # The one makes fake tensors where there is no GPU, and then backward passes look for it; the
    # other makes a first tensor on it.
    monkeypatch.setattr(torch._C, "_ensureCUDADeviceGuardSet", lambda: None)
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None)
    _let_tensors_say_where_they_are(gpu, monkeypatch)
    with Kernels(gpu), Calls(gpu):
        yield gpu


def _let_tensors_say_where_they_are(gpu, monkeypatch):
    below, group = torch._C.TensorBase.device, torch._C._group_tensors_by_device_and_dtype

    def device(tensor):
        return GPU if gpu.holds(tensor) else below.__get__(tensor)

    def grouped(lists, with_indices=False):
        """By the devices that tensors say: of an optimizer, all on one."""
        return {
            (members[0][0][0].device, dtype): members
            for (_, dtype), members in group(lists, with_indices).items()
        }

    monkeypatch.setattr(Tensor, "device", property(device))
    monkeypatch.setattr(Tensor, "is_cpu", property(lambda tensor: tensor.device.type == "cpu"))
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: tensor.device.type == "cuda"))
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)
