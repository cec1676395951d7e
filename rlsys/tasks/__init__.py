"""The tasks: what the model is asked, how its answer is read, and which scores it gets.

- `table.TASKS`, `table.Task`, `table.task_named`: the task table
- `table.prompt_text`, `table.score_weights`: the prompt of an item, the score weights of a task
- `answers`: answer types, and the blocks and layout of a response
- `truths`: annotations as true answers
- `canonical.canonical_response`: the true answer in the requested format
- `citations.cited_spans`: times that a text mentions
- `geometry`: IoU of periods and boxes
- `prompts`: the prompt templates
"""
