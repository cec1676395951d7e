from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlsys.data.video.decode import PROCESSOR_VERSION, decode, plan_grid
from rlsys.data.video.errors import ClipError
from rlsys.types import ImageSpec
from tests.support.video_files import (
    cut,
    frames_shown,
    make_spec,
    make_video,
    make_wave,
    move_index_to_front,
    numbered_frame,
    set_frame_durations,
    shared_data,
)


def failure(path: Path, **changes: object) -> ClipError:
    with pytest.raises(ClipError) as caught:
        decode(make_spec(path, **changes))
    assert caught.value.uri == str(path)
    return caught.value


def test_six_seconds_at_two_fps_are_twelve_frames_at_their_true_times(tmp_path: Path) -> None:
    clip = decode(make_spec(make_video(tmp_path / "a.mp4")))
    assert clip.info.times_s.tolist() == [k / 2 for k in range(12)]
    assert frames_shown(clip.frames) == [5 * k for k in range(12)]
    assert clip.frames.shape == (12, 56, 56, 3)  # 48 x 64 rounds to 56 x 56
    assert clip.frames.dtype == np.uint8
    assert clip.info.grid_thw == (6, 4, 4)
    assert (clip.info.second_per_grid_s, clip.info.duration_s) == (1.0, 6.0)
    assert clip.info.num_bytes == clip.frames.nbytes


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "mp4v"), ("avi", "MJPG"), ("webm", "VP80")])
def test_other_containers_show_the_same_frames(tmp_path: Path, suffix: str, codec: str) -> None:
    clip = decode(make_spec(make_video(tmp_path / f"a.{suffix}", codec=codec)))
    assert frames_shown(clip.frames) == [5 * k for k in range(12)]
    assert np.abs(clip.info.times_s - np.arange(12) / 2).max() < 0.002


def test_variable_frame_rate_is_read_from_the_file(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=31)
    set_frame_durations(path, [3.0] + [0.1] * 30)
    clip = decode(make_spec(path))
    assert clip.info.duration_s == pytest.approx(6.0, abs=1e-3)
    assert frames_shown(clip.frames) == [0, 0, 0, 0, 0, 0, 1, 6, 11, 16, 21, 26]
    assert np.allclose(clip.info.times_s, [0] * 6 + [3.0, 3.5, 4.0, 4.5, 5.0, 5.5], atol=1e-3)
    assert clip.info.second_per_grid_s == 1.0


def test_a_window_keeps_times_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    clip = decode(make_spec(path, window_s=(2.0, 4.0)))
    assert clip.info.times_s.tolist() == [2.0, 2.5, 3.0, 3.5]
    assert frames_shown(clip.frames) == [20, 25, 30, 35]
    assert failure(path, window_s=(7.0, 9.0)).kind == "window"


