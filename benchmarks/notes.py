"""How figures of learning are measured, by the beginning of their names: for docs/results.md.

All are measured through what a user has, if nothing else is said: `shoal up` processes with libp2p
identities, encrypted TCP on loopback, one trainer process each over `shoal.run_client`.
"""

_NOTES = {
    "learn.control": (
        "From submit to the mean in shared memory, the slowest of 4 trainers, 100,000 "
        "float32: next to no data."
    ),
    "learn.average_": (
        "SIZExMILLIONSm_WIRE: seconds from submit to the mean in the trainer's memory, "
        "the slowest member. All systems begin each round at one moment, in turn, in one "
        "run. hivemind 1.1.12 with numpy 2.2.6: `step()` of a full group (it knows who "
        "comes: no waiting for matchmaking), and its all-reduce alone as `_reduce_only`. "
        "gloo is neither encrypted nor survives a death. torch has one thread everywhere."
    ),
    "learn.int8_error": (
        "Rms distance of an averaging of 10 million normal numbers a member from the "
        "exact mean, both legs encoded, through daemons and hivemind's own averaging."
    ),
    "learn.int8_bytes": ("Encoded size of a contribution; learn.int4_bytes likewise."),
    "learn.memory": (
        "Peak of a daemon's own memory (VmHWM without what is shared with the trainer or "
        "mapped from files) in three rounds, less what it had before the run, over the "
        "bytes of the tensors; the worst of 4 daemons."
    ),
    "learn.traffic": (
        "Bytes that members sent by the counters of their rounds (`bytes_out`) for 25 "
        "rounds of float32, over those of one round of int4; frames and control, some kB a round, "
        "are not in them."
    ),
    "learn.kill_": (
        "kill -9 of a daemon and its trainer at a random moment of a round of 4 x 4 "
        "million float32, the proposer in every other trial; seconds from then to the "
        "last survivor's commit, less a normal round. `_equal`: survivors have one root "
        "and one mean. hivemind: kill -9 of the peer's processes in mid all-reduce, share "
        "of elements that survivors have alike."
    ),
    "learn.freeze_": ("The same with SIGSTOP; the victim thaws afterwards and catches up."),
    "learn.joiner_": (
        "Rounds of 3 daemons with 0.2 s of their own work, with and without a fourth that "
        "loads 20 MB and enters; `_worst_stall`: the longest round then, less a normal "
        "one."
    ),
    "learn.state_": (
        "A state behind lines of 15 MB/s a donor; a donor's spoilt chunk is noticed and "
        "fetched from another."
    ),
    "learn.same_bits": (
        "Each strategy over daemons and by `shoal.learn.simulate`: SHA-256 of each "
        "member's parameters at the end."
    ),
    "nats": (
        "Character model on Shakespeare in one process, by the simulation that daemons "
        "equal bit for bit."
    ),
    "learn.fashion_clean": (
        "Test accuracy of a 784-128-10 perceptron on Fashion-MNIST, all honest."
    ),
    "learn.byzantine_": (
        "Points of accuracy lost to attackers; attacks that see all contributions are "
        "simulated with the shard owners' aggregators, `_daemons`: one of four sends "
        "-1000 times its contribution through its real daemon."
    ),
    "learn.sampled_": ("Real ModelSync on a virtual clock, 40 nodes, samples of 4; 32 hang."),
    "answer.decode": (
        "SmolLM2-135M, float32, one thread a process, a 27-token prompt, greedy, no end token, "
        "batch 1: (tokens - 1) / (time from the first token to the last), seen by the client of "
        "the endpoint. Two `shoal up` with 15 blocks each, the first is asked. Beside: a loop "
        "over transformers' own forward with its cache; two processes with the same stages and "
        "blocking sockets, float32 rows one way and a token back. All in turn in one run, all "
        "say the same. `_overhead`: time per token over the unsharded one's."
    ),
    "answer.split_in_one_process": (
        "Both halves in the process of the unsharded model, in turn with it."
    ),
    "answer.law_": (
        "Entry and stages in network namespaces of their own, each the named delay (one way) "
        "from all others; `compute` is the time per token of the unsharded model, beside it in "
        "the run."
    ),
    "answer.draft_": (
        "The same with a prompt that repeats itself, which the n-gram draft guesses from."
    ),
    "answer.batch_": (
        "Eight clients with prompts of their own on two daemons; tokens that came while all "
        "eight were being answered. One alone in turn with them."
    ),
    "answer.kill": (
        "An entry and four hosts, two of each half of a model: kill -9 of a stage in the route "
        "at a random token, of its worker (half of the trials), its daemon, or both stages' "
        "workers. `_same`: the text is the unsharded model's. The pause is the longest time "
        "between two tokens, detection and replay included. A tiny model but for `_smollm2`."
    ),
    "answer.freeze": ("The same with SIGSTOP of a daemon and its worker, or of the worker alone."),
    "answer.heal": (
        "An entry and two hosts with half of a model each; kill -9 of one daemon: seconds until "
        "the other has all blocks ready. The worker imports torch in that time."
    ),
    "answer.codec_": (
        "SmolLM2-135M reads the beginnings of Shakespeare's plays; at one cut (block 15) or "
        "four every row goes through the codec: positions at which the likeliest next token is "
        "float32's."
    ),
    "answer.exact_": (
        "Tiny random models, cut to files, each stage loaded from its own; logits of a prompt "
        "and 8 greedy tokens are the whole model's, bit for bit."
    ),
    "answer.cheat_": (
        "Receipts of a stage that cheats, recomputed by an honest one: audited steps until the "
        "first that is found, worst of all sessions."
    ),
    "answer.honest_": ("Honest stages, recomputed in other steps than they were made in."),
    "answer.memory_": (
        "Resident memory after an answer: the worker process that hosts the middle 10 of 30 "
        "blocks, and the process with the whole model. SmolLM2 shares its token embedding with "
        "its head, so the first and the last third hold it besides."
    ),
    "reach.": (
        "Real daemons (`shoal up`) in the NAT lab of `tests/net`: network namespaces, nftables "
        "routers of ten types, 10 ms one way at each private site, two public members. Whether a "
        "path is direct is judged by the sockets of the host and their byte counters, never by "
        "what a daemon says."
    ),
    "reach.talk": "A call of 100 kB from one to the other, by whatever path.",
    "reach.direct": (
        "Pairs whose calls go over a socket of their own. 42 is the limit of TCP with prediction "
        "of sequential ports, 37 (`_unpredicted`) without, both measured with plain sockets."
    ),
    "reach.time_to_direct": (
        "The direct sockets of a pair are reset; from the moment the relayed connection stands "
        "until calls go directly. Pairs that dial each other directly at once are in no time, but "
        "in `reach.success`."
    ),
    "reach.success": "Resets of each possible pair after which it was direct within 20 s.",
    "reach.netcheck": "Reachability and mapping that `shoal netcheck` tells, against the lab's.",
    "reach.first_byte": (
        "A fresh host that is connected to the relay calls a peer behind it that it never saw: "
        "handshake, admission and the answer. The goal is 4 round trips (of calls, median of the "
        "run) and 50 ms."
    ),
    "reach.flood_": (
        "One member asks a relay 1,000 times a second for a reservation, without awaiting answers; "
        "another one calls the relay and reserves meanwhile. `reach.garbage_`: mutated messages."
    ),
    "reach.attacks_": "Resident memory of the relay after both attacks, less that before.",
    "reach.relayed_share": (
        "A blob of 100 MB begins to flow right after the direct sockets were reset, through the "
        "relay: bytes that came to the relays' devices after the direct socket stood."
    ),
    "reach.repair_": (
        "From the event to the first answer of calls that began after it and have 10 s each. "
        "`_moves`: the machine joins another site's network; `_vanishes`: the relay's machine is "
        "gone without a FIN. `_lost`: writes acknowledged before it that the other end lacks."
    ),
    "find.get_": (
        "SIZE daemons on loopback, all of a system's on this machine; 64 B values, the writer and "
        "the reader are two nodes by chance. What a call takes is measured by a program outside: "
        "ours over the control socket, hivemind.DHT over its pipe, Lattica in its process. All "
        "three swarms run at once and are asked in turn. Ours believes 5 holders who say the same; "
        "theirs take the first answer. `_hops`: answers in a row that led to the first that had it."
    ),
    "find.put_": (
        "Until all of the close set have answered: the 20 nearest and the region (hivemind: 5 "
        "nearest; Lattica: one has it)."
    ),
    "find.provide": (
        "Saying to have something, and asking who has it. Lattica's `start_providing` does not "
        "wait, and `get_providers` often finds nobody: only what it found is timed."
    ),
    "find.sim_": (
        "Real DHT machines (dht/) on one event heap, virtual time, seed 1, scenarios in "
        "configs/sim/: log-normal delays of 40 ms one way (median), three more round trips to "
        "dial, 1.5 servers in a /24. Tables are as after a long time, made of the truth when a "
        "node is first asked."
    ),
    "find.sim_hops": (
        "Requests in a row that led to the nearest's own answer; `find.sim_messages_`: requests of "
        "a lookup."
    ),
    "find.sim_wall": "Wall time of 1,000 lookups in 10,000 nodes, in one process.",
    "find.sim_dead_": (
        "200 values are stored; then that share is killed at once and stays in all tables, half of "
        "them hang. p95 of a get, in time-outs of one request (3 s)."
    ),
    "find.sim_churn_": (
        "2,000 values stored and 4,000 gets over two hours, by and from nodes that came (by "
        "bootstrapping from three others) and go without a word; sessions are exponential with a "
        "median of 30 minutes. Counted if the owner is alive; nobody stores again in that time."
    ),
    "find.sim_hostile_": (
        "A fifth of the servers drops, lies, invents contacts, withholds or replays older values. "
        "Gets over 4 disjoint paths; correct is the newest value."
    ),
    "find.sim_sybils_": (
        "COUNT Sybils from 4 or 100 /24s share 7 bits more with the key than the nearest honest "
        "node, before the value is stored, and replay an older one. 20 keys, 20 gets each, over 4 "
        "paths."
    ),
    "find.sim_many": "One node provides 10,000 names to 1,000 nodes; then 500 are looked for.",
}
NOTES = {start: f"- `{start}…`: {text}\n" for start, text in _NOTES.items()}
