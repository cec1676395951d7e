from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from PIL import Image

from rlsys.config.run import DataConfig
from rlsys.data.video.clips import ClipStore
from rlsys.data.video.decoders import PAUSES_S
from rlsys.data.video.errors import ClipError
from rlsys.types import ClipRef, VideoSpec
from tests.support.pace import patience
from tests.support.video_files import REPO, frames_shown, make_spec, make_video, numbered_frame

CLIP_BYTES = 12 * 56 * 56 * 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="rlsys-clips-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    yield
    ray.shutdown(wait_for_processes=True)
    shutil.rmtree(folder, ignore_errors=True)


def spec_of(path: Path, **changes: object) -> VideoSpec:
    return make_spec(made_distinct(make_video(path)), **changes)


def made_distinct(path: Path) -> Path:
    """Append an empty box with the file's name: clips are known by the content of their files."""
    with path.open("ab") as file:
        file.write(struct.pack(">I4s", 8 + len(path.name), b"free") + path.name.encode())
    return path


def slow_spec(folder: Path, num_images: int = 30) -> VideoSpec:
    """Of a folder of images so large that decoding them takes many times the patience of a test."""
    folder.mkdir()
    first = folder / "0.png"
    Image.new("RGB", (8000, 7900)).save(first, compress_level=1)
    for number in range(1, num_images):
        os.link(first, folder / f"{number}.png")
    return make_spec(folder, folder_fps=2.0, min_frames=num_images, max_frames=num_images)


def get_all(store: ClipStore, *specs: VideoSpec) -> list[ClipRef | BaseException]:
    async def gather() -> list[ClipRef | BaseException]:
        return await asyncio.gather(*(store.get(spec) for spec in specs), return_exceptions=True)

    return asyncio.run(gather())


