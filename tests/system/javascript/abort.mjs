// A program of a user's that stops answers in the middle, each of the two official ways, and prints how its loops ended.
//
// node abort.mjs ENDPOINT API_KEY MODEL

import OpenAI from "openai";

const [endpoint, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: endpoint, apiKey, maxRetries: 0 });
const request = { model, prompt: "def", max_tokens: 900, stream: true, ignore_eos: true };

const byController = new AbortController();
let seen = 0;
for await (const _ of await client.completions.create(request, { signal: byController.signal })) {
  if (++seen === 2) byController.abort();
}

let left = 0;
for await (const _ of await client.completions.create(request)) {
  if (++left === 2) break;
}

const beforeAnything = new AbortController();
const whole = client.completions.create({ ...request, stream: false }, { signal: beforeAnything.signal });
setTimeout(() => beforeAnything.abort(), 300);
const refused = await whole.then(() => "answered", (error) => error.constructor.name);

console.log(JSON.stringify([seen < 100, left, refused]));
// Its connections are its own affair: what is asked is whether the session still works for it.
