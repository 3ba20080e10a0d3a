// Keeps a page as the server would render it now: hears that something is new, fetches the page again, and takes over what is
// different in the parts marked data-live. Nothing that a stranger said is ever made into markup here: the server escapes it, and
// what is fetched is parsed into a document in which nothing runs.

const GATHER_MS = 120;
const RETRY_MS = 3000;
const main = document.getElementById("main");
const linkState = document.getElementById("link-state");

let fetching = false;
let again = false;
let timer = 0;

/** Has the page rendered again soon. However often it is called meanwhile, one fetch runs at a time. */
export function refresh() {
  if (timer || document.hidden) {
    return;
  }
  timer = setTimeout(() => {
    timer = 0;
    fetchPage();
  }, GATHER_MS);
}

async function fetchPage() {
  if (fetching) {
    again = true;
    return;
  }
  fetching = true;
  try {
    const answer = await fetch(main.dataset.page, { headers: { accept: "text/html" }, redirect: "error" });
    if (answer.ok) {
      takeOver(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } else if (answer.status === 404) {
      document.dispatchEvent(new CustomEvent("page-gone"));
    }
  } catch {
    // The connection's own state tells it; the next event or the next turn of the clock tries again.
  } finally {
    fetching = false;
    if (again) {
      again = false;
      refresh();
    }
  }
}

function takeOver(fresh) {
  for (const part of document.querySelectorAll("[data-live]")) {
    const newer = fresh.getElementById(part.id);
    if (newer) {
      become(part, newer);
    }
  }
  document.dispatchEvent(new CustomEvent("page-refreshed"));
}

/** Makes `element` like `other` with as few changes as it takes: focus, selections and what was opened stay. */
function become(element, other) {
  for (const { name, value } of [...other.attributes]) {
    if (element.getAttribute(name) !== value) {
      element.setAttribute(name, value);
    }
  }
  for (const { name } of [...element.attributes]) {
    const isOurs = name === "data-new" || name === "data-live" || (name === "open" && element.tagName === "DETAILS");
    if (!other.hasAttribute(name) && !isOurs) {
      element.removeAttribute(name);
    }
  }
  const kept = new Map([...element.children].filter((child) => child.id).map((child) => [child.id, child]));
  let place = element.firstChild;
  for (const wanted of [...other.childNodes]) {
    const known = wanted.id ? kept.get(wanted.id) : undefined;
    if (known) {
      if (known !== place) {
        element.insertBefore(known, place);
      } else {
        place = place.nextSibling;
      }
      become(known, wanted);
    } else if (place && isAlike(place, wanted)) {
      const next = place.nextSibling;
      if (wanted.nodeType === Node.ELEMENT_NODE) {
        become(place, wanted);
      } else if (place.nodeValue !== wanted.nodeValue) {
        place.nodeValue = wanted.nodeValue;
      }
      place = next;
    } else {
      const added = document.importNode(wanted, true);
      if (added.id) {
        added.dataset.new = "";
      }
      element.insertBefore(added, place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function isAlike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName && !one.id && !other.id;
}

/** Listens to the page's events while it is in sight: browsers have few connections to one server for all of its pages. */
export function listen(handlers) {
  let source = null;
  let retry = 0;
  let wasLost = false;
  let isOver = false;

  function connect() {
    clearTimeout(retry);
    source = new EventSource(main.dataset.events);
    source.addEventListener("open", () => {
      tell("live", "live");
      if (wasLost) {
        wasLost = false;
        handlers.reconnected?.();
        refresh();
      }
    });
    source.addEventListener("error", () => {
      wasLost = true;
      tell("lost", "connection lost, trying again");
      if (source.readyState === EventSource.CLOSED) {
        retry = setTimeout(connect, RETRY_MS);
      }
    });
    for (const [name, handler] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        if (event.data !== undefined) {
          handler(JSON.parse(event.data));
        }
      });
    }
  }

  function pause() {
    clearTimeout(retry);
    source?.close();
    source = null;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      pause();
    } else if (!isOver && source === null) {
      wasLost = true;
      connect();
    }
  });
  addEventListener("pagehide", pause);
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  if (!document.hidden) {
    connect();
  }
  return {
    close() {
      isOver = true;
      pause();
    },
  };
}

/** What the connection to the console is at. */
export function tell(state, words) {
  linkState.hidden = false;
  linkState.dataset.state = state;
  if (linkState.textContent !== words) {
    linkState.textContent = words;
  }
}

/** An element with words in it, never markup. */
export function element(name, words = "", className = "") {
  const made = document.createElement(name);
  made.textContent = words;
  if (className) {
    made.className = className;
  }
  return made;
}

/** As the server writes durations. */
export function seconds(value) {
  if (value < 0.00995) {
    return `${(value * 1000).toFixed(1)} ms`;
  }
  if (value < 0.9995) {
    return `${(value * 1000).toFixed(0)} ms`;
  }
  return value < 9.995 ? `${value.toFixed(2)} s` : value < 59.95 ? `${value.toFixed(1)} s` : `${value.toFixed(0)} s`;
}

/** Buttons with data-copy copy that; where the browser does not let them, they stay away. */
export function offerCopies() {
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = !navigator.clipboard;
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("button[data-copy]");
  if (button) {
    await navigator.clipboard.writeText(button.dataset.copy);
    const words = button.firstChild.nodeValue;
    button.firstChild.nodeValue = "Copied";
    setTimeout(() => {
      button.firstChild.nodeValue = words;
    }, 1500);
  }
});
document.addEventListener("page-refreshed", offerCopies);
offerCopies();
