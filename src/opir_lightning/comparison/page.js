"use strict";
// A click on a column's button sorts its table: first the largest number, or the first word; then the other way round.
// What is not known stays at the end.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const table = header.closest("table");
    const column = header.cellIndex;
    const rows = [...table.tBodies[0].rows];
    const key = (row) => row.cells[column].dataset.value;
    const words = rows.every((row) => key(row) === undefined);
    const first = words ? "ascending" : "descending";
    const second = words ? "descending" : "ascending";
    const order = header.getAttribute("aria-sort") === first ? second : first;
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      if (words) {
        return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, { numeric: true });
      }
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) {
        return (x === undefined) - (y === undefined);
      }
      return x === y ? 0 : sign * (Number(x) - Number(y));
    });
    for (const other of table.tHead.rows[0].cells) {
      other.setAttribute("aria-sort", other === header ? order : "none");
    }
    table.tBodies[0].append(...rows);
  });
}
