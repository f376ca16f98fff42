// Fetches the page again until the payment has ended, and replaces its content when it changes.
"use strict";

const FIRST_WAIT = 2_000; // in milliseconds
const MAX_WAIT = 30_000;
const GROWTH = 1.5;
const REQUEST_TIMEOUT = 10_000;
const MAX_VISIBLE_TIME = 6 * 3_600_000;

const announcement = document.querySelector("[role=status]");
let wait, endTime, timer;

const currentContent = () => document.querySelector("main");

function restart() {
  wait = FIRST_WAIT;
  endTime = Date.now() + MAX_VISIBLE_TIME;
}

function schedule() {
  clearTimeout(timer);
  if (document.hidden || Date.now() > endTime || !("refreshes" in currentContent().dataset)) return;
  timer = setTimeout(refresh, wait);
  wait = Math.min(wait * GROWTH, MAX_WAIT);
}

async function refresh() {
  clearTimeout(timer);
  try {
    // without the query: only the return from the provider has the state looked up
    const response = await fetch(location.pathname, {
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.timeout(REQUEST_TIMEOUT),
    });
    if (response.ok || response.status === 404) {
      show(new DOMParser().parseFromString(await response.text(), "text/html"));
    }
  } catch {
    // no answer: the content is kept until the next one
  }
  schedule();
}

function show(page) {
  const content = page.querySelector("main[data-version]");
  const previous = currentContent();
  if (!content || content.dataset.version === previous.dataset.version) return;
  const focused = previous.contains(document.activeElement) ? document.activeElement : null;
  document.title = page.title;
  document.documentElement.lang = page.documentElement.lang;
  previous.replaceWith(document.adoptNode(content));
  const heading = content.querySelector("h1");
  if (focused) {
    heading.tabIndex = -1; // the script may focus it
    const successor = focused.id && document.getElementById(focused.id);
    (successor || heading).focus({ preventScroll: true });
  }
  announcement.textContent = `${heading.textContent}. ${content.querySelector("p").textContent}`;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
  } else if ("refreshes" in currentContent().dataset) {
    restart();
    refresh();
  }
});
restart();
schedule();
