from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.prompts import vllm_prompt
from actors.requests import GroupRequest
from rlsys.models.chat import ChatTokenizer
from rlsys.models.families.table import FAMILIES
from rlsys.models.model_config import ModelFolderError, patch_shape, read_model_config
from rlsys.models.prompts import PromptBuilder, PromptContractError, PromptTooLong, check_contract
from rlsys.types import (
    DEFAULT_PATCH,
    ClipInfo,
    ImageSpec,
    MediaSpec,
    PatchShape,
    Prompt,
    PromptItem,
    Sampling,
    VideoSpec,
)
from tests.support.pace import patience
from tests.support.paths import REPO

# the wording that published Qwen2-VL and Qwen2.5-VL checkpoints carry
PUBLISHED_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PUBLISHED_TEMPLATE_OF_FRAMES = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
FPS = (0.5, 1.0, 2.0, 3.3, 3.5, 4.28, 8.0)


def medium(kind: str, frames: int, height: int, width: int, fps: float, **more: Any) -> dict[str, Any]:
    """Return a medium with sides for patches of 14 pixels. more: `times_s` and `start_s` if its frames are uneven."""
    return {"kind": kind, "frames": frames, "height": height, "width": width, "fps": fps, **more}


def cut_for(patch: PatchShape, shown: dict[str, Any]) -> dict[str, Any]:
    """Return the medium with as many patches of another size, or in the only size."""
    if patch.side_px:
        return {**shown, "height": patch.side_px, "width": patch.side_px}
    return {**shown, "height": shown["height"] // 14 * patch.px, "width": shown["width"] // 14 * patch.px}


PADS_OF_FRAMES = {"video": "<video>", "image": "<IMG_CONTEXT>"}
UNEVEN = [0.0, 0.04, 0.05, 7.96, 7.97, 9.949, 9.951, 3599.98, 3600.1, 36000.04]
VIDEOS = [[medium("video", 24, 56, 56, fps)] for fps in FPS]
MIXES = [
    [medium("video", 10, 56, 28, 2.0, times_s=UNEVEN)],
    [medium("video", 4, 56, 28, 2.0, times_s=[9.7, 10.4, 11.0, 11.5], start_s=10.0)],
    [],
    [medium("image", 1, 56, 84, 0)],
    [medium("image", 1, 56, 84, 0), medium("image", 1, 28, 28, 0), medium("image", 1, 112, 56, 0)],
    [medium("image", 1, 84, 56, 0), medium("video", 8, 56, 112, 3.3)],
    [medium("video", 4, 28, 56, 1.0), medium("image", 1, 56, 56, 0), medium("video", 24, 56, 28, 7.5)],
]


def media_spec(kind: str) -> MediaSpec:
    if kind == "image":
        return ImageSpec(uri="a.png", min_pixels=784, max_pixels=784)
    return VideoSpec(
        uri="a.mp4", fps=2.0, min_frames=4, max_frames=24, min_pixels=784, max_pixels=784, total_pixels=1 << 20
    )


def item_with(*kinds: str, question: str = "When does the red square appear?") -> PromptItem:
    return PromptItem(
        prompt_id="train:3",
        task="temporal_grounding",
        question=question,
        options=(),
        media=tuple(media_spec(kind) for kind in kinds),
        truth=[1.0, 2.0],
        style="terse",
    )


def clip_info(shown: dict[str, Any], patch: PatchShape = DEFAULT_PATCH) -> ClipInfo:
    is_video = shown["kind"] == "video"
    times_s = np.array(shown.get("times_s", np.arange(shown["frames"]) / (shown["fps"] or 1.0)))
    return ClipInfo(
        kind=shown["kind"],
        digest="0",
        times_s=times_s,
        grid_thw=(
            shown["frames"] // patch.frames if is_video else 1,
            shown["height"] // patch.px,
            shown["width"] // patch.px,
        ),
        second_per_grid_s=patch.frames / shown["fps"] if is_video else 0.0,
        duration_s=0.0,
        num_bytes=0,
        start_s=shown.get("start_s", 0.0),
    )


def asked_of_vllm(shown: dict[str, Any], info: ClipInfo, *, tells_seconds: bool) -> dict[str, Any]:
    """Return the medium with the metadata that the actors send with its frames."""
    if info.kind == "image":
        return shown
    sampling = Sampling(num_samples=1, temperature=1.0, top_p=1.0, max_tokens=1, seed=0)
    request = GroupRequest(prompt_id="", engine_ids=np.zeros(1), num_tokens=1, clips=(info,), sampling=sampling)
    prompt = vllm_prompt(request, [np.empty((shown["frames"], 1))], tells_seconds=tells_seconds)
    [(_, metadata)] = prompt["multi_modal_data"]["video"]
    return {**shown, "metadata": metadata}


def builder_for(folder: Path, **changes: Any) -> PromptBuilder:
    settings = {"max_model_len": 512, "max_tokens": 24, "dtype": "float32"}
    return PromptBuilder(folder, **{**settings, **changes})


@pytest.fixture(scope="module")
def builder(tiny_model_dir: Path) -> PromptBuilder:
    return builder_for(tiny_model_dir)


def write_published(model: Path, folder: Path) -> Path:
    """Write a tiny model as published checkpoints are: with chat_template.json and old processor files."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PUBLISHED_TEMPLATE}))
    (folder / "processor_config.json").unlink()
    family, patch = read_model_config(folder).family, patch_shape(folder)
    if patch.side_px:
        return write_published_of_one_size(folder)
    token = (2 * patch.px) ** 2
    processor = {
        "size": {"shortest_edge": 4 * token, "longest_edge": 16384 * token},
        "patch_size": patch.px,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": family.processor,
        **{name: value for name, value in family.tiny_processing.images.items() if name != "size"},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    # enlarges small frames and samples again unless it is told not to
    video_processor = {**processor, "size": {"shortest_edge": 128 * token, "longest_edge": 768 * token}}
    video_processor |= {"do_sample_frames": True, "video_processor_type": family.video_processor}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video_processor))
    return folder


def write_published_of_one_size(folder: Path) -> Path:
    """Write the rest of a published InternVL: an image is cut into tiles unless that is turned off."""
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(PUBLISHED_TEMPLATE_OF_FRAMES)
    config = json.loads((folder / "config.json").read_text())
    del config["video_token_id"]  # the tokenizer alone has it
    (folder / "config.json").write_text(json.dumps(config))
    both = {"image_seq_length": 4, "processor_class": "InternVLProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(both))
    settings = read_model_config(folder).family.tiny_processing
    image = {**settings.images, "crop_to_patches": True, "image_processor_type": "GotOcr2ImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps({**image, **both}))
    video = {**settings.videos, "do_sample_frames": True, "video_processor_type": "InternVLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps({**video, **both}))
    return folder


@pytest.fixture(scope="module")
def published_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tiny_model_dir, tmp_path_factory.mktemp("published") / "model")


@pytest.fixture(scope="module")
def published_dirs_by_family(
    tiny_dirs_by_family: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    return {
        family: write_published(model, tmp_path_factory.mktemp("published") / "model")
        for family, model in tiny_dirs_by_family.items()
    }


@pytest.fixture(scope="module", params=FAMILIES)
def published_family_dir(request: pytest.FixtureRequest, published_dirs_by_family: Mapping[str, Path]) -> Path:
    return published_dirs_by_family[request.param]


def built(folder: Path, dtype: str, media: list[dict[str, Any]]) -> tuple[Prompt, list[ClipInfo]]:
    """Return the prompt of media that are cut for the model's patches, and their descriptions."""
    patch = patch_shape(folder)
    infos = [clip_info(cut_for(patch, one), patch) for one in media]
    prompt = builder_for(folder, dtype=dtype, max_model_len=1024).build(item_with(*(m["kind"] for m in media)), infos)
    return prompt, infos


CASES = [(dtype, media) for dtype in ("float32", "bfloat16") for media in (*VIDEOS, *MIXES)]


def asked_of_model(folder: Path) -> dict[str, Any]:
    prompts, family = [], read_model_config(folder).family
    for dtype, media in CASES:
        prompt, infos = built(folder, dtype, media)
        cut = [cut_for(patch_shape(folder), one) for one in media]
        sent = [
            asked_of_vllm(one, info, tells_seconds=family.tells_seconds) for one, info in zip(cut, infos, strict=True)
        ]
        prompts.append({"dtype": dtype, "engine_ids": prompt.engine_ids.tolist(), "media": sent})
    # vLLM computes linear attention on CPU in bfloat16 only
    generate = "bfloat16" if read_model_config(folder).linear else "float32"
    return {"model": str(folder), "prompts": prompts, "generate": generate, "unchanged": dict(family.unchanged)}


@pytest.fixture(scope="module")
def vllm_by_model(published_dirs_by_family: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Run vLLM on every case of every model in one process; it also generates from each first prompt."""
    folders = list(published_dirs_by_family.values())
    script = REPO / "tests" / "support" / "vllm_prompt_probe.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps([asked_of_model(folder) for folder in folders]),
        capture_output=True,
        text=True,
        timeout=patience(400.0),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(map(str, folders), answers, strict=True))


@pytest.fixture(scope="module")
def vllm_says(vllm_by_model: dict[str, dict[str, Any]], published_family_dir: Path) -> dict[str, Any]:
    return vllm_by_model[str(published_family_dir)]


@pytest.mark.parametrize("index", range(len(CASES)))
def test_ids_and_positions_equal_vllms(published_family_dir: Path, vllm_says: dict[str, Any], index: int) -> None:
    dtype, media = CASES[index]
    prompt, _ = built(published_family_dir, dtype, media)
    theirs = vllm_says["prompts"][index]
    assert prompt.prompt_ids.tolist() == theirs["prompt_ids"]
    np.testing.assert_array_equal(prompt.position_ids, theirs["position_ids"])
    assert prompt.next_position == theirs["next_position"]


def test_the_engine_reports_the_prompt_that_was_built_and_generates(
    published_family_dir: Path, vllm_says: dict[str, Any]
) -> None:
    made = builder_for(published_family_dir)
    prompt, _ = built(published_family_dir, "float32", VIDEOS[0])
    reported, *samples = vllm_says["generated"]
    check_contract(prompt, np.asarray(reported), made.decode)
    assert [len(sample) for sample in samples] == [8, 8]


def test_a_time_stamp_before_each_temporal_patch_is_the_mean_time_of_its_frames(
    qwen3_vl_dirs: Mapping[str, Path],
) -> None:
    folder = qwen3_vl_dirs["tiny"]
    shown = medium("video", 4, 28, 56, 2.0, times_s=[9.7, 10.4, 11.0, 11.5], start_s=10.0)
    prompt, _ = built(folder, "float32", [shown])
    made = builder_for(folder)
    # the first frame was on display when the part began, at 10 s: 0 and 0.4 s; then 1.0 and 1.5 s, whose mean is 1.25
    patch = "<|vision_start|>" + 2 * "<|video_pad|>" + "<|vision_end|>"
    assert made.decode(prompt.prompt_ids).startswith(
        f"<|im_start|>user\n<|vision_start|><0.2 seconds>{patch}<1.2 seconds>{patch}<|vision_end|>When does"
    )
    # 1 x 2 tokens: the time axis stands still, the other axes move on by 0..0 and 0..1, and text follows at +2
    first = int(np.argmax(prompt.prompt_ids == read_model_config(folder).video_token_id))
    start = int(prompt.position_ids[0, first - 1]) + 1
    assert prompt.position_ids[:, first : first + 3].T.tolist() == [
        [start] * 3,
        [start, start, start + 1],
        [start + 2] * 3,
    ]
    counted = made.count_tokens(item_with("video"), [(2, 2, 4)])
    assert counted.visual == 4
    # counted with stamps of 99999.9, which have four characters more than 0.2 and 1.2
    assert counted.total - 24 - prompt.prompt_ids.size == 2 * 4


def test_frames_are_numbered_and_an_image_is_one_tile(internvl_dirs: Mapping[str, Path]) -> None:
    folder = internvl_dirs["tiny"]
    media = [medium("video", 2, 56, 56, 2.0), medium("image", 1, 56, 56, 0)]
    prompt, infos = built(folder, "float32", media)
    made, tokens = builder_for(folder), {kind: f"<img>{4 * pad}</img>" for kind, pad in PADS_OF_FRAMES.items()}
    assert made.decode(prompt.prompt_ids).startswith(
        f"<|im_start|>user\nFrame1: {tokens['video']}\nFrame2: {tokens['video']}\n{tokens['image']}\nWhen does"
    )
    # positions are the tokens' numbers
    assert prompt.position_ids.tolist() == [list(range(prompt.prompt_ids.size))] * 3
    assert prompt.next_position == prompt.prompt_ids.size
    counted = made.count_tokens(item_with("video", "image"), [info.grid_thw for info in infos])
    assert (counted.visual, counted.total - 24) == (12, prompt.prompt_ids.size)
    # numbers of two digits are a token longer
    longer = made.count_tokens(item_with("video"), [(100, 4, 4)])
    digits, of_frame = 9 + 2 * 90 + 3, counted_frame_tokens(made)
    shortest = made.count_tokens(item_with("video"), [(1, 4, 4)])
    assert longer.text - shortest.text == 99 * of_frame + digits - 100


def counted_frame_tokens(made: PromptBuilder) -> int:
    """Return the text tokens of a frame behind the first, whose number has one digit."""
    one, two = (made.count_tokens(item_with("video"), [(time, 4, 4)]).text for time in (1, 2))
    return two - one


def test_bfloat16_truncates_some_time_steps_differently(tiny_model_dir: Path) -> None:
    # at 3.5 fps a grid is 4/7 s, in bfloat16 146/256 s: the eighth stands at 8 or at int(7 * 2 * 146/256) = 7
    info = clip_info(medium("video", 16, 56, 56, 3.5))
    for dtype, last in (("float32", 8), ("bfloat16", 7)):
        prompt = builder_for(tiny_model_dir, dtype=dtype).build(item_with("video"), [info])
        assert prompt.position_ids[0, 4:36].max() - prompt.position_ids[0, 4] == last
        assert prompt.position_ids[0, 36] == 4 + last + 1


def test_the_demo_prompt_is_41_tokens_of_which_24_are_visual(builder: PromptBuilder) -> None:
    prompt = builder.build(item_with("video"), [clip_info(medium("video", 12, 56, 56, 2.0))])
    assert (prompt.engine_ids.size, prompt.prompt_ids.size, prompt.position_ids.shape) == (18, 41, (3, 41))
    assert {array.dtype for array in (prompt.engine_ids, prompt.prompt_ids, prompt.position_ids)} == {
        np.dtype(np.int32)
    }
    assert builder.decode(prompt.engine_ids) == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>When does the red square appear?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("layout", ["tiny_model_dir", "published_dir"])
@pytest.mark.parametrize("kinds", [(), ("video",), ("image", "image", "video")])
def test_the_user_turn_equals_what_transformers_renders_and_encodes(
    request: pytest.FixtureRequest, layout: str, kinds: tuple[str, ...]
) -> None:
    from transformers import AutoProcessor

    folder = request.getfixturevalue(layout)
    processor = AutoProcessor.from_pretrained(folder)
    text = "Wo ist die Tür?\n  <think> 12.5 “quoted” ☃"
    content = [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    chat = ChatTokenizer(folder)
    assert chat.user_turn(kinds, text) == theirs
    assert chat.encode(theirs).tolist() == processor.tokenizer(theirs, add_special_tokens=False)["input_ids"]
    assert chat.end_token_id == processor.tokenizer.eos_token_id


def test_a_response_ends_with_the_end_token_and_reads_back(builder: PromptBuilder) -> None:
    text = "<think>red square</think><answer>1.5 to 3.0</answer>"
    ids = builder.encode_response(text)
    assert (ids.size, ids.dtype, ids[-1]) == (15, np.int32, builder.end_token_id)
    assert builder.decode(ids) == text + "<|im_end|>"


def test_every_vision_token_is_banned_and_the_end_token_is_not(builder: PromptBuilder) -> None:
    banned = [builder.decode([token]) for token in builder.banned_token_ids]
    assert sorted(banned) == sorted(
        ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    )
    assert builder.end_token_id not in builder.banned_token_ids


def test_a_prompt_over_budget_is_refused_with_the_arithmetic(tiny_model_dir: Path) -> None:
    small = builder_for(tiny_model_dir, max_model_len=64)
    with pytest.raises(PromptTooLong) as error:
        small.build(item_with("video"), [clip_info(medium("video", 12, 56, 56, 2.0))])
    message = str(error.value)
    assert "train:3: 17 text + 24 visual (video: 6x4x4 patches / 4) + 24 response = 65 tokens" in message
    assert "> model.max_model_len=64" in message
    assert "raise model.max_model_len to 65" in message


def test_a_prompt_that_just_fits_is_built(tiny_model_dir: Path) -> None:
    exact = builder_for(tiny_model_dir, max_model_len=65)
    assert exact.build(item_with("video"), [clip_info(medium("video", 12, 56, 56, 2.0))]).prompt_ids.size == 41
    assert exact.count_tokens(item_with("video"), [(6, 4, 4)]).total == 65


def test_a_placeholder_in_the_question_is_refused(builder: PromptBuilder) -> None:
    with pytest.raises(ValueError, match="take it out"):
        builder.build(item_with("video", question="What is <|video_pad|>?"), [clip_info(VIDEOS[0][0])])


def test_clips_of_another_kind_than_the_items_media_are_refused(builder: PromptBuilder) -> None:
    with pytest.raises(ValueError, match=r"media are \['image'\], clips are \['video'\]"):
        builder.build(item_with("image"), [clip_info(VIDEOS[0][0])])


def test_a_broken_contract_shows_where_the_prompts_differ(builder: PromptBuilder) -> None:
    prompt = builder.build(item_with("video"), [clip_info(medium("video", 12, 56, 56, 2.0))])
    resized = builder.build(item_with("video"), [clip_info(medium("video", 12, 56, 28, 2.0))])
    with pytest.raises(PromptContractError) as error:
        check_contract(prompt, resized.prompt_ids, builder.decode)
    message = str(error.value)
    assert "differ from token 16 on (lengths: built 41, engine 29)" in message
    assert "'<|vision_start|>' '<|video_pad|>' x12 >>'<|video_pad|>'<< '<|video_pad|>' x11 '<|vision_end|>'" in message
    assert "'<|video_pad|>' x12 >>'<|vision_end|>'<< 'When' ' does'" in message
    assert "'<|video_pad|>': 24 built, 12 engine" in message
    assert "do_resize" in message


def test_a_prompt_that_only_stops_early_breaks_the_contract_too(builder: PromptBuilder) -> None:
    prompt = builder.build(item_with("video"), [clip_info(medium("video", 12, 56, 56, 0.5))])
    with pytest.raises(PromptContractError, match=r"differ from token 39 on \(lengths: built 41, engine 39\)"):
        check_contract(prompt, prompt.prompt_ids[:-2], builder.decode)
    check_contract(replace(prompt, engine_ids=prompt.engine_ids[:1]), prompt.prompt_ids.copy(), builder.decode)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_checkpoint_without_one_of_its_files_is_named(tiny_model_dir: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=name):
        builder_for(folder)


def test_another_architecture_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava_next_video"}))
    with pytest.raises(ModelFolderError) as error:
        builder_for(folder)
    assert str(error.value) == (
        f"{folder}/config.json: model_type='llava_next_video' is no supported model family; supported are qwen2_5_vl "
        "(Qwen2.5-VL), qwen2_vl (Qwen2-VL), qwen3_vl (Qwen3-VL), qwen3_vl_moe (Qwen3-VL MoE), internvl (InternVL3.5), "
        "qwen3_5 (Qwen3.5) "
        "(`rlsys models` shows what each can do)."
    )


def test_building_prompts_loads_neither_torch_nor_transformers(tiny_model_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rlsys.models.prompts import PromptBuilder;"
        f"PromptBuilder(Path({str(tiny_model_dir)!r}), max_model_len=99, max_tokens=9,"
        " dtype='float32');"
        "sys.exit(str([name for name in ('torch', 'transformers', 'vllm', 'ray') if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def told(item: PromptItem, *texts: str, note: str = "") -> PromptItem:
    return replace(item, media_texts=texts, note=note)


def test_texts_stand_immediately_before_their_media_and_the_note_behind_them(builder: PromptBuilder) -> None:
    item = told(item_with("video", "video"), "0.0 to 4.0:", "4.0 to 8.0:", note="4.0 to 8.0 seconds")
    prompt = builder.build(item, [clip_info(medium("video", 2, 28, 28, 0.5)), clip_info(medium("video", 4, 28, 28, 1))])
    assert builder.decode(prompt.engine_ids) == (
        "<|im_start|>user\n0.0 to 4.0:<|vision_start|><|video_pad|><|vision_end|>4.0 to 8.0:<|vision_start|>"
        "<|video_pad|><|vision_end|>4.0 to 8.0 seconds\nWhen does the red square appear?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    plain = builder.count_tokens(item_with("video", "video"), [(1, 2, 2), (2, 2, 2)])
    assert builder.count_tokens(item, [(1, 2, 2), (2, 2, 2)]).text > plain.text


def test_texts_and_media_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="1 texts before 2 media"):
        told(item_with("video", "video"), "0.0 to 4.0:")


def test_positions_of_a_resampled_clip_equal_a_table_computed_by_hand(builder: PromptBuilder) -> None:
    """Segments of 2 frames at 0.5/s, 4 at 2/s and 2 at 0.5/s. A grid is 2 frames, and a second is 2 positions."""
    item = told(item_with("video", "video", "video"), "a", "b", "c")
    frames_and_rates = [(2, 0.5), (4, 2.0), (2, 0.5)]
    prompt = builder.build(item, [clip_info(medium("video", frames, 28, 56, fps)) for frames, fps in frames_and_rates])
    is_pad = np.array([builder.decode([token]) == "<|video_pad|>" for token in prompt.prompt_ids])
    runs = np.split(prompt.position_ids[:, is_pad], [2, 6], axis=1)
    starts = [int(run[0, 0]) for run in runs]
    # within a segment time advances by seconds per grid x 2, and width by one for each of two merged patches
    assert (runs[0] - starts[0]).tolist() == [[0, 0], [0, 0], [0, 1]]
    assert (runs[1] - starts[1]).tolist() == [[0, 0, 2, 2], [0, 0, 0, 0], [0, 1, 0, 1]]
    assert (runs[2] - starts[2]).tolist() == [[0, 0], [0, 0], [0, 1]]
    # text goes on behind the largest position: <|vision_end|>, the period and <|vision_start|> lie between two segments
    between = [int(is_pad.nonzero()[0][k]) for k in (1, 2, 5, 6)]
    assert starts[1] - (starts[0] + 1) == between[1] - between[0]
    assert starts[2] - (starts[1] + 2) == between[3] - between[2]
