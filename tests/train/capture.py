"""A double of the CUDA graph for CPU tensors: it refuses what a stream capture refuses.

`emulated` replaces the parts of ``torch.cuda`` that the engine uses. A capture records operators
and launches of interpreted kernels; as on a GPU, it leaves the values of all older tensors as they
were. A replay runs the recorded calls into the same storages, so a number that the host computed
during the capture stays as it was then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scalelab.train import engine

WAITING_OPERATORS = {
    "aten::_local_scalar_dense",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
"""Operators that copy from or to the host, or whose results have sizes that the host must know."""
WAITING_METHODS = {
    Tensor.cpu,
    Tensor.item,
    Tensor.numpy,
    Tensor.tolist,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    torch.tensor,
    torch.as_tensor,
    torch.from_numpy,
}
"""On CPU tensors these may call no operator."""


class CaptureError(RuntimeError):
    """What a stream capture does not permit."""


class _Methods(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in WAITING_METHODS:
            raise CaptureError(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


class Capture(TorchDispatchMode):
    """Records the calls of a step.

    Attributes
    ----------
    names : list of str
        Operators and kernels in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._calls: list[Callable[[], None]] = []
        self._new: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in OPDEFS:
            with self:
                return OPDEFS[name]._init_fn(*args, **kwargs)
        self.names.append(name)
        has_mask = name == "aten::index" and any(i.dtype == torch.bool for i in tensors(args[1]))
        if name in WAITING_OPERATORS or has_mask or "repeat_interleave.Tensor" in str(func):
            raise CaptureError(f"{func} waits for the device")
        if func._schema.is_mutable:
            self._keep(tensors((args, kwargs)))
        out = func(*args, **kwargs)
        inputs = {storage(t) for t in tensors((args, kwargs))}
        made = [t for t in tensors(out) if storage(t) not in inputs]
        self._new |= {storage(t): t for t in made}
        if func._schema.is_mutable:
            self._calls.append(lambda: func(*args, **kwargs))
        elif made and not name.startswith("aten::empty") and name != "aten::new_empty":

            def again() -> None:
                for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                    old.copy_(new)

            self._calls.append(again)
        return out

    def launch(self, name: str, call: Callable[[], None], arguments: Any) -> None:
        """Record a kernel, which may write to each of its tensors."""
        self.names.append(name)
        self._keep(tensors(arguments))
        self._calls.append(call)
        call()

    def end(self) -> None:
        """Give the tensors from before the capture their values back."""
        for tensor, value in self._before.values():
            tensor.copy_(value)

    def replay(self) -> None:
        """Run the recorded calls."""
        with torch.no_grad():
            for call in self._calls:
                call()

    def _keep(self, written: list[Tensor]) -> None:
        for tensor in written:
            if storage(tensor) not in self._new and storage(tensor) not in self._before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self._before[storage(tensor)] = (whole, whole.clone())


class Graph:
    """Double of ``torch.cuda.CUDAGraph``."""

    capture: Capture

    def replay(self) -> None:
        """Run the captured step."""
        self.capture.replay()


class Stream:
    """Double of ``torch.cuda.Stream``."""

    def wait_stream(self, other: Stream) -> None:
        """Do nothing: a CPU has one stream."""


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    """Return what views of the same memory have in common."""
    return tensor.untyped_storage()._cdata


def emulate(monkeypatch: pytest.MonkeyPatch) -> list[Capture]:
    """Let engines with ``step = graph`` run on the CPU; return the captures, as they are made."""
    captures: list[Capture] = []

    @contextlib.contextmanager
    def graph(into: Graph) -> Iterator[None]:
        into.capture = Capture()
        captures.append(into.capture)
        try:
            with _launches_recorded(into.capture), _Methods(), into.capture:
                yield
        finally:
            into.capture.end()

    @contextlib.contextmanager
    def stream(used: Stream) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(engine, "_require_possible", lambda specs, execution: None)
    return captures


@contextlib.contextmanager
def _launches_recorded(capture: Capture) -> Iterator[None]:
    from triton.runtime import interpreter

    original = interpreter.GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        def again() -> None:
            # The interpreter itself reads tensors on the host.
            with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                original(self, *args, **kwargs)

        capture.launch(self.fn.__name__, again, (args, kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", call)
        yield
