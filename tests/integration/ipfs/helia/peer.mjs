// A Helia node on loopback for tests. It prints one JSON line with its address, then answers JSON lines on standard input:
// {"put": BASE64} -> {"cid"}; {"get": CID, "from": MULTIADDR, "ms": DEADLINE} -> {"base64"}; {"dial": MULTIADDR} -> {};
// {"many": [CID…], "from", "ms"} -> {"bytes", "ms"}. What fails -> {"error"}. It ends with standard input.
import readline from 'node:readline'
import { createHeliaLight } from 'helia'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { tcp } from '@libp2p/tcp'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'

const helia = withBitswap(withLibp2pLight(createHeliaLight({}), {
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: async () => false },
  services: { identify: identify(), ping: ping() }
}))
await helia.start()

async function get (cid, ms) {
  const parts = []
  for await (const part of helia.blockstore.get(cid, { signal: AbortSignal.timeout(ms) })) parts.push(part)
  return Buffer.concat(parts)
}

const answers = {
  put: async ({ put }) => {
    const block = Buffer.from(put, 'base64')
    const cid = CID.createV1(raw.code, await sha256.digest(block))
    await helia.blockstore.put(cid, block)
    return { cid: cid.toString() }
  },
  get: async ({ get: cid, ms }) => ({ base64: (await get(CID.parse(cid), ms)).toString('base64') }),
  many: async ({ many, ms }) => {
    const begin = performance.now()
    const blocks = await Promise.all(many.map(cid => get(CID.parse(cid), ms)))
    return { bytes: Buffer.concat(blocks).length, ms: performance.now() - begin }
  },
  dial: async ({ dial }) => {
    await helia.libp2p.dial(multiaddr(dial))
    return {}
  }
}

console.log(JSON.stringify({ address: helia.libp2p.getMultiaddrs()[0].toString() }))
for await (const line of readline.createInterface({ input: process.stdin })) {
  const question = JSON.parse(line)
  const kind = Object.keys(answers).find(name => name in question)
  try {
    console.log(JSON.stringify(await answers[kind](question)))
  } catch (error) {
    console.log(JSON.stringify({ error: `${error.name}: ${error.message}` }))
  }
}
process.exit(0)
