"""Protocols of evaluation: what is read from a text, how a row is scored, how rows become metrics.

- `protocol` (`Protocol_`, `Published`, `Setting`): what a protocol and a published figure are
- `table` (`PROTOCOLS`, `protocols_for`): the protocols by name and those of a data set
- `texts` (`label`, `numbers`, `true_letter`): what a row's truth and labels say
- `weighted` (`ScoredRow`, `Weighted`): means over rows, for one weighting or many
"""
