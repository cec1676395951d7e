"""The judge's own model under Ray Serve LLM, the whole path over HTTP; tiny and untrained, so verdicts mean nothing."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from reward_servers.judging.served_model import model_arguments
from reward_servers.server import app
from rlsys.config.run import JudgeConfig, RewardConfig
from tests.support.pace import patience
from tests.support.rewards import NO_TOKEN, captions, score_groups


def test_a_72b_model_is_spread_over_gpus_and_a_tiny_one_runs_on_cpu() -> None:
    judge = JudgeConfig(serve_model="Qwen/Qwen2.5-72B-Instruct", serve_tensor_parallel_size=8, serve_replicas=2)
    on_gpus = model_arguments(judge, has_gpus=True)
    assert on_gpus["engine_kwargs"]["tensor_parallel_size"] == 8
    assert on_gpus["model_loading_config"]["model_id"] == "Qwen/Qwen2.5-72B-Instruct"
    assert on_gpus["deployment_config"]["autoscaling_config"] == {"min_replicas": 2, "max_replicas": 2}
    assert "accelerator_config" not in on_gpus
    assert model_arguments(judge, has_gpus=False)["accelerator_config"] == {"kind": "cpu"}


@pytest.mark.slow
@pytest.mark.long
def test_a_model_served_beside_the_judge_gives_typed_verdicts_behind_a_key(
    serve_cluster: Path, bench_model_dir: Path, tmp_path: Path
) -> None:
    judge = {
        "model": "tiny",
        "serve_model": str(bench_model_dir),
        "serve_max_model_len": 4096,
        "max_output_tokens": 2048,
    }
    judge["cache_path"] = tmp_path / "verdicts.sqlite"
    url = app.launch(RewardConfig.model_validate({"token_env": NO_TOKEN, "judge": judge}), "served")
    (scored,) = score_groups(url, [captions("A dog runs.", "A dog runs.", "It rains.")], timeout_s=patience(200.0))
    for is_valid, reason, evidence in zip(scored.is_valid, scored.reasons, scored.evidence, strict=True):
        assert is_valid or reason.startswith(("abstain", "malformed")), reason  # it may write nonsense, never nothing
        if is_valid:
            assert len(evidence["recall"]) == len(evidence["reference_events"]) and evidence["model"] == "tiny"
    assert scored.reasons[0] == scored.reasons[1]
    served = url.replace("/served", "/served-model/v1")
    question = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    assert httpx.post(f"{served}/chat/completions", json=question, trust_env=False).status_code == 401
    app.stop("served")
