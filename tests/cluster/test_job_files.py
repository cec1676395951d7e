"""The files of a job: what git tracks or the installed packages, the config's own scorers, and no secrets."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from cluster import job_files
from cluster.job_files import SubmitError, code_files, pack, scorer_files
from cluster.launch import ROOT

TRACKED = ("pyproject.toml", "rlsys/__init__.py", "rlsys/runs/train.py", "configs/demo.yaml", ".env", "rlsys/.netrc")
UNTRACKED = (
    *("runs/demo/mlflow.db", "old/step_8/model.bin", "id_rsa", "core.4711", "rlsys/__pycache__/a.pyc"),
    *("myenv/pyvenv.cfg", "rlsys/new.py", "notes.txt"),
)


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in (*TRACKED, *UNTRACKED):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "videos").symlink_to("/nowhere")
    (root / "rlsys" / "configs").symlink_to("../configs")
    git(root, "init", "-q")
    git(root, "add", "videos", "rlsys/configs", *TRACKED)
    return root


def names(files: job_files.Files) -> set[str]:
    return {str(target) for target in files}


def one_file(tmp_path: Path, name: str, content: bytes = b"") -> job_files.Files:
    file = tmp_path / name
    file.write_bytes(content)
    return {PurePosixPath(name): file}


def test_a_checkout_sends_what_git_tracks_and_nothing_hidden_or_linked(
    checkout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (checkout / "configs" / "demo.yaml").write_text("changed")
    files = code_files(checkout)
    assert names(files) == {"pyproject.toml", "rlsys/__init__.py", "rlsys/runs/train.py", "configs/demo.yaml"}
    assert files[PurePosixPath("configs/demo.yaml")].read_text() == "changed"
    assert "not sent, as git does not track them: rlsys/new.py;" in caplog.text


def test_a_tracked_file_that_was_deleted_is_not_sent(checkout: Path) -> None:
    (checkout / "configs" / "demo.yaml").unlink()
    assert "configs/demo.yaml" not in names(code_files(checkout))


def test_without_git_the_packages_are_sent_from_where_they_are_imported(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")  # a repository around the environment, such as a project's own, counts for nothing
    (tmp_path / "lib").mkdir()
    files = code_files(tmp_path / "lib")
    assert {target.parts[0] for target in files} == {"rlsys", "actors", "learner", "reward_servers", "cluster"}
    assert files[PurePosixPath("cluster/job_python.sh")] == ROOT / "cluster" / "job_python.sh"
    assert files[PurePosixPath("reward_servers/judging/prompts/entailment-1.txt")].is_file()
    assert not [target for target in files if "__pycache__" in target.parts or target.name.startswith(".")]


@pytest.mark.parametrize(
    "name",
    [
        *("id_rsa", "id_ed25519.pub", "secrets.yaml", "TLS.KEY", "server.pem", "credentials.json", "prod.env"),
        *("netrc", "core", "core.4711", "python.core", "my.token", "kubeconfig"),
    ],
)
def test_what_looks_like_a_secret_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(SubmitError, match=f"{name} looks like a secret"):
        pack(one_file(tmp_path, name), tmp_path / "packed")


def test_a_private_key_is_refused_under_any_name(tmp_path: Path) -> None:
    content = b"\n-----BEGIN " + b"OPENSSH PRIVATE KEY-----\nb3Bl\n"
    with pytest.raises(SubmitError, match=r"notes\.txt looks like a secret"):
        pack(one_file(tmp_path, "notes.txt", content), tmp_path / "packed")


@pytest.mark.parametrize("name", ["tokenizer.json", "environment.py", "keys.py", "core.py", "scores.py"])
def test_an_ordinary_name_is_no_secret(tmp_path: Path, name: str) -> None:
    pack(one_file(tmp_path, name, b"x"), tmp_path / "packed")
    assert (tmp_path / "packed" / name).read_bytes() == b"x"


def test_number_and_size_of_the_files_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cluster")
    pack(one_file(tmp_path, "a.py", bytes(3 << 19)), tmp_path / "packed")
    assert "sending 1 files, 1.5 MiB: a.py (1)" in caplog.text


def test_this_repository_packs_small_and_with_what_a_job_runs(tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack(code_files(), folder)
    assert (folder / "cluster" / "job_python.sh").exists()
    assert (folder / "rlsys" / "config" / "run.py").exists() and (folder / "rlsys" / "runs" / "train.py").exists()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 20 << 20


def test_too_much_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_files, "MAX_PACKED_BYTES", 1 << 20)
    with pytest.raises(SubmitError, match=r"2 MiB to send, the limit is 1 MiB.*videos\.tar \(2\.0 MiB\)"):
        pack(one_file(tmp_path, "videos.tar", bytes(2 << 20)), tmp_path / "packed")


def test_a_scorer_of_this_folder_is_sent_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "polite_scores.py").write_text("")
    (tmp_path / "our_scores" / "text").mkdir(parents=True)
    for name in ("__init__.py", ".env", "text/__init__.py", "text/words.py"):
        (tmp_path / "our_scores" / name).write_text("")
    scorers = {"polite": "polite_scores:says_please", "words": "our_scores.text.words:count"}
    assert scorer_files(scorers) == {
        PurePosixPath("polite_scores.py"): tmp_path / "polite_scores.py",
        PurePosixPath("our_scores/__init__.py"): tmp_path / "our_scores" / "__init__.py",
        PurePosixPath("our_scores/text/__init__.py"): tmp_path / "our_scores" / "text" / "__init__.py",
        PurePosixPath("our_scores/text/words.py"): tmp_path / "our_scores" / "text" / "words.py",
    }


def test_an_installed_scorer_is_not_sent() -> None:
    assert scorer_files({"same": "numpy.testing:assert_equal", "mean": "statistics:mean"}) == {}


def test_a_scorer_that_is_not_found_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        SubmitError, match=r"reward\.scorers\.polite='no_such:f': there is no module 'no_such'.*PYTHONPATH"
    ):
        scorer_files({"polite": "no_such:f"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gcp.json", '{"type": "x", "private_' + 'key": "-----BEGIN PRIVATE KEY-----abc"}'),
        ("notes.txt", "# mine\n-----BEGIN RSA " + "PRIVATE KEY-----\nabc\n"),
        ("judge.py", "KEY = 'sk-" + "proj-" + "a1" * 20 + "'"),
        ("hub.py", "TOKEN = 'hf_" + "aB" * 17 + "'"),
        ("cloud.yaml", "aws_secret_" + "access_key: " + "a1" * 20),
        ("passwords.txt", "x"),
        ("client_secret_1.json", "{}"),
        ("service_account.json", "{}"),
        ("login.ppk", "x"),
        ("a.py", "github_" + "pat_" + "11ABCDEFG0" * 8),
        ("a.py", "glpat-" + "abcdefghij0123456789"),
        ("a.py", "xoxb-" + "123456789012-abcdefghijklmnop"),
        ("a.py", "AIza" + "SyA1234567890abcdefghijklmnopqrstuv"),
        ("a.py", "ASIA" + "ABCDEFGHIJKLMNOP"),
        ("a.py", "npm_" + "a1B2" * 9),
        ("a.cfg", "pypi-" + "AgEI" + "cHlwaS5vcmc" * 8),
        ("a.asc", "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----\n"),
        ("a.txt", "AGE-SECRET-" + "KEY-1" + "Q" * 58),
        ("a.txt", "PuTTY-User-" + "Key-File-2: ssh-rsa\n"),
        ("a.py", "AccountName=a;Account" + "Key=" + "a" * 86 + "=="),
        ("a.py", "WANDB_API_" + "KEY='" + "0123456789" * 4 + "'"),
        ("mlflow.yaml", "tracking: {uri: 'postgresql://me:hunt" + "er2@db/mlflow'}"),
        ("store.py", "CACHE = 'rediss://:8fa3" + "c1d9@10.0.0.7:6379/0'"),
        ("late.txt", "x" * (2 << 20) + "\n-----BEGIN RSA " + "PRIVATE KEY-----\n"),
        ("wide.txt", "-----BEGIN RSA " + "PRIVATE KEY-----\n"),
        *(
            (name, "x")
            for name in ("token", "secrets", "api_key.txt", "kaggle.json", "a.tfstate", "a.tfvars", "a.ovpn")
        ),
    ],
)
def test_a_key_is_found_by_its_name_or_its_form(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-16" if name == "wide.txt" else None)
    with pytest.raises(SubmitError, match="looks like a secret"):
        pack({PurePosixPath(name): tmp_path / name}, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("compose.yaml", "uri: postgresql://mlflow:mlflow@db/mlflow"),
        ("README.md", "git clone https://USER:${TOKEN}@host/a.git; mysql://user:password@host/db; http://<u>:<p>@h"),
        ("store.py", "url = f'http://{user}:{password}@{host}'  # not http://me:***@host"),
        ("page.html", "<a href='http://host:80/a'>me@host</a> http://host:8080/x@y"),
        ("tests/test_urls.py", "mask('http://me:hunt" + "er2@host')"),
    ],
)
def test_a_placeholder_in_a_url_is_no_password(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_text(content)
    pack({PurePosixPath(name): tmp_path / "given"}, tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == content
