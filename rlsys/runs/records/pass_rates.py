"""The pass rate of each row so far, by which later epochs skip or order rows; a pure function of the ledger."""

from __future__ import annotations

from rlsys.config.data import PassRateConfig
from rlsys.errors import PassRateOutside
from rlsys.runs.records.ledger import Entry, Ledger


class PassRates:
    """Decides whether a row is sampled again, and says what is known of rows when an epoch begins.

    A prompt is judged by the steps that were done when it could first be admitted: in a synchronous run all steps
    before its own, with `pipeline.max_lag` n at least n fewer. A resumed run decides the same, because which steps
    these are follows from the ledger. groups_in_flight: number of groups that a step admits, its own included.
    """

    def __init__(self, settings: PassRateConfig, ledger: Ledger, groups_in_flight: int) -> None:
        self._settings, self._ledger, self._groups_in_flight = settings, ledger, groups_in_flight
        self._history: dict[str, list[tuple[int, float]]] = {}  # by row: number of the entry, pass rate of the group
        self._num_read = 0
        self._newest_read: Entry | None = None

    def require_inside(self, prompt_index: int, prompt_id: str) -> None:
        """Raise PassRateOutside if the row's pass rate at this prompt is outside the bounds."""
        if not self._settings.is_on:
            return
        self._read_on()
        known = self._entries_known(prompt_index)
        rates = [rate for number, rate in self._history.get(prompt_id, ()) if number < known]
        if len(rates) < self._settings.min_groups:
            return
        rate = sum(rates) / len(rates)
        if not self._settings.min <= rate <= self._settings.max:
            raise PassRateOutside(
                f"{prompt_id}: pass rate {rate:.3f} over {len(rates)} groups, data.pass_rate allows "
                f"{self._settings.min:g} to {self._settings.max:g}"
            )

    def newest_known(self, prompt_index: int) -> Entry | None:
        """Return the entry of the newest step that was done when a prompt could first be admitted, None without one."""
        known = self._entries_known(prompt_index)
        return self._ledger.entries[known - 1] if known else None

    def known_at(self, prompt_index: int) -> dict[str, float]:
        """Return the pass rate of each row over the steps that were done when a prompt could first be admitted."""
        self._read_on()
        known = self._entries_known(prompt_index)
        found = {name: [rate for number, rate in one if number < known] for name, one in self._history.items()}
        return {name: sum(rates) / len(rates) for name, rates in found.items() if rates}

    def _entries_known(self, prompt_index: int) -> int:
        """Return the number of steps that were done when this prompt could first be admitted."""
        entries = self._ledger.entries
        before = 1 + max(entries[-1].prompt_indices) if entries else 0
        known = len(entries)
        for one in reversed(entries):
            before -= len(one.prompt_indices)
            others = len(one.replaced) + len(one.skipped)  # each admits one more
            if prompt_index >= before + self._groups_in_flight + others:
                break
            known -= 1
        return known

    def _read_on(self) -> None:
        """Read the entries that are new; after a rollback all of them."""
        entries = self._ledger.entries
        if self._num_read > len(entries) or (self._num_read and entries[self._num_read - 1] is not self._newest_read):
            self._history, self._num_read = {}, 0
        for number in range(self._num_read, len(entries)):
            one = entries[number]
            names = one.trained | one.replaced
            for prompt_index, rate in one.pass_rates.items():
                self._history.setdefault(names[prompt_index], []).append((number, rate))
        self._num_read = len(entries)
        self._newest_read = entries[-1] if entries else None
