// The chat with a session: answers as they come, and under each one where its time went. What was said stays in this tab.

import { element, seconds } from "./live.js";

const main = document.getElementById("main");
const head = document.getElementById("head");
const panel = document.getElementById("chat");
const talk = document.getElementById("talk");
const form = document.getElementById("ask");
const question = document.getElementById("question");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const clear = document.getElementById("chat-clear");
const wait = document.getElementById("chat-wait");
const said = document.getElementById("chat-said");
const template = document.getElementById("turn");
const parameters = ["system", "temperature", "top_p", "max_tokens", "seed"].map((id) => document.getElementById(id));

const KEPT = `edgellm.chat.${main.dataset.session}`;
const TIMES_TRIES = 5;
const TIMES_MS = 300;

/** Turns in order: {role, content, model, requestId, speed}. */
let turns = [];
let running = null;
let state = head.dataset.state;

// --- what is kept -----------------------------------------------------------------------------------------------

function keep() {
  try {
    const values = parameters.map((field) => [field.id, field.value]);
    sessionStorage.setItem(KEPT, JSON.stringify({ turns, values, opened: head.dataset.opened }));
  } catch {
    // A chat too long for the storage goes on, and is not there after a reload.
  }
}

function restore() {
  try {
    const found = JSON.parse(sessionStorage.getItem(KEPT));
    for (const [id, value] of found.values) {
      document.getElementById(id).value = value;
    }
    turns = isOfThisSession(found) ? found.turns : [];
  } catch {
    turns = [];
  }
  for (const turn of turns) {
    const shown = show(turn);
    if (turn.requestId) {
      offerTimes(shown, turn.requestId, turn === turns.at(-1));
    }
  }
}

/** Another session may have had the same name. */
function isOfThisSession({ opened }) {
  return state !== "starting" && (!opened || !head.dataset.opened || opened === head.dataset.opened);
}

// --- what is shown ----------------------------------------------------------------------------------------------

function show(turn) {
  const article = template.content.firstElementChild.cloneNode(true);
  article.classList.add(turn.role);
  article.querySelector(".by").append(turn.role === "user" ? "You" : element("bdi", turn.model));
  write(article.querySelector(".words"), turn.content);
  if (turn.speed) {
    tellSpeed(article, turn.speed);
  }
  if (turn.trouble) {
    trouble(article, turn.trouble);
  }
  talk.append(article);
  clear.hidden = false;
  return article;
}

/** Words, with fenced and inline code set apart. Everything becomes text, whatever it looks like. */
function write(place, words) {
  const parts = words.trimStart().split(/\n*^```[^\n]*\n?/m);
  const made = [];
  parts.forEach((part, index) => {
    if (index % 2) {
      const block = element("pre");
      block.tabIndex = 0;
      block.append(element("code", part.replace(/\n$/, "")));
      made.push(block);
    } else {
      part.replace(index ? /^\n+/ : /^\n*$/, "").split(/`([^`\n]+)`/).forEach((piece, number) => {
        if (piece) {
          made.push(number % 2 ? element("code", piece) : piece);
        }
      });
    }
  });
  place.replaceChildren(...made);
}

function tellSpeed(article, speed) {
  const place = article.querySelector(".speed");
  place.textContent = speed;
  place.hidden = false;
}

function trouble(article, { message, remedy }) {
  const notice = element("div", "", "notice bad trouble");
  notice.append(element("p", message));
  if (remedy) {
    notice.append(element("p", remedy));
  }
  article.append(notice);
}

// --- where the time went ----------------------------------------------------------------------------------------

function offerTimes(article, requestId, isOpen) {
  const details = element("details");
  details.append(element("summary", "Where the time went"));
  const place = element("div");
  details.append(place);
  article.querySelector(".timeline").replaceChildren(details);
  details.addEventListener("toggle", () => {
    if (details.open && !place.hasChildNodes()) {
      fetchTimes(place, requestId);
    }
  });
  details.open = isOpen && state === "ready";
}

/** The drawing as the server makes it. The engine may know the last figures a moment after the last token. */
async function fetchTimes(place, requestId) {
  place.replaceChildren(element("p", "Asking the engine…", "small soft"));
  for (let tried = 1; ; tried += 1) {
    try {
      const answer = await fetch(main.dataset.answers + encodeURIComponent(requestId), { headers: { accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const figure = page.querySelector("figure.time");
      if (figure) {
        place.replaceChildren(document.importNode(figure, true));
        if (!("partial" in figure.dataset) || tried === TIMES_TRIES) {
          return;
        }
      } else if (answer.status !== 404 || tried === TIMES_TRIES) {
        place.replaceChildren(element("p", page.querySelector(".notice strong")?.textContent ?? "There are no figures.", "small soft"));
        return;
      }
    } catch {
      place.replaceChildren(element("p", "The console does not answer.", "small soft"));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, TIMES_MS));
  }
}

// --- asking -----------------------------------------------------------------------------------------------------

function bodyOf(words) {
  const [system, temperature, topP, maxTokens, seed] = parameters.map((field) => field.value.trim());
  // A question to which nothing came is left out, so that turns alternate.
  const messages = turns
    .filter(({ role, content }, index) => (role === "user" ? turns[index + 1]?.content : content))
    .map(({ role, content }) => ({ role, content }));
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages, { role: "user", content: words }],
    stream: true,
    stream_options: { include_usage: true },
  };
  const numbers = { temperature, top_p: topP, max_tokens: maxTokens, seed };
  for (const [name, value] of Object.entries(numbers)) {
    if (value !== "") {
      body[name] = Number(value);
    }
  }
  return body;
}

