"""A folder that a run cannot be trained from is refused with its file and the remedy, before anything starts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from learner.weights.weights_out import write_folder
from rlsys.models.chat import ChatTokenizer
from rlsys.models.folder import EDGE_BYTES, companions, content_digest, model_digest, problems_of_folder
from rlsys.models.model_config import ModelFolderError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2841184\n"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def keep(folder: Path, is_kept: Callable[[str], bool]) -> None:
    tensors = {name: value for name, value in load_file(folder / WEIGHTS).items() if is_kept(name)}
    save_file(tensors, folder / WEIGHTS)


def shard(folder: Path, missing: str = "") -> None:
    """Write two files and an index, as large models have; `missing` is not written, or not put into its file."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in halves.items():
        if file != missing:
            save_file({name: tensors[name] for name in inside if name != missing}, folder / file)
    weight_map = {name: file for file, inside in halves.items() for name in inside}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / WEIGHTS).unlink()


def replace_weights(folder: Path, name: str, data: bytes = b"x" * 100) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(data)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda at: (at / WEIGHTS).unlink(), "has no weights"),
    "PyTorch weights": (lambda at: replace_weights(at, "pytorch_model.bin"), "save_pretrained"),
    "a GGUF file": (lambda at: replace_weights(at, "model.gguf"), "GGUF"),
    "an odd name": (lambda at: (at / WEIGHTS).rename(at / "weights.safetensors"), "under other names"),
    "a pointer for weights": (lambda at: (at / WEIGHTS).write_text(POINTER), "git lfs pull"),
    "a pointer for the config of pixels": (
        lambda at: (at / "processor_config.json").write_text(POINTER),
        "git lfs pull",
    ),
    "weights cut short": (lambda at: os.truncate(at / WEIGHTS, 10_000), "truncated or damaged"),
    "weights without their last byte": (
        lambda at: os.truncate(at / WEIGHTS, (at / WEIGHTS).stat().st_size - 1),
        "truncated or damaged",
    ),
    "empty weights": (lambda at: os.truncate(at / WEIGHTS, 0), "truncated or damaged"),
    "a missing shard": (lambda at: shard(at, "model-00002-of-00002.safetensors"), "1 of 2 weight files are missing"),
    "a shard without its tensor": (
        lambda at: shard(at, "model.embed_tokens.weight"),
        "has no tensor model.embed_tokens",
    ),
    "a damaged index": (lambda at: (shard(at), os.truncate(at / "model.safetensors.index.json", 30)), "not an index"),
    "no processor": (lambda at: (at / "processor_config.json").unlink(), "no processor_config.json"),
    "an untied config without a head": (
        lambda at: edit(at / "config.json", tie_word_embeddings=False),
        "lm_head.weight",
    ),
    "AWQ": (lambda at: edit(at / "config.json", quantization_config={"quant_method": "awq", "bits": 4}), "awq"),
    "a leftover adapter": (lambda at: (at / "adapter_config.json").write_text("{}"), "LoRA adapter"),
    "a layer too few": (lambda at: keep(at, lambda name: "layers.1." not in name), "layers.1 is missing"),
    "a layer with a hole": (
        lambda at: keep(at, lambda name: "layers.0.mlp" not in name),
        "layers.0 is missing or incomplete",
    ),
    "no embedding": (lambda at: keep(at, lambda name: "embed_tokens" not in name), "embed_tokens.weight"),
    "a layer too many": (
        lambda at: save_file(load_file(at / WEIGHTS) | {"model.layers.9.mlp.x": np.zeros(2, "f4")}, at / WEIGHTS),
        "the weights have layers.9",
    ),
    "another model's embedding": (
        lambda at: save_file(
            load_file(at / WEIGHTS) | {"model.embed_tokens.weight": np.zeros((4, 128), "f4")}, at / WEIGHTS
        ),
        "not of the same model",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_unusable_folder_is_refused_with_its_remedy(case: str, folder: Path) -> None:
    assert not list(problems_of_folder(folder))
    make, expected = CASES[case]
    make(folder)
    found = list(problems_of_folder(folder))
    assert any(expected in problem for problem in found), found


def turn_experts(folder: Path) -> None:
    """Store experts the other way round, as `save_pretrained` of transformers 5 does."""
    tensors = load_file(folder / WEIGHTS)
    turned = {name: array.swapaxes(1, 2).copy() if ".experts." in name else array for name, array in tensors.items()}
    save_file(turned, folder / WEIGHTS)


def edit_text(folder: Path, **values: Any) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config=text | values)


