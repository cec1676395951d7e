"""Answers to the rows of an evaluation: where they come from, and the file that keeps them.

- `answers` (`Answer`, `AnswersDiffer`, `AnswersFile`, `answer_of`): what a model answered to a row, and the file that
  keeps it
- `modes` (`Mode`, `ModeName`, `evenly_spaced`, `modes_of`): greedy, sampled and controls
- `responders` (`ActorResponder`, `Responder`, `collect_answers`): where answers come from
- `endpoint` (`EndpointResponder`): answers of a served model
- `rounds` (`Rounds`, `Rows`, `SecondLook`, `asked_in_rounds`, `with_cost`): rows that are answered round by round
"""
