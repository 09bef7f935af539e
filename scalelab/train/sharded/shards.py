"""Placement of a sharded run's weights on devices; gather and distribute whole weights.

A device has its tensor-parallel part of a weight (`tensor_parallel`). `fully_shard` splits the rows
of that part among the devices of the data-parallel mesh. A gathered weight has the shape that it
has on a single device (`scalelab.train.parameters.lay_out`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from scalelab.sweep.execution import ExecutionSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.parameters import Entry, lay_out
from scalelab.train.sharded.tensor_parallel import TensorGroup


@functools.cache
def new_meshes(device: str, n_ranks: int, tensor_parallel: int) -> tuple[DeviceMesh, TensorGroup]:
    """Return this device's data-parallel mesh and its tensor-parallel group.

    Later runs reuse them until the process leaves the process group. All ranks must call it.
    """
    if tensor_parallel == 1:
        return init_device_mesh(device, (n_ranks,)), TensorGroup()
    mesh = init_device_mesh(
        device, (n_ranks // tensor_parallel, tensor_parallel), mesh_dim_names=("data", "tensor")
    )
    tensor = mesh["tensor"]
    return mesh["data"], TensorGroup(
        rank=tensor.get_local_rank(), n_ranks=tensor_parallel, group=tensor.get_group()
    )


class Shards:
    """The parts of a run's weights on this device.

    Parameters
    ----------
    shape : ModelShape
        The whole model.
    execution : ExecutionSpec
        Gives the device, and how many devices share each block.

    Attributes
    ----------
    mesh : DeviceMesh
        Devices that split the batch and have the same parts of the blocks.
    tensor : TensorGroup
        Devices that share each block.
    shape : ModelShape
        Shape of this device's parts of the blocks.
    entries : dict of Entry
        The whole weights by name.
    own : dict of Entry
        This device's parts.
    """

    def __init__(self, shape: ModelShape, execution: ExecutionSpec) -> None:
        degree = execution.tensor_parallel
        self.mesh, self.tensor = new_meshes(execution.device, dist.get_world_size(), degree)
        shapes = [shape.tensor_part(degree, index) for index in range(degree)]
        self.shape = shapes[self.tensor.rank]
        self.entries = _by_name(shape)
        self._parts = [_by_name(part) for part in shapes]
        self.own = self._parts[self.tensor.rank]

    def is_counted(self, name: str) -> bool:
        """Say whether sums over all devices include this device's values of a weight.

        A weight that is whole on all devices of a group counts on the first one only.
        """
        return self.tensor.rank == 0 or self.is_split(name)

    def is_split(self, name: str) -> bool:
        """Say whether each device of a group has only a part of a weight."""
        return self._split_dim(name) is not None

    def share(self, name: str, whole: Tensor, like: Tensor) -> DTensor:
        """Return this device's share of a whole weight that all devices have."""
        assert isinstance(like, DTensor)
        dim = self._split_dim(name)
        if dim is not None:
            whole = torch.cat(self._views(name, whole, dim)[self.tensor.rank], dim)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

    def send(self, name: str, whole: Tensor | None, source: int, like: Tensor) -> DTensor:
        """Return this device's share of a whole weight that only the rank ``source`` has."""
        if whole is None:
            whole = torch.empty(self.entries[name].shape, device=like.device)
        dist.broadcast(whole, source)
        return self.share(name, whole, like)

    def gather(self, name: str, share: Tensor) -> Tensor:
        """Return the whole weight on all devices, from each device's share."""
        assert isinstance(share, DTensor)
        part: Tensor = share.full_tensor()
        dim = self._split_dim(name)
        if dim is None:
            return part
        whole = torch.empty(self.entries[name].shape, dtype=part.dtype, device=part.device)
        views = self._views(name, whole, dim)
        for rank, (entries, own) in enumerate(zip(self._parts, views, strict=True)):
            shape = entries[name].shape
            theirs = part.contiguous() if rank == self.tensor.rank else part.new_empty(shape)
            dist.broadcast(theirs, group=self.tensor.group, group_src=rank)
            for view, values in zip(
                own, torch.split(theirs, _segments(entries[name], dim), dim), strict=True
            ):
                view.copy_(values)
        return whole

    def _views(self, name: str, whole: Tensor, dim: int) -> list[tuple[Tensor, ...]]:
        """Return for each device of a group its part of each matrix fused into a weight."""
        matrices = torch.split(whole, _segments(self.entries[name], dim), dim)
        sizes = zip(*(_segments(entries[name], dim) for entries in self._parts), strict=True)
        split = [
            torch.split(matrix, list(each), dim)
            for matrix, each in zip(matrices, sizes, strict=True)
        ]
        return [*zip(*split, strict=True)]

    def _split_dim(self, name: str) -> int | None:
        """Return the dimension in which a weight is split; None if all devices have it whole."""
        sizes: Any = zip(self.entries[name].shape, self.own[name].shape, strict=True)
        return next((dim for dim, (whole, own) in enumerate(sizes) if whole != own), None)


def _by_name(shape: ModelShape) -> dict[str, Entry]:
    return {entry.name: entry for entry in lay_out(shape).entries}


def _segments(entry: Entry, dim: int) -> list[int]:
    """Return the sizes, along a dimension, of the matrices fused into a weight."""
    is_rows = dim == len(entry.shape) - 2
    return list(entry.split_rows) if is_rows else [entry.shape[dim]]


def local(share: Tensor) -> Tensor:
    """Return this device's values of a sharded tensor; in-place changes apply to the tensor."""
    assert isinstance(share, DTensor)
    return share.to_local()
