"""Checks of a checkpoint folder before a run starts from it, by the headers of its files and without its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rlsys.models.families.family import LinearAttention
from rlsys.models.model_config import ModelConfig, ModelFolderError, read_json, read_model_config, text_settings

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*processor_config.json",
    "LICENSE*",
)
"""Patterns of the files that make up a checkpoint together with the weights; other files in the folder do not."""
LFS_POINTER = b"version https://git-lfs"
EDGE_BYTES = 1 << 16
"""Bytes read at either end of a weight file (header and last tensor); reading all of 16 GB would take minutes."""
ADAPTER_FILE = "adapter_config.json"
FLOATS = ("F32", "BF16", "F16")
LAYER = re.compile(r"(?:^|\.)(layers|blocks|layer)\.(\d+)\.")
NO_WEIGHTS = {
    ("*.bin", "*.pt", "*.pth"): "has PyTorch files, which run code when they are read; save the model as safetensors "
    "(from_pretrained, then save_pretrained)",
    ("*.gguf",): "has a GGUF file; use the model's own safetensors checkpoint",
    (
        "*.safetensors",
    ): f"has safetensors under other names than {SINGLE} or those of {INDEX}; save_pretrained writes those",
}


def companions(folder: Path) -> list[Path]:
    """Return a checkpoint's files other than the weights: config, tokenizer, chat template and processor."""
    return sorted(
        path for path in Path(folder).iterdir() if path.is_file() and any(fnmatch(path.name, one) for one in COMPANIONS)
    )


def model_digest(folder: Path) -> str:
    """Return a digest of a model folder: of its small files in full, and of each weight file's size and both ends."""
    sha = hashlib.sha256()
    for file in companions(folder):
        sha.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    for file in sorted(Path(folder).glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(EDGE_BYTES)
            stream.seek(max(0, size - EDGE_BYTES))
            sha.update(f"{file.name}:{size}".encode() + hashlib.sha256(head + stream.read()).digest())
    return sha.hexdigest()[:16]


def content_digest(folder: Path) -> str:
    """Return a digest of a model or adapter folder: of every byte of its weights and of its small files.

    `model_digest` takes milliseconds and cannot tell two checkpoints of one run apart whose last tensor is frozen; this
    one reads everything, one file in a thread.
    """
    files = sorted({*companions(folder), *Path(folder).glob("*.safetensors"), *Path(folder).glob(ADAPTER_FILE)})

    def digest(file: Path) -> bytes:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    sha = hashlib.sha256()
    with ThreadPoolExecutor() as threads:
        for file, found in zip(files, threads.map(digest, files), strict=True):
            sha.update(file.name.encode() + found)
    return sha.hexdigest()[:16]


def problems_of_folder(folder: Path) -> Iterator[str]:
    """Yield every problem that prevents training from `folder`, with its file and remedy; none if it is sound.

    Config, tokenizer and template must have been read already (see `PromptBuilder`); they raise errors of their own.
    """
    folder = Path(folder)
    config = read_json(folder, "config.json")
    parts = [config, *(one for one in config.values() if isinstance(one, dict))]
    found = (part.get(key) for part in parts for key in ("quantization_config", "compression_config"))
    if quantized := next(filter(None, found), None):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        yield f"{folder / 'config.json'}: the weights are quantized ({method}) and cannot be trained; use the original."
        return
    if (folder / ADAPTER_FILE).exists():
        yield (
            f"{folder / ADAPTER_FILE}: a LoRA adapter, which libraries load instead of the model or on top of it; "
            "merge it into the weights (peft's merge_and_unload) or move the file away."
        )
    pointers = [path.name for path in companions(folder) if _is_pointer(path)]
    if pointers:
        yield f"{folder}: {', '.join(pointers)}: these are git-LFS pointers, not the files; run `git lfs pull` there."
    if not any((folder / name).exists() for name in ("processor_config.json", "preprocessor_config.json")):
        yield (
            f"{folder}: no processor_config.json or preprocessor_config.json; copy the model's own, which say how "
            "pixels are normalised."
        )
    yield from _unreadable(folder, except_for=pointers)
    try:
        shapes = _shapes(folder)
    except ModelFolderError as error:
        yield str(error)
        return
    model = read_model_config(folder)
    if unused := model.family.unused:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(unused)}
    yield from _missing_tensors(folder, model, shapes)
    for problem in model.family.problems(text_settings(config), shapes):
        yield f"{folder}: {problem}"


