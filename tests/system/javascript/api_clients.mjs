// A program of a user's: the official OpenAI and Anthropic clients for JavaScript, unchanged, against a session's endpoint.
//
// Prints what came as JSON, in the form of ../api_clients.py.
//
// node api_clients.mjs ENDPOINT API_KEY MODEL

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [endpoint, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: endpoint, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "What is a list?" }];
const chat = (options) => client.chat.completions.create({ model, messages, ...options });
const said = { models: [] };

for await (const one of client.models.list()) said.models.push(one.id);

const { data: plain, response } = await chat({ max_tokens: 16, temperature: 0 }).withResponse();
said.route = response.headers.get("x-edgellm-route");
said.chat = { text: plain.choices[0].message.content, tokens: plain.usage.completion_tokens };

said.streamed = "";
const streaming = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await chat({ max_tokens: 16, temperature: 0, ...streaming })) {
  if (chunk.choices.length) said.streamed += chunk.choices[0].delta.content ?? "";
  else if (chunk.usage) said.usage = chunk.usage.completion_tokens;
}

const drawn = { max_tokens: 4, n: 2, seed: 7, logprobs: true, top_logprobs: 2 };
const two = await chat(drawn);
const texts = (answer) => answer.choices.map((choice) => choice.message.content);
said.choices = two.choices.length;
said.logprobs = two.choices[0].logprobs.content.length;
said.repeated = JSON.stringify(texts(two)) === JSON.stringify(texts(await chat(drawn)));

const until = { prompt: "def add(", max_tokens: 24, temperature: 0, stop: ["\n"] };
said.completion = (await client.completions.create({ model, ...until })).choices[0].text;

const schema = {
  type: "object",
  properties: { colour: { type: "string", enum: ["blue", "green"] }, count: { type: "integer" } },
  required: ["colour", "count"],
  additionalProperties: false,
};
// A model as small as the tests' goes on with blanks for ever, which JSON allows, unless each costs it more.
const strict = { max_tokens: 300, temperature: 0, frequency_penalty: 2 };
const form = { type: "json_schema", json_schema: { name: "form", schema, strict: true } };
said.schema = JSON.parse((await chat({ ...strict, response_format: form })).choices[0].message.content);

const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
};
const tools = [{ type: "function", function: { name: "weather", strict: true, parameters } }];
const choice = { type: "function", function: { name: "weather" } };
const call = (await chat({ ...strict, tools, tool_choice: choice })).choices[0].message.tool_calls[0];
said.tool = [call.function.name, JSON.parse(call.function.arguments)];

const asked = { model, input: "What is a list?", max_output_tokens: 16, temperature: 0 };
said.response = (await client.responses.create(asked)).output_text;
said.response_streamed = "";
for await (const event of await client.responses.create({ ...asked, stream: true })) {
  if (event.type === "response.output_text.delta") said.response_streamed += event.delta;
}

said.messages = await ofAnthropic();
const wrong = new OpenAI({ baseURL: endpoint, apiKey: "wrong", maxRetries: 0 });
said.errors = {
  model: await status(client.chat.completions.create({ model: "nobody", messages })),
  context: await status(client.completions.create({ model, prompt: "x ".repeat(5000), max_tokens: 4 })),
  parameter: await status(chat({ temperature: -1 })),
  key: await status(wrong.models.list()),
};
console.log(JSON.stringify(said));

async function ofAnthropic() {
  const baseURL = endpoint.replace(/\/v1$/, "");
  const options = { model, messages, max_tokens: 16, temperature: 0 };
  const other = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
  const whole = await other.messages.create(options);
  let streamed = "";
  await other.messages.stream(options).on("text", (text) => (streamed += text)).finalMessage();
  const refused = await new Anthropic({ baseURL, apiKey: "wrong", maxRetries: 0 }).messages
    .create(options)
    .then(() => "", (error) => (error instanceof Anthropic.AuthenticationError ? error.message : String(error)));
  return { text: whole.content[0].text, tokens: whole.usage.output_tokens, streamed, refused };
}

async function status(asking) {
  try {
    await asking;
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    return [error.status, error.constructor.name, Boolean(error.error?.message)];
  }
  return [200, "", false];
}
