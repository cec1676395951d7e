"""Export of weights in one process: how much is gathered at once, and folders that libraries can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from learner.model.lora import adapters, adapters_off, add_adapters
from learner.model.policy import PackedPolicy, load_model, read_layout
from learner.packing.packing import PackedBatch, pack
from learner.weights.weights_out import (
    assist,
    checkpoint_names,
    collect,
    exported_adapter,
    exported_model,
    has_tied_head,
    read_folder,
    stream,
    write_adapter,
    write_folder,
)
from rlsys.config.run import ConfigError, LoraConfig
from rlsys.models.folder import problems_of_folder
from rlsys.weights.manifest import digest
from rlsys.weights.tensors import HEAD
from tests.support.learner import make_group, make_row
from tests.support.rounding import LOGPROB

LORA = LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))


class CountingGather:
    """A gather that opens parameters as DeepSpeed does, and records the most bytes open at once, and those opened."""

    def __init__(self) -> None:
        self.open_bytes = self.most_bytes = 0
        self.opened: list[nn.Parameter] = []

    @contextmanager
    def __call__(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        size = sum(parameter.nbytes for parameter in parameters)
        self.opened += parameters
        self.open_bytes += size
        self.most_bytes = max(self.most_bytes, self.open_bytes)
        yield
        self.open_bytes -= size


def everything_at_hand(parameters: Sequence[nn.Parameter]) -> nullcontext[None]:
    return nullcontext()


def adapted(folder: Path) -> tuple[Qwen2_5_VLForConditionalGeneration, dict[str, str]]:
    """Return the model with adapters that change it, and its checkpoint names."""
    model = load_model(folder, dtype="float32", attention="sdpa")
    names = checkpoint_names(model)
    torch.manual_seed(0)
    add_adapters(model, LORA)
    with torch.no_grad():
        for low_rank in adapters(model).values():
            low_rank.up.normal_(std=0.1)
    return model, names


def logprobs(model: Qwen2_5_VLForConditionalGeneration, batch: PackedBatch) -> torch.Tensor:
    with torch.no_grad():
        return PackedPolicy(model)(batch)[0]


@pytest.fixture(scope="module")
def batch(tiny_model_dir: Path) -> PackedBatch:
    rng = np.random.default_rng(0)
    rows = [make_row(make_group(rng, "a", ("video",), [5, 3])), make_row(make_group(rng, "b", (), [4]))]
    layout = read_layout(load_model(tiny_model_dir, dtype="float32", attention="sdpa"), tiny_model_dir)
    return pack(rows, layout, dtype=torch.float32)


def test_export_opens_one_tensor_at_a_time_and_writes_what_collect_holds(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_dir, dtype="float32", attention="sdpa")
    exported, gather = exported_model(model, checkpoint_names(model)), CountingGather()
    found = write_folder(exported, stream(exported, gather), tiny_model_dir, tmp_path / "model", max_file_bytes=1 << 20)
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert gather.most_bytes == largest < sum(parameter.nbytes for parameter in model.parameters()) / 5
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) == 3
    tensors = collect(exported, everything_at_hand)
    assert found == digest(tensors) == digest(read_folder(tmp_path / "model")) == digest(read_folder(tiny_model_dir))
    # the head is the embedding, and is sent once
    assert tensors[HEAD] is tensors["model.embed_tokens.weight"]


def test_every_parameter_is_gathered_once_by_all_ranks_in_the_same_order(family_dir: Path, tmp_path: Path) -> None:
    """A tied head is the embedding, and is not gathered for it again."""
    model = load_model(family_dir, dtype="float32", attention="sdpa")
    exported, writing, helping = exported_model(model, checkpoint_names(model)), CountingGather(), CountingGather()
    assert has_tied_head(exported)
    found = write_folder(exported, stream(exported, writing), family_dir, tmp_path, max_file_bytes=1 << 20)
    assert found == digest(read_folder(family_dir)) == digest(read_folder(tmp_path))
    assist(exported, helping)
    assert [id(one) for one in writing.opened] == [id(one) for one in helping.opened]
    assert sorted(map(id, writing.opened)) == sorted(map(id, model.parameters()))


def test_a_head_of_its_own_behind_a_prefix_is_read_and_exported_under_its_name(
    internvl_dirs: Mapping[str, Path], tmp_path: Path
) -> None:
    """Published checkpoints of this family have such names and nothing at the top of config.json that says "untied"."""
    folder = Path(shutil.copytree(internvl_dirs["tiny"], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    tensors, head = load_file(folder / "model.safetensors"), f"language_model.{HEAD}"
    tensors[head] = torch.randn_like(tensors["language_model.model.embed_tokens.weight"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert not list(problems_of_folder(folder))
    model = load_model(folder, dtype="float32", attention="sdpa")
    assert torch.equal(model.lm_head.weight, tensors[head])
    exported = exported_model(model, checkpoint_names(model))
    assert exported.keys() == tensors.keys() == read_folder(folder).keys()
    assert not has_tied_head(exported)
    write_folder(exported, stream(exported, everything_at_hand), folder, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def test_what_is_exported_of_a_new_model_is_what_its_files_hold(family_dir: Path) -> None:
    """Names, shapes and numbers: also of experts, which transformers turns when it reads them."""
    model = load_model(family_dir, dtype="float32", attention="sdpa")
    exported = exported_model(model, checkpoint_names(model))
    found, held = collect(exported, everything_at_hand), read_folder(family_dir)
    assert found.keys() == held.keys()
    assert {name: tensor.spec for name, tensor in exported.items()} == {name: one.spec for name, one in held.items()}
    assert all(np.array_equal(found[name].data, held[name].data) for name in held)


def test_a_folder_in_several_files_is_the_same_model(tiny_model_dir: Path, tmp_path: Path, batch: PackedBatch) -> None:
    model, names = adapted(tiny_model_dir)
    exported, gather = exported_model(model, names), CountingGather()
    write_folder(exported, stream(exported, gather), tiny_model_dir, tmp_path / "model", max_file_bytes=1 << 20)
    merged = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32)
    torch.testing.assert_close(logprobs(merged, batch), logprobs(model, batch), atol=LOGPROB, rtol=0)
    largest = max(sum(parameter.nbytes for parameter in tensor.parameters) for tensor in exported.values())
    assert gather.most_bytes == largest


def test_the_adapter_s_folder_is_read_by_peft(tiny_model_dir: Path, tmp_path: Path, batch: PackedBatch) -> None:
    model, _ = adapted(tiny_model_dir)
    write_adapter(collect(exported_adapter(model), everything_at_hand), LORA, tiny_model_dir, tmp_path)
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model_dir, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logprobs(loaded.get_base_model(), batch), logprobs(model, batch), atol=LOGPROB, rtol=0)


def test_without_its_adapters_the_model_is_the_one_that_it_started_from(
    tiny_model_dir: Path, batch: PackedBatch
) -> None:
    model, _ = adapted(tiny_model_dir)
    base = load_model(tiny_model_dir, dtype="float32", attention="sdpa")
    with adapters_off(model):
        off = logprobs(model, batch)
    torch.testing.assert_close(off, logprobs(base, batch), atol=LOGPROB, rtol=0)
    assert (logprobs(model, batch) - off).abs().max() > 0.01
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in dict(model.named_parameters()) if ".lora_" in name}
    # 3 layers, 3 targets each, two matrices; the tower has a down_proj too, and none of it is touched
    assert len(trained) == 18
    assert not any("visual" in name for name in trained)


def test_an_unknown_target_is_named_with_the_available_ones(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir, dtype="float32", attention="sdpa")
    with pytest.raises(ConfigError, match="qkv are not linear layers.*it has down_proj, gate_proj"):
        add_adapters(model, LoraConfig(rank=2, targets=("q_proj", "qkv")))
