"""Evaluation on held-out rows: answers, metrics and reports.

- `runner` (`evaluate`, `with_shuffled_videos`): answers to held-out rows, sampled and greedy
- `metrics` (`best_constant_interval`, `iou_metrics`): mIoU, recall and the best constant answer
- `pages`: HTML pages of rows with frames, spans and boxes
- `report` (`print_held_out_table`, `write_loss_curve`, `write_reward_curve`): tables and curves
"""
