// A session's page: its bring-up as it happens, and the chat.

import "./chat.js";
import { element, listen, refresh, seconds, tell } from "./live.js";

const SVG = "http://www.w3.org/2000/svg";
const HUES = 6;
const DRAW_MS = 250;
const LOOK_MS = 3000;
// A host may say as much as it likes.
const MOST_LISTED = 400;
const MOST_PHASES = 100;

const lanes = document.getElementById("lanes");
const list = document.getElementById("phases");
const all = document.getElementById("phases-all");

/** What each who takes part said last, oldest first. */
const phasesOf = new Map();
let first = null;
let last = null;
let willDraw = false;
let state = document.getElementById("head").dataset.state;
let endedAt = null;
const details = document.getElementById("bringup-details");
const now = document.getElementById("bringup-now");
const said = document.getElementById("bringup-said");

const isComingUp = () => ["starting", "swapping", "recovering"].includes(state);
/** The head runs on this machine, so what nobody in particular does and what the head does is one lane. */
const nameOf = (who) => who || "head";
const wordsOf = (line) => (line.detail ? `${line.phase}: ${line.detail}` : line.phase);

function follow(line) {
  first ??= line;
  last = line;
  const who = nameOf(line.who);
  if (!phasesOf.has(who)) {
    phasesOf.set(who, []);
  }
  const phases = phasesOf.get(who);
  phases.push(line);
  if (phases.length > MOST_PHASES) {
    phases.shift();
  }
  const item = element("li");
  const words = element("span", wordsOf(line), "what");
  item.append(element("span", seconds(Math.max(0, line.at - first.at)), "at"), element("bdi", who, "who"), words);
  list.append(item);
  if (list.children.length > MOST_LISTED) {
    list.firstChild.remove();
    set(all.firstElementChild, `The last ${MOST_LISTED} things that happened`);
  }
  all.hidden = false;
  drawSoon();
}

/** However many lines come until then, they are drawn once. */
function drawSoon() {
  if (!willDraw) {
    willDraw = true;
    requestAnimationFrame(() => {
      willDraw = false;
      draw();
    });
  }
}

/** One lane for each who takes part; a phase lasts until the next one of the same. */
function draw() {
  if (last === null) {
    return;
  }
  const begin = first.at;
  const end = isComingUp() ? Math.max(Date.now() / 1000, last.at) : (endedAt ?? last.at);
  const whole = Math.max(end - begin, 0.001);
  const wanted = [...phasesOf];
  const hosts = wanted.map(([who]) => who).filter((who) => who !== "head");
  while (lanes.children.length < wanted.length * 2) {
    lanes.append(element("p", "", "lane-who"), newLane());
  }
  wanted.forEach(([who, phases], index) => {
    const name = lanes.children[index * 2];
    const lane = lanes.children[index * 2 + 1];
    set(name, who);
    const bars = lane.firstChild;
    while (bars.children.length < phases.length) {
      const bar = document.createElementNS(SVG, "rect");
      bar.append(document.createElementNS(SVG, "title"));
      bars.append(bar);
    }
    phases.forEach((phase, number) => {
      const until = phases[number + 1]?.at ?? end;
      const bar = bars.children[number];
      bar.setAttribute("x", `${((100 * (phase.at - begin)) / whole).toFixed(2)}%`);
      bar.setAttribute("width", `${((100 * Math.max(0, until - phase.at)) / whole).toFixed(2)}%`);
      bar.setAttribute("height", "100%");
      bar.setAttribute("class", `fill-${hosts.includes(who) ? hosts.indexOf(who) % HUES : "none"} phase-${number % 2}`);
      set(bar.firstChild, `${wordsOf(phase)} (${seconds(Math.max(0, until - phase.at))})`);
    });
    set(lane.lastChild, wordsOf(phases.at(-1)));
  });
  lanes.hidden = false;
  if (isComingUp()) {
    set(now, `${nameOf(last.who)}: ${wordsOf(last)}`);
  } else {
    set(now, state === "ready" ? `took ${seconds(whole)}` : "");
  }
  set(said, now.textContent && `Bring-up: ${now.textContent}`);
}

function newLane() {
  const lane = element("div", "", "lane");
  const bars = document.createElementNS(SVG, "svg");
  bars.setAttribute("aria-hidden", "true");
  lane.append(bars, element("p", "", "lane-now"));
  return lane;
}

function set(node, words) {
  if (node.textContent !== words) {
    node.textContent = words;
  }
}

function restart() {
  phasesOf.clear();
  first = last = null;
  list.replaceChildren();
  lanes.replaceChildren();
}

const events = listen({
  progress: follow,
  state: (session) => {
    if (isComingUp() && session.state === "ready" && last !== null) {
      endedAt = Math.max(Date.now() / 1000, last.at);
      details.open = false;
    }
    if (session.state === "failed" && state !== "failed") {
      // Most of the page is of no use then.
      location.reload();
      return;
    }
    state = session.state;
    document.dispatchEvent(new CustomEvent("session-state", { detail: session.state }));
    draw();
    refresh();
  },
  end: () => {
    events.close();
    tell("lost", "ended");
    refresh();
  },
  reconnected: restart,
});
setInterval(() => isComingUp() && draw(), DRAW_MS);
setInterval(refresh, LOOK_MS);
document.addEventListener("page-refreshed", draw);
document.addEventListener("page-gone", () => {
  if (state === "gone") {
    return;
  }
  state = "gone";
  events.close();
  tell("lost", "closed");
  const notice = element("div", "", "notice warn");
  notice.setAttribute("role", "alert");
  notice.append(element("p", "This session is closed. What was said here stays until you close this tab."));
  document.getElementById("head").after(notice);
  document.dispatchEvent(new CustomEvent("session-state", { detail: state }));
});
