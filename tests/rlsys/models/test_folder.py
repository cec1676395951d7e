"""A folder that a run cannot be trained from is refused with its file and the remedy, before anything starts."""

from __future__ import annotations

import json
import os
import re
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
from rlsys.models.model_config import ModelFolderError, read_model_config
from rlsys.models.prompts import PromptBuilder

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


def edit_text(folder: Path, **values: Any) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config=text | values)


def edit_vision(folder: Path, **values: Any) -> None:
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edit(folder / "config.json", vision_config=vision | values)


def edit_index(folder: Path, file: object) -> None:
    shard(folder)
    tree = json.loads((folder / "model.safetensors.index.json").read_text())
    edit(folder / "model.safetensors.index.json", weight_map=tree["weight_map"] | {"model.norm.weight": file})


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
    "a matrix of another width": (lambda at: edit_text(at, intermediate_size=300), "config.json says (300, 128)"),
    "patches of another size": (lambda at: edit_vision(at, patch_size=16), "config.json says (64, 3, 2, 16, 16)"),
    "no final norm": (lambda at: keep(at, lambda name: name != "model.norm.weight"), "has model.norm.weight"),
    "no projector": (lambda at: keep(at, lambda name: ".merger." not in name), "has visual.merger"),
    "a wrapper's names": (
        lambda at: save_file({f"module.{name}": one for name, one in load_file(at / WEIGHTS).items()}, at / WEIGHTS),
        "module.model.embed_tokens.weight and the like",
    ),
    "whole numbers": (
        lambda at: save_file({name: one.astype("i4") for name, one in load_file(at / WEIGHTS).items()}, at / WEIGHTS),
        "numbers of type I32, which cannot be trained",
    ),
    "a quantized part": (
        lambda at: edit_text(at, quantization_config={"quant_method": "bitsandbytes"}),
        "quantized (bitsandbytes)",
    ),
    "an index of numbers": (lambda at: edit_index(at, 3), "not an index of weights"),
    "an index of files elsewhere": (
        lambda at: edit_index(at, "/etc/passwd"),
        "'/etc/passwd' is no file of this folder",
    ),
    "an index that is a folder": (lambda at: (at / "model.safetensors.index.json").mkdir(), "not an index of weights"),
    "half a processor": (
        lambda at: (at / "processor_config.json").write_text("{"),
        "processor_config.json: not readable",
    ),
    "a processor with NaN": (lambda at: edit(at / "processor_config.json", scale=float("nan")), "contains NaN"),
    "a generation config of bytes": (
        lambda at: (at / "generation_config.json").write_bytes(b"\xff\xfe"),
        "generation_config.json: not readable",
    ),
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


REFUSED_CONFIGS: Mapping[str, tuple[dict[str, Any], str]] = {
    "another language model": ({"text_config": {"model_type": "qwen2"}}, "model_type='qwen2' is not the supported"),
    "another layer of the tower": ({"vision_feature_layer": -2}, "vision_feature_layer=-2 is not the supported -1"),
    "other merging": ({"downsample_ratio": 0.25}, "downsample_ratio=0.25 is not the supported 0.5"),
    "no positions": (
        {"vision_config": {"use_absolute_position_embeddings": False}},
        "use_absolute_position_embeddings=False is not the supported True",
    ),
    "frames that are no squares": ({"vision_config": {"image_size": [56, 112]}}, "image_size=[56, 112] is not square"),
    "frames that do not divide": ({"vision_config": {"image_size": 70}}, "70 is not a multiple of 2 patches of 14"),
}


@pytest.mark.parametrize("case", REFUSED_CONFIGS)
def test_a_config_that_engine_or_learner_would_not_read_alike_is_refused(
    case: str, internvl_dirs: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(internvl_dirs["tiny"], tmp_path / "model"))
    assert not list(problems_of_folder(folder))
    changes, expected = REFUSED_CONFIGS[case]
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match=re.escape(expected)):
        read_model_config(folder)


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("multi_modal_projector", "no weight file has multi_modal_projector"),
        ("encoder.layer.0.mlp.fc2", "layer.0 is missing or incomplete"),
        ("patch_embeddings.projection.weight", "no weight file has vision_tower.embeddings.patch_embeddings"),
    ],
)
def test_weights_that_a_tower_beside_its_projector_lacks_are_named(
    absent: str, said: str, internvl_dirs: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(internvl_dirs["bench"], tmp_path / "model"))
    keep(folder, lambda name: absent not in name)
    assert any(said in problem for problem in problems_of_folder(folder)), list(problems_of_folder(folder))


