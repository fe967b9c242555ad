"use strict";
// Charts: interpreted, so that no text becomes code; SVG, so that they print sharp and take the page's colours.
const specs = JSON.parse(document.getElementById("charts").textContent);
const quiet = { load: () => Promise.reject(new Error("this page fetches nothing")), sanitize: () => Promise.reject(new Error("this page links nowhere")) };
const drawn = Object.entries(specs).map(([name, spec]) =>
  vegaEmbed("#chart-" + name, spec, { actions: false, ast: true, renderer: "svg", loader: quiet, tooltip: { theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light" } })
    .then(() => true, (error) => {
      document.getElementById("chart-" + name).textContent = "This chart could not be drawn: " + error.message;
      console.error(name, error);
      return false;
    }));
Promise.all(drawn).then((done) => { document.body.dataset.drawn = String(done.filter(Boolean).length); });

// Tables: a heading sorts by its column, once up and once down; rows that say nothing there come last.
const value = (row, at) => row.cells[at].dataset.order;
const words = (row, at) => row.cells[at].textContent.trim();
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
    const at = heading.cellIndex, down = heading.getAttribute("aria-sort") === "ascending";
    const numbers = [...body.rows].some((row) => value(row, at) !== undefined);
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const sign = down ? -1 : 1;
    const rows = [...body.rows].sort((a, b) => {
      if (!numbers) return sign * words(a, at).localeCompare(words(b, at), "en", { numeric: true });
      const one = value(a, at), other = value(b, at);
      if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
      return sign * (Number(one) - Number(other));
    });
    body.append(...rows);
  });
}
// Printed, every table is open.
let opened = [];
addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; for (const each of opened) each.open = true; });
addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
