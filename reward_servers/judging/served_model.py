"""The judge's own model, served beside it with Ray Serve LLM."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from ray import serve
from starlette.datastructures import Headers

from reward_servers.judging.first_request import with_first_request
from reward_servers.server.auth import TokenCheck
from rlsys import env
from rlsys.config.run import JudgeConfig

_log = logging.getLogger(__name__)


def with_served_model(judge: JudgeConfig, name: str, base_url: str) -> tuple[JudgeConfig, str | None]:
    """Return the judge's config with endpoints that exist, and the key to them.

    Where `serve_model` is set, the model is started as application `name` at `base_url`/`name`, behind a key that
    is made here. Elsewhere the endpoints of `urls` get a first request, with the key of the environment, and the
    config comes back with what they take. Raises JudgeUnusable when a person must change something first.
    """
    if judge.serve_model is None:
        given = os.environ.get(judge.api_key_env) or None
        return (with_first_request(judge, given) if judge.urls else judge), given
    key = secrets.token_urlsafe(32)
    _log.info("serving the judge's model %s; this takes a minute on CPU, several for 72B parameters", judge.serve_model)
    with _own_logging():
        serve.run(_application(judge, key), name=name, route_prefix=f"/{name}", blocking=False)
    return judge.model_copy(update={"urls": (f"{base_url}/{name}/v1",), "serve_model": None}), key


@contextmanager
def _own_logging() -> Iterator[None]:
    """Keep this process's logging while Ray Serve LLM is imported.

    Version 2.60 makes the root logger write JSON, of every library's chatter.
    """
    root = logging.getLogger()
    level, handlers = root.level, [(handler, handler.formatter, list(handler.filters)) for handler in root.handlers]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(level)
        root.handlers[:] = [handler for handler, _, _ in handlers]
        for handler, formatter, filters in handlers:
            handler.setFormatter(formatter)
            handler.filters[:] = filters


def _application(judge: JudgeConfig, key: str) -> Any:
    from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata  # as Ray's own example does
    from ray.serve.llm import LLMConfig, build_llm_deployment
    from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress

    has_gpus = ray.cluster_resources().get("GPU", 0) >= judge.serve_tensor_parallel_size
    config = LLMConfig(**model_arguments(judge, has_gpus=has_gpus))
    app = FastAPI(title="rlsys judge model", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(KeyGuard, check=TokenCheck.of(key))
    ingress = make_fastapi_ingress(OpenAiIngress, app=app)
    options = OpenAiIngress.get_deployment_options([config])
    return serve.deployment(ingress, **options).bind(
        llm_deployments={config.model_id: build_llm_deployment(config)},
        model_cards={config.model_id: to_model_metadata(config.model_id, config)},
    )


def model_arguments(judge: JudgeConfig, *, has_gpus: bool) -> dict[str, Any]:
    """Return the fields of Ray's LLMConfig for the judge's model; without enough GPUs in the cluster it runs on CPU."""
    engine: dict[str, Any] = {
        "max_model_len": judge.serve_max_model_len,
        # else a model may write white space until its budget is spent, which the grammar of JSON allows
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if has_gpus:
        engine["tensor_parallel_size"] = judge.serve_tensor_parallel_size
    else:
        engine |= {"enforce_eager": True, "enable_chunked_prefill": False, "kv_cache_memory_bytes": 64 << 20}
    arguments: dict[str, Any] = {
        "model_loading_config": {"model_id": judge.model, "model_source": judge.serve_model},
        "deployment_config": {
            "autoscaling_config": {"min_replicas": judge.serve_replicas, "max_replicas": judge.serve_replicas}
        },
        "engine_kwargs": engine,
        "log_engine_metrics": False,
    }
    if not has_gpus:
        arguments |= {"accelerator_config": {"kind": "cpu"}, "runtime_env": {"env_vars": dict(env.CPU_SERVED_MODEL)}}
    return arguments


class KeyGuard:
    """Let requests with the right bearer token through to the model; the model's own server knows no keys."""

    def __init__(self, app: Any, check: TokenCheck) -> None:
        self._app, self._check = app, check

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not self._check.accepts(Headers(scope=scope).get("authorization")):
            await JSONResponse({"error": {"message": "a key is needed"}}, 401)(scope, receive, send)
            return
        await self._app(scope, receive, send)