def test_the_id_of_a_placeholder_that_the_config_omits_is_the_tokenizers(
    internvl_dirs: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(internvl_dirs["tiny"], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    wanted = config.pop("video_token_id")
    (folder / "config.json").write_text(json.dumps(config))
    assert read_model_config(folder).video_token_id == wanted == ChatTokenizer(folder).id_of("<video>")
    (folder / "tokenizer.json").unlink()
    family = read_model_config(folder).family
    assert read_model_config(folder).video_token_id == family.video_pad_id


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
        ("{{ '%d' | format('x') }}", "chat template fails"),
        ("{{ 'x' * 10 ** 10 }}", "too large"),
        ("{{ 9 ** (9 ** (9 ** 9)) }}", "too large"),
        ("{{ [messages] * 10 ** 9 }}", "too large"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
            "more than 262144 characters",
        ),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ cycler.__init__.__globals__.os.getcwd() }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_an_error_with_its_message(folder: Path, template: str, said: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelFolderError, match=said):
        ChatTokenizer(folder).user_turn(["video"], "When?")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (POINTER, "shows '' for a video"),
        ("", "shows '' for a video"),
        ("{{ messages | tojson }}", "shows '' for a video"),
        ("<|video_pad|><|video_pad|>{{ messages }}", "shows '<|video_pad|><|video_pad|>' for a video"),
        ("<|video_pad|>{{ messages[0].content[1].text }}", "for a image"),
        (
            "{% if messages[0].content[0].type == 'video' %}<|video_pad|>{% else %}<|image_pad|>{% endif %}",
            "leaves out",
        ),
    ],
)
def test_a_template_that_shows_not_each_medium_once_with_the_text_is_refused(
    folder: Path, template: str, said: str
) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelFolderError, match=re.escape(said)):
        PromptBuilder(folder, max_model_len=512, max_tokens=24, dtype="float32")


def test_a_template_of_bytes_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFolderError, match="cannot be read"):
        ChatTokenizer(folder)


@pytest.mark.parametrize("token", [["x"], {"x": 1}, 5, None])
def test_an_end_token_that_is_none_is_refused(folder: Path, token: object) -> None:
    edit(folder / "tokenizer_config.json", eos_token=token)
    with pytest.raises(ModelFolderError, match="eos_token"):
        ChatTokenizer(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"vocab_size": "many"}, "vocab_size='many' is not a whole number"),
        ({"vocab_size": None}, "vocab_size=None"),
        ({"hidden_size": 128.0}, "hidden_size=128.0"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
        ({"num_key_value_heads": 3}, "cannot share num_key_value_heads=3"),
    ],
)
def test_sizes_that_no_model_has_are_refused(folder: Path, values: dict[str, Any], said: str) -> None:
    edit_text(folder, **values)
    with pytest.raises(ModelFolderError, match=said):
        read_model_config(folder)


def test_a_fifo_in_a_model_folder_is_refused_without_being_opened(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ModelFolderError, match="not a regular file"):
        read_model_config(folder)


def test_a_model_says_how_many_positions_it_has_unless_they_are_scaled(folder: Path) -> None:
    edit_text(folder, max_position_embeddings=300)
    assert read_model_config(folder).longest == 300
    edit_text(folder, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    assert read_model_config(folder).longest is None


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


def test_a_layer_that_no_library_reads_and_layers_of_two_kinds_are_no_problem(
    qwen3_5_dirs: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(qwen3_5_dirs["bench"], tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    more = {
        "mtp.layers.0.self_attn.q_proj.weight": np.zeros((2, 2), np.float32),
        "mtp.fc.weight": np.zeros(2, np.float32),
    }
    save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    assert list(problems_of_folder(folder)) == []
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.2.linear_attn.A_log" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert "layers.2 is missing or incomplete" in " ".join(problems_of_folder(folder))
