"""The demos: synthetic clips, and GRPO on one task or on five.

- `grounding` (`NUM_CLIPS`, `demo_config`, `run_demo`, `sft_config`, `with_model`, `write_demonstrations`): `rlsys
  demo`
- `all_tasks` (`run_demo_all_tasks`): `rlsys demo --tasks all`
- `synthetic` (`SyntheticSet`, `demonstration_text`, `draw_dataset`): clips of coloured shapes with exact time spans
- `synthetic_tasks` (`demonstration_text`, `draw_mixture`): clips and questions of five tasks
"""
