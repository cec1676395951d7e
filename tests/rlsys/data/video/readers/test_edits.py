"""Edit lists of several parts, written by hand: every picture at the time at which a player shows it, or a refusal."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from rlsys.data.video.decode import decode, plan_grid, reads_fast, shape_of
from rlsys.data.video.errors import ClipError
from rlsys.data.video.readers import edits
from rlsys.data.video.readers.av_reader import probe
from tests.support.edit_lists import Part, set_edits, shown_by
from tests.support.encoding import Encoding, write_video
from tests.support.video_files import frames_shown, make_spec, numbered_frame

FPS, NUM = 10, 60
ENCODINGS = {
    "h264": Encoding(options={"bf": "0", "g": "12"}),
    "h264 with B-frames": Encoding(options={"bf": "2", "g": "12"}),
    "h264 with open groups": Encoding(options={"bf": "2", "g": "12", "x264-params": "open-gop=1:scenecut=0"}),
    "h264 with sound": Encoding(options={"bf": "2", "g": "12"}, has_sound=True),
    "mpeg4 with B-frames": Encoding(codec="mpeg4", options={"bf": "2", "g": "12", "b": "2M"}),
    "hevc": Encoding(codec="libx265", options={"x265-params": "log-level=none:keyint=12:pools=none:frame-threads=1"}),
}
LISTS = {
    "two parts": [Part(1.0, 0.5), Part(1.0, 3.0)],
    "two parts in the other order": [Part(1.0, 3.0), Part(1.0, 0.5)],
    "one part three times": [Part(1.0, 1.0)] * 3,
    "parts that overlap": [Part(2.0, 0.0), Part(2.0, 1.0), Part(1.0, 2.5)],
    "a pause in the middle": [Part(1.0, 0.0), Part(0.7, None), Part(2.0, 1.0)],
    "pauses at the start and in the middle": [Part(0.5, None), Part(1.0, 0.0), Part(0.7, None), Part(2.0, 3.0)],
    "two pauses together": [Part(1.0, 0.0), Part(0.3, None), Part(0.4, None), Part(1.0, 4.0)],
    "a pause at the end": [Part(1.0, 2.0), Part(1.0, None)],
    "a picture that is held": [Part(1.0, 0.0), Part(1.5, 2.0, 0.0), Part(1.0, 3.0)],
    "nothing but a picture that is held": [Part(2.0, 1.0, 0.0), Part(1.0, 1.0)],
    "parts that begin and end between pictures": [Part(1.02, 0.47), Part(1.0, 2.22), Part(0.98, 4.05)],
    "a last part without a length": [Part(1.0, 0.0), Part(0.0, 4.0)],
    "nothing but a part without a length": [Part(0.0, 1.0)],
    "a pause and a part without a length": [Part(0.5, None), Part(0.0, 2.0)],
    "parts of half a picture": [Part(0.05, 1.0), Part(0.05, 3.0), Part(1.0, 2.0)],
    "a part beyond the end": [Part(1.0, 5.5), Part(1.0, 1.0)],
    "backwards by single pictures": [Part(0.1, at / 10) for at in range(59, 0, -3)],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of numbered pictures in each encoding, without an edit list of its own but for B-frames."""
    folder = tmp_path_factory.mktemp("edits")
    frames = np.stack([numbered_frame(number) for number in range(NUM)])
    return {name: write_video(folder / f"{at}.mp4", frames, how) for at, (name, how) in enumerate(ENCODINGS.items())}


@pytest.fixture
def edited(plain: dict[str, Path], tmp_path: Path):  # noqa: ANN201
    def edited(encoding: str, parts: list[Part], **how: object) -> Path:
        path = Path(shutil.copy(plain[encoding], tmp_path / "a.mp4"))
        set_edits(path, parts, **how)  # type: ignore[arg-type]
        return path

    return edited


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pictures_are_those_of_their_times(encoding: str, name: str, edited) -> None:  # noqa: ANN001
    parts = LISTS[name]
    path, wanted = edited(encoding, parts), shown_by(parts, NUM, FPS)
    start_s = 0.0 if encoding == "h264 with sound" else wanted[0][0]  # the sound starts at once
    found = probe(path, "a.mp4")
    np.testing.assert_allclose(found.times_s, [time_s - start_s for time_s, _ in wanted], atol=0.0011)
    ends_s = sum(part.duration_s or NUM / FPS - (part.start_s or 0.0) for part in parts)
    assert found.end_s == pytest.approx(ends_s - start_s, abs=0.0011)
    assert reads_fast(path) == "an edit list of several parts"
    clip = decode(make_spec(path, fps=7.0, max_frames=200))
    numbers = dict(zip(np.round(found.times_s, 6), (number for _, number in wanted), strict=True))
    assert frames_shown(clip.frames) == [numbers[time_s] for time_s in np.round(clip.info.times_s, 6)]
    assert plan_grid(make_spec(path, fps=7.0, max_frames=200)) == clip.info.grid_thw
    assert shape_of(path)[0] == found.end_s


