"use strict";
document.documentElement.classList.add("scripted");
// Headings become buttons: best first, worst first, and back to the order given.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const compare = (head, column, order) => (one, other) => {
    const [a, b] = [one, other].map((row) => row.cells[column].dataset.value);
    // What is not known comes last in both orders.
    if (a === "" || b === "") return (a === "") - (b === "");
    const less = head.dataset.kind === "text" ? a.localeCompare(b) : a - b;
    return order === "ascending" ? less : -less;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.dataset.best === "high" ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const order = now === null ? first : now === first ? second : null;
      for (const one of heads) one.removeAttribute("aria-sort");
      if (order) head.setAttribute("aria-sort", order);
      const rows = [...given];
      if (order) rows.sort(compare(head, column, order));
      body.append(...rows);
    });
  });
}
