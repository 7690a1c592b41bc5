"""Blocking sockets in threads as a child that answers orders: what this machine can carry at all.

`python -m benchmarks.rivals.sockets IP CERTIFICATE`; its first line has the ports of its plain and
its TLS side. The receiver reads into one buffer made beforehand, the sender sends slices of one.
"""

import socket
import ssl
import struct
import sys
import threading
import time
from typing import Any

from benchmarks.orders import Answer, answer_orders, say

SLICE = 1024 * 1024  # bytes of one sendall and one recv_into at most
HEADER = struct.Struct("!QQ")  # where what follows belongs, and how many bytes it has
MB = 1e6


class Node:
    """The orders, a method each."""

    def __init__(self, ip: str, certificate: str) -> None:
        self._ip, self._buffer = ip, bytearray(1)
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(certificate)
        self._client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE  # the other end is our own child
        self._links: dict[tuple[str, int, int], Any] = {}
        self.tcp, self.tls = self._listen(encrypted=False), self._listen(encrypted=True)

    def prepare(self, size: int) -> Answer:
        """Make the buffer, and touch all of it."""
        self._buffer = bytearray(b"x") * size
        return {}

    def send(self, kind: str, ip: str, port: int, size: int, links: int = 1) -> Answer:
        """Send the buffer over connections that stay, a share and a thread each, and wait until
        the other has it.
        """
        share = size // links
        places = [(number, number * share) for number in range(links)]
        open_links = [self._link(kind, ip, port, number) for number in range(links)]
        began = time.perf_counter()
        threads = [
            threading.Thread(target=self._send, args=(open_links[number], start, share))
            for number, start in places
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"mb_s": size / MB / (time.perf_counter() - began)}

    def _send(self, link: Any, first: int, size: int) -> None:
        view = memoryview(self._buffer)
        link.sendall(HEADER.pack(first, size))
        for start in range(first, first + size, SLICE):
            link.sendall(view[start : min(start + SLICE, first + size)])
        assert link.recv(1) == b"k"

    def echo(self, kind: str, ip: str, port: int, calls: int) -> Answer:
        """Round trips of a transfer of one byte; the time of each in ms."""
        return {"ms": [1e-3 / self.send(kind, ip, port, 1)["mb_s"] for _ in range(calls)]}

    def _link(self, kind: str, ip: str, port: int, number: int) -> Any:
        key = (ip, port, number)
        if key not in self._links:
            link = socket.create_connection((ip, port))
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._links[key] = self._client.wrap_socket(link) if kind == "tls" else link
        return self._links[key]

    def _listen(self, *, encrypted: bool) -> int:
        listener = socket.create_server((self._ip, 0))
        threading.Thread(target=self._accept, args=(listener, encrypted), daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def _accept(self, listener: socket.socket, encrypted: bool) -> None:
        while True:
            link, _ = listener.accept()
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if encrypted:
                link = self._server.wrap_socket(link, server_side=True)
            threading.Thread(target=self._receive, args=(link,), daemon=True).start()

    def _receive(self, link: socket.socket) -> None:
        while header := link.recv(HEADER.size):
            first, size = HEADER.unpack(header)
            view, got = memoryview(self._buffer)[first : first + size], 0
            while got < size:
                count = link.recv_into(view[got : got + SLICE])
                if not count:
                    return
                got += count
            link.sendall(b"k")


def main(ip: str, certificate: str) -> None:
    """Serve and obey until the input ends."""
    node = Node(ip, certificate)
    say({"ip": ip, "tcp": node.tcp, "tls": node.tls})
    answer_orders({"prepare": node.prepare, "send": node.send, "echo": node.echo})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
