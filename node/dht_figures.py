"""The DHT's figures for Prometheus: names for what `dht.service` and `node.kad` count."""

from collections.abc import Callable

from node.finding import Finding
from node.metrics import Figure


def dht_figures(finding: Finding) -> list[Figure]:
    """Return the figures of lookups, the table, and what others ask."""
    dht, stats = finding.dht, finding.dht.node.stats

    def total(name: str, text: str, read: Callable[[], float]) -> Figure:
        return Figure(f"shoal_dht_{name}", text, read, is_total=True)

    return [
        Figure("shoal_dht_contacts", "Servers in the table.", lambda: dht.contacts),
        Figure(
            "shoal_dht_network_size",
            "Servers besides us, estimated; 0 before the first look.",
            dht.node.size.size,
        ),
        Figure("shoal_dht_server", "1 as a server, 0 as a client.", lambda: dht.is_server),
        Figure("shoal_dht_records", "Held for others.", lambda: len(dht.node.holding)),
        Figure("shoal_dht_provided", "Keys that we provide.", lambda: len(dht.provided())),
        Figure("shoal_dht_published", "Values of ours.", lambda: len(dht.published())),
        total("lookups", "Looks and stores that were asked for.", lambda: stats.lookups),
        total("lookup_seconds", "They took.", lambda: stats.seconds),
        total("lookup_hops", "Answers in a row that led to the nearest.", lambda: stats.hops),
        total("asked", "Requests to peers.", lambda: stats.asked),
        total("asked_checks", "Of these: is a newcomer there?", lambda: stats.checks),
        total("asked_upkeep", "Of these: upkeep.", lambda: stats.upkeep),
        total("answers", "Requests that peers answered.", lambda: stats.answers),
        total("timeouts", "Requests that nobody answered.", lambda: stats.timeouts),
        total("failures", "Requests that failed otherwise.", lambda: stats.failures),
        total("bad_messages", "Peers' nonsense.", lambda: finding.streams.bad_messages),
        Figure(
            "shoal_dht_requests",
            "Requests of peers, by kind.",
            lambda: dict(stats.requests),
            is_total=True,
            label="kind",
        ),
        Figure(
            "shoal_dht_refused",
            "Requests and records of peers not taken, by reason.",
            lambda: dict(stats.refusals),
            is_total=True,
            label="reason",
        ),
    ]
