// A js-libp2p node that the tests control: one JSON command a line on standard input, one JSON
// answer or event a line on standard output. See tests/interop/js_peer.py.
//
//   node --import ./node20.mjs peer.mjs '{"gossip": ["/meshsub/1.2.0"]}'
//   < {"id": 1, "do": "dial", "address": "/ip4/127.0.0.1/tcp/4001/p2p/12D3..."}
//   > {"id": 1, "value": "12D3..."}
//   > {"event": "message", "topic": "news", "data": "aGk=", "from": "12D3...", "via": "12D3..."}
import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { createLibp2p } from 'libp2p'
import { gossipsub } from '@libp2p/gossipsub'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { peerIdFromString } from '@libp2p/peer-id'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'

const options = JSON.parse(process.argv[2] ?? '{}')
const counts = { idontwantSent: 0, idontwantHeard: 0, messagesHeard: 0 }
const state = { tampers: false }

function say (line) {
  process.stdout.write(JSON.stringify(line) + '\n')
}

function makeGossip (components) {
  const service = gossipsub({
    allowPublishToZeroTopicPeers: true,
    heartbeatInterval: 200,
    scoreParams: { IPColocationFactorWeight: 0 } // all of a test's nodes have one address
  })(components)
  if (options.gossip) service.protocols.splice(0, service.protocols.length, ...options.gossip)
  watch(service)
  return service
}

// What the events of the library do not tell: who speaks which version, and IDONTWANT.
function watch (service) {
  const hear = service.handleReceivedRpc.bind(service)
  service.handleReceivedRpc = (from, rpc) => {
    for (const each of rpc.control?.idontwant ?? []) counts.idontwantHeard += each.messageIDs.length
    counts.messagesHeard += rpc.messages?.length ?? 0
    return hear(from, rpc)
  }
  for (const name of ['sendRpc', 'sendRpcInBatch']) {
    const send = service[name].bind(service)
    service[name] = (to, rpc, ...rest) => {
      for (const each of rpc.control?.idontwant ?? []) counts.idontwantSent += each.messageIDs.length
      return send(to, state.tampers ? tamper(rpc) : rpc, ...rest)
    }
  }
}

// Changes the data of messages after they were signed.
function tamper (rpc) {
  const messages = (rpc.messages ?? []).map((each) => {
    const data = Uint8Array.from(each.data)
    data[0] ^= 1
    return { ...each, data }
  })
  return { ...rpc, messages }
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: makeGossip,
    ...(options.relay ? { relay: circuitRelayServer() } : {})
  }
})
const pubsub = node.services.pubsub

// Answers with what comes, and closes when the other side has. js-libp2p 3.3 waits between its answer
// to a proposal and the handler: a `for await` does not see an end that came in the meantime.
await node.handle('/echo', async (stream) => {
  if (stream.remoteWriteStatus === 'closed') {
    const ended = new Promise((resolve) => stream.addEventListener('end', resolve))
    stream.addEventListener('message', ({ data }) => stream.send(data))
    if (!stream.readableEnded) await ended
  } else for await (const part of stream) {
    if (!stream.send(part)) await stream.onDrain()
  }
  await stream.close()
}, { maxInboundStreams: 1024, runOnLimitedConnection: true })

node.addEventListener('peer:identify', ({ detail }) => {
  say({
    event: 'identify',
    peer: detail.peerId.toString(),
    agent: detail.agentVersion,
    protocols: detail.protocols,
    addresses: detail.listenAddrs.map(String),
    observed: detail.observedAddr?.toString()
  })
})
node.addEventListener('peer:disconnect', ({ detail }) => {
  say({ event: 'disconnect', peer: detail.toString() })
})
pubsub.addEventListener('gossipsub:message', ({ detail }) => {
  const message = detail.msg
  const data = Buffer.from(message.data)
  say({
    event: 'message',
    topic: message.topic,
    data: data.toString('base64'),
    from: message.from?.toString(),
    via: detail.propagationSource.toString()
  })
})
pubsub.addEventListener('gossipsub:graft', ({ detail }) => {
  say({ event: 'graft', peer: detail.peerId, topic: detail.topic })
})

function fill (length) {
  const data = Buffer.allocUnsafe(length)
  for (let at = 0; at < length; at++) data[at] = (at * 31 + (at >> 8)) & 0xff
  return data
}

const sha = (data) => createHash('sha256').update(data).digest('hex')

// Sends `size` bytes to /echo of a peer, and compares what comes back.
async function echo ({ peer, size, protocol = '/echo' }) {
  const stream = await node.dialProtocol(peerIdFromString(peer), protocol, {
    maxOutboundStreams: 1024,
    runOnLimitedConnection: true // through a relay
  })
  const data = fill(size)
  const back = createHash('sha256')
  let length = 0
  const reading = (async () => {
    for await (const part of stream) {
      const bytes = part.subarray()
      back.update(bytes)
      length += bytes.length
    }
  })()
  for (let at = 0; at < size; at += 65536) {
    if (!stream.send(data.subarray(at, at + 65536))) await stream.onDrain()
  }
  await stream.close()
  await reading
  return length === size && back.digest('hex') === sha(data)
}

const commands = {
  dial: async ({ address }) => (await node.dial(multiaddr(address))).remotePeer.toString(),
  listen: ({ address }) => node.components.transportManager.listen([multiaddr(address)]),
  addresses: () => node.getMultiaddrs().map(String),
  remotes: () => node.getConnections().map((each) => each.remoteAddr.toString()),
  hang_up: ({ peer }) => node.hangUp(peerIdFromString(peer)),
  ping: ({ peer }) => node.services.ping.ping(peerIdFromString(peer)),
  connections: () => node.getConnections().map((each) => each.remotePeer.toString()),
  echo,
  subscribe: ({ topic }) => pubsub.subscribe(topic),
  unsubscribe: ({ topic }) => pubsub.unsubscribe(topic),
  subscribers: ({ topic }) => pubsub.getSubscribers(topic).map(String),
  mesh: ({ topic }) => pubsub.getMeshPeers(topic),
  versions: () => Object.fromEntries(
    [...pubsub.streamsOutbound ?? []].map(([peer, stream]) => [peer, stream.protocol])
  ),
  publish: async ({ topic, data }) => {
    const sent = await pubsub.publish(topic, Buffer.from(data, 'base64'))
    return sent.recipients.map(String)
  },
  counts: () => counts,
  tamper: ({ on }) => { state.tampers = on },
  stop: async () => {
    await node.stop()
    process.exit(0)
  }
}

say({
  event: 'ready',
  peer: node.peerId.toString(),
  addresses: node.getMultiaddrs().map(String)
})

createInterface({ input: process.stdin }).on('line', async (line) => {
  const { id, do: name, ...rest } = JSON.parse(line)
  try {
    say({ id, value: (await commands[name](rest)) ?? null })
  } catch (error) {
    say({ id, error: `${error.name}: ${error.message}` })
  }
}).on('close', () => process.exit(0))
