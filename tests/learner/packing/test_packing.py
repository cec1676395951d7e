"""Packed rows against Hugging Face's processors and forward pass, with one padded sequence per response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

from learner.model import pixels
from learner.model.pixels import cut_patches, read_pixel_format
from learner.model.policy import PackedPolicy, load_model, read_layout
from learner.packing.packing import PackedBatch, pack
from learner.packing.rows import Row
from tests.support.learner import IMAGE_PAD, VIDEO_PAD, cut_of, make_clip, make_group, make_prompt, make_row
from tests.support.memory import MemoryMeter
from tests.support.plain_policy import gradient, plain_logprobs, vision_arguments
from tests.support.rounding import GRADIENT, LOGPROB


@pytest.fixture(scope="module")
def policy(tiny_model_dir: Path) -> PackedPolicy:
    return PackedPolicy(load_model(tiny_model_dir, dtype="float32", attention="sdpa"))


@pytest.fixture(scope="module")
def plain_model(tiny_model_dir: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model_dir, dtype=torch.float32)


def pack_rows(policy: PackedPolicy, folder: Path, rows: Sequence[Row]) -> PackedBatch:
    return pack(rows, read_layout(policy.model, folder), dtype=torch.float32)


CASES = {
    "video": [(("video",), [7, 1, 12, 4])],
    "image": [(("image",), [3, 9])],
    "several media": [(("image", "video", "image"), [5, 2, 8])],
    "text only": [((), [6, 11, 1])],
    "one response": [(("video",), [9])],
    "rows of all kinds": [
        (("video",), [7, 3, 12, 5]),
        ((), [4, 2]),
        (("image", "image"), [10, 6, 1]),
        (("video", "video"), [2]),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_packed_rows_equal_the_plain_model(
    case: str, policy: PackedPolicy, plain_model: Qwen2_5_VLForConditionalGeneration, tiny_model_dir: Path
) -> None:
    rng = np.random.default_rng(7)
    groups = [
        make_group(rng, str(i), kinds, lengths, num_text=8 + 5 * i) for i, (kinds, lengths) in enumerate(CASES[case])
    ]
    rows = [make_row(group) for group in groups]
    batch = pack_rows(policy, tiny_model_dir, rows)
    packed, _ = policy(batch)
    plain = torch.cat([one for row in rows for one in plain_logprobs(plain_model, row, tiny_model_dir)])
    assert (packed - plain).abs().max() <= LOGPROB
    packed_gradient = gradient(policy, (packed * batch.advantages).sum())
    plain_gradient = gradient(plain_model, (plain * batch.advantages).sum())
    assert (packed_gradient - plain_gradient).norm() <= GRADIENT * plain_gradient.norm()


def test_windowed_attention_of_uneven_windows_equals_the_plain_model(bench_model_dir: Path) -> None:
    rng = np.random.default_rng(3)
    group = make_group(rng, "0", (), [5, 3])
    clips = (make_clip(rng, "video", 4, 10), make_clip(rng, "image", 1, 6))
    row = make_row(replace(group, clips=clips, prompt=make_prompt(rng, clips)))
    policy = PackedPolicy(load_model(bench_model_dir, dtype="float32", attention="sdpa"))
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(bench_model_dir, dtype=torch.float32)
    found, _ = policy(pack_rows(policy, bench_model_dir, [row]))
    expected = torch.cat(plain_logprobs(plain, row, bench_model_dir))
    assert (found - expected).abs().max() <= LOGPROB


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_recomputed_activations_and_eager_attention_give_the_same_gradient(
    attention: str, policy: PackedPolicy, tiny_model_dir: Path
) -> None:
    rng = np.random.default_rng(4)
    batch = pack_rows(policy, tiny_model_dir, [make_row(make_group(rng, str(i), ("video",), [5, 3])) for i in range(2)])
    expected = gradient(policy, policy(batch)[0].sum())
    other = PackedPolicy(load_model(tiny_model_dir, dtype="float32", attention=attention)).train()
    other.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert (gradient(other, other(batch)[0].sum()) - expected).norm() <= GRADIENT * expected.norm()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_same_logprobs(policy: PackedPolicy, tiny_model_dir: Path) -> None:
    rng = np.random.default_rng(4)
    batch = pack_rows(policy, tiny_model_dir, [make_row(make_group(rng, str(i), ("video",), [5, 3])) for i in range(2)])
    other = PackedPolicy(load_model(tiny_model_dir, dtype="float32", attention="flex_attention"))
    assert other.model.model.visual.config._attn_implementation == "sdpa"
    with torch.no_grad():  # FlexAttention has no backward pass on CPUs
        torch.testing.assert_close(other(batch)[0], policy(batch)[0], rtol=0, atol=LOGPROB)


def test_a_row_by_hand(policy: PackedPolicy, tiny_model_dir: Path) -> None:
    rng = np.random.default_rng(0)
    group = make_group(rng, "0", (), [3, 1, 2], num_text=2)
    longer = make_group(rng, "1", (), [5], num_text=3)
    batch = pack_rows(policy, tiny_model_dir, [make_row(group), make_row(longer)])
    first, second, third = (rollout.response_ids for rollout in group.rollouts)
    # prompt, two of three tokens, none of one, one of two; the last tokens are only predicted; then the next row
    assert batch.input_ids[0, :5].tolist() == [*group.prompt.prompt_ids, first[0], first[1], third[0]]
    assert batch.input_ids[0, 5:].tolist() == [*longer.prompt.prompt_ids, *longer.rollouts[0].response_ids[:4]]
    assert batch.position_ids[:, 0].tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3, 4, 5, 6]] * 3
    assert batch.hidden_index[:6].tolist() == [1, 2, 3, 1, 1, 4]
    assert batch.targets[:6].tolist() == [*first, *second, *third]
    assert batch.hidden_index[6:].tolist() == [7, 8, 9, 10, 11]
    assert batch.advantages[:6].tolist() == [1, 1, 1, 2, 3, 3]


def test_neighbours_change_nothing(policy: PackedPolicy, tiny_model_dir: Path) -> None:
    rng = np.random.default_rng(1)
    short = make_row(make_group(rng, "short", ("video",), [4, 6]))
    long = make_row(make_group(rng, "long", ("video",), [30, 30, 30]))
    alone, _ = policy(pack_rows(policy, tiny_model_dir, [short]))
    together, _ = policy(pack_rows(policy, tiny_model_dir, [long, short]))
    torch.testing.assert_close(together[90:], alone, rtol=0, atol=LOGPROB)


def test_order_of_responses_only_reorders_logprobs(policy: PackedPolicy, tiny_model_dir: Path) -> None:
    row = make_row(make_group(np.random.default_rng(2), "0", ("image",), [4, 6, 2]))
    turned = replace(row, responses=row.responses[::-1])
    parts = policy(pack_rows(policy, tiny_model_dir, [row]))[0].split([4, 6, 2])
    turned_parts = policy(pack_rows(policy, tiny_model_dir, [turned]))[0].split([2, 6, 4])
    torch.testing.assert_close(torch.cat(parts[::-1]), torch.cat(turned_parts), rtol=0, atol=LOGPROB)


def test_an_empty_pass_reaches_every_parameter_with_gradient_zero(policy: PackedPolicy, tiny_model_dir: Path) -> None:
    batch = pack_rows(policy, tiny_model_dir, [])
    assert batch.is_dummy
    policy.zero_grad()
    (0.0 * policy(batch)[0].sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in policy.parameters())


def test_a_text_only_pass_reaches_the_vision_tower(policy: PackedPolicy, tiny_model_dir: Path) -> None:
    # ranks wait for each other's gradients: all must have one for every parameter
    batch = pack_rows(policy, tiny_model_dir, [make_row(make_group(np.random.default_rng(0), "0", (), [3]))])
    policy.zero_grad()
    policy(batch)[0].sum().backward()
    assert all(p.grad is not None for p in policy.parameters())
    assert all(p.grad.abs().max() == 0 for p in policy.model.model.visual.parameters())


def test_prompt_and_clips_must_match(policy: PackedPolicy, tiny_model_dir: Path) -> None:
    row = make_row(make_group(np.random.default_rng(0), "file:3", ("video",), [3]))
    with pytest.raises(ValueError, match=r"file:3: the prompt has 24 media tokens and its 0 clips give \[\]"):
        pack_rows(policy, tiny_model_dir, [replace(row, clips=())])
    clip = row.clips[0]
    wrong = replace(row, clips=(replace(clip, frames=clip.frames[:, :, :28]),))
    with pytest.raises(ValueError, match=r"grid \(6, 4, 4\) for frames \(12, 56, 28, 3\)"):
        pack_rows(policy, tiny_model_dir, [wrong])


@pytest.mark.parametrize("kinds", [("video",), ("image",), ("video", "video")])
def test_patches_are_bit_for_bit_those_of_the_processors(kinds: tuple[str, ...], tiny_model_dir: Path) -> None:
    row = make_row(make_group(np.random.default_rng(0), "0", kinds, [1]))
    expected = vision_arguments(row, tiny_model_dir)
    found = cut_patches([clip.frames for clip in row.clips], read_pixel_format(tiny_model_dir))
    name = "pixel_values_videos" if "video" in kinds else "pixel_values"
    assert torch.equal(found, expected[name])


@pytest.mark.parametrize("kinds", [("video",), ("image",), ("video", "image", "video")])
def test_patches_of_frames_of_one_size_are_bit_for_bit_those_of_the_processors(
    kinds: tuple[str, ...], internvl_dirs: Mapping[str, Path]
) -> None:
    folder = internvl_dirs["tiny"]
    row = make_row(make_group(np.random.default_rng(0), "0", kinds, [1], cut=cut_of(folder)))
    frames = vision_arguments(row, folder)["pixel_values"]
    found = cut_patches([clip.frames for clip in row.clips], read_pixel_format(folder))
    blocks = found.view(-1, 2, 2, 2, 2, 3, 14, 14)  # frames, merged rows and columns, rows and columns in them
    assert torch.equal(blocks.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(-1, 3, 56, 56), frames)
    with pytest.raises(ValueError, match="frames are 28x56; the model reads only 56x56"):
        cut_patches([row.clips[0].frames[:, :28]], read_pixel_format(folder))


@pytest.mark.parametrize("piece_bytes", [1, 40_000, 200_000])
def test_clips_are_cut_into_the_same_patches_in_pieces_of_any_size(
    piece_bytes: int, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame here has 9,408 bytes: pieces are of one temporal patch, of two or of ten, or have several clips."""
    rng = np.random.default_rng(1)
    kinds = (("video", 12), ("image", 1), ("image", 1), ("video", 7), ("video", 30))
    clips = [make_clip(rng, kind, num_frames).frames for kind, num_frames in kinds]
    form = read_pixel_format(tiny_model_dir)
    whole = torch.cat([cut_patches([frames], form) for frames in clips])
    monkeypatch.setattr(pixels, "PIECE_BYTES", piece_bytes)
    assert torch.equal(cut_patches(clips, form), whole)
    assert torch.equal(cut_patches(clips, form, dtype=torch.bfloat16), whole.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_holds_one_copy_of_the_pixels(
    policy: PackedPolicy, tiny_model_dir: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a piece there are its bytes, and its numbers in float32, four times the bytes."""
    monkeypatch.setattr(pixels, "PIECE_BYTES", 1 << 16)
    rng = np.random.default_rng(0)
    clips = tuple(make_clip(rng, "video", num_frames) for num_frames in (200, 300))
    row = replace(make_row(make_group(rng, "0", (), [5, 7])), prompt=make_prompt(rng, clips), clips=clips)
    with MemoryMeter() as meter:
        batch = pack([row], read_layout(policy.model, tiny_model_dir), dtype=dtype)
    # one piece more, because the bytes of the one before go when the next are there; the rest are ids and positions
    assert batch.patches.nbytes <= meter.peak < batch.patches.nbytes + 6 * (1 << 16) + (1 << 17)


def test_pixel_format_of_the_published_layout(tmp_path: Path, tiny_model_dir: Path) -> None:
    Qwen2VLImageProcessor.from_pretrained(tiny_model_dir).to_json_file(tmp_path / "preprocessor_config.json")
    assert read_pixel_format(tmp_path) == read_pixel_format(tiny_model_dir)


def test_a_folder_without_processor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no processor_config.json or preprocessor_config.json"):
        read_pixel_format(tmp_path)


def test_media_ids_are_those_of_the_tiny_tokenizer(policy: PackedPolicy, tiny_model_dir: Path) -> None:
    layout = read_layout(policy.model, tiny_model_dir)
    assert (layout.image_token_id, layout.video_token_id) == (IMAGE_PAD, VIDEO_PAD)
