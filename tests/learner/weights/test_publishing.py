"""The publication of one rank: its buckets, how often each is stored, and how much is gathered at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from actors.weights.host_copy import HostCopy
from learner.model.frozen import freeze
from learner.model.lora import add_adapters
from learner.model.policy import load_model
from learner.weights.publishing import Publisher, plan_export
from learner.weights.weights_out import ExportedTensor, checkpoint_names, exported_model, read_folder
from rlsys.config.run import LoraConfig
from rlsys.weights.manifest import NamedTensor, digest, digest_of, manifest_of
from rlsys.weights.tensors import HEAD, as_named
from tests.learner.weights.test_weights_out import CountingGather

MAX_BYTES = 1 << 20
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def model(tiny_model_dir: Path) -> Qwen2_5_VLForConditionalGeneration:
    found = load_model(tiny_model_dir, dtype="float32", attention="sdpa")
    freeze(found, ("vision_tower",))
    return found


@pytest.fixture
def exported(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, ExportedTensor]:
    return exported_model(model, checkpoint_names(model))


class Store:
    """A store that keeps copies, as the object store does."""

    def __init__(self) -> None:
        self.put_bytes: list[int] = []

    def put(self, tensors: Mapping[str, NamedTensor]) -> dict[str, NamedTensor]:
        self.put_bytes.append(sum(tensor.data.nbytes for tensor in {id(t): t for t in tensors.values()}.values()))
        return {name: NamedTensor(spec=tensor.spec, data=tensor.data.copy()) for name, tensor in tensors.items()}


def test_buckets_hold_every_tensor_once_with_frozen_parts_apart(exported: dict[str, ExportedTensor]) -> None:
    planned = plan_export(exported, MAX_BYTES)
    names = [name for bucket in planned for name in bucket.exported]
    assert sorted(names) == sorted(exported)
    for bucket in planned:
        assert bucket.num_bytes <= MAX_BYTES or len(set(bucket.exported.values())) == 1
        frozen = {name.startswith("visual.") and "merger" not in name for name in bucket.exported}
        assert frozen == {bucket.is_frozen}
        # one tensor, two names, one bucket
        assert (HEAD in bucket.exported) == (EMBEDDING in bucket.exported)
    # in a stage of its own nothing is frozen, and everything is still there
    assert {name for bucket in plan_export(exported, 1) for name in bucket.exported} == set(exported)


def test_frozen_parts_are_stored_once_and_the_digest_stays_right(
    model: Qwen2_5_VLForConditionalGeneration, exported: dict[str, ExportedTensor], tiny_model_dir: Path
) -> None:
    store, gather = Store(), CountingGather()
    publisher = Publisher(exported, gather, MAX_BYTES, stores=True)
    first, manifest = publisher.publish(store.put)
    assert digest_of(manifest) == digest(read_folder(tiny_model_dir))
    assert gather.most_bytes <= max(MAX_BYTES, max(tensor.spec.num_bytes for tensor in exported.values()))
    num_frozen = sum(bucket.is_frozen for bucket in plan_export(exported, MAX_BYTES))
    assert len(store.put_bytes) == len(first)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1.0
    second, manifest = publisher.publish(store.put)
    assert len(store.put_bytes) == 2 * len(first) - num_frozen
    kept = [one is other for one, other in zip(first, second, strict=True)]
    assert kept.count(True) == num_frozen > 0
    everything = {name: tensor for bucket in second for name, tensor in bucket.stored.items()}
    assert manifest_of(everything) == manifest
    assert manifest[EMBEDDING] == manifest[HEAD] != manifest_of(read_folder(tiny_model_dir))[HEAD]


def test_a_bucket_that_did_not_change_is_not_stored_again(exported: dict[str, ExportedTensor]) -> None:
    store = Store()
    publisher = Publisher(exported, CountingGather(), MAX_BYTES, stores=True)
    first, manifest = publisher.publish(store.put)
    num_puts = len(store.put_bytes)
    second, again = publisher.publish(store.put)
    assert again == manifest
    assert len(store.put_bytes) == num_puts
    assert [bucket.stored for bucket in second] == [bucket.stored for bucket in first]
    assert publisher.stats.sent_bytes == publisher.stats.stored_bytes == 0


def test_a_bucket_of_which_little_changed_has_a_delta_that_makes_it(
    model: Qwen2_5_VLForConditionalGeneration, exported: dict[str, ExportedTensor]
) -> None:
    store = Store()
    publisher = Publisher(exported, CountingGather(), MAX_BYTES, stores=True)
    first, _ = publisher.publish(store.put, lambda stored: stored)
    assert all(bucket.delta is None for bucket in first)
    changed = model.get_input_embeddings().weight
    with torch.no_grad():
        changed[3, :7] += 1.0
    second, manifest = publisher.publish(store.put, lambda stored: stored)
    [(old, bucket)] = [pair for pair in zip(first, second, strict=True) if pair[1].delta is not None]
    assert bucket.delta is not None
    assert {EMBEDDING, HEAD} <= set(bucket.names)
    assert bucket.delta.bucket.num_bytes == 7 * (4 + 4)
    assert (publisher.stats.num_changed, publisher.stats.sent_bytes) == (7, 56)
    base = HostCopy()
    base.keep(old.stored, bucket.delta.base)
    assert base.fits(bucket.delta)
    made = base.changed(bucket, bucket.delta.bucket.stored)
    assert manifest_of(made) == {name: manifest[name] for name in bucket.names}
    # the buckets that stayed have none: their tensors are held already
    assert all(other is bucket or other.delta is None for other in second)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    third, _ = publisher.publish(store.put, lambda stored: stored)
    assert all(bucket.delta is None for bucket in third)


def test_live_tensors_are_those_that_were_stored(exported: dict[str, ExportedTensor]) -> None:
    publisher = Publisher(exported, CountingGather(), MAX_BYTES, stores=True)
    buckets, manifest = publisher.publish(Store().put)
    live = {name: tensor for bucket in buckets for name, tensor in publisher.live(bucket).items()}
    assert manifest_of({name: as_named(tensor) for name, tensor in live.items()}) == manifest
    assert all(live[name].data_ptr() == exported[name].parameters[0].data_ptr() for name in live)


def test_merged_adapters_are_not_live(model: Qwen2_5_VLForConditionalGeneration) -> None:
    names = checkpoint_names(model)
    add_adapters(model, LoraConfig(rank=4, targets=("q_proj",)))
    exported = exported_model(model, names)
    publisher = Publisher(exported, CountingGather(), MAX_BYTES, stores=True)
    buckets, _ = publisher.publish(Store().put)
    for bucket in buckets:
        is_merged = any(name.endswith("q_proj.weight") for name in bucket.names)
        assert set(publisher.live(bucket)) == (set() if is_merged else set(bucket.names))
    assert any(map(publisher.live, buckets))


def test_a_rank_that_stores_nothing_takes_part_in_the_same_gathers(exported: dict[str, ExportedTensor]) -> None:
    def gathered(stores: bool) -> list[int]:
        opened: list[int] = []

        class Noting(CountingGather):
            def __call__(self, parameters):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
                opened.extend(map(id, parameters))
                return super().__call__(parameters)

        publisher = Publisher(exported, Noting(), MAX_BYTES, stores=stores)
        for _ in range(2):
            publisher.publish(Store().put)
        return opened

    assert gathered(stores=True) == gathered(stores=False)
