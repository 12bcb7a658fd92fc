// On the page of search results: below each, the words of the page around the first of the words that were searched for. They
// come with excerpts.js, in place of the pages themselves, which a browser does not read from the file system.
"use strict";

const AROUND = 120; // characters shown before the word, and twice as many after it

function wordsOf(query) {
  return query.toLowerCase().split(/[^\p{Letter}\p{Number}_]+/u).filter((word) => word.length > 2);
}

function placeOf(text, words) {
  const lower = text.toLowerCase();
  const places = words.map((word) => lower.indexOf(word)).filter((place) => place >= 0);
  return places.length ? Math.min(...places) : 0;
}

function excerpt(text, words) {
  const place = placeOf(text, words);
  const start = place <= AROUND ? 0 : text.indexOf(" ", place - AROUND) + 1;
  const end = text.lastIndexOf(" ", start + 3 * AROUND);
  const whole = text.length <= start + 3 * AROUND;
  const paragraph = document.createElement("p");
  paragraph.className = "excerpt";
  if (start) paragraph.append("… ");
  const found = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
  const parts = text.slice(start, whole ? undefined : end).split(new RegExp(`(${found || "$^"})`, "i"));
  parts.forEach((part, number) => {
    if (number % 2) paragraph.appendChild(document.createElement("mark")).textContent = part;
    else paragraph.append(part);
  });
  if (!whole) paragraph.append(" …");
  return paragraph;
}

function explain(result, words) {
  const [page, section] = result.querySelector("a").getAttribute("href").split("#");
  const sections = EXCERPTS[page.replace(/\.html$/, "")] ?? {};
  const text = section in sections ? sections[section] : Object.values(sections).join(" ");
  if (text) result.append(excerpt(text, words));
}

document.addEventListener("DOMContentLoaded", () => {
  const words = wordsOf(new URLSearchParams(location.search).get("q") ?? "");
  const added = new MutationObserver((changes) => {
    for (const change of changes) {
      for (const node of change.addedNodes) if (node.matches?.("ul.search > li")) explain(node, words);
    }
  });
  added.observe(document.getElementById("search-results"), { childList: true, subtree: true });
});
