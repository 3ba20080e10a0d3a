// The overview is what the server renders; this has it rendered again whenever something may be different.

import { listen, refresh } from "./live.js";

const LOOK_MS = 2500;

const nothing = () => {};

listen({ snapshot: nothing, joined: nothing, left: nothing, changed: nothing });
// Sessions and hosts of this machine change without an event of the swarm.
setInterval(refresh, LOOK_MS);
