"""Published figures to print beside ours, with their settings. All are fractions, not per cent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlsys.evaluation.protocols.protocol import Published, Setting

_VIDEOCHAT = "VideoChat-R1, arXiv:2504.06958"
_RGPT = "4D-RGPT, supplement"

# what the paper leaves open is filled in from the authors' evaluation scripts, and says so
_CODE = Setting(
    frames="2 per second, 4 to 768 (authors' script)",
    pixels="3584·28² per video, at least 16·28² per frame (authors' script; the paper: fixed)",
    prompt="authors' template, answer only",
    decoding="defaults of the model's generation config, at most 2,048 tokens (authors' script)",
)
_THINKING = replace(_CODE, prompt="authors' template, <think> and <answer>")
_EIGHT_FRAMES = replace(_CODE, frames="8 (the authors' script takes 7)")
_UNSTATED = Setting()
# the authors published no script for the general benchmarks
_GENERAL = Setting(pixels="fixed, number not stated")
_GENERAL_THINKING = replace(_GENERAL, prompt="with <think>")

BASE, SFT = "Qwen2.5-VL-7B", "Qwen2.5-VL-7B + SFT"
R1, R1_THINKING = "VideoChat-R1", "VideoChat-R1-thinking"


def _figures(source: str, metrics: Sequence[str], rows: Mapping[str, tuple[Setting, str]]) -> tuple[Published, ...]:
    """Return the figures of a table. rows: model -> (setting, per cent in the order of `metrics`, "-" for none)."""
    return tuple(
        Published(model=model, metric=metric, value=round(float(number) / 100, 6), setting=setting, source=source)
        for model, (setting, line) in rows.items()
        for metric, number in zip(metrics, line.split(), strict=True)
        if number != "-"
    )


def _videochat(
    table: str, metrics: str, rows: Mapping[str, str], plain: Setting = _CODE, thinking: Setting = _THINKING
) -> tuple[Published, ...]:
    lines = {model: (thinking if model == R1_THINKING else plain, line) for model, line in rows.items()}
    return _figures(f"{_VIDEOCHAT}, {table}", metrics.split(), lines)


CHARADES_STA = _videochat(
    "tables 1 and 2",
    "miou r_at_0.3 r_at_0.5 r_at_0.7",
    {BASE: "29.0 44.7 24.2 11.1", SFT: "46.3 63.9 45.0 25.3", R1: "60.8 - 71.7 50.2", R1_THINKING: "59.9 - 70.6 47.2"},
)
ACTIVITYNET = _videochat(
    "tables 1 and 2",
    "miou r_at_0.3 r_at_0.5 r_at_0.7",
    {BASE: "21.1 28.3 15.8 7.5", SFT: "20.6 30.2 16.7 7.9", R1: "36.6 - 33.4 17.7", R1_THINKING: "35.5 - 33.3 16.7"},
)
NEXTGQA = _videochat(
    "table 1",
    "miou accuracy",
    {BASE: "15.4 59.5", SFT: "28.2 64.8", R1: "32.4 70.6", R1_THINKING: "36.1 69.2"},
)
GOT10K = tuple(
    replace(one, setting=replace(one.setting, frames=_EIGHT_FRAMES.frames))
    for one in _videochat(
        "tables 1 and 3",
        "overlap r_at_0.5 r_at_0.7",
        {BASE: "12.6 1.1 0", SFT: "41.8 29.5 3.9", R1: "43.8 38.2 -", R1_THINKING: "43.3 33.9 -"},
    )
)
VIDEOMME = _videochat(
    "table 1, without subtitles",
    "accuracy/short",
    {BASE: "71.3", R1: "72.2", R1_THINKING: "74.2"},
    _GENERAL,
    _GENERAL_THINKING,
)
MVBENCH = _videochat(
    "table 1", "accuracy", {BASE: "66.9", R1: "67.9", R1_THINKING: "66.2"}, _GENERAL, _GENERAL_THINKING
)
PERCEPTION_TEST = _videochat(
    "table 1", "accuracy", {BASE: "69.1", R1: "70.0", R1_THINKING: "69.6"}, _GENERAL, _GENERAL_THINKING
)
DREAM1K = _figures(
    f"{_VIDEOCHAT}, table 5",
    ("f1", "precision", "recall"),
    {
        "Qwen2-VL-7B": (_UNSTATED, "30.6 33.8 27.9"),
        "Qwen2-VL-7B + SFT": (_UNSTATED, "31.4 32.6 30.2"),
        "Qwen2-VL-7B + GRPO": (_UNSTATED, "38.2 45.4 33.1"),
    },
)
VIDTAB = _videochat("table 5", "accuracy", {BASE: "70.7", SFT: "71.7", "Qwen2.5-VL-7B + GRPO": "72.6"})

_R4D_COLUMNS = "accuracy accuracy/static accuracy/dynamic " + " ".join(
    f"accuracy/{name}" for name in ["VG", "DM", "SR", "R", "C", "T", "FP", "SA", "DP"]
)
_16_FRAMES = Setting(frames="16")
R4D_BENCH = _figures(
    f"{_RGPT}, table A2",
    _R4D_COLUMNS.split(),
    {
        "NVILA-Lite-8B": (_16_FRAMES, "37.9 29.1 41.3 33.9 20.2 46.3 41.5 39.6 41.9 40.7 45.9 32.1"),
        "4D-RGPT-8B": (_16_FRAMES, "42.2 32.9 45.7 35.1 26.3 52.2 43.1 40.1 48.7 40.2 50.9 38.9"),
        "NVILA-Lite-15B": (_16_FRAMES, "39.7 31.7 42.7 36.5 26.8 31.7 50.9 34.0 46.4 34.8 37.8 21.4"),
        "4D-RGPT-15B": (_16_FRAMES, "43.0 35.8 45.7 38.5 32.2 39.0 50.0 38.4 49.6 36.3 45.9 28.6"),
    },
)
TIMEBENCH = _figures(
    f"{_RGPT}, table A3",
    ("accuracy",),
    {
        "NVILA-Lite-8B": (replace(_16_FRAMES, prompt="no cue of time"), "22.7"),
        "NVILA-Lite-8B + P4D": (replace(_16_FRAMES, prompt="no cue of time"), "30.1"),
        "NVILA-Lite-8B + P4D, marks": (replace(_16_FRAMES, prompt="time marks on the frames"), "95.3"),
        "NVILA-Lite-8B + P4D, prompts": (replace(_16_FRAMES, prompt="times in the prompt"), "98.0"),
    },
)
