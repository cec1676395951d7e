"""A model behind an OpenAI-compatible server, as a judge and for evaluation; untrained, so its answers are random."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from rlsys import env
from tests.support.pace import patience

START_TIMEOUT_S = 400.0  # on the reference machine, see `tests.support.pace`
MAX_MODEL_LEN = 4096
"""Enough for the judge's prompts (about 1,300 tokens of this model, whose tokens are mostly single letters), short
captions, and answers of 1,500 tokens."""
MAX_MEDIA = {"image": 12, "video": 1}
"""Images and videos of one prompt: a clip of up to twelve frames as either."""


class JudgeServer(NamedTuple):
    """The judge's server. url: as in `reward.judge.urls`.  model: its name.  log: the server's output."""

    url: str
    model: str
    log: Path


@pytest.fixture(scope="session")
def judge_server(served_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeServer]:
    """Run vLLM's OpenAI server with the benchmark's model on one thread; starting takes a minute or two."""
    log = tmp_path_factory.mktemp("judge_server") / "log.txt"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(served_model_dir), "--served-model-name", "judge", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(MAX_MODEL_LEN)]
    command += ["--dtype", "float32", "--kv-cache-memory-bytes", str(64 << 20), "--no-enable-chunked-prefill"]
    command += ["--max-num-batched-tokens", "8192", "--limit-mm-per-prompt", json.dumps(MAX_MEDIA)]
    command += ["--trust-request-mm-kwargs"]
    # without the second setting an untrained model writes white space, which JSON allows anywhere, until it is cut off
    grammar = {"backend": "xgrammar", "disable_any_whitespace": True}
    command += ["--structured-outputs-config", json.dumps(grammar)]
    scratch = tempfile.mkdtemp(prefix="rj-", dir="/tmp")  # short: vLLM leaves sockets and files in it
    variables = {**os.environ, **env.QUIET, **env.CPU_SERVED_MODEL, "TMPDIR": scratch}
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield JudgeServer(f"http://127.0.0.1:{port}/v1", "judge", log)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(scratch, ignore_errors=True)  # a process that is still ending may write once more


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + patience(START_TIMEOUT_S)
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            break
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the judge's model did not come up: {log.read_text()[-3000:]}")
