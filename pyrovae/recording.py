r"""Recording: a captured graph as a CUDA graph, whose kernels are launched all at once.

Run operation by operation, a small step takes as long as the host needs to launch its kernels
one after the other. A CUDA graph is a recording of these launches, addresses and all, which the
device replays by itself. So inputs are copied to where they lay when it was recorded, results
are found where they were written then, and noise is torch's own: a replay goes on from the
state that its generator has then.
"""

__all__ = ["Recording"]

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyrovae.capture import CaptureError, Graph

# Where a recording is made. Of what lies elsewhere it would keep the values of one moment.
PLACE = "cuda"
# Libraries set themselves up in their first runs, which cannot be recorded.
WARM_UPS = 3


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
        device = _device_of(graph)
        _check(graph, inputs)
        self._graph = graph
        self._addresses = _addresses(graph)
        self._inputs = [_room_for(tensor) for tensor in inputs]
        recorder = torch.cuda.CUDAGraph()
        try:
            with torch.no_grad(), torch.cuda.device(device):
                _warm_up(graph, self._inputs)
                # Other threads may do what they like on the device meanwhile, as loaders do.
                with torch.cuda.graph(recorder, capture_error_mode="thread_local"):
                    self._results = graph(*self._inputs)
        except RuntimeError as error:
            raise CaptureError(str(error).splitlines()[0]) from error
        self._replay = recorder.replay

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Runs it.

        Returns:
            The results, in tensors that the next run writes to.
        """
        if _addresses(self._graph) != self._addresses:
            return self._graph(*inputs)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor.detach())
        self._replay()
        return self._results


def _addresses(graph: Graph) -> list[int]:
    """Where the tensors lie that a graph reads by reference."""
    return [tensor.data_ptr() for tensor in graph.closed_over]


def _room_for(tensor: Tensor) -> Tensor:
    """Memory for an input, laid out as it is."""
    room = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return room.copy_(tensor.detach())


def _warm_up(graph: Graph, inputs: Sequence[Tensor]) -> None:
    """Runs a graph on a stream that is not the usual one, as a recording does."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            graph(*inputs)
    torch.cuda.current_stream().wait_stream(stream)


def _device_of(graph: Graph) -> torch.device:
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
