// Figures with a slider: shows the words, places and pictures of the step that it is at, which stand in the page, and of several
// panels, and times of a panel, the one that is chosen. Nothing is computed here, and nothing is loaded.
"use strict";

function start(explorer, number) {
  const panels = [...explorer.querySelectorAll(".explorer-panel")];
  const slider = explorer.querySelector(":scope > .explorer-slider input");
  let shown = panels[0];

  function show() {
    const step = Number(slider.value);
    for (const element of explorer.querySelectorAll("[data-words]")) {
      element.textContent = JSON.parse(element.dataset.words)[step];
    }
    for (const element of explorer.querySelectorAll("[data-places]")) {
      const place = JSON.parse(element.dataset.places)[step];
      element.setAttribute("visibility", place ? "visible" : "hidden");
      if (place) element.setAttribute("transform", `translate(${place.join(" ")})`);
    }
    for (const element of explorer.querySelectorAll("[data-step]")) {
      element.hidden = Number(element.dataset.step) !== step;
    }
    const told = shown.querySelector(".explorer-snapshot:not([hidden])") ?? shown;
    slider.setAttribute("aria-valuetext", JSON.parse(told.dataset.spoken)[step]);
  }

  // A panel that was looked at several times has a slider of its own, which chooses one of them.
  function startSnapshots(panel) {
    const times = panel.querySelector(".explorer-slider input");
    if (!times) return;
    const name = panel.querySelector("[data-names]");
    const snapshots = panel.querySelectorAll(".explorer-snapshot");
    times.hidden = false;
    times.addEventListener("input", () => {
      const chosen = Number(times.value);
      name.textContent = JSON.parse(name.dataset.names)[chosen];
      times.setAttribute("aria-valuetext", name.textContent);
      snapshots.forEach((snapshot, number) => { snapshot.hidden = number !== chosen; });
      show();
    });
    times.setAttribute("aria-valuetext", name.textContent);
  }

  function choose(panel) {
    shown = panel;
    for (const other of panels) other.hidden = other !== panel;
    show();
  }

  function choices() {
    const group = document.createElement("fieldset");
    group.className = "explorer-choice";
    const legend = group.appendChild(document.createElement("legend"));
    legend.textContent = explorer.dataset.question;
    for (const panel of panels) {
      const label = group.appendChild(document.createElement("label"));
      const button = label.appendChild(document.createElement("input"));
      Object.assign(button, { type: "radio", name: `explorer-${number}`, checked: panel === panels[0] });
      button.addEventListener("change", () => choose(panel));
      label.append(panel.dataset.title);
    }
    return group;
  }

  if (panels.length > 1) explorer.prepend(choices());
  for (const title of explorer.querySelectorAll(".explorer-title")) title.hidden = true; // one is shown, by choice
  panels.forEach(startSnapshots);
  slider.hidden = false;
  slider.addEventListener("input", show);
  choose(panels[0]);
}

document.addEventListener("DOMContentLoaded", () => {
  [...document.querySelectorAll(".explorer:has(input[type=range])")].forEach(start);
  // What a number's note says is also shown to those who come to it by keyboard or touch.
  for (const note of document.querySelectorAll("abbr[title]")) note.tabIndex = 0;
});