EXPERT_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "experts as transformers saves them": (turn_experts, "vLLM cannot load it; swap the last two axes"),
    "weights of experts that are not divided by their sum": (
        lambda at: edit_text(at, norm_topk_prob=False),
        "norm_topk_prob is False",
    ),
    "square experts": (lambda at: edit_text(at, moe_intermediate_size=64), "an expert's matrix is square"),
    "other experts": (lambda at: edit_text(at, moe_intermediate_size=96), "the weight files have 0"),
    "experts one by one": (
        lambda at: save_file(
            {name.replace(".experts.", ".experts.0."): array for name, array in load_file(at / WEIGHTS).items()},
            at / WEIGHTS,
        ),
        "use a checkpoint with the experts of a layer in one tensor",
    ),
}


@pytest.mark.parametrize("case", EXPERT_CASES)
def test_experts_that_engine_and_learner_would_read_differently_are_refused(
    case: str, qwen3_vl_moe_dirs: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(qwen3_vl_moe_dirs["tiny"], tmp_path / "model"))
    assert not list(problems_of_folder(folder))
    make, expected = EXPERT_CASES[case]
    make(folder)
    found = list(problems_of_folder(folder))
    assert any(expected in problem for problem in found), found


def test_sharded_weights_are_as_good_as_one_file(folder: Path) -> None:
    shard(folder)
    assert not list(problems_of_folder(folder))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('Only text is supported') }}", "Only text is supported"),
        ("{% for message in messages %}{{ message.content.strip() }}{% endfor %}", "chat template fails"),
        ("{% if messages %}", "cannot be read"),
        ("{% unheard_of %}", "cannot be read"),
        ("{{ strftime_now('%d') }}", "strftime_now"),
        ("{{ 1 / 0 }}", "chat template fails"),
    ],
)
def test_a_template_that_fails_is_an_error_with_its_message(folder: Path, template: str, said: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelFolderError, match=said):
        ChatTokenizer(folder).user_turn(["video"], "When?")


def test_generation_blocks_render_as_what_they_enclose(folder: Path) -> None:
    plain = ChatTokenizer(folder).user_turn(["video"], "When?")
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{% generation %}" + text + "{% endgeneration %}")
    assert ChatTokenizer(folder).user_turn(["video"], "When?") == plain


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", [POINTER, "[]", "", '{"a":'])
def test_files_that_do_not_match_their_name_are_errors(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ModelFolderError, match=name):
        ChatTokenizer(folder)


def test_only_files_of_a_checkpoint_are_copied_and_can_be_overwritten(folder: Path, tmp_path: Path) -> None:
    (folder / ".git" / "lfs").mkdir(parents=True)
    (folder / ".git" / "lfs" / "object").write_bytes(b"x" * 1000)
    (folder / "runs").mkdir()
    (folder / "optimizer.pt").write_text("…")
    (folder / "other.safetensors").write_text("…")
    expected = {path.name for path in companions(folder)}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "processor_config.json"} <= expected
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    folder.chmod(0o555)
    inside = tmp_path / "out"
    for _ in range(2):
        write_folder({}, [], folder, inside)
    folder.chmod(0o755)
    assert {path.name for path in inside.iterdir()} - {WEIGHTS} == expected
    assert all(os.access(path, os.W_OK) and path.stat().st_mode & 0o200 for path in (inside, *inside.iterdir()))


@pytest.mark.parametrize("changed", ["model.safetensors", "adapter_config.json"])
def test_the_digest_of_the_content_sees_every_byte(tmp_path: Path, changed: str) -> None:
    weights = bytearray(3 * EDGE_BYTES)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "adapter_config.json").write_bytes(weights)
    (tmp_path / "notes.txt").write_text("not part of the model")
    of_edges, of_all = model_digest(tmp_path), content_digest(tmp_path)
    weights[len(weights) // 2] = 1
    (tmp_path / changed).write_bytes(weights)
    assert model_digest(tmp_path) == of_edges
    assert content_digest(tmp_path) != of_all
    (tmp_path / changed).write_bytes(bytes(len(weights)))
    (tmp_path / "notes.txt").write_text("changed")
    assert content_digest(tmp_path) == of_all
