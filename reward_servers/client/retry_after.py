"""Read how long a server asks its callers to wait."""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Mapping

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the seconds that `Retry-After` asks for, as a number or as a date; 0 when there is none that can be read.

    headers: looked up in lower case.  `retry-after-ms`, which some judge endpoints send, goes before it.
    A date is taken against the server's own `Date`, so that its clock may be wrong.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    value = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(value):
        return float(value)
    when = _date(value)
    if when is None:
        return 0.0
    now = _date(headers.get("date", "")) or datetime.datetime.now(tz=datetime.UTC)
    return max(0.0, (when - now).total_seconds())


def _date(text: str) -> datetime.datetime | None:
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the second of numbers that no date has
        return None
    return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
