"""What one rank publishes: in which parcels, how often, and how much of the model is whole at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from learner.model.frozen import freeze
from learner.model.policy import load_model
from learner.weights.publishing import Publisher, plan_parcels
from learner.weights.weights_out import HEAD, Outlet, checkpoint_names, model_outlets, read_folder
from rlsys.weights.manifest import NamedTensor, digest, digest_of, manifest_of
from tests.learner.weights.test_weights_out import CountingGather

MAX_BYTES = 1 << 20
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def model(tiny_model_dir: Path) -> Qwen2_5_VLForConditionalGeneration:
    found = load_model(tiny_model_dir, dtype="float32", attention="sdpa")
    freeze(found, ("vision_tower",))
    return found


@pytest.fixture
def outlets(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, Outlet]:
    return model_outlets(model, checkpoint_names(model))


class Store:
    """Keeps copies, as the object store does."""

    def __init__(self) -> None:
        self.put_bytes: list[int] = []

    def put(self, payload: Mapping[str, NamedTensor]) -> dict[str, NamedTensor]:
        self.put_bytes.append(sum(tensor.data.nbytes for tensor in {id(t): t for t in payload.values()}.values()))
        return {name: NamedTensor(spec=tensor.spec, data=tensor.data.copy()) for name, tensor in payload.items()}


def test_parcels_hold_everything_once_and_frozen_parts_apart(outlets: dict[str, Outlet]) -> None:
    parcels = plan_parcels(outlets, MAX_BYTES)
    names = [name for parcel in parcels for name in parcel.outlets]
    assert sorted(names) == sorted(outlets)
    for parcel in parcels:
        assert parcel.num_bytes <= MAX_BYTES or len(set(parcel.outlets.values())) == 1
        frozen = {name.startswith("visual.") and "merger" not in name for name in parcel.outlets}
        assert frozen == {parcel.is_frozen}
        # one tensor, two names, one parcel
        assert (HEAD in parcel.outlets) == (EMBEDDING in parcel.outlets)
    # in a stage of its own nothing is frozen, and everything is still there
    assert {name for parcel in plan_parcels(outlets, 1) for name in parcel.outlets} == set(outlets)


def test_frozen_parts_are_stored_once_and_the_digest_stays_right(
    model: Qwen2_5_VLForConditionalGeneration, outlets: dict[str, Outlet], tiny_model_dir: Path
) -> None:
    store, gather = Store(), CountingGather()
    publisher = Publisher(outlets, gather, MAX_BYTES, stores=True)
    first, manifest = publisher.publish(store.put)
    assert digest_of(manifest) == digest(read_folder(tiny_model_dir))
    assert gather.most_bytes <= max(MAX_BYTES, max(outlet.spec.num_bytes for outlet in outlets.values()))
    num_frozen = sum(parcel.is_frozen for parcel in plan_parcels(outlets, MAX_BYTES))
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


def test_a_rank_that_stores_nothing_takes_part_in_the_same_gathers(outlets: dict[str, Outlet]) -> None:
    def gathered(stores: bool) -> list[int]:
        opened: list[int] = []

        class Noting(CountingGather):
            def __call__(self, parameters):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
                opened.extend(map(id, parameters))
                return super().__call__(parameters)

        publisher = Publisher(outlets, Noting(), MAX_BYTES, stores=stores)
        for _ in range(2):
            publisher.publish(Store().put)
        return opened

    assert gathered(stores=True) == gathered(stores=False)
