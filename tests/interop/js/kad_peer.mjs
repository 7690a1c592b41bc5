// A node of js-libp2p's DHT that the tests control, as peer.mjs is: JSON lines in and out, bytes in
// base64. See tests/interop/js_peer.py.
//
//   node --import ./node20.mjs kad_peer.mjs '{"server": true}'
//   < {"id": 1, "do": "get", "key": "L3BrLw=="}
//   > {"id": 1, "value": "aGk="}
import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { createLibp2p } from 'libp2p'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { noise } from '@libp2p/noise'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'

const RAW = 0x55 // codec of the CIDs; the DHT sees the multihash only
const options = JSON.parse(process.argv[2] ?? '{}')
const state = { refused: [] }

const bytes = (text) => new Uint8Array(Buffer.from(text, 'base64'))
const text = (data) => Buffer.from(data).toString('base64')
const cid = (key) => CID.createV1(RAW, Digest.decode(bytes(key)))

function say (line) {
  process.stdout.write(JSON.stringify(line) + '\n')
}

// --- values of Shoal, as docs/protocols/dht.md has them: written anew, from the specification ------

// Reads one MessagePack array of integers, strings and bytes.
function unpack (data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength)
  if ((data[0] & 0xf0) !== 0x90) throw new Error('not a short array')
  let at = 1
  return Array.from({ length: data[0] & 0x0f }, () => {
    const kind = data[at++]
    const sized = { 0xc4: 1, 0xc5: 2, 0xd9: 1 }[kind]
    if (sized) {
      const size = sized === 1 ? view.getUint8(at) : view.getUint16(at)
      at += sized + size
      return data.subarray(at - size, at)
    }
    if (kind < 0x80) return kind
    const width = { 0xcc: 1, 0xcd: 2, 0xce: 4, 0xcf: 8 }[kind]
    if (!width) throw new Error(`MessagePack type ${kind}`)
    at += width
    return width === 8 ? Number(view.getBigUint64(at - 8)) : Buffer.from(data).readUIntBE(at - width, width)
  })
}

function opened (sealed) {
  const [body, signature] = unpack(sealed)
  const [name, author, seq, expires, data] = unpack(body)
  return { body, signature, name, author: Buffer.from(author).toString(), seq, expires, data }
}

async function validate (name, sealed) {
  try {
    const value = opened(sealed)
    const [, , kind, peer] = Buffer.from(name).toString().split('/')
    if (kind !== 'head' || peer !== value.author) throw new Error('not the author\'s name')
    if (Buffer.compare(value.name, name)) throw new Error('another name')
    if (value.expires < Date.now()) throw new Error('expired')
    const digest = createHash('sha256').update(value.body).digest()
    const signed = Buffer.concat([Buffer.from('dht/value/1\0'), digest])
    const key = peerIdFromString(peer).publicKey
    if (!await key.verify(signed, value.signature)) throw new Error('not signed by the author')
  } catch (error) {
    state.refused.push(error.message)
    throw error
  }
}

function select (_name, records) {
  const seqs = records.map((each) => opened(each).seq)
  return seqs.indexOf(Math.max(...seqs))
}

// ---------------------------------------------------------------------------------------------------

const node = await createLibp2p({
  addresses: { listen: options.server ? ['/ip4/127.0.0.1/tcp/0'] : [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    dht: kadDHT({
      protocol: '/ipfs/kad/1.0.0',
      clientMode: !options.server,
      allowQueryWithZeroPeers: true,
      peerInfoMapper: passthroughMapper, // loopback addresses, too
      validators: { shoal: validate },
      selectors: { shoal: select }
    })
  }
})
const dht = node.services.dht
if (options.server) await dht.setMode('server')

node.addEventListener('peer:identify', ({ detail }) => {
  say({ event: 'identify', peer: detail.peerId.toString(), protocols: detail.protocols })
})

// Runs a query to its end; returns its events, and throws what another peer did wrong.
async function run (query) {
  const events = []
  for await (const event of query) {
    if (event.name === 'QUERY_ERROR') throw event.error
    events.push(event)
  }
  return events
}

const commands = {
  dial: async ({ address }) => (await node.dial(multiaddr(address))).remotePeer.toString(),
  knows: ({ peer }) => dht.routingTable.find(peerIdFromString(peer)).then((found) => found != null),
  mode: () => dht.getMode(),
  refused: () => state.refused,
  put: async ({ key, value }) => {
    const events = await run(dht.put(bytes(key), bytes(value)))
    return events.filter((each) => each.name === 'PEER_RESPONSE' && each.messageName === 'PUT_VALUE')
      .map((each) => each.from.toString())
  },
  get: async ({ key }) => {
    const values = (await run(dht.get(bytes(key)))).filter((each) => each.name === 'VALUE')
    return values.length ? text(values.at(-1).value) : null
  },
  // What it holds itself: what others have put there.
  held: async ({ key }) => {
    const record = await dht.contentFetching.getLocal(bytes(key)).catch(() => null)
    return record ? text(record.value) : null
  },
  provide: async ({ key }) => { await run(dht.provide(cid(key))) },
  providers: async ({ key }) => {
    const found = (await run(dht.findProviders(cid(key)))).filter((each) => each.name === 'PROVIDER')
    return Object.fromEntries(found.flatMap((each) => each.providers)
      .map((each) => [each.id.toString(), each.multiaddrs.map(String)]))
  },
  find: async ({ peer }) => {
    const found = (await run(dht.findPeer(peerIdFromString(peer), { useCache: false })))
      .filter((each) => each.name === 'FINAL_PEER')
    return found.at(-1).peer.multiaddrs.map(String)
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
