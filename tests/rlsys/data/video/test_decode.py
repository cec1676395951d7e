from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlsys.data.video.decode import PROCESSOR_VERSION, decode, decode_all, plan_grid
from rlsys.data.video.errors import ClipError
from rlsys.data.video.opened import OpenedFiles
from rlsys.models.stamps import patch_times_s
from rlsys.types import ImageSpec, VideoSpec
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


def test_stamps_of_a_part_count_from_its_start_or_from_where_the_spec_says(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    part, of_whole = (decode(make_spec(path, window_s=(2.0, 4.0), origin_s=origin)).info for origin in (None, 0.0))
    assert patch_times_s(part, 2) == [0.25, 1.25]
    assert patch_times_s(of_whole, 2) == [2.25, 3.25]
    assert part.digest != of_whole.digest, "engines cache a clip with its stamps"


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
    newer = ("uri", "files", "patch_px", "crop", "origin_s", "patch_frames", "side_px")
    asked = {name: value for name, value in asdict(spec).items() if name not in newer}
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


def test_a_model_with_one_size_of_frames_gets_squares_and_a_step_of_the_grid_for_each(tmp_path: Path) -> None:
    Image.effect_noise((640, 64), 50).save(tmp_path / "a.png")
    video = make_spec(make_video(tmp_path / "a.mp4"), patch_frames=1, side_px=56)
    image = ImageSpec(uri=str(tmp_path / "a.png"), min_pixels=784, max_pixels=3136, side_px=56)
    part = replace(image, crop=(0.0, 0.0, 0.5, 1.0))
    clips = [decode(spec) for spec in (video, image, part)]
    assert [clip.frames.shape for clip in clips] == [(12, 56, 56, 3), (1, 56, 56, 3), (1, 56, 56, 3)]
    assert [clip.info.grid_thw for clip in clips] == [(12, 4, 4), (1, 4, 4), (1, 4, 4)]
    assert [plan_grid(spec) for spec in (video, image)] == [(12, 4, 4), (1, 4, 4)]
    pair = decode(replace(video, patch_frames=2)).info
    assert (clips[0].info.second_per_grid_s, pair.second_per_grid_s) == (0.5, 1.0)
    assert clips[0].info.digest != pair.digest


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
    (tmp_path / "text.mp4").write_text("<!DOCTYPE html>\n" * 100)
    error = failure(tmp_path / "text.mp4")
    assert error.kind == "corrupt" and "begins with b'<!DOCTYPE html>" in str(error)
    path = make_video(tmp_path / "noise.mp4")
    data = bytearray(path.read_bytes())
    quarter = len(data) // 4
    data[quarter : 2 * quarter] = np.random.default_rng(0).bytes(quarter)
    path.write_bytes(data)
    error = failure(path)
    assert error.kind == "corrupt"
    assert "decoding failed" in str(error)
    assert "\n" not in str(error)


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


class CountedReads:
    """Counts the frames that decoders are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from rlsys.data.video.readers import (
            decord_reader,  # behind PyAV: decord's libvpx would take the place of its own
        )

        self.indices: list[int] = []
        read = decord_reader.read

        def counted(
            path: Path, times_s: np.ndarray, keys: Collection[int], indices: Sequence[int]
        ) -> Iterator[np.ndarray] | None:
            self.indices += indices
            return read(path, times_s, keys, indices)

        monkeypatch.setattr(decord_reader, "read", counted)


def parts_of(path: Path) -> list[VideoSpec]:
    """Three parts of six seconds at 10 frames/s, the middle one also cut out; it shows every fifth frame twice."""
    whole = make_spec(path, fps=1.0, min_frames=2)
    middle = replace(whole, window_s=(2.0, 4.0), fps=2.0)
    return [
        replace(whole, window_s=(0.0, 2.0)),
        middle,
        replace(middle, crop=(0.0, 0.0, 0.5, 1.0)),
        replace(whole, window_s=(4.0, 6.0)),
    ]


def test_parts_of_a_file_are_decoded_in_one_pass_and_each_frame_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = parts_of(make_video(tmp_path / "a.mp4"))
    alone = [decode(spec) for spec in specs]
    reads = CountedReads(monkeypatch)
    together = decode_all(specs)
    assert reads.indices == [0, 10, 20, 25, 30, 35, 40, 50]
    for one, other in zip(alone, together, strict=True):
        assert one.info.digest == other.info.digest
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.info.times_s, other.info.times_s)
    assert together[1].info.second_per_grid_s == 1.0 and together[0].info.second_per_grid_s == 2.0


def test_a_later_round_reads_only_the_frames_that_no_earlier_one_showed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4")
    opened = OpenedFiles(max_bytes=1 << 20)
    (first,) = decode_all([make_spec(path, fps=1.0)], opened)
    reads = CountedReads(monkeypatch)
    specs = [spec for spec in parts_of(path) if spec.crop is None]
    later = decode_all(specs, opened)
    assert reads.indices == [25, 35], "0, 10, 20, 30, 40 and 50 were shown before"
    assert [frames_shown(clip.frames) for clip in later] == [[0, 10], [20, 25, 30, 35], [40, 50]]
    assert later[0].frames.shape[1:] == first.frames.shape[1:]
    for spec, clip in zip(specs, later, strict=True):
        np.testing.assert_array_equal(clip.frames, decode(spec).frames)


def test_a_changed_file_and_one_without_room_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4")
    for opened in (OpenedFiles(max_bytes=1 << 20), OpenedFiles(max_bytes=0)):
        decode_all([make_spec(path)], opened)
        make_video(path, num_frames=80)
        reads = CountedReads(monkeypatch)
        decode_all([make_spec(path)], opened)
        assert len(reads.indices) == 12
        monkeypatch.undo()


def test_a_part_is_cut_out_of_the_full_frame_and_scaled_up_to_the_budget(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", size=(96, 128))
    clip = decode(make_spec(path, fps=1.0, crop=(0.0, 0.0, 0.5, 0.5), max_pixels=112 * 112))
    assert clip.frames.shape == (6, 84, 112, 3), "48 x 64 pixels, as large as 112 x 112 allow"
    # the left half has the first four of eight columns, as bits of 0, 10, 20, 30, 40 and 50
    columns = clip.frames.mean(axis=(1, 3)).reshape(6, 4, -1).mean(axis=2) > 125
    assert [int((row << np.arange(4)).sum()) for row in columns] == [0, 10, 4, 14, 8, 2]
    assert decode(make_spec(path)).info.source_fps == pytest.approx(10.0)


def test_a_part_of_an_image_is_scaled_up(tmp_path: Path) -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[50:, 100:] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    spec = ImageSpec(uri=str(tmp_path / "a.png"), min_pixels=784, max_pixels=28 * 28 * 32)
    whole, part = decode_all([spec, replace(spec, crop=(0.5, 0.5, 1.0, 1.0))])
    assert whole.frames.shape == (1, 112, 196, 3)
    assert part.frames.shape == (1, 112, 224, 3)
    assert part.frames.min() == 200
    assert whole.info.digest != part.info.digest


def test_a_part_of_a_frame_folder_is_cut_out(tmp_path: Path) -> None:
    for index in range(8):
        Image.fromarray(numbered_frame(index)).save(tmp_path / f"{index}.png")
    clip = decode(make_spec(tmp_path, folder_fps=2.0, crop=(0.5, 0.0, 1.0, 1.0)))
    assert clip.frames.max() < 125, "the right half has the upper four bits, which are 0"
    assert clip.info.source_fps == 2.0
    assert plan_grid(make_spec(tmp_path, folder_fps=2.0, crop=(0.5, 0.0, 1.0, 1.0))) == clip.info.grid_thw
