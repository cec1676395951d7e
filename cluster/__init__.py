"""The Ray cluster of a run: start or join one, place its processes, submit jobs, install the environment.

- `launch` (`Cluster`, `open_cluster`): a local cluster, or an existing one that is joined
- `address` (`cluster_address`, `require_cluster`): the address of an existing cluster, and whether one answers there
- `surroundings` (`problems`): what a run needs of the machine that it starts on
- `submit` (`submit`): `rlsys submit`
"""
