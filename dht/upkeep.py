"""What a node does by itself: refreshes, publishes again, hands over. Pure.

What it costs, in requests of one node an hour: refreshing at most 12 looks (one each
`REFRESH_EVERY_S`, and only while a bucket is idle) of some 10 requests, every fourth one of 30:
180 at most. A join: one lookup (30) and 8 requests for each far bucket that lacks entries.
"""

import math
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from dht import handover
from dht.finding import FindClosest
from dht.key import Key, common_bits, key_of, key_of_peer
from dht.lookup import Lookup
from dht.messages import Answer, Contact, FindNode, Moment, Provision, Value
from dht.operation import Operation
from dht.regions import ProvideMany
from dht.sending import Sending
from dht.state import State
from dht.table import K
from wire.ids import PeerId

IDLE_S = 600.0  # a bucket that heard of nobody for so long is worth a look
REFRESH_EVERY_S = 300.0  # between two looks: all ten buckets of 10,000 nodes within the hour
WHOLE_EVERY = 4  # of so many looks one is a whole lookup of a random target: it tells the size
FILL = 8  # a bucket with so many live entries is good enough: one in a hundred finds all dead
FILLS_MAX = 16  # buckets filled at a join: 2^16 nodes, nearer buckets fill by looking for ourselves
TRIES = 64  # names tried for a target inside a bucket, 60 µs; finds one in the 5 farthest buckets
HALF_LIFE_S = 12 * 3600.0  # provider records are published again
RETRY_S = 60.0  # until records that nobody took are offered again; doubles up to an hour
RETRY_MAX_S = 3600.0
TOGETHER_S = 300.0  # records due within this are published with those that are due: by regions
SETTLE_S = 5.0  # between a change of the table and handing over: a newcomer learns its region first
HOURLY_S = 3600.0
EXPIRE_S = 600.0
LEAVE_S = 1.0  # for handing over when we go
