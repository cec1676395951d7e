"""The copy of an engine's weights in host memory to which deltas are applied.

An engine's own parameters cannot be the base: on CPU vLLM repacks matrices and frees the originals, and a part of a
fused or split layer is not the tensor that a checksum is of. The copy has the size of the model, once for each engine.
"""

from __future__ import annotations

from dataclasses import replace

from rlsys.weights.delta import apply, carriers
from rlsys.weights.manifest import Bucket, Delta, Manifest, NamedTensor, NamedTensors, TensorEntry


class HostCopy:
    """Tensors by name, each with the entry that it was verified against."""

    def __init__(self) -> None:
        self._tensors: dict[str, NamedTensor] = {}
        self._entries: dict[str, TensorEntry] = {}

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.data.nbytes for tensor in {id(one): one for one in self._tensors.values()}.values())

    def fits(self, delta: Delta | None) -> bool:
        """Return whether every tensor of a delta's base is here."""
        return delta is not None and all(self._entries.get(name) == entry for name, entry in delta.base.items())

    def keep(self, tensors: NamedTensors, manifest: Manifest) -> None:
        """Copy verified tensors of one bucket. Equal ones, such as one with two names, share a copy."""
        copies: dict[TensorEntry, NamedTensor] = {}
        for name, tensor in tensors.items():
            entry = manifest[name]
            if entry not in copies:
                is_own = self._tensors.get(name) is tensor
                copies[entry] = tensor if is_own else NamedTensor(spec=tensor.spec, data=tensor.data.copy())
            self._tensors[name], self._entries[name] = copies[entry], entry

    def changed(self, bucket: Bucket, pieces: NamedTensors) -> NamedTensors:
        """Return a bucket's tensors after its delta, which changes them here; they are unknown until `keep`.

        The delta must fit. Raises IndexError for a position outside a tensor.
        """
        if bucket.delta is None:
            raise ValueError(f"the bucket of {bucket.names[0]} has no delta.")
        carried = carriers(bucket.delta)
        self.forget(bucket, and_tensors=False)
        bases: dict[str, NamedTensor] = {}
        shared: set[int] = set()
        for name in dict.fromkeys(carried.values()):
            base = self._tensors[name]  # two that were equal may differ from now on
            bases[name] = replace(base, data=base.data.copy()) if id(base) in shared else base
            shared.add(id(base))
        made = {name: apply(base, pieces, name) for name, base in bases.items()}
        return {name: made[carried[name]] for name in bucket.names}

    def forget(self, bucket: Bucket, *, and_tensors: bool = True) -> None:
        """Forget what a bucket's tensors are, and the tensors too."""
        for name in bucket.names:
            self._entries.pop(name, None)
            if and_tensors:
                self._tensors.pop(name, None)

    def clear(self) -> None:
        """Free everything."""
        self._tensors, self._entries = {}, {}
