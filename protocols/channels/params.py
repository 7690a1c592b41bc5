"""Parameters of GossipSub: the published ones, and why ours differ where they do.

Sources: github.com/libp2p/specs/pubsub/gossipsub, v1.0 (mesh), v1.1 (scores), v1.2 (IDONTWANT);
limits: go-libp2p-pubsub. Nothing here needs agreement between nodes. Times are in seconds, decays
are factors per heartbeat.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TopicLimits:
    """What one topic may carry."""

    payload_max: int = 64 * 1024  # bytes of one message
    messages_per_s: float = 500.0  # new ones through one peer; a core verifies some 8,000
    burst: float = 2000.0  # that may come at once


@dataclass(frozen=True)
class TopicScore:
    """How a peer's conduct in one topic counts: P1 to P4 of the 1.1 specification."""

    weight: float = 1.0
    in_mesh_weight: float = 0.01  # P1, per second in the mesh; small: waiting is cheap
    in_mesh_cap_s: float = 100.0
    first_weight: float = 1.0  # P2, per message that it was the first to deliver
    first_decay: float = 0.98  # half is forgotten in 34 s
    first_cap: float = 50.0
    # P3 and P3b are off (weight 0), as the specification advises for traffic that is not known
    # beforehand: in a quiet topic nobody delivers anything. Our large messages, which a peer may
    # announce in place of delivering, would count against it too.
    mesh_weight: float = 0.0
    mesh_decay: float = 0.98
    mesh_threshold: float = 5.0
    mesh_cap: float = 50.0
    mesh_window_s: float = 0.1  # a copy this long after the first still counts as delivered
    mesh_activation_s: float = 30.0  # in the mesh, before it counts
    failure_weight: float = 0.0  # P3b
    failure_decay: float = 0.98
    # P4. Nobody passes on what it has not validated: three in a minute are no accident (-90).
    invalid_weight: float = -10.0
    invalid_decay: float = 0.99  # half is forgotten in 69 s


@dataclass(frozen=True)
class ScoreParams:
    """P5 to P7, the thresholds (rust-libp2p's values), and what is remembered."""

    topic: TopicScore = TopicScore()  # of topics that have none of their own
    topics: dict[str, TopicScore] = field(default_factory=dict[str, TopicScore])
    topics_cap: float = 100.0  # merits in topics make up for a few faults, not for any number
    application_weight: float = 1.0  # P5
    # P6. Members behind one NAT are many and honest: it is there against hundreds of identities.
    address_weight: float = -1.0
    address_threshold: int = 32
    behaviour_weight: float = -10.0  # P7
    behaviour_threshold: float = 6.0  # faults that races explain
    behaviour_decay: float = 0.96  # half is forgotten in 17 s
    zero: float = 0.01  # a decayed counter below it is 0
    gossip: float = -10.0  # below: no announcements to it, none from it
    publish: float = -50.0  # below: not even our own messages
    graylist: float = -80.0  # below: nothing it says is read; it is dropped
    opportunistic: float = 1.0  # a mesh whose median is below looks for better peers
    retain_s: float = 3600.0  # a bad score outlives the connection
    retained_max: int = 1024  # peers; the oldest is forgotten


@dataclass(frozen=True)
class Params:
    """Mesh, announcements and limits of one node."""

    d: int = 6
    d_low: int = 5
    d_high: int = 8  # published: 12. A message comes once per mesh peer: 8 keeps it below 7 copies
    d_score: int = 4  # kept by score when a mesh is too big
    d_out: int = 2  # that we dialled: no ring of attackers around us
    d_chosen: int = 3  # that we chose by chance: nor one of peers that GRAFT whom they can
    d_lazy: int = 6  # peers outside the mesh told of recent messages, at the least
    gossip_factor: float = 0.25  # and this share of them
    heartbeat_s: float = 1.0
    first_heartbeat_s: float = 0.1  # after the first peer
    backoff_s: int = 60  # after PRUNE
    backoff_leave_s: int = 2  # after PRUNE because we leave: a program may be started again
    graft_flood_s: float = 10.0  # a GRAFT so soon after our PRUNE counts twice
    backoffs_max: int = 2048  # remembered per topic
    opportunistic_beats: int = 60  # heartbeats between two looks for better peers
    opportunistic_peers: int = 2
    history_beats: int = 5  # heartbeats for which a message can be asked for
    gossip_beats: int = 3  # and is announced
    cache_bytes: int = 32 * 1024 * 1024  # of those messages; the oldest go first
    seen_s: float = 120.0
    seen_max: int = 64 * 1024  # 500 messages a second for two minutes; 15 MB
    retransmissions: int = 3  # of one message to one peer that asks
    ihave_messages: int = 64  # IHAVE taken from one peer per heartbeat; go: 10, we send up to 10
    ihave_ids: int = 5000  # ids asked of one peer per heartbeat
    announced_max: int = 1000  # ids in one IHAVE of ours: 48 KB, below rust-libp2p's frame limit
    iwant_ids: int = 5000  # ids that one peer may ask per heartbeat
    iwant_bytes: int = 8 * 1024 * 1024  # and get: 64 Mbit/s; the cache thrice would be 96 MB
    dont_wants: int = 1000  # ids of IDONTWANT and IHAVE remembered per peer and three heartbeats
    peer_topics_max: int = 256  # subscriptions remembered per peer: as many as a node may have
    topics_max: int = 256  # subscriptions of our own: a program that needs more has a bug
    peers_max: int = 1024  # more streams than a node has connections
    pending_max: int = 4096  # messages being validated; more are not read
    pending_bytes: int = 16 * 1024 * 1024
    # Large messages: pushed to few, announced at once to the rest of the mesh (facts: state, 3).
    dont_want_min: int = 4096  # bytes; a copy costs more than six IDONTWANT of 60 B
    large_min: int = 16 * 1024  # bytes
    large_pushes: int = 6  # mesh peers that get one unasked
    large_pushes_ahead: int = 3  # fewer for each mesh peer that announced it before we had it
    large_told: int = 12  # peers that learn at once of one that is ours: twice the mesh
    announce_gap_s: float = 0.125  # between two announcements: at most 8 per heartbeat, go's 10
    ask_delay_s: float = 0.03  # an announced message may be on its way to us already
    ask_again_s: float = 0.5  # without the message, another announcer is asked
    follow_up_s: float = 3.0  # without it from anybody, promises are broken; a slow link takes long
    limits: TopicLimits = TopicLimits()  # of topics that have none of their own
    topic_limits: dict[str, TopicLimits] = field(default_factory=dict[str, TopicLimits])
    scores: ScoreParams = ScoreParams()
