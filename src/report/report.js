"use strict";
// The rows of a table of statements are in a template. Only those that are visible are in the page, so ten thousand of them
// take no longer to scroll than ten.
for (const part of document.querySelectorAll(".statements")) {
  const HEIGHT = 1.875 * parseFloat(getComputedStyle(document.documentElement).fontSize); // of a row, as in report.css
  const BESIDE = 20; // rows that are in the page above and below the visible ones
  const SQL = 1; // the column that is text
  const form = part.querySelector("form");
  const scroll = part.querySelector(".rows");
  const body = part.querySelector("tbody");
  const headings = [...part.querySelectorAll("th")];
  const detail = part.querySelector(".selected");
  const all = [...part.querySelector("template").content.children];
  const texts = all.map((row) => row.children[SQL].textContent.toLowerCase());
  const numbers = new Map(all.map((row, index) => [row, index]));
  let shown = all;
  let order = { column: 0, descending: false };
  let selected = null;

  const gap = (rows) => {
    const row = document.createElement("tr");
    row.className = "gap";
    row.setAttribute("aria-hidden", "true");
    const cell = row.appendChild(document.createElement("td"));
    cell.colSpan = headings.length;
    cell.style.height = `${rows * HEIGHT}px`;
    return row;
  };

  const draw = () => {
    const first = Math.max(0, Math.floor(scroll.scrollTop / HEIGHT) - BESIDE);
    const last = Math.min(shown.length, first + Math.ceil(scroll.clientHeight / HEIGHT) + 2 * BESIDE);
    const visible = shown.slice(first, last);
    visible.forEach((row, index) => {
      row.setAttribute("aria-selected", row === selected ? "true" : "false");
      row.setAttribute("aria-rowindex", first + index + 2);
    });
    body.replaceChildren(gap(first), ...visible, gap(shown.length - last));
  };

  const value = (row, column) => {
    const text = row.children[column].textContent;
    return column === SQL ? text : text === "" ? -1 : Number(text);
  };

  const compare = (one, other) => {
    const [a, b] = [value(one, order.column), value(other, order.column)];
    const result = a < b ? -1 : a > b ? 1 : numbers.get(one) - numbers.get(other);
    return order.descending ? -result : result;
  };

  const update = () => {
    const text = form.elements.text.value.toLowerCase();
    const mark = form.elements.show.value;
    shown = all.filter(
      (row, index) => (mark === "" || row.classList.contains(mark)) && texts[index].includes(text),
    );
    shown.sort(compare);
    headings.forEach((heading, column) => {
      if (column === order.column) {
        heading.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
      } else {
        heading.removeAttribute("aria-sort");
      }
    });
    part.querySelector("table").setAttribute("aria-rowcount", shown.length + 1);
    form.querySelector("output").textContent = `${shown.length} of ${all.length} statements`;
    draw();
  };

  const select = (row) => {
    selected = row;
    detail.textContent = row ? `${row.children[SQL].textContent}\n${row.dataset.by}` : "";
    draw();
  };

  const move = (steps) => {
    const index = Math.min(Math.max(shown.indexOf(selected) + steps, 0), shown.length - 1);
    if (index < 0) return;
    const head = headings[0].offsetHeight;
    const top = index * HEIGHT;
    if (top < scroll.scrollTop) scroll.scrollTop = top;
    const bottom = top + HEIGHT + head - scroll.clientHeight;
    if (bottom > scroll.scrollTop) scroll.scrollTop = bottom;
    select(shown[index]);
  };

  scroll.addEventListener("scroll", draw, { passive: true });
  scroll.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    const page = Math.max(1, Math.floor(scroll.clientHeight / HEIGHT) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (steps !== undefined && event.target === scroll) {
      event.preventDefault();
      move(steps);
    }
  });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr:not(.gap)");
    if (row) select(row);
  });
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      order = { column, descending: order.column === column && !order.descending };
      update();
    });
  });
  form.addEventListener("input", () => {
    scroll.scrollTop = 0;
    update();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("resize", draw);
  update();
}
