"""The learner's state in host memory while engines use its GPU (`cluster.colocate`), moved back bit for bit.

DeepSpeed moves what it partitions (`offload_states`), which at ZeRO-3 assumes an optimizer of its own and no frozen
parameters. The rest is moved here, storage by storage, so that views of one buffer stay views of one buffer.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence

import deepspeed
import torch
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from torch import nn

PARTITIONED_BY_DEEPSPEED = frozenset(OffloadStateTypeEnum)
GRADIENTS = frozenset({OffloadStateTypeEnum.lp_grads, OffloadStateTypeEnum.contiguous_grad_buffer})
PARAMETERS = OffloadStateTypeEnum.lp_params


class Offloading:
    """The movable state of a DeepSpeed engine at ZeRO-2 or ZeRO-3.

    others: modules that are not in the engine, such as a reference policy.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, zero_stage: int, others: Sequence[nn.Module]) -> None:
        self._engine, self._is_stage_3, self._others = engine, zero_stage == 3, others
        self._device = engine.device
        self._moved = MovedStorages()

    def offload(self, *, keeps_parameters: bool = False) -> None:
        """Move the state to host memory; further calls move what is left.

        keeps_parameters: leave the model's own parameters on the device, for engines that read them there.
        """
        pins = self._device.type != "cpu"
        kinds = GRADIENTS if self._is_stage_3 else PARTITIONED_BY_DEEPSPEED
        self._engine.offload_states(include=kinds - {PARAMETERS} if keeps_parameters else kinds, pin_memory=pins)
        self._moved.move([*self._reference(), *([] if keeps_parameters else self._parameters())], pins=pins)
        gc.collect()
        if pins:
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Move everything back."""
        self._moved.restore(self._device)
        self._engine.reload_states()

    def _reference(self) -> Iterator[torch.Tensor]:
        for module in self._others:
            yield from module.parameters()
            yield from module.buffers()

    def _parameters(self) -> Iterator[torch.Tensor]:
        """Yield what DeepSpeed does not move: frozen parameters, and at ZeRO-3 also partitions and optimizer."""
        if not self._is_stage_3:
            yield from (one for one in self._engine.module.parameters() if not one.requires_grad)
            return
        optimizer = self._engine.optimizer
        yield optimizer.lp_param_buffer
        yield from (parameter.ds_tensor for parameter in self._engine.module.parameters())
        yield from optimizer.fp16_partitioned_groups_flat
        yield from optimizer.fp32_partitioned_groups_flat
        for state in optimizer.optimizer.state.values():
            yield from (value for value in state.values() if torch.is_tensor(value))


class MovedStorages:
    """Tensors that were moved to host memory, and the storages behind them."""

    def __init__(self) -> None:
        self._tensors: dict[int, torch.Tensor] = {}

    def move(self, tensors: Iterable[torch.Tensor], *, pins: bool) -> None:
        """Move tensors to host memory in place, each storage once. pins: whether it is page-locked, for fast copies."""
        found = {id(one): one for one in tensors if id(one) not in self._tensors and one.numel()}
        self._relocate(found.values(), lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=pins))
        self._tensors |= found

    def restore(self, device: torch.device) -> None:
        """Move all of them to the device."""
        tensors, self._tensors = self._tensors, {}
        self._relocate(tensors.values(), lambda size: torch.empty(size, dtype=torch.uint8, device=device))

    @staticmethod
    @torch.no_grad()
    def _relocate(tensors: Iterable[torch.Tensor], allocate: Callable[[int], torch.Tensor]) -> None:
        by_storage: dict[int, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        while by_storage:  # one after the other, so that only one is in two places
            _, views = by_storage.popitem()
            old = views[0].untyped_storage()
            new = allocate(old.nbytes())
            new.copy_(torch.empty(0, dtype=torch.uint8, device=views[0].device).set_(old))
            for view in views:
                there = torch.empty(0, dtype=view.dtype, device=new.device)
                view.data = there.set_(new.untyped_storage(), view.storage_offset(), view.shape, view.stride())
