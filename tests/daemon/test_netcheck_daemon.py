"""`shoal netcheck` and `shoal doctor` of a real daemon."""

from pathlib import Path

import msgspec

from shoal.reach import Doctor, NetCheck
from tests.daemon.processes import daemons, run


def test_a_fresh_node_alone_fails_nothing_and_its_figures_are_there(tmp_path: Path) -> None:
    with daemons(tmp_path, "ann") as (ann,):
        ann.start()
        told = run(ann.home, "doctor", "--json", timeout_s=90.0)
        assert told.returncode == 0, told.stdout
        found = msgspec.json.decode(told.stdout, type=Doctor)
        assert found.state == "ready"
        assert isinstance(found.net, NetCheck)
        assert found.net.reachability == "unknown"
        checks = {one.name: one for one in found.checks}
        assert checks["interfaces"].level == "warn"  # tests listen on loopback
        assert checks["home"].level == "ok"
        page = ann.client.call("GET", "/metrics", reply=bytes).decode()
        assert 'shoal_reach_state{state="unknown"} 1.0' in page
        assert "shoal_reach_port_mapped 0.0" in page
        assert ann.client.netcheck().reachability == "unknown"