def test_digest_follows_content_and_spec_and_not_the_name(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    copy = Path(shutil.copy(path, tmp_path / "b.mp4"))
    other = make_video(tmp_path / "c.mp4", num_frames=58)
    digest = decode(make_spec(path)).info.digest
    assert digest == decode(make_spec(copy)).info.digest
    assert digest != decode(make_spec(other)).info.digest
    assert digest != decode(make_spec(path, fps=1.0)).info.digest
    assert len(digest) == 64


def test_the_digest_of_a_clip_for_patches_of_14_pixels_does_not_name_them(tmp_path: Path) -> None:
    spec = make_spec(make_video(tmp_path / "a.mp4"))
    asked = {name: value for name, value in asdict(spec).items() if name not in ("uri", "patch_px")}
    content = hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest()
    text = "\n".join((content, json.dumps(asked, sort_keys=True), PROCESSOR_VERSION))
    assert decode(spec).info.digest == hashlib.sha256(text.encode()).hexdigest()
    assert decode(replace(spec, patch_px=16)).info.digest != decode(spec).info.digest


def test_clips_are_cut_for_the_patches_of_the_model(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    video = make_spec(make_video(tmp_path / "a.mp4"), patch_px=16)
    image = ImageSpec(uri=str(tmp_path / "a.png"), min_pixels=1024, max_pixels=9216, patch_px=16)
    clips = [decode(spec) for spec in (video, image)]
    assert [clip.frames.shape for clip in clips] == [(12, 64, 64, 3), (1, 64, 64, 3)]  # 48 x 64: 1.5 rounds to 2
    assert [clip.info.grid_thw for clip in clips] == [(6, 4, 4), (1, 4, 4)] == [plan_grid(video), plan_grid(image)]


def test_resizing_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((448, 448, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    clip = decode(ImageSpec(uri=str(tmp_path / "a.png"), min_pixels=784, max_pixels=112 * 112))
    assert clip.frames.shape == (1, 112, 112, 3)
    inner = clip.frames[0, :, 4:-4].astype(int)
    assert np.abs(inner - 127.5).max() < 3  # one-pixel stripes become grey, without moiré
    assert clip.info.grid_thw == (1, 8, 8)
    assert (clip.info.kind, clip.info.second_per_grid_s) == ("image", 0.0)


def test_the_planned_grid_is_the_decoded_one(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    specs = [
        make_spec(make_video(tmp_path / "a.mp4")),
        make_spec(make_video(tmp_path / "b.mkv", num_frames=200, size=(144, 64)), total_pixels=100_000),
        ImageSpec(uri=str(tmp_path / "a.png"), min_pixels=784, max_pixels=7056),
    ]
    assert [plan_grid(spec) for spec in specs] == [decode(spec).info.grid_thw for spec in specs]
    with pytest.raises(ClipError, match="missing"):
        plan_grid(make_spec(tmp_path / "none.mp4"))


def test_missing_file(tmp_path: Path) -> None:
    assert failure(tmp_path / "none.mp4").kind == "missing"


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    error = failure(tmp_path / "a.mp4")
    assert error.kind == "empty"
    assert str(error) == f"{tmp_path / 'a.mp4'}: empty: the file has 0 bytes; download or copy it again."


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "mp4v"), ("mkv", "mp4v"), ("webm", "VP80"), ("avi", "MJPG"), ("front.mp4", "mp4v")]
)
def test_truncated_files_are_refused_though_decord_reads_some_as_shorter_clips(
    tmp_path: Path, suffix: str, codec: str, share: float
) -> None:
    whole = make_video(tmp_path / f"whole.{suffix}", codec=codec)
    if suffix == "front.mp4":
        whole = move_index_to_front(whole, tmp_path / "faststart.mp4")
    assert frames_shown(decode(make_spec(whole)).frames)[-1] == 55
    assert failure(cut(whole, tmp_path / f"cut.{suffix}", share)).kind == "truncated"


@pytest.mark.parametrize("junk", [b"\0\0\0\0", b"TAG of an old player" * 20, bytes(1000)])
@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mp4v"), ("mkv", "mp4v"), ("avi", "MJPG")])
def test_junk_behind_a_whole_file_does_no_harm(tmp_path: Path, suffix: str, codec: str, junk: bytes) -> None:
    path = make_video(tmp_path / f"a.{suffix}", codec=codec)
    path.write_bytes(path.read_bytes() + junk)
    assert frames_shown(decode(make_spec(path)).frames) == [5 * k for k in range(12)]


def test_real_clips_are_whole_and_truncated_ones_are_not(tmp_path: Path) -> None:
    for name in ("dog.mp4", "arm_wrestling.mp4", "flipping_a_pancake.mkv"):
        path = shared_data("clips", name)
        assert len(decode(make_spec(path)).frames) == 12
        assert failure(cut(path, tmp_path / name, 0.5)).kind == "truncated"


def test_corrupt_files(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    assert failure(tmp_path / "text.mp4").kind == "corrupt"
    path = make_video(tmp_path / "noise.mp4")
    data = bytearray(path.read_bytes())
    quarter = len(data) // 4
    data[quarter : 2 * quarter] = np.random.default_rng(0).bytes(quarter)
    path.write_bytes(data)
    error = failure(path)
    assert error.kind == "corrupt"
    assert "decoding failed" in str(error)
    assert "\n" not in str(error)
    assert ".cc" not in str(error), "decord's source lines and clock times say nothing to the reader"


def test_a_real_clip_that_opens_and_then_fails(tmp_path: Path) -> None:
    assert failure(shared_data("clips", "corrupted.mp4")).kind == "corrupt"
    assert decode(make_spec(make_video(tmp_path / "a.mp4"))).frames.any(), "the process still decodes"


def test_zero_length_videos(tmp_path: Path) -> None:
    assert failure(make_video(tmp_path / "none.mp4", num_frames=0)).kind == "zero_length"
    assert failure(make_video(tmp_path / "one.mp4", num_frames=1)).kind == "zero_length"
    (tmp_path / "folder").mkdir()
    assert failure(tmp_path / "folder").kind == "zero_length"


def test_audio_only(tmp_path: Path) -> None:
    assert failure(make_wave(tmp_path / "a.wav")).kind == "audio_only"
    assert failure(make_wave(tmp_path / "b.mp4")).kind == "audio_only"


def test_a_clip_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ClipError("a.mp4", "corrupt", "why")))
    assert (error.uri, error.kind, error.detail) == ("a.mp4", "corrupt", "why")


def test_a_frame_folder_is_a_video(tmp_path: Path) -> None:
    for index in range(15):
        Image.fromarray(numbered_frame(index)).save(tmp_path / f"{index:04d}.png")
    clip = decode(make_spec(tmp_path, fps=10.0, min_frames=8, max_frames=8))
    assert frames_shown(clip.frames) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert np.allclose(clip.info.times_s, np.arange(8) / 5)
    assert clip.info.second_per_grid_s == pytest.approx(0.4)
    cut(tmp_path / "0004.png", tmp_path / "0004.png", 0.6)
    with pytest.raises(ClipError, match=r"0004\.png"):
        decode(make_spec(tmp_path, fps=10.0, min_frames=8, max_frames=8))


def test_the_real_frame_folder_gives_eight_frames() -> None:
    clip = decode(make_spec(shared_data("frames", "bedroom"), fps=10.0, min_frames=8, max_frames=8))
    assert clip.frames.shape[0] == 8
    assert np.allclose(clip.info.times_s * 10, [0, 3, 7, 10, 14, 17, 21, 24])


def test_truncated_and_unknown_images(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "a.jpg")
    cut(tmp_path / "a.jpg", tmp_path / "cut.jpg", 0.5)
    (tmp_path / "text.jpg").write_text("no image")
    kinds = []
    for name in ("cut.jpg", "text.jpg", "none.jpg"):
        with pytest.raises(ClipError) as caught:
            decode(ImageSpec(uri=str(tmp_path / name), min_pixels=784, max_pixels=7056))
        kinds.append(caught.value.kind)
    assert kinds == ["truncated", "corrupt", "missing"]
