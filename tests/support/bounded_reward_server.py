"""The rule scorers behind the bounds that stand in Ray Serve's proxy, in a process of their own without a cluster."""

from __future__ import annotations

import resource
import sys

import uvicorn

from reward_servers.scorers.scorer_processes import ScorerProcesses
from reward_servers.server.connections import bound_connections
from reward_servers.server.intake import Intake
from reward_servers.server.service import RewardService
from reward_servers.server.web import build_app
from tests.support.plain_reward_server import no_status


def main(listener: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    bound_connections()
    app = Intake(build_app(RewardService(None, ScorerProcesses({})), None, no_status))
    uvicorn.run(app, fd=listener, log_level="critical", lifespan="off")


if __name__ == "__main__":
    main(int(sys.argv[1]))