def _unreadable(folder: Path, *, except_for: Sequence[str]) -> Iterator[str]:
    """Yield each settings file that a library could not read, and each of the processors with a number that is none."""
    for path in companions(folder):
        if path.suffix != ".json" or path.name == "tokenizer.json" or path.name in except_for:
            continue
        try:
            tree = read_json(folder, path.name)
            if path.name.endswith("processor_config.json"):
                json.dumps(tree, allow_nan=False)
        except ModelFolderError as error:
            yield str(error)
        except ValueError:
            yield f"{path}: contains NaN or Infinity, with which all pixels would be NaN; copy the model's own file."


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes by tensor name, from the headers of all weight files."""
    if (folder / INDEX).exists():
        try:
            weight_map: dict[str, str] = dict(read_json(folder, INDEX)["weight_map"])
            if odd := [file for file in weight_map.values() if Path(file).name != file]:
                raise ValueError(f"{odd[0]!r} is no file of this folder")
        except (ValueError, KeyError, TypeError) as error:
            raise ModelFolderError(f"{folder / INDEX}: not an index of weights: {error!r}; copy it again.") from error
        files = sorted(set(weight_map.values()))
    elif (folder / SINGLE).exists():
        weight_map, files = {}, [SINGLE]
    else:
        for patterns, problem in NO_WEIGHTS.items():
            if any(fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in patterns):
                raise ModelFolderError(f"{folder} {problem}.")
        raise ModelFolderError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}; copy the model's weight files.")
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ModelFolderError(
            f"{folder}: {len(missing)} of {len(files)} weight files are missing, {missing[0]} for one; copy them."
        )
    found = {name: shape for file in files for name, shape in tensor_shapes(folder / file).items()}
    if absent := sorted(set(weight_map) - set(found)):
        raise ModelFolderError(
            f"{folder / weight_map[absent[0]]}: has no tensor {absent[0]}, which {INDEX} says it has; copy both again."
        )
    return found


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a safetensors file, by name, from its header alone.

    Raises ModelFolderError if the file is a git-LFS pointer, truncated or damaged, or if its numbers are no floats.
    """
    try:
        if _is_pointer(file):
            raise ModelFolderError(f"{file}: a git-LFS pointer, not the weights; run `git lfs pull` in its folder.")
        with safe_open(file, framework="numpy") as weights:
            found = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            if odd := next((name for name, one in found.items() if one.get_dtype() not in FLOATS), None):
                raise ModelFolderError(
                    f"{file}: {odd} has numbers of type {found[odd].get_dtype()}, which cannot be trained; use the "
                    f"original weights in one of {', '.join(FLOATS)}."
                )
            return {name: tuple(one.get_shape()) for name, one in found.items()}
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise ModelFolderError(f"{file}: truncated or damaged ({size} bytes: {error}); copy it again.") from error


