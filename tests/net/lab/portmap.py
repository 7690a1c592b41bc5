"""UPnP-IGD, NAT-PMP and PCP in a router of the lab: miniupnpd, as many real routers run it."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.net.lab.namespaces import LabError, Namespace

PROGRAM = "miniupnpd"
UUID = "00000000-0000-4000-8000-000000000001"
# The chains that it fills; the router's own rules accept what it has translated.
CHAINS = """table inet portmap
delete table inet portmap
table inet portmap {
 chain forward-mapped {
 }
 chain inward-mapped {
 }
 chain outward-mapped {
 }
 chain inward {
  type nat hook prerouting priority -101
  jump inward-mapped
 }
 chain outward {
  type nat hook postrouting priority 99
  jump outward-mapped
 }
}
"""


def missing() -> str | None:
    """Say why no router here can map ports; None if one can."""
    if shutil.which(PROGRAM) is None:
        return f"port mapping needs {PROGRAM}; try: apt-get install miniupnpd-nftables"
    return None


class PortMapServer:
    """One server; it ends with the lab."""

    def __init__(self, router: Namespace, lan_ip: str) -> None:
        reason = missing()
        if reason is not None:
            raise LabError(reason)
        self._router = router
        self._folder = tempfile.TemporaryDirectory(prefix="lab-portmap-")
        self._config = Path(self._folder.name, "miniupnpd.conf")
        self._config.write_text(_config(lan_ip))
        self._start()

    def _start(self) -> None:
        self._router.nft(CHAINS)
        pid = Path(self._folder.name, "pid")
        self._process = self._router.popen(
            [PROGRAM, "-f", str(self._config), "-P", str(pid), "-d"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def restart(self) -> None:
        """Forget all mappings, as a router without storage does."""
        self._end()
        self._start()

    def close(self) -> None:
        """End it."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait(10.0)


def _config(lan_ip: str) -> str:
    return f"""ext_ifname=wan
listening_ip=lan
port=5000
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
system_uptime=yes
uuid={UUID}
allow 1024-65535 {lan_ip.rpartition(".")[0]}.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
upnp_table_name=portmap
upnp_nat_table_name=portmap
upnp_forward_chain=forward-mapped
upnp_nat_chain=inward-mapped
upnp_nat_postrouting_chain=outward-mapped
"""
