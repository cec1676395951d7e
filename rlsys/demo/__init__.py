"""The demos: GRPO on synthetic clips, with one task or five.

- `grounding` (`NUM_CLIPS`, `STEP_PHASES`, `demo_config`, `run_demo`, `sft_config`, `with_model`,
  `write_demonstrations`): `rlsys demo`
- `all_tasks` (`MEASURES`, `run_demo_all_tasks`): `rlsys demo --tasks all`
- `synthetic` (`COLOURS`, `Scene`, `SyntheticSet`, `demonstration_text`, `draw_dataset`, `encode`, `render`): clips of
  coloured shapes with exact time spans
- `synthetic_tasks` (`choice_of_colour`, `demonstration_text`, `draw_mixture`): clips and questions of five tasks
"""
