"""Evaluation of models on data sets: `rlsys eval`, and the evaluations of a training run.

- `evaluate` (`RESULTS_FILE`, `EvalOptions`, `run_evaluation`): `rlsys eval`
- `answering` (`ChosenSet`, `annotations_digest`, `chosen_sets`): the answers to the rows of data sets
- `responder` (`open_answering_pool`): actors without a learner, or the client of a served model
- `compare_evaluations` (`compare_evaluations`): `rlsys eval compare`
- `training_evaluations` (`TrainingEvaluations`): evaluations every n steps, and the best checkpoint
- `initial` (`initial_evaluation`): the held-out figures of the weights that a run starts with
"""
