"""Tasks: the prompts, the parsing of answers, and the scores of each kind of question about a video.

- `table` (`CORRECT_ABOVE`, `GROUP_SCORES`, `JUDGED`, `TASKS`, `Scoring`, `Task`, `check_weights`, `default_names`,
  `expected_answer`, `judged_scores`, `prompt_text`, `score_weights`, `task_name`, `task_named`): the task table, and
  the score weights of a task
- `answers` (`UNKNOWN`, `Answer`, `Boxes`, `Caption`, `Choice`, `Expected`, `Number`, `Phrase`, `TimeSpans`, `as_box`,
  `last_block`, `read_box`, `read_choice`, `read_number`, `read_period`, `read_phrase`): answer types, and the parsing
  of a response into blocks and answers
- `lenient` (`MAX_CHARS`): the length above which a text is no answer
- `lenient_number` (`number`): the number that a text means
- `truths` (`MAX_TRACKED_FRAMES`, `NUM_TRACKED_FRAMES`, `is_tracked_count`): annotations parsed into true answers
- `truth_fit` (`TOLERANCE_S`, `fit_truth`, `past_the_file`): answers and parts with times outside the clip
- `canonical` (`canonical_response`): the true answer in the requested format
- `citations` (`cited_periods`, `cited_spans`): the times that a text mentions
- `geometry` (`Box`, `TimeSpan`, `box_iou`, `mean_box_iou`, `merge_spans`, `relative_accuracy`, `spans_iou`): IoU of
  periods and boxes, nearness of numbers
"""