/** Data of the events of a stream, as they come. */
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      return;
    }
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) {
        yield line.slice(5).trim();
      }
    }
  }
}

async function ask(words) {
  const body = bodyOf(words);
  const asked = { role: "user", content: words };
  const answer = { role: "assistant", content: "", model: head.dataset.model };
  turns.push(asked, answer);
  show(asked);
  const article = show(answer);
  const place = article.querySelector(".words");
  article.setAttribute("aria-busy", "true");
  article.scrollIntoView({ block: "nearest" });
  said.textContent = "The answer is coming.";
  const clock = { begun: performance.now(), first: 0, last: 0, pieces: 0, tokens: null };
  running = new AbortController();
  enable();
  try {
    const response = await fetch(`${main.dataset.api}/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: running.signal,
    });
    if (!response.ok) {
      throw new Refused(await problemOf(response));
    }
    answer.requestId = response.headers.get("x-request-id");
    await read(response.body, answer, article, place, clock);
  } catch (error) {
    if (error.name !== "AbortError") {
      const problem = error instanceof Refused ? error.problem : { message: "the answer broke off", remedy: "ask again" };
      answer.trouble = problem;
      trouble(article, problem);
    }
  } finally {
    const stopped = running.signal.aborted;
    running = null;
    article.removeAttribute("aria-busy");
    write(place, answer.content);
    answer.speed = speedOf(clock, stopped);
    tellSpeed(article, answer.speed);
    said.textContent = answer.trouble ? `No whole answer: ${answer.trouble.message}` : `${answer.content} ${answer.speed}`;
    keep();
    enable();
    if (answer.requestId) {
      offerTimes(article, answer.requestId, true);
    }
  }
}

async function read(stream, answer, article, place, clock) {
  let drawn = false;
  for await (const data of eventsOf(stream)) {
    if (data === "[DONE]") {
      return;
    }
    const event = JSON.parse(data);
    if (event.error) {
      throw new Refused(event.error);
    }
    clock.tokens = event.usage?.completion_tokens ?? clock.tokens;
    const piece = event.choices?.[0]?.delta?.content;
    if (piece) {
      clock.last = performance.now();
      clock.first ||= clock.last;
      clock.pieces += 1;
      answer.content += piece;
      if (!drawn) {
        drawn = true;
        requestAnimationFrame(() => {
          drawn = false;
          if (running) {
            follow(() => {
              write(place, answer.content);
              tellSpeed(article, speedOf(clock, false));
            });
          }
        });
      }
    }
  }
  throw new Refused({ message: "the answer broke off", remedy: "ask again" });
}

/** Who looks at the end of the page goes on seeing it; who scrolled up stays where they are. */
function follow(change) {
  const page = document.scrollingElement;
  const before = form.getBoundingClientRect().bottom;
  const wasInSight = before <= innerHeight + 80;
  change();
  if (wasInSight) {
    page.scrollTop += Math.max(0, form.getBoundingClientRect().bottom - Math.max(before, innerHeight));
  }
}

function speedOf(clock, stopped) {
  if (!clock.first) {
    return stopped ? "stopped before the first token" : "no token came";
  }
  const tokens = clock.tokens ?? clock.pieces;
  const parts = [`first token after ${seconds((clock.first - clock.begun) / 1000)}`, `${tokens} token${tokens === 1 ? "" : "s"}`];
  if (tokens > 1 && clock.last > clock.first) {
    parts.push(`${((1000 * (tokens - 1)) / (clock.last - clock.first)).toFixed(1)} tokens/s`);
  }
  return [...parts, ...(stopped ? ["stopped"] : [])].join(" · ");
}

class Refused extends Error {
  constructor(problem) {
    super(problem.message);
    this.problem = problem;
  }
}

async function problemOf(response) {
  try {
    return (await response.json()).error;
  } catch {
    return { message: `the console answered with status ${response.status}`, remedy: "reload the page" };
  }
}

// --- the form ---------------------------------------------------------------------------------------------------

function enable() {
  const isReady = state === "ready";
  const isOver = state === "failed" || state === "gone";
  form.hidden = isOver || !(isReady || turns.length);
  send.disabled = !isReady || running !== null;
  wait.hidden = isReady || turns.length > 0;
  panel.hidden = state === "failed" && turns.length === 0;
  stop.hidden = running === null;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const words = question.value.trim();
  if (words && state === "ready" && !running && form.reportValidity()) {
    question.value = "";
    ask(words);
  }
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) {
    running.abort();
  }
});
stop.addEventListener("click", () => {
  running?.abort();
  question.focus();
});
clear.addEventListener("click", () => {
  running?.abort();
  turns = [];
  talk.replaceChildren();
  clear.hidden = true;
  keep();
  enable();
  question.focus();
});
parameters.forEach((field) => field.addEventListener("change", keep));
document.addEventListener("session-state", (event) => {
  state = event.detail;
  enable();
});
document.addEventListener("page-refreshed", () => {
  state = head.dataset.state;
  enable();
});

restore();
enable();
