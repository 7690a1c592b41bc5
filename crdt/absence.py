"""Replicas that were away for long: what they alone still hold may have been deleted elsewhere.

A deletion is remembered for gc (crdt/aging.py). Who finished no sync for half of that is *away*:
it collects nothing meanwhile, and against a replica that was not away it gives way. What it had
when it was last in sync, and the other lacks, is gone. Two that both were away merge as always: so
a swarm that was switched off for a month loses nothing.
"""

from dataclasses import dataclass

from crdt.namespace import Rules

NEVER_SYNCED_MS = 2**62  # of a replica that has finished no sync yet: nobody else has what it has


def is_away(quiet_ms: int, rules: Rules) -> bool:
    """True if a replica that finished its last sync so long ago has been away."""
    return rules.gc_ms // 2 < quiet_ms < NEVER_SYNCED_MS


@dataclass
class Absence:
    """How long before this session both sides have finished one, in milliseconds."""

    now_ms: int
    ours_ms: int
    theirs_ms: int = 0

    @property
    def is_ended(self) -> bool:
        """True if this session makes us a replica that was not away: not one with a newcomer."""
        return self.theirs_ms != NEVER_SYNCED_MS or self.ours_ms == NEVER_SYNCED_MS

    def gone_until_ms(self, rules: Rules) -> int:
        """What we have from before this and the other lacks is gone; 0 if nothing is."""
        is_told = self.theirs_ms <= rules.gc_ms // 2
        return self.now_ms - self.ours_ms if is_told and is_away(self.ours_ms, rules) else 0

    def old_until_ms(self, rules: Rules) -> int:
        """What the other has from before this and we lack is not taken; 0 if all is."""
        is_told = self.ours_ms <= rules.gc_ms // 2
        return self.now_ms - self.theirs_ms if is_told and is_away(self.theirs_ms, rules) else 0
