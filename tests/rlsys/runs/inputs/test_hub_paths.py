"""Models and data sets of the Hugging Face hub, taken from a cache that is laid out as the hub's client does."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from cluster.job_config import job_config
from rlsys.commands.app import app
from rlsys.config.run import RunConfig, parse
from rlsys.hub import HubError, blobs_of, here, reference, snapshot_of
from rlsys.loop.state import RunState
from rlsys.models.folder import model_digest
from rlsys.runs.check import check
from rlsys.runs.continuation import MODEL_TAG, ResumePoint, Start, describe_start
from rlsys.runs.evaluating.evaluate import EvalOptions, run_evaluation
from rlsys.runs.inputs.hub_paths import with_local_files
from rlsys.runs.inputs.items import training_items
from rlsys.runs.records.run_file import write_run_file
from tests.support.mounts import run_with_mounts
from tests.support.video_files import make_video

OLD, NEW = "a" * 40, "b" * 40
REPO, DATA = "Qwen/Tiny-VL.7B", "people/clips"


def put(cache: Path, repo: str, commit: str, source: Path, *, main: bool = True) -> Path:
    """Copy a folder into the cache: files as blobs, and a snapshot of links to them."""
    root = cache / repo
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        blob, link = root / "blobs" / f"{commit[:4]}{len(list(root.rglob('blobs/*')))}", root / "snapshots" / commit
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link /= file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "videos").mkdir(parents=True)
    make_video(folder / "videos" / "a.mp4", num_frames=40, fps=10.0)
    row = {"duration": 4.0, "timestamps": [[0.0, 2.0]], "sentences": ["bars appear."]}
    (folder / "train.json").write_text(json.dumps({"a": row}))
    return folder


def config(model: str, **data: Any) -> RunConfig:
    described = {"path": model, "dtype": "float32", "max_model_len": 8192}  # the positions of the tiny model
    return parse({"output_dir": "run", "model": described, "data": data}, source="test")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("Qwen/X@v1.0", "Qwen/X@v1.0"),
        ("hf://Qwen/X@abc", "Qwen/X@abc"),
        ("hf://datasets/people/clips/a/b.json", "people/clips/a/b.json"),
        ("hf://datasets/people/clips@main", "people/clips@main"),
    ],
)
def test_what_a_path_names_on_the_hub(cache: Path, path: str, shown: str) -> None:
    assert str(reference(Path(path), is_model=True)) == shown


@pytest.mark.parametrize(
    "path", ["models", "./Qwen/X", "../Qwen/X", "/Qwen/X", "a/b/c", "here/X", "work/X", ".cache/X", "Qwen/X@"]
)
def test_a_path_of_this_machine_names_nothing_on_the_hub(cache: Path, path: str) -> None:
    Path("here").mkdir()
    Path("work").mkdir()
    Path("./Qwen").mkdir() if path.startswith("./") else None
    assert reference(Path(path), is_model=True) is None
    assert reference(Path("Qwen/X")) is None, "only models are named without hf://"


@pytest.mark.parametrize(
    "path",
    ["hf://", "hf://squad", "hf://datasets/squad", "hf://datasets/", "hf://spaces/people/page", "hf://models/Qwen/X"],
)
def test_what_names_nothing_on_the_hub_is_refused_with_the_form(path: str) -> None:
    with pytest.raises(HubError, match=r"write hf://OWNER/NAME for a model, or hf://datasets/OWNER/NAME/PATH"):
        reference(Path(path))


def test_a_model_is_taken_from_the_cache_and_its_commit_is_recorded(cache: Path, tiny_model_dir: Path) -> None:
    snapshot = put(cache, "models--Qwen--Tiny-VL.7B", OLD, tiny_model_dir)
    found = with_local_files(config(REPO))
    assert found.model.path == snapshot
    assert str(snapshot_of(found.model.path)) == f"{REPO}@{OLD}"
    assert model_digest(found.model.path) == model_digest(tiny_model_dir)
    first = RunState(step=0, prompts_consumed=0, seed=0, mlflow_run_id="", weights_digest="")
    start = describe_start(
        found, ResumePoint(state=first, checkpoint=None, is_new=True), (), command="train", allow_changes=False
    )
    assert start.tags == {MODEL_TAG: f"{REPO}@{OLD}"}
    assert OLD in str(start.run_file(found, "id").config.model.path)


def test_a_revision_is_taken_as_it_is_named(cache: Path, tiny_model_dir: Path) -> None:
    old = put(cache, "models--Qwen--Tiny-VL.7B", OLD, tiny_model_dir)
    new = put(cache, "models--Qwen--Tiny-VL.7B", NEW, tiny_model_dir)
    assert with_local_files(config(REPO)).model.path == new
    assert with_local_files(config(f"{REPO}@{OLD}")).model.path == old
    assert with_local_files(config(f"hf://{REPO}@main"), only_cached=True).model.path == new


def test_a_resumed_run_keeps_the_commit_with_which_it_started(cache: Path, tiny_model_dir: Path) -> None:
    old = put(cache, "models--Qwen--Tiny-VL.7B", OLD, tiny_model_dir)
    started = with_local_files(config(REPO))
    write_run_file(Start(command="train", identity={}).run_file(started, "id"))
    put(cache, "models--Qwen--Tiny-VL.7B", NEW, tiny_model_dir)
    assert with_local_files(config(REPO), Path("run")).model.path == old
    assert with_local_files(config(f"{REPO}@{NEW}"), Path("run")).model.path.name == NEW
    assert with_local_files(config(REPO)).model.path.name == NEW
    assert with_local_files(config(REPO), Path("elsewhere")).model.path.name == NEW


def test_rows_and_videos_of_a_data_set_are_found_behind_the_links_of_the_cache(
    cache: Path, clips: Path, tiny_model_dir: Path
) -> None:
    put(cache, "datasets--people--clips", OLD, clips)
    source = {"annotations": f"hf://datasets/{DATA}/train.json", "videos": f"hf://datasets/{DATA}@{OLD}/videos"}
    given = config(str(tiny_model_dir), sources=[source], max_frames=8, max_pixels=100352)
    found = with_local_files(given)
    (item,) = training_items(found)
    assert item.prompt_id == "train:a/0"
    assert not check(found).problems
    assert blobs_of(found.data.sources[0].videos or Path()) == cache / "datasets--people--clips" / "blobs"


def test_a_link_from_the_cache_to_elsewhere_leads_out_of_it(cache: Path, clips: Path, tmp_path: Path) -> None:
    snapshot = put(cache, "datasets--people--clips", OLD, clips)
    shutil.copy(clips / "videos" / "a.mp4", tmp_path / "secret.mp4")
    (snapshot / "videos" / "a.mp4").unlink()
    (snapshot / "videos" / "a.mp4").symlink_to(tmp_path / "secret.mp4")
    given = config("m", annotations=str(clips / "train.json"), videos=str(snapshot / "videos"))
    with pytest.raises(ValueError, match="no usable row"):
        training_items(given)


@pytest.mark.parametrize("only_cached", [True, False])
def test_what_is_not_in_the_cache_is_one_sentence_with_what_to_download_and_where(
    cache: Path, only_cached: bool
) -> None:
    with pytest.raises(HubError) as error:
        with_local_files(config(f"{REPO}@v2"), only_cached=only_cached)
    said = str(error.value)
    assert said.startswith(f"model.path={REPO}@v2: no such path here, and not in the Hugging Face cache {cache}; ")
    assert "`hf download Qwen/Tiny-VL.7B --revision v2`" in said and "models--Qwen--Tiny-VL.7B" in said
    videos = f"hf://datasets/{DATA}/videos"
    with pytest.raises(HubError, match=r"data\.sources\.0\.videos=.*hf download people/clips --repo-type dataset"):
        with_local_files(config("m", sources=[{"annotations": "a.json", "videos": videos}]), only_cached=only_cached)


def test_a_file_that_the_repository_does_not_have_is_named(cache: Path, clips: Path) -> None:
    put(cache, "datasets--people--clips", OLD, clips)
    with pytest.raises(HubError, match=rf"data\.annotations=.*has no 'test\.json' at commit {OLD}"):
        with_local_files(config("m", annotations=f"hf://datasets/{DATA}/test.json"))


def test_a_node_finds_the_same_commit_in_a_cache_of_its_own(
    cache: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(cache, "models--Qwen--Tiny-VL.7B", OLD, tiny_model_dir)
    assert here(path) == path and here(tmp_path / "nothing") == tmp_path / "nothing"
    other = tmp_path / "of_the_node"
    put(other, "models--Qwen--Tiny-VL.7B", OLD, tiny_model_dir, main=False)
    shutil.rmtree(cache)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(other))
    assert here(path) == other / "models--Qwen--Tiny-VL.7B" / "snapshots" / OLD
    with pytest.raises(HubError, match=rf"Qwen/Tiny-VL\.7B@{NEW}"):
        here(path.with_name(NEW))


def test_a_job_gets_names_of_the_hub_as_they_are(cache: Path) -> None:
    sent = job_config(config(REPO, annotations=f"hf://datasets/{DATA}/train.json", videos="videos"))
    assert (sent.model.path, sent.data.videos) == (Path(REPO), Path("videos").absolute())
    assert reference(sent.data.annotations or Path()) is not None
    Path("models").mkdir()
    assert job_config(config("models/mine")).model.path == Path("models/mine").absolute()


def test_a_config_without_names_of_the_hub_is_untouched(cache: Path) -> None:
    given = config("/models/mine", annotations="a.json", videos="v")
    assert with_local_files(given) is given


def test_predictions_and_commands_on_data_take_files_of_the_hub_too(cache: Path, clips: Path, tmp_path: Path) -> None:
    put(cache, "datasets--people--clips", OLD, clips)
    (tmp_path / "p.json").write_text(json.dumps({"a": "<answer>0 to 2</answer>"}))
    sets = [
        {
            "annotations": "hf://datasets/people/clips/train.json",
            "videos": "hf://datasets/nobody/videos",
        },  # which are not needed
        {"name": "other", "annotations": "hf://datasets/nobody/rows.json"},
    ]
    tree = {
        "output_dir": "run",
        "data": {"annotations": "hf://datasets/nobody/rows.json"},
        "evaluation": {"sets": sets},
    }
    evaluated = parse({**tree, "model": {"path": "nobody/model"}}, source="test")
    options = EvalOptions(datasets=("train",), predictions=tmp_path / "p.json", out=tmp_path / "out")
    out = run_evaluation(evaluated, options)
    (one,) = json.loads((out / "results.json").read_text())["sets"]
    assert one["tasks"]["temporal_grounding"][0]["metrics"]["miou"]["value"] == 1.0
    arguments = ["data", "check", "--format", "charades_sta", "--annotations", "hf://datasets/people/clips/train.json"]
    found = CliRunner().invoke(app, [*arguments, "--videos", "hf://datasets/people/clips/videos"])
    assert (found.exit_code, "1 videos, 1 queries, 0 dirty rows" in found.output) == (0, True), found.output
    for replaced in ("--annotations", "--videos"):
        wanted = [*arguments, "--videos", "videos", replaced, "hf://datasets/nobody/rows"]
        found = CliRunner().invoke(app, wanted)
        assert found.exit_code == 2 and "hf download nobody/rows --repo-type dataset" in " ".join(found.output.split())


FETCHED = """
import sys
from pathlib import Path
from rlsys.hub import HubError, fetch, reference
try:
    print(fetch(reference(Path(sys.argv[1]), is_model=True), {}, field="model.path"))
