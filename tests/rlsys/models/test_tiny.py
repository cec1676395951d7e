from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from rlsys.models.tiny import CORNERS, SPECIAL_TOKENS, TAGS, make_tiny, make_tokenizer
from tests.support.learner import cut_of
from tests.support.mounts import run_with_mounts
from tests.support.paths import REPO


def fingerprint(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.stack
def test_the_same_seed_writes_the_same_bytes_in_another_process(tiny_model_dir: Path, tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from rlsys.models.tiny import make_tiny; make_tiny(Path({str(tmp_path)!r}), seed=0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, capture_output=True)
    assert fingerprint(tmp_path) == fingerprint(tiny_model_dir)


def test_another_seed_changes_the_weights_and_nothing_else(tiny_model_dir: Path, tmp_path: Path) -> None:
    make_tiny(tmp_path, seed=1)
    before, after = fingerprint(tiny_model_dir), fingerprint(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]


def test_making_a_model_leaves_torchs_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    make_tiny(tmp_path, seed=0)
    assert torch.equal(torch.rand(3), expected)


SIZES = {
    ("qwen2_5_vl", "tiny"): 708_864,
    ("qwen2_5_vl", "bench"): 1_554_752,
    ("qwen2_vl", "tiny"): 700_736,
    ("qwen2_vl", "bench"): 1_538_432,
    ("qwen3_vl", "tiny"): 1_091_008,
    ("qwen3_vl", "bench"): 2_076_800,
    ("qwen3_vl_moe", "tiny"): 1_534_912,
    ("qwen3_vl_moe", "bench"): 2_743_424,
    ("internvl", "tiny"): 713_280,
    ("internvl", "bench"): 1_571_200,
    ("qwen3_5", "tiny"): 1_247_648,
    ("qwen3_5", "bench"): 2_512_992,
}


@pytest.mark.parametrize("size", ["tiny", "bench"])
def test_the_checkpoint_loads_with_a_tied_head_and_answers_a_video(family_dirs: Mapping[str, Path], size: str) -> None:
    folder = family_dirs[size]
    model = AutoModelForImageTextToText.from_pretrained(folder)
    num_parameters = SIZES[model.config.model_type, size]
    processor = AutoProcessor.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.lm_head.weight.shape[0] == len(processor.tokenizer) == 384
    assert model.dtype == torch.float32
    cut = cut_of(folder)
    side = 4 * cut.patch.px
    frames = np.random.default_rng(0).integers(0, 256, (12, side, side, 3), dtype=np.uint8)
    turn = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When does the red square move?"}]}
    ]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    metadata = {"fps": 2.0, "total_num_frames": 12, "frames_indices": list(range(12))}
    inputs = processor(text=[text], videos=[frames], video_metadata=[metadata], return_tensors="pt")
    # frames of four patches are not enlarged, and one that is a temporal patch has four tokens
    if cut.patch.side_px:
        assert inputs["pixel_values"].shape == (12, 3, 56, 56)
        assert (inputs["input_ids"] == processor.image_token_id).sum() == 48
    else:
        assert inputs["video_grid_thw"].tolist() == [[6, 4, 4]]
        assert (inputs["input_ids"] == processor.video_token_id).sum() == 24
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (1, inputs["input_ids"].shape[1], 384)
    assert torch.isfinite(logits).all()


def test_weights_start_out_with_the_recipes_spread(tiny_model_dir: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model_dir)
    spreads = {name: p.std().item() for name, p in model.named_parameters() if p.ndim > 1}
    assert all(0.075 < spread < 0.085 for spread in spreads.values()), spreads


def test_tokens_are_single_digits_whole_words_of_the_demo_and_the_tags(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    answer = "<think>red square</think><answer>1.5 to 3.0</answer>"
    ids = tokenizer(answer)["input_ids"]
    assert [tokenizer.decode([token]) for token in ids] == [
        *("<think>", "red", " square", "</think>"),
        *("<answer>", "1", ".", "5", " to", " ", "3", ".", "0", "</answer>"),
    ]
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == answer
    assert not set(TAGS) & set(tokenizer.all_special_tokens)
    assert set(SPECIAL_TOKENS) == set(tokenizer.all_special_tokens)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_grounding_tokenizer_is_the_one_that_the_published_demo_was_trained_with(tiny_model_dir: Path) -> None:
    digest = hashlib.sha256((tiny_model_dir / "tokenizer.json").read_bytes()).hexdigest()
    assert digest == "0ec2cb3bf5650d35185a548ac045d1712c979ecf071b43b959b2c1e0ddbb8fb5"


@pytest.mark.parametrize(
    "tokens",
    [
        "Which| colour| appears|,| and| when|?|\n|(A)| red|\n|(B)| green|\n|(C)| blue|\n|(D)| yellow",
        "<think>|blue|</think>|<answer>|(C)|</answer>|<glue>|[(|1|.|0|,| |2|.|5|)]|</glue>",
        "<answer>|Something| yellow| moves|.| |Something| blue| appears|.|</answer>",
        "[|[0.05|,0.30|,0.40|,0.65|],[0.00|,1.00|,0.95|,0.10|]]",
        "Where| is| the| green| circle|?| |[|0|.|0|3|,| |0|.|6|]",
    ],
)
def test_the_mixtures_words_letters_and_corners_are_tokens(tokens: str) -> None:
    text = tokens.replace("|", "")
    ids = _TOKENIZERS["all"](text)["input_ids"]
    assert [_TOKENIZERS["all"].decode([token]) for token in ids] == tokens.split("|")
    assert _TOKENIZERS["all"].decode(ids, skip_special_tokens=True) == text


def test_a_model_with_words_for_all_tasks_differs_in_its_embeddings_alone(tmp_path: Path) -> None:
    make_tiny(tmp_path, seed=0, words="all")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == model.lm_head.weight.shape[0] == 448
    assert sum(parameter.numel() for parameter in model.parameters()) == 708_864 + (448 - 384) * 128
    assert len(set(CORNERS)) == 3 * 21


@settings(deadline=None, max_examples=50)
@given(st.text(), st.sampled_from(["grounding", "all"]))
def test_any_text_survives_the_tokenizer(text: str, words: str) -> None:
    import unicodedata

    assert _TOKENIZERS[words].decode(_TOKENIZERS[words](text)["input_ids"]) == unicodedata.normalize("NFC", text)


_TOKENIZERS = {"grounding": make_tokenizer(), "all": make_tokenizer("all")}


MADE = """
import os, sys
from pathlib import Path
from rlsys.models.tiny import make_tiny
try:
    make_tiny(Path(sys.argv[1]) / "tiny", seed=0)
except OSError as error:
    print(error.strerror, error.filename.startswith(sys.argv[1]), os.listdir(sys.argv[1]))
"""


@pytest.mark.parametrize("disk", ["size=64k", "size=1m", "nr_inodes=4", "nr_inodes=7"])
def test_a_disk_that_takes_no_model_is_an_error_of_the_disk_and_nothing_is_left(disk: str, tmp_path: Path) -> None:
    done = run_with_mounts({tmp_path: disk}, [sys.executable, "-c", MADE, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "No space left on device True []"
