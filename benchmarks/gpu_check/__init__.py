"""Check of the GPU path in one command: `python -m benchmarks.gpu_check --learner` or `--full`. See docs/gpu.md.

Every step is a process of its own with its own time limit, and the report is written after each, so that a step which
fails, hangs or takes the GPU with it costs no other step's figures. `--cpu` runs the same steps at toy sizes.
"""