def test_one_part_and_delays_are_left_to_ffmpeg_and_are_right(edited) -> None:  # noqa: ANN001
    for parts in (
        [Part(3.0, 1.0)],
        [Part(0.5, None), Part(3.0, 1.0)],
        [Part(0.2, None), Part(0.3, None), Part(3.0, 1.0)],
    ):
        for encoding in ENCODINGS:
            path = edited(encoding, parts)
            found = probe(path, "a.mp4")
            assert not found.is_edited
            start_s = 0.5 if len(parts) > 1 and encoding == "h264 with sound" else 0.0
            assert found.times_s[0] == pytest.approx(start_s, abs=0.0011)
            clip = decode(make_spec(path))
            assert np.allclose(np.array(frames_shown(clip.frames)) / FPS - 1.0, clip.info.times_s - start_s, atol=0.02)


@pytest.mark.parametrize("version", [0, 1])
def test_both_versions_of_the_table_are_read(version: int, edited) -> None:  # noqa: ANN001
    path = edited("h264 with B-frames", LISTS["a pause in the middle"], version=version)
    assert probe(path, "a.mp4").times_s[10] == pytest.approx(1.7)


def test_lists_of_the_sound_alone_do_not_move_pictures(edited) -> None:  # noqa: ANN001
    for parts in (LISTS["two parts"], LISTS["a pause in the middle"], LISTS["a picture that is held"]):
        clip = decode(make_spec(edited("h264 with sound", parts, kind=b"soun", first_s=0.0)))
        assert np.allclose(np.array(frames_shown(clip.frames)) / FPS, clip.info.times_s, atol=0.001)


def write_movie(path: Path, movflags: str, *, b_frames: int) -> None:
    """Write numbered frames as H.264 with these flags of FFmpeg's writer of MP4 files."""
    with av.open(str(path), "w", options={"movflags": movflags}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"bf": str(b_frames), "g": "12"})
        stream.height, stream.width = numbered_frame(0).shape[:2]
        for number in range(NUM):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        container.mux(stream.encode())


def test_presentation_times_before_decoding_times_are_no_delay(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_movie(path, "negative_cts_offsets", b_frames=2)
    table = path.read_bytes().partition(b"ctts")[2]
    assert table[0] == 1 and (np.frombuffer(table[8:88], ">i4")[1::2] < 0).any(), "offsets below 0"
    parts = LISTS["a pause in the middle"]
    set_edits(path, parts, first_s=0.0)
    wanted = shown_by(parts, NUM, FPS)
    assert probe(path, "a.mp4").times_s.tolist() == pytest.approx([time_s for time_s, _ in wanted])
    clip = decode(make_spec(path, fps=10.0, max_frames=100))
    numbers = dict(wanted)
    assert frames_shown(clip.frames) == [numbers[round(time_s, 3)] for time_s in clip.info.times_s]


def test_a_list_of_a_movie_in_fragments_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_movie(path, "frag_keyframe+empty_moov+default_base_moof", b_frames=0)
    clip = decode(make_spec(path))
    assert np.allclose(np.array(frames_shown(clip.frames)) / FPS, clip.info.times_s, atol=0.001)


@pytest.mark.parametrize("rate", [2.0, 0.5, -1.0])
def test_another_speed_is_refused_by_name(rate: float, edited) -> None:  # noqa: ANN001
    path = edited("h264", [Part(1.0, 0.0), Part(1.0, 2.0, rate)])
    for read in (lambda: decode(make_spec(path)), lambda: plan_grid(make_spec(path)), lambda: shape_of(path)):
        with pytest.raises(ClipError, match=f"its edit list plays a part at {rate:g} times its speed") as raised:
            read()
        assert raised.value.kind == "corrupt"


def test_a_list_that_shows_nothing_or_too_much_is_refused(edited, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    with pytest.raises(ClipError, match="zero_length: its edit list shows no frame"):
        decode(make_spec(edited("h264", [Part(1.0, None)])))
    monkeypatch.setattr(edits, "MAX_FRAMES", 100)
    with pytest.raises(ClipError, match="too_large: its edit list shows more than 100 frames"):
        decode(make_spec(edited("h264", [Part(6.0, 0.0)] * 2)))


def test_a_damaged_table_is_a_clip_error_or_a_clip_at_its_times(edited) -> None:  # noqa: ANN001
    path = edited("h264 with B-frames", LISTS["two parts"])
    data = path.read_bytes()
    at = data.index(b"elst")
    rng = np.random.default_rng(0)
    damaged = [data[: at + 4] + struct.pack(">II", 0, 2**32 - 1) + data[at + 12 :]]
    for _ in range(60):
        changed = bytearray(data)
        for place in rng.integers(at - 20, at + 40, 3):
            changed[place] = rng.integers(256)
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        try:
            clip = decode(make_spec(path))
        except ClipError:
            continue
        assert np.isfinite(clip.info.times_s).all() and (np.diff(clip.info.times_s) >= 0).all()
