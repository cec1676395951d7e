"""Evaluation on held-out rows: answers, metrics and reports.

- `answered` (`Answered`): one evaluated row with a model's texts
- `answers` (`Answer`, `AnswersFile`): what a model answered to a row, and the file that keeps it
- `modes` (`Mode`, `modes_of`): greedy, sampled and controls
- `responders` (`ActorResponder`, `Responder`, `collect_answers`): where answers come from
- `endpoint` (`EndpointResponder`): answers of a served model
- `protocols`: how answers are read and scored, by data set
- `statistics`: confidence intervals, slices, comparisons, samples of one row, baselines
- `predictions` (`Predictions`, `PredictionsError`, `read_predictions`): texts that other systems made
- `runner` (`evaluate`, `with_shuffled_videos`): answers to held-out rows, sampled and greedy
- `pages`: HTML pages of rows with frames, spans and boxes
- `metrics` (`RECALL_THRESHOLDS`, `best_constant_interval`, `iou_metrics`): mIoU, recall and the best constant answer
- `report` (`print_held_out_table`, `write_loss_curve`, `write_reward_curve`): tables and curves
"""
