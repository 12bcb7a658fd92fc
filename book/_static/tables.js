// Tables that a reader sorts by the head of a column, and claims that he chooses from. Without this they stand as they are.
"use strict";

// What a cell is sorted by: its number, if it begins with one, else its words. What is empty comes last, either way.
function sortable(cell) {
  const words = cell.textContent.trim().replace(/^−/, "-");
  const number = parseFloat(words);
  return { words, number, empty: words === "" || words === "–" };
}

function compared(first, second, direction) {
  if (first.empty || second.empty) return first.empty - second.empty;
  const numbers = !Number.isNaN(first.number) && !Number.isNaN(second.number);
  const order = numbers ? first.number - second.number : 0;
  return direction * (order || first.words.localeCompare(second.words, "en", { numeric: true }));
}

// The first choice of a head sorts upwards, the second downwards, the third puts the rows back.
function sorting(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  if (rows.length < 3) return;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "sort", title: "Sort by this column" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      const sort = next === undefined ? "ascending" : next;
      for (const other of heads) other.removeAttribute("aria-sort");
      if (sort) head.setAttribute("aria-sort", sort);
      const direction = sort === "descending" ? -1 : 1;
      const key = (row) => sortable(row.cells[column]);
      body.append(...(sort ? rows.toSorted((a, b) => compared(key(a), key(b), direction)) : rows));
    });
  });
}

// Two lists to choose from, of the papers and of the verdicts that there are, and how many claims are left.
function filtering(claims) {
  const rows = [...claims.querySelectorAll("tbody tr")];
  const form = document.createElement("form");
  form.className = "claims-filter";
  const lists = ["paper", "verdict"].map((kind) => {
    const label = form.appendChild(document.createElement("label"));
    label.append(kind);
    const list = label.appendChild(document.createElement("select"));
    list.name = kind;
    for (const choice of ["all", ...new Set(rows.map((row) => row.dataset[kind]))]) list.add(new Option(choice));
    return list;
  });
  const count = form.appendChild(document.createElement("output"));

  function choose() {
    const fits = (row) => lists.every((list) => list.value === "all" || row.dataset[list.name] === list.value);
    for (const row of rows) row.hidden = !fits(row);
    count.textContent = `${rows.filter(fits).length} of ${rows.length} claims`;
  }

  form.addEventListener("change", choose);
  claims.prepend(form);
  choose();
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.sortable")) sorting(table);
  for (const claims of document.querySelectorAll(".claims[data-filtered]")) filtering(claims);
});