def _missing_tensors(folder: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    wanted = ("embed_tokens.weight",) if config.has_tied_embeddings else ("embed_tokens.weight", "lm_head.weight")
    table = (config.vocabulary, config.hidden)
    for suffix in wanted:
        held = [shape for name, shape in shapes.items() if name == suffix or name.endswith(f".{suffix}")]
        if not held:
            hint = " (tie_word_embeddings is false)" if suffix == "lm_head.weight" else ""
            yield f"{folder}: no weight file has {suffix}{hint}; copy the missing weight file or correct config.json."
        elif held[0] != table:
            yield f"{folder}: {suffix} is {held[0]}, config.json says {table}; they are not of the same model."
    yield from _other_tensors(folder, config, shapes)
    per_layer = Counter((m[1], int(m[2])) for name in shapes if (m := LAYER.search(name)))
    depths = {"layers": config.layers, config.family.blocks: config.vision.depth}
    for kind, depth in depths.items():
        counts = {index: count for (one, index), count in per_layer.items() if one == kind}
        short = [index for alike in _alike(config, kind, depth) for index in _incomplete(counts, alike)]
        if short:
            yield f"{folder}: {kind}.{min(short)} is missing or incomplete in the weight files ({len(short)} such)."
        if beyond := sorted(index for index in counts if index >= depth):
            yield f"{folder}: the weights have {kind}.{beyond[-1]}, config.json says {depth} {kind}."


def _alike(config: ModelConfig, kind: str, depth: int) -> list[list[int]]:
    """Return the numbers of the layers or blocks that have equally many tensors."""
    linear = config.linear.indices if config.linear and kind == "layers" else ()
    return [[index for index in range(depth) if (index in linear) == is_linear] for is_linear in (False, True)]


def _incomplete(counts: Mapping[int, int], alike: Sequence[int]) -> list[int]:
    most = max((counts.get(index, 0) for index in alike), default=0)
    return [index for index in alike if counts.get(index, 0) < most or not most]


def _other_tensors(folder: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    family = config.family
    if strange := sorted(name for name in shapes if not name.startswith(family.weight_prefixes)):
        yield (
            f"{folder}: the weights are named {strange[0]} and the like, which no library finds ({len(strange)} such); "
            "save the model itself by save_pretrained, not a wrapper around it."
        )
    for ending, expected in _expected_shapes(config).items():
        named = [name for name in shapes if name.endswith(ending) and ".blocks." not in name]
        if not named and not (config.experts and ".mlp." in ending):
            yield f"{folder}: no weight file has {ending.lstrip('.')}; copy the missing weight file."
        if odd := next((name for name in named if shapes[name] != expected), None):
            yield f"{folder}: {odd} is {shapes[odd]}, config.json says {expected}; they are not of the same model."
    projector = family.projectors[0].removeprefix("model.")
    if not any(name.startswith((projector, f"model.{projector}")) for name in shapes):
        yield (
            f"{folder}: no weight file has {projector.rstrip('.')}, between vision tower and language model; copy that "
            "file."
        )


def _expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a config gives the language model and the patch embedding, by the ends of their names."""
    hidden, mlp, linear = config.hidden, config.mlp, config.linear
    return {
        **(_linear_shapes(linear, hidden) if linear else {}),
        ".self_attn.q_proj.weight": (config.projected_queries, hidden),
        ".self_attn.k_proj.weight": (config.kv, hidden),
        ".self_attn.v_proj.weight": (config.kv, hidden),
        ".self_attn.o_proj.weight": (hidden, config.queries),
        ".mlp.gate_proj.weight": (mlp, hidden),
        ".mlp.down_proj.weight": (hidden, mlp),
        ".input_layernorm.weight": (hidden,),
        "model.norm.weight": (hidden,),
        config.family.patch_embedding: (config.vision.hidden, *config.vision.patch_kernel),
    }


def _linear_shapes(linear: LinearAttention, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        ".linear_attn.in_proj_qkv.weight": (linear.channels, hidden),
        ".linear_attn.in_proj_z.weight": (linear.values, hidden),
        ".linear_attn.conv1d.weight": (linear.channels, 1, linear.kernel),
        ".linear_attn.A_log": (linear.value_heads,),
        ".linear_attn.norm.weight": (linear.value_size,),
        ".linear_attn.out_proj.weight": (hidden, linear.values),
    }
