r"""Recording: a captured graph as a CUDA graph, whose kernels are launched all at once.

Run operation by operation, a small step takes as long as the host needs to launch its kernels
one after the other. A CUDA graph is a recording of these launches, addresses and all, which the
device replays by itself. So inputs are copied to where they lay when it was recorded, results
are found where they were written then, and noise is torch's own: a replay goes on from the
state that its generator has then.
"""

__all__ = ["Recording", "addresses", "device_of", "record"]

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyrovae.capture import CaptureError, Graph
from pyrovae.errors import first_line

# Where a recording is made. Of what lies elsewhere it would keep the values of one moment.
PLACE = "cuda"
# Libraries set themselves up in their first runs, which cannot be recorded.
WARM_UPS = 3

Result = TypeVar("Result")


class Recording:
    """A captured graph, recorded.

    Where a tensor that it reads by reference is given other memory, as parameters are by
    `vector_to_parameters`, the graph is run as it is from there on.

    Args:
        graph: The graph.
        inputs: Inputs to record it on. Noise is drawn, and buffers change.

    Raises:
        CaptureError: If not all tensors lie on one GPU or two entries of one are the same, if
            noise comes from a generator that is not torch's own or is shared by processes, or if
            an operation waits for the device.
    """

    def __init__(self, graph: Graph, inputs: Sequence[Tensor]) -> None:
        device = device_of(graph)
        _check(graph, inputs)
        self._graph = graph
        self._addresses = addresses(graph.closed_over)
        self._inputs = [_room_for(tensor) for tensor in inputs]
        self._replay, self._results = record(lambda: graph(*self._inputs), device)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Runs it.

        Returns:
            The results, in tensors that the next run writes to.
        """
        if addresses(self._graph.closed_over) != self._addresses:
            return self._graph(*inputs)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor.detach())
        self._replay()
        return self._results


def addresses(tensors: Iterable[Tensor]) -> list[int]:
    """Where tensors lie."""
    return [tensor.data_ptr() for tensor in tensors]


def record(run: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
    """Records what a function does on a GPU.

    Args:
        run: The function. It is run a few times first.
        device: The GPU.

    Returns:
        What does the same again, in the same memory, and where its results are then.

    Raises:
        CaptureError: If something in it waits for the device.
    """
    recorder = torch.cuda.CUDAGraph()
    try:
        with torch.no_grad(), torch.cuda.device(device):
            _warm_up(run)
            # Other threads may do what they like on the device meanwhile, as loaders do.
            with torch.cuda.graph(recorder, capture_error_mode="thread_local"):
                results = run()
    except RuntimeError as error:
        raise CaptureError(first_line(error)) from error
    return recorder.replay, results


def _room_for(tensor: Tensor) -> Tensor:
    """Memory for an input, laid out as it is."""
    room = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return room.copy_(tensor.detach())


def _warm_up(run: Callable[[], object]) -> None:
    """Runs a function on a stream that is not the usual one, as a recording does."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def device_of(graph: Graph) -> torch.device:
    """The GPU that a graph works on.

    Raises:
        CaptureError: If it works elsewhere, or on several.
    """
    values = tree_leaves([node.meta.get("val") for node in graph.module.graph.nodes])
    devices = {value.device for value in values if isinstance(value, Tensor)}
    if any(device.type != PLACE for device in devices):
        raise CaptureError("it works on a tensor that does not lie on a GPU.")
    if len(devices) != 1:
        raise CaptureError(f"it works on {len(devices)} GPUs.")
    return devices.pop()


def _check(graph: Graph, inputs: Sequence[Tensor]) -> None:
    """Refuses what a replay would not see.

    Raises:
        CaptureError: If there is anything.
    """
    if any(_overlaps(tensor) for tensor in inputs):
        raise CaptureError("entries of an argument share their memory, as those of expand() do.")
    for node in graph.module.graph.nodes:
        if node.kwargs.get("generator") is not None:
            raise CaptureError("it draws from a generator that is not torch's own.")
        if node.op == "call_function" and "exchange_noise" in str(node.target):
            raise CaptureError("processes share some of its noise.")


def _overlaps(tensor: Tensor) -> bool:
    """Whether entries of a tensor share their memory, as far as its strides tell at once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in sizes)
