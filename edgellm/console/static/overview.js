// The overview is what the server renders; this has it rendered again whenever something may be different.

import { listen, refresh } from "./live.js";

const LOOK_MS = 2500;

listen({ snapshot: refresh, joined: refresh, left: refresh });
// What changes about hosts that stay, sessions and hosts of this machine are not worth a page each.
setInterval(refresh, LOOK_MS);