except HubError as error:
    print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """A hub with one model of one file, at commit NEW."""

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._answer(b"{}")
            return
        file = {"type": "file", "path": "config.json", "size": 2, "oid": "0" * 40}
        model = {"id": REPO, "sha": NEW, "siblings": [{"rfilename": "config.json"}]}
        self._answer(json.dumps([file] if "/tree/" in self.path else model).encode())

    def do_HEAD(self) -> None:
        self._answer(b"{}")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        for name, value in (("ETag", '"1"'), ("X-Repo-Commit", NEW), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetched(cache: Path, hub: str, mounts: dict[Path, str]) -> str:
    variables = {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    done = run_with_mounts(mounts, [sys.executable, "-c", FETCHED, REPO], **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_cache_that_takes_no_file_is_named(hub: str, tmp_path: Path) -> None:
    for name, options in (("ro", "ro"), ("full", "nr_inodes=1"), ("free", "size=1m")):
        (tmp_path / name).mkdir()
        said = fetched(tmp_path / name, hub, {tmp_path / name: options})
        if name == "free":
            assert said == str(tmp_path / name / "models--Qwen--Tiny-VL.7B" / "snapshots" / NEW)
            continue
        assert said.startswith(f"model.path={REPO}: the Hugging Face cache {tmp_path / name} does not have it and ca")
        assert said.endswith("set HF_HOME to a folder that can be written to and has room, or give a folder of this "
                             "machine.")  # fmt: skip
    (tmp_path / "file").touch()
    assert f"the Hugging Face cache {tmp_path}/file does not have it" in fetched(tmp_path / "file", hub, {})


def test_a_read_only_cache_that_has_a_model_gives_it(hub: str, tmp_path: Path) -> None:
    source, disk = tmp_path / "source", tmp_path / "disk"
    source.mkdir()
    (source / "config.json").write_text("{}")
    folder = put(disk, "models--Qwen--Tiny-VL.7B", NEW, source)
    read_only = f"mount --bind {disk} {disk} && mount -o remount,bind,ro {disk} && exec"
    variables = {"HF_HUB_CACHE": str(disk), "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    shell = ["sh", "-c", f'{read_only} "$@"', "sh", sys.executable, "-c", FETCHED, REPO]
    done = run_with_mounts({}, shell, **variables)
    assert done.stdout.splitlines()[-1] == str(folder), done.stderr
