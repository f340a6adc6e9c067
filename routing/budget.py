"""How many further attempts a model may make: a share of its requests, so that retries never become a storm. Pure.

Neighbours: retry.py (spends).
"""

from __future__ import annotations

# Given to begin with, for a bad moment of a model that has few requests.
START = 10.0
# What was not needed is kept up to this: an engine that dies takes everything down with it that it had not answered
# yet, and all of that should have a second chance at once.
MOST = 500.0


class RetryBudget:
    """`share` of the requests may be tried again, and START besides; up to MOST can be saved."""

    __slots__ = ("balance", "share", "spent")

    def __init__(self, share: float) -> None:
        self.share = share
        self.balance = START
        self.spent = 0

    def earn(self) -> None:
        """A request has come."""
        if self.balance < MOST:
            self.balance += self.share

    def spend(self) -> bool:
        """Whether one more attempt is allowed; if so it is counted."""
        if self.balance < 1.0:
            return False
        self.balance -= 1.0
        self.spent += 1
        return True
