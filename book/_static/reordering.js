// Two small networks, of which the second can be put into any order: by dragging a unit, or by buttons. What is true of an
// order stands in the page; here units and their wires are moved, and nothing is computed or loaded.
"use strict";

function startReordering(explorer) {
  const known = JSON.parse(explorer.dataset.orders);
  const panel = explorer.querySelector(".reordering-panel");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const [first, second] = [...panel.querySelectorAll("[data-half]")].map((half) => placeOf(half.parentNode));
  const step = second.y - first.y;
  const units = panel.querySelectorAll(".of-b g[data-unit]");
  const colours = Object.fromEntries([...units].map((unit) => [unit.dataset.unit, unit.querySelector("circle").getAttribute("fill")]));
  const columns = [...panel.querySelectorAll("[data-column]")];
  const left = Math.min(...columns.map((column) => placeOf(column).x));
  const side = Number(columns[0].querySelector("rect").getAttribute("width"));
  let order = panel.dataset.shown;
  let dragged = null;
  const at = Object.fromEntries([...order].map((unit, place) => [unit, place])); // where each is drawn, between places too

  function placeOf(group) {
    const { e, f } = group.transform.baseVal.consolidate().matrix;
    return { x: e, y: f };
  }

  function drawUnit(unit) {
    const y = first.y + step * at[unit];
    for (const element of panel.querySelectorAll(`.of-b [data-unit="${unit}"]`)) {
      if (element.tagName === "line") element.setAttribute("y2", y);
      else element.setAttribute("transform", `translate(${first.x} ${y})`);
    }
    const column = panel.querySelector(`[data-column="${unit}"]`);
    column.setAttribute("transform", `translate(${left + side * at[unit]} 0)`);
  }

  function move() {
    let moving = false;
    for (const unit of order) {
      if (unit === dragged) continue;
      const away = order.indexOf(unit) - at[unit];
      const arrived = still.matches || Math.abs(away) < 0.01;
      at[unit] += arrived ? away : away / 6;
      moving ||= !arrived;
      drawUnit(unit);
    }
    if (moving) requestAnimationFrame(move);
  }

  function show() {
    const { wires, curve, ...readings } = known[order];
    for (const [name, words] of Object.entries(readings)) {
      panel.querySelector(`[data-reading="${name}"]`).textContent = words;
    }
    panel.querySelector("[data-curve]").setAttribute("d", curve);
    wires.forEach((widths, place) => {
      panel.querySelectorAll(`line[data-place="${place}"]`).forEach((line, number) => {
        line.setAttribute("stroke-width", Math.abs(widths[number]));
        line.classList.toggle("negative", widths[number] < 0);
      });
      panel.querySelector(`[data-half="${place}"]`).setAttribute("fill", colours[order[place]]);
    });
    for (const button of explorer.querySelectorAll("[data-order]")) {
      button.setAttribute("aria-pressed", button.dataset.order === order);
    }
    move();
  }

  function choose(chosen) {
    order = chosen;
    show();
  }

  function swapped(place) {
    return order.slice(0, place) + order[place + 1] + order[place] + order.slice(place + 2);
  }

  function drag(event) {
    const picture = units[0].ownerSVGElement;
    const scale = picture.viewBox.baseVal.height / picture.getBoundingClientRect().height;
    const y = (event.clientY - picture.getBoundingClientRect().top) * scale;
    at[dragged] = Math.max(0, Math.min(units.length - 1, (y - first.y) / step));
    drawUnit(dragged);
    const from = order.indexOf(dragged);
    const to = Math.round(at[dragged]);
    if (to !== from) choose(swapped(to > from ? from : from - 1));
  }

  for (const unit of units) {
    unit.addEventListener("pointerdown", (event) => {
      dragged = unit.dataset.unit;
      unit.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    unit.addEventListener("pointermove", (event) => {
      if (dragged !== null) drag(event);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      unit.addEventListener(end, () => {
        dragged = null;
        move();
      });
    }
  }
  for (const button of explorer.querySelectorAll("[data-order]")) {
    button.addEventListener("click", () => choose(button.dataset.order));
  }
  for (const button of panel.querySelectorAll("[data-swap]")) {
    button.hidden = false;
    button.addEventListener("click", () => choose(swapped(Number(button.dataset.swap))));
  }
  explorer.querySelector(".reordering-choice").hidden = false;
  for (const other of explorer.querySelectorAll(".reordering-panel")) other.hidden = other !== panel;
  panel.querySelector(".explorer-title").hidden = true;
  explorer.classList.add("is-live");
  show();
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".explorer-reordering").forEach(startReordering);
});
