"""Fixtures of all parts. Each part keeps its own in a `fixtures_*.py`."""

pytest_plugins = [
    "fixtures_models",
    "fixtures_actors",
    "fixtures_learner",
    "fixtures_cluster",
    "fixtures_rewards",
    "fixtures_judge",
]
