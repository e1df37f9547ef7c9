"""The ranks that train one network together by DDP, or the one that trains it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lsmha.models import CCT

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    """Its number, from 0; rank 0 decides and saves."""
    world_size: int = 1
    """How many there are."""

    @classmethod
    def current(cls) -> Ranks:
        """Those of `torch.distributed` where it is initialized, else one alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def mean(self, value: Tensor) -> float:
        """The mean over all ranks of a scalar tensor, which is summed in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return (value / self.world_size).item()

    def of_rank_0(self, value: Value, device: torch.device) -> Value:
        """What rank 0 has, on every rank."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0, device=device)
        return values[0]

    def share_buffers(self, network: nn.Module) -> None:
        """Give every rank the batch-norm statistics of rank 0, so that all evaluate the same network."""
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def with_common_batch_norm(self, network: CCT, device: torch.device) -> CCT:
        """The network with batch norms over the images of all ranks, where the device has such (GPUs only)."""
        if self.world_size == 1 or device.type != "cuda":
            return network
        converted: CCT = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted

    def replica(self, network: CCT, device: torch.device) -> nn.Module:
        """The network with its gradients averaged over the ranks; itself where it is trained alone."""
        if self.world_size == 1:
            return network
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
