"""Fixtures of all parts. Each part keeps its own in a file of `tests/support`."""

pytest_plugins = [
    "tests.support.pace",
    "tests.support.models",
    "tests.support.actors",
    "tests.support.learner",
    "tests.support.cluster",
    "tests.support.rewards",
    "tests.support.judge",
]