def decoding_processes(title: str = "Decoder.decode") -> list[psutil.Process]:
    """Worker processes of this test's own cluster that are decoding now, or with "ray::Decoder" also idle."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(title in part for part in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + patience(30.0)
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_concurrent_gets_share_one_decode_and_later_ones_hit_the_cache(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig())
    spec = spec_of(tmp_path / "a.mp4")
    refs = get_all(store, *[spec] * 8)
    assert store.counters()["decodes"] == 1
    assert len({id(ref) for ref in refs}) == 1
    again = get_all(store, spec)[0]
    frames = ray.get(again.frames)
    assert frames_shown(frames) == [5 * k for k in range(12)]
    assert not frames.flags.writeable, "zero-copy from the object store"
    assert again.info.num_bytes == frames.nbytes == CLIP_BYTES
    counters = store.counters()
    assert (counters["hits"], counters["misses"], counters["hit_rate"]) == (8, 1, 8 / 9)
    assert counters["data/decodes_per_clip"] == 1.0
    assert counters["decode_s"] > 0


def test_two_specs_of_one_file_are_two_clips(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig())
    path = make_video(tmp_path / "a.mp4")
    first, second = get_all(store, make_spec(path), make_spec(path, fps=1.0))
    assert first.info.grid_thw == (6, 4, 4)
    assert second.info.grid_thw == (3, 4, 4)


def test_the_least_recently_used_clip_is_let_go_and_holders_keep_theirs(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig(cache_bytes=2 * CLIP_BYTES + 1))
    a, b, c = (spec_of(tmp_path / f"{name}.mp4") for name in "abc")
    held = get_all(store, a)[0]
    get_all(store, b)
    get_all(store, a)  # b is now the oldest
    get_all(store, c)
    counters = store.counters()
    assert (counters["evictions"], counters["bytes_cached"]) == (1, 2 * CLIP_BYTES)
    get_all(store, a)
    assert store.counters()["decodes"] == 3
    get_all(store, b)  # pushes out c
    assert store.counters()["decodes"] == 4
    get_all(store, c)  # pushes out a
    assert ray.get(held.frames).shape == (12, 56, 56, 3)


def test_no_cache_still_decodes_once_for_concurrent_gets(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig(cache_bytes=0))
    spec = spec_of(tmp_path / "a.mp4")
    refs = get_all(store, spec, spec)
    assert ray.get(refs[0].frames).any()
    assert (store.counters()["decodes"], store.counters()["bytes_cached"]) == (1, 0)


def test_clips_in_use_are_never_decoded_again_and_leave_the_cache_less_room(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig(cache_bytes=2 * CLIP_BYTES))
    a, b, c, d = (spec_of(tmp_path / f"{name}.mp4") for name in "abcd")
    held = get_all(store, a, b)
    assert store.has_room()
    held += get_all(store, c)
    counters = store.counters()
    assert (counters["bytes_alive"], counters["bytes_cached"]) == (3 * CLIP_BYTES, 0)
    assert not store.has_room()
    assert get_all(store, a, b, c) == held
    assert store.counters()["decodes"] == 3
    held.clear()
    assert store.has_room()
    get_all(store, d)
    counters = store.counters()
    assert (counters["bytes_alive"], counters["bytes_cached"]) == (CLIP_BYTES, CLIP_BYTES)


def test_frames_in_another_order_count_while_they_are_held(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig(cache_bytes=CLIP_BYTES))
    clip = get_all(store, spec_of(tmp_path / "a.mp4"))[0]
    shuffled = asyncio.run(store.shuffled(clip, 1))
    assert not store.has_room() and shuffled.info.num_bytes == CLIP_BYTES
    del shuffled
    assert store.has_room()


def test_a_bad_clip_fails_for_everyone_once_and_at_once_later(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig())
    (tmp_path / "text.mp4").write_text("not a video")
    bad, good = make_spec(tmp_path / "text.mp4"), spec_of(tmp_path / "a.mp4")
    results = get_all(store, bad, good, bad)
    assert [type(result) for result in results] == [ClipError, ClipRef, ClipError]
    assert results[0].kind == "corrupt"
    assert isinstance(get_all(store, bad)[0], ClipError)
    counters = store.counters()
    assert (counters["decodes"], counters["bad_clips"]) == (2, 1)  # the later error cost no decode


def test_a_decode_that_hangs_ends_at_its_deadline_and_frees_its_place(cluster: None, tmp_path: Path) -> None:
    limit_s = patience(2.0)
    store = ClipStore(DataConfig(decode_timeout_s=limit_s, decode_workers=1))
    get_all(store, spec_of(tmp_path / "warm.mp4"))
    hanging, good = get_all(store, slow_spec(tmp_path / "slow"), spec_of(tmp_path / "a.mp4"))
    assert isinstance(hanging, ClipError)
    assert hanging.kind == "timeout"
    assert f"not decoded after {limit_s:g} s; raise `data.decode_timeout_s`" in str(hanging)
    assert isinstance(good, ClipRef)
    wait_until(lambda: not decoding_processes(), "the hanging decode is gone")


def test_waiting_for_a_cpu_is_not_held_against_the_clip(cluster: None, tmp_path: Path) -> None:
    started = tmp_path / "started"

    @ray.remote(num_cpus=1)
    def occupy(seconds: float) -> None:
        started.touch()
        time.sleep(seconds)

    limit_s = patience(2.0)
    busy = occupy.remote(2.5 * limit_s)
    wait_until(started.exists, "the decoders of earlier stores give their CPU back")
    store = ClipStore(DataConfig(decode_timeout_s=limit_s))
    assert isinstance(get_all(store, spec_of(tmp_path / "a.mp4"))[0], ClipRef)
    ray.get(busy, timeout=patience(30.0))


def test_a_decode_that_kills_its_process_every_time_is_a_bad_clip(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig(decode_timeout_s=patience(60.0)))
    slow = slow_spec(tmp_path / "slow")
    killed: set[int] = set()
    over = threading.Event()

    def kill_every_decoder() -> None:
        while not over.wait(0.2):
            for process in decoding_processes():
                if process.pid not in killed:
                    killed.add(process.pid)
                    process.kill()

    killer = threading.Thread(target=kill_every_decoder)
    killer.start()
    error = get_all(store, slow)[0]
    over.set()
    killer.join()
    assert isinstance(error, ClipError)
    assert error.kind == "crashed"
    assert len(killed) == len(PAUSES_S) + 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_decoders_that_died_or_were_stopped_while_idle_cost_no_clip(
    cluster: None, tmp_path: Path, number: signal.Signals
) -> None:
    store = ClipStore(DataConfig(decode_timeout_s=patience(10.0), decode_workers=2, cache_bytes=0))
    get_all(store, spec_of(tmp_path / "a.mp4"), spec_of(tmp_path / "b.mp4"))
    idle = decoding_processes("ray::Decoder")
    assert len(idle) >= 2
    for process in idle:
        process.send_signal(number)
    found = get_all(store, spec_of(tmp_path / "c.mp4"), spec_of(tmp_path / "d.mp4"))
    assert [type(one) for one in found] == [ClipRef, ClipRef]


def test_a_store_that_is_closed_leaves_no_process_and_no_stopped_one(cluster: None, tmp_path: Path) -> None:
    before = decoding_processes("ray::Decoder")
    store = ClipStore(DataConfig(decode_workers=2, cache_bytes=0))
    get_all(store, spec_of(tmp_path / "a.mp4"), spec_of(tmp_path / "b.mp4"))
    own = [process for process in decoding_processes("ray::Decoder") if process not in before]
    assert len(own) == 2
    own[0].suspend()
    store.close()
    assert psutil.wait_procs(own, timeout=patience(30.0))[1] == []


def test_a_caller_that_goes_away_does_not_take_the_clip_from_the_others(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig())
    spec = spec_of(tmp_path / "a.mp4")

    async def scenario() -> ClipRef:
        leaving = asyncio.create_task(store.get(spec))
        staying = asyncio.create_task(store.get(spec))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(scenario()).info.grid_thw == (6, 4, 4)
    assert store.counters()["decodes"] == 1


def test_clips_that_outgrow_the_object_store_wait_on_disk_and_come_back_whole(cluster: None, tmp_path: Path) -> None:
    video, area = make_video(tmp_path / "a.mp4", size=(64, 64)), 448 * 448
    spec = make_spec(video, fps=10.0, max_frames=60, min_pixels=area, max_pixels=area, total_pixels=10**9)
    paths = [tmp_path / f"{number}.mp4" for number in range(10)]
    for path in paths:
        made_distinct(Path(shutil.copy(spec.uri, path)))
    store = ClipStore(DataConfig(cache_bytes=10**9))
    clips = get_all(store, *(replace(spec, uri=str(path)) for path in paths))
    assert all(isinstance(clip, ClipRef) for clip in clips), clips
    assert store.counters()["bytes_alive"] > 300_000_000, "more than the store's 200 MB"
    for clip in clips:
        frames = ray.get(clip.frames, timeout=patience(60.0))
        assert frames.nbytes == clip.info.num_bytes
        assert frames_shown(frames) == list(range(60))
        del frames


def test_decoding_imports_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, rlsys.data.video.decode; print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_shuffled_frames_are_the_same_frames_in_a_seeded_order(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig())

    async def both() -> list[ClipRef]:
        clip = await store.get(spec_of(tmp_path / "a.mp4"))
        return [clip, *[await store.shuffled(clip, seed) for seed in (1, 1, 2)]]

    clip, one, again, other = asyncio.run(both())
    frames, *shuffled = (ray.get(ref.frames) for ref in (clip, one, again, other))
    assert (shuffled[0] == shuffled[1]).all() and (shuffled[0] != shuffled[2]).any()
    assert (shuffled[0] != frames).any()
    assert sorted(frame.tobytes() for frame in shuffled[0]) == sorted(frame.tobytes() for frame in frames)
    assert one.info.digest == again.info.digest != clip.info.digest
    assert one.info.grid_thw == clip.info.grid_thw and store.counters()["decodes"] == 1


def test_a_clip_whose_frames_are_lost_is_decoded_again_and_no_other(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig(decode_workers=1))
    one, other = spec_of(tmp_path / "a.mp4"), spec_of(tmp_path / "b.mp4")

    async def lose_one() -> tuple[ClipRef, ClipRef, ClipRef]:
        first, kept = await store.get(one), await store.get(other)
        store.forget({first.frames.hex()})
        again = await store.get(one)
        assert (await store.get(other)).frames == kept.frames
        return first, again, kept

    first, again, _ = asyncio.run(lose_one())
    assert again.frames != first.frames
    assert again.info.digest == first.info.digest
    assert store.counters()["decodes"] == 3
    assert store.counters()["bytes_cached"] == 2 * CLIP_BYTES


def test_copies_of_a_file_are_decoded_once(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig())
    first = spec_of(tmp_path / "a.mp4")
    shutil.copy(tmp_path / "a.mp4", tmp_path / "copy.mp4")
    found = get_all(store, first, make_spec(tmp_path / "copy.mp4"), make_spec(tmp_path / "a.mp4", max_frames=4))
    assert found[0] is found[1] and found[2] is not found[0]
    assert store.counters()["decodes"] == 2


def test_a_file_that_is_edited_during_the_run_is_decoded_again_and_reported(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ClipStore(DataConfig())
    spec = spec_of(tmp_path / "a.mp4")
    (before,) = get_all(store, spec)
    os.utime(tmp_path / "a.mp4", ns=(1, 1))  # the same content under another time is the same clip
    assert get_all(store, spec) == [before] and store.counters()["edited_files"] == 0
    make_video(tmp_path / "a.mp4", num_frames=40)
    (after,) = get_all(store, spec)
    assert isinstance(before, ClipRef) and isinstance(after, ClipRef)
    assert (before.info.duration_s, after.info.duration_s) == (6.0, 4.0)
    assert store.counters()["edited_files"] == 1 and "a.mp4 was changed during the run" in caplog.text


def test_a_list_of_images_is_one_clip_wherever_they_lie_and_another_in_another_order(
    cluster: None, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for index in range(4):
            Image.fromarray(numbered_frame(index)).save(tmp_path / folder / f"{folder}{index}.png")

    def of(folder: str, order: range) -> VideoSpec:
        files = tuple(str(tmp_path / folder / f"{folder}{index}.png") for index in order)
        return make_spec(files[0], files=files, folder_fps=2.0)

    store = ClipStore(DataConfig())
    first, copy, backwards = get_all(store, of("one", range(4)), of("two", range(4)), of("one", range(3, -1, -1)))
    assert isinstance(first, ClipRef) and isinstance(backwards, ClipRef)
    assert first is copy and first.info.digest != backwards.info.digest
    assert frames_shown(ray.get(first.frames)) == [0, 1, 2, 3]
    assert frames_shown(ray.get(backwards.frames)) == [3, 2, 1, 0]
    (tmp_path / "one" / "one2.png").unlink()
    (gone,) = get_all(store, of("one", range(4)))
    assert isinstance(gone, ClipError) and gone.kind == "missing" and "one2.png" in str(gone)


def test_a_bad_file_that_is_replaced_is_tried_again(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig())
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind")
    assert isinstance(get_all(store, make_spec(tmp_path / "a.mp4"))[0], ClipError)
    assert isinstance(get_all(store, spec_of(tmp_path / "a.mp4"))[0], ClipRef)


def test_a_file_system_that_hangs_costs_a_clip_its_time_and_not_the_run(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_s, is_back = patience(1.0), threading.Event()

    def hangs(uri: str) -> None:  # a stub: no file system here can be made to hang
        is_back.wait(timeout=patience(60.0))

    store, spec = ClipStore(DataConfig(decode_timeout_s=limit_s)), spec_of(tmp_path / "a.mp4")

    async def get() -> ClipRef | BaseException:
        found = (await asyncio.gather(store.get(spec), return_exceptions=True))[0]
        is_back.set()
        return found

    with monkeypatch.context() as patch:
        patch.setattr("rlsys.data.video.clips.signature", hangs)
        error = asyncio.run(get())
    assert isinstance(error, ClipError) and error.kind == "timeout"
    assert f"not read after {limit_s:g} s; raise `data.decode_timeout_s`" in str(error)
    assert isinstance(get_all(store, spec)[0], ClipRef)  # and it is tried again


def all_of(store: ClipStore, specs: Sequence[VideoSpec]) -> list[ClipRef]:
    return asyncio.run(store.get_all(specs))


def test_parts_of_one_file_are_one_decode(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig())
    path = make_video(tmp_path / "a.mp4")
    specs = [make_spec(path, window_s=window) for window in ((0.0, 2.0), (2.0, 4.0), (4.0, 6.0))]
    clips = all_of(store, [*specs, specs[0]])
    assert clips[0] is clips[3]
    assert [frames_shown(ray.get(clip.frames))[0] for clip in clips[:3]] == [0, 20, 40]
    counters = store.counters()
    assert (counters["decodes"], counters["misses"], counters["hits"]) == (1, 4, 0)
    assert counters["data/decodes_per_clip"] == pytest.approx(1 / 3)
    assert sum(clip.decode_s for clip in clips[:3]) == pytest.approx(counters["decode_s"])
    all_of(store, specs)
    assert store.counters()["decodes"] == 1


def test_a_part_that_cannot_be_decoded_does_not_fail_the_others(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig())
    path = make_video(tmp_path / "a.mp4")
    good, bad = make_spec(path, window_s=(0.0, 2.0)), make_spec(path, window_s=(100.0, 120.0))
    with pytest.raises(ClipError, match="nothing to read"):
        all_of(store, [good, bad])
    assert all_of(store, [good])[0].info.times_s.size
    with pytest.raises(ClipError, match="nothing to read"):
        all_of(store, [bad])


def test_rounds_share_the_process_that_has_the_file_open(cluster: None, tmp_path: Path) -> None:
    store = ClipStore(DataConfig(decode_workers=2), keeps_bytes=1 << 20)
    paths = [made_distinct(make_video(tmp_path / f"{name}.mp4")) for name in "ab"]
    get_all(store, *(make_spec(path) for path in paths))
    again = all_of(store, [make_spec(paths[0], window_s=window) for window in ((0.0, 3.0), (3.0, 6.0))])
    assert [frames_shown(ray.get(clip.frames))[0] for clip in again] == [0, 30]
    store.close()
