"""Parameters of GossipSub: the published ones, and why ours differ where they do.

Sources: github.com/libp2p/specs/pubsub/gossipsub (v1.0 parameters, v1.1 scoring, v1.2); go-libp2p's
defaults for the limits. Times in seconds.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TopicLimits:
    """What one topic may carry."""

    payload_max: int = 64 * 1024  # bytes of one message
    messages_per_s: float = 500.0  # new messages through one peer; a core verifies some 8,000
    burst: float = 2000.0  # that may come at once


@dataclass(frozen=True)
class Params:
    """All that a node decides for itself; nothing here needs agreement between nodes."""

    limits: TopicLimits = TopicLimits()
    topic_limits: dict[str, TopicLimits] = field(default_factory=dict[str, TopicLimits])
    topics_max: int = 256  # subscriptions of our own: a program that needs more has a bug
