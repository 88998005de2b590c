// Draws the table that `data` describes, and tells which runs are ticked and which heading was pressed.

const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
};

export default function ({ data, parentElement, setStateValue, setTriggerValue }) {
  const table = parentElement.querySelector("table");
  // Ticks made since the last answer of the server must not be lost: what is ticked here counts, until something else than
  // this table changed it.
  if (table.turn !== data.turn) {
    table.turn = data.turn;
    table.picked = new Set(data.picked);
  }
  const picked = table.picked;
  const shown = data.rows.map((row) => row.name);
  const active = parentElement.querySelector(":focus")?.id;

  const boxes = new Map();
  const tell = () => setStateValue("picked", [...picked]);
  const mark = () => {
    for (const [name, box] of boxes) {
      box.checked = picked.has(name);
      box.closest("tr").classList.toggle("picked", box.checked);
    }
    const count = shown.filter((name) => picked.has(name)).length;
    all.checked = count > 0 && count === shown.length;
    all.indeterminate = count > 0 && count < shown.length;
  };
  const all = make("input", { type: "checkbox", id: "all", ariaLabel: data.all });
  all.onchange = () => {
    for (const name of shown) all.checked ? picked.add(name) : picked.delete(name);
    mark();
    tell();
  };

  const heading = ({ key, label, left }) => {
    const down = data.sort === "-" + key;
    const sorted = down || data.sort === key;
    const arrow = make("span", { ariaHidden: "true" }, sorted ? (down ? " ↓" : " ↑") : "");
    const button = make("button", { type: "button", id: "sort-" + key }, label, arrow);
    button.onclick = () => setTriggerValue("sorted", key);
    const cell = make("th", { scope: "col", className: left ? "left" : "" }, button);
    if (sorted) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    return cell;
  };

  const time = new Intl.DateTimeFormat(data.language, { dateStyle: "medium", timeStyle: "short" });
  const line = (row) => {
    const box = make("input", { type: "checkbox", id: "run-" + row.name, ariaLabel: data.select.replace("{name}", row.name) });
    box.onchange = () => {
      box.checked ? picked.add(row.name) : picked.delete(row.name);
      mark();
      tell();
    };
    boxes.set(row.name, box);
    const cells = data.columns.map(({ key, label, left }) => {
      const className = (left ? "left " : "") + key;
      if (key === "name") {
        const link = make("a", { href: row.link, target: "_self" }, row.name);
        return make("th", { scope: "row", className }, link);
      }
      return make("td", { className, "data-label": label }, key === "saved" ? time.format(new Date(row.saved)) : row.cells[key]);
    });
    const tick = make("td", { className: "tick" }, make("label", {}, box));
    return make("tr", {}, tick, ...cells);
  };

  table.caption.textContent = data.caption;
  table.tHead.replaceChildren(make("tr", {}, make("td", { className: "tick" }, make("label", {}, all)), ...data.columns.map(heading)));
  table.tBodies[0].replaceChildren(...data.rows.map(line));
  mark();
  if (active) parentElement.querySelector("#" + CSS.escape(active))?.focus(); // the keyboard stays where it was
}
