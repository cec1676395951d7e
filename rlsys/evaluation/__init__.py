"""Evaluation on held-out rows: answers, metrics and reports.

- `answered` (`Answered`, `unasked`): one evaluated row with a model's texts
- `answering`: answers to rows from actors or an endpoint, kept in files
- `evaluated` (`EvaluatedSet`, `results_of`, `scored`): a data set with its answers, and its figures
- `results_report` (`markdown`, `print_results`, `sections`): figures as tables
- `rounds` (`control_title`, `equal_tokens_name`, `points_of`, `round_names`, `rounds_of`, `write_rounds_curve`): what
  each round gained and cost
- `protocols`: how answers are read and scored, by data set
- `statistics`: confidence intervals, slices, comparisons, samples of one row, baselines
- `prediction_files`: files of texts as records
- `predictions` (`Predictions`, `PredictionsError`, `read_predictions`): texts that other systems made
- `runner` (`evaluate`, `with_shuffled_videos`): answers to held-out rows, sampled and greedy
- `pages`: HTML pages of rows with frames, spans and boxes
- `metrics` (`RECALL_THRESHOLDS`, `best_constant_interval`, `iou_metrics`): mIoU, recall and the best constant answer
- `report` (`print_held_out_table`, `write_loss_curve`, `write_reward_curve`): tables and curves
"""
