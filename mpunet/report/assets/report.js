// The report outside its viewer: the table of all cases, and dots that open a case in the viewer.

/** Sortable table of the rows that pass the filters; shows the first 100, "More rows" shows more. */
class EveryCase {
  constructor(data) {
    Object.assign(this, { ...data, sorted: null, descending: false, shown: 100 });
    this.table = document.querySelector(".every");
    this.field = (name) => document.querySelector(`[name="${name}"]`);
    data.methods.forEach((method, i) => this.field("method").add(new Option(method, i)));
    this.field("all").parentElement.hidden = data.columns.every((column) => column.main);
    for (const name of ["find", "method", "all"]) this.field(name).oninput = () => this.fill();
    this.field("more").onclick = () => { this.shown *= 4; this.fill(); };
    this.fill();
  }

  sort(column) {
    this.descending = this.sorted === column && !this.descending;
    this.sorted = column;
    this.fill();
  }

  fill() {
    const [find, method, all] = [this.field("find").value.toLowerCase(), this.field("method").value, this.field("all").checked];
    const columns = this.columns.map((column, i) => ({ ...column, at: i + 2 })).filter((column) => all || column.main);
    const rows = this.rows.filter((row) => row[0].toLowerCase().includes(find) && (method === "" || row[1] === +method)
      && columns.some((column) => row[column.at] !== null));
    const number = (value) => (value === "∞" ? Infinity : value === "−∞" ? -Infinity : value);
    if (this.sorted !== null) {
      const sign = this.descending ? -1 : 1;
      rows.sort(({ [this.sorted]: a }, { [this.sorted]: b }) => {
        if (a === null || b === null) return (a === null) - (b === null); // missing values come last
        return sign * (this.sorted ? number(a) - number(b) || 0 : a.localeCompare(b, undefined, { numeric: true }));
      });
    }
    const heads = [{ name: "case", at: 0 }, { name: "method", at: 1 }, ...columns].map((column) => {
      const head = document.createElement("th"), button = document.createElement("button");
      button.textContent = `${column.name}${this.sorted === column.at ? (this.descending ? " ▾" : " ▴") : ""}`;
      button.title = column.about ?? "";
      button.onclick = () => this.sort(column.at);
      if (this.sorted === column.at) head.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      head.scope = "col";
      head.append(button);
      return head;
    });
    const text = (value, digits) => (typeof value === "number" ? value.toFixed(digits).replace("-", "−") : value ?? "–");
    const line = (row) => {
      const tr = document.createElement("tr");
      const cells = [row[0], this.methods[row[1]], ...columns.map((column) => text(row[column.at], column.digits))];
      tr.append(...cells.map((cell) => Object.assign(document.createElement("td"), { textContent: cell })));
      return tr;
    };
    this.table.tHead.replaceChildren(document.createElement("tr"));
    this.table.tHead.rows[0].append(...heads);
    this.table.tBodies[0].replaceChildren(...rows.slice(0, this.shown).map(line));
    this.field("more").hidden = rows.length <= this.shown;
    this.field("more").textContent = `More rows (${Math.min(this.shown, rows.length)} of ${rows.length})`;
  }
}

addEventListener("DOMContentLoaded", () => {
  window.everyCase = new EveryCase(JSON.parse(document.querySelector("#rows").textContent));
  for (const link of document.querySelectorAll("a[data-case]")) {
    link.addEventListener("click", () => { window.viewer?.open(link.dataset.case); });
  }
});
