"""The Ray cluster of a run: start or join one, place its processes, submit jobs, install the environment.

- `launch` (`Cluster`, `open_cluster`): a local cluster, or an existing one that is joined
- `submit` (`submit`): `rlsys submit`
"""
