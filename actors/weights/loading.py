"""The engine's side of loading weights: one call of its workers to begin, one for each bucket, one to finish.

The same for one worker and for several. Nothing but names, specs and paths is pickled: a worker in the engine's own
process is given the tensors, others read them in shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

from actors.errors import WeightsRefused
from actors.weights import in_worker
from actors.weights.placed import are_whole
from actors.weights.sharing import shared
from rlsys.weights.manifest import Manifest, NamedTensors, TensorSpec
from rlsys.weights.tensors import as_tensor


class Rpc(Protocol):
    """`collective_rpc` of vLLM's engine, which calls a function in every worker and returns what each answers."""

    def __call__(self, method: Callable[..., Any], *, args: tuple[Any, ...] = ()) -> list[Any]: ...


class Workers:
    """The worker processes of one engine. num_workers: 1 if it has none but itself."""

    def __init__(self, rpc: Rpc, num_workers: int) -> None:
        self._rpc, self._num_workers = rpc, num_workers

    def load(self, parts: Iterator[NamedTensors], names: Collection[str], manifest: Manifest) -> WeightsRefused | None:
        """Load those of the tensors that `names` names; an error of `parts` ends it early and is returned.

        An exception would leave vLLM's modules half rebuilt, and the next update would continue from there.
        """
        error = None
        self._rpc(in_worker.begin, args=(manifest,))
        try:
            for tensors in parts:
                wanted = {name: tensor for name, tensor in tensors.items() if name in names}
                if wanted:
                    self._send(in_worker.load, wanted)
        except WeightsRefused as refusal:
            error = refusal
        self._rpc(in_worker.finish)
        return error

    def check(
        self, manifest: Manifest, fetch: Callable[[Collection[str]], Iterator[NamedTensors]]
    ) -> tuple[int, list[str]]:
        """Compare what every worker holds with a manifest.

        fetch: yields tensors that contain those named, for parts that the workers cannot identify by their sums.
        Returns how many tensors each worker compared at least, and which of them differ in one.
        """
        found = self._rpc(in_worker.check, args=(manifest,))
        stale = {name for _, names, _ in found for name in names}
        unknown = set()
        for name in {name for _, _, sums in found for name in sums}:
            whole = are_whole([sums.get(name, {}) for _, _, sums in found], manifest[name])
            if whole is None:
                unknown.add(name)
            elif not whole:
                stale.add(name)
        if unknown:
            for tensors in fetch(unknown):
                wanted = {name: tensor for name, tensor in tensors.items() if name in unknown}
                stale |= {name for names in self._send(in_worker.check_sent, wanted, manifest) for name in names}
        return min(num_read + len(sums) for num_read, _, sums in found), sorted(stale)

    def differences(self, tensors: NamedTensors, specs: Mapping[str, TensorSpec]) -> dict[str, float | None]:
        """Return by name how far the worst worker is from the tensors; None if one of them cannot read its part."""
        found = self._send(in_worker.differences, tensors, specs)
        return {
            name: max(each[name] for each in found) if all(name in each for each in found) else None for name in tensors
        }

    def check_adapter(self, tensors: NamedTensors, scale: float) -> tuple[int, list[str]]:
        """Return how many matrices of an adapter each worker compared at least, and which of them differ in one."""
        found = self._send(in_worker.check_adapter, tensors, scale)
        return min(num_read for num_read, _ in found), sorted({name for _, names in found for name in names})

    def _send(self, function: Callable[..., Any], tensors: NamedTensors, *args: Any) -> list[Any]:
        if self._num_workers == 1:
            views = {name: as_tensor(tensor) for name, tensor in tensors.items()}
            return self._rpc(function, args=(views, *args))
        with shared(tensors) as handle:
            return self._rpc(function, args=(handle, *args))
