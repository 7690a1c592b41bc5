"""What a daemon costs that does nothing but have 20 peers: processor and memory.

`python -m benchmarks.talk_idle`; the measured daemon is started by its command, its peers are
daemons too.
"""
