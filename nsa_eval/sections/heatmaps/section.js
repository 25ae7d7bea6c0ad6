// Needle grids: choosing a cell in a map or in the lists shows its samples.
report.section("heatmaps", function* (grids) {
  const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

  /** Makes a button of each cell of a map, which says the cell's place as well: tables are heard cell by cell. */
  function press(map, grid) {
    const panel = map.closest("figure").querySelector("figcaption").textContent.trim();
    [...map.tBodies[0].rows].forEach((line, row) => [...line.cells].slice(1).forEach((cell, column) => {
      if (!cell.title) return; // no result
      const button = report.element("button", "", cell.textContent);
      button.type = "button";
      button.title = cell.title;
      button.dataset.cell = `${row},${column}`;
      button.setAttribute("aria-label", `${panel}, length ${grid.columns[column]}, depth ${grid.rows[row]}: ${cell.title}`);
      cell.removeAttribute("title");
      cell.replaceChildren(button);
    }));
  }

  /** Makes a map one stop of the Tab key; arrows go from cell to cell inside of it. */
  function walkable(map) {
    const cells = new Map([...map.querySelectorAll("button[data-cell]")].map((cell) => [cell.dataset.cell, cell]));
    const enter = (cell) => cells.forEach((other) => { other.tabIndex = other === cell ? 0 : -1; });
    enter(cells.values().next().value);
    map.addEventListener("focusin", (event) => enter(event.target));
    map.addEventListener("keydown", (event) => {
      const step = ARROWS[event.key];
      if (!step || !event.target.dataset.cell) return;
      event.preventDefault(); // the page would scroll
      const [row, column] = event.target.dataset.cell.split(",").map(Number);
      // A blank cell is stepped over.
      for (let far = 1; far <= cells.size; far++) {
        const next = cells.get(`${row + far * step[0]},${column + far * step[1]}`);
        if (next) return next.focus();
      }
    });
  }

  function prepare(grid) {
    const home = document.getElementById(grid.id);
    const browser = home.querySelector(".browser");
    const [columns, rows] = ["column", "row"].map((axis) => browser.querySelector(`select[data-axis=${axis}]`));
    const target = browser.querySelector(".samples");
    for (const list of [columns, rows]) list.add(new Option("–", ""));
    grid.columns.forEach((label, index) => columns.add(new Option(label, index)));
    grid.rows.forEach((label, index) => rows.add(new Option(label, index)));

    function select(row, column) {
      rows.value = row;
      columns.value = column;
      const place = `${row},${column}`;
      report.showSamples(target, grid.id, place, `${grid.columns[column]} tokens, depth ${grid.rows[row]}`);
      const readings = report.element("ul", "readings");
      for (const button of home.querySelectorAll("button[data-cell]")) {
        const chosen = button.dataset.cell === place;
        button.parentElement.classList.toggle("chosen", chosen);
        if (!chosen) continue;
        button.setAttribute("aria-current", "true");
        const panel = button.closest("figure").querySelector("figcaption").textContent.trim();
        readings.append(report.element("li", "", `${panel}: ${button.title}`));
      }
      for (const button of home.querySelectorAll("td:not(.chosen) > button[aria-current]")) button.removeAttribute("aria-current");
      // Those of many models would push the samples off the screen.
      const many = readings.children.length > 9;
      target.querySelector("h3").after(many ? report.folded("Scores and differences in this cell", readings) : readings);
    }

    // Number("") is 0: the first choice in one list fills the other with its first entry.
    const again = () => select(Number(rows.value), Number(columns.value));
    columns.addEventListener("change", again);
    rows.addEventListener("change", again);
    for (const button of browser.querySelectorAll("button[data-step]")) {
      button.addEventListener("click", () => {
        const size = grid.rows.length * grid.columns.length;
        const here = Number(columns.value) * grid.rows.length + Number(rows.value);
        const next = columns.value === "" ? 0 : (here + Number(button.dataset.step) + size) % size;
        select(next % grid.rows.length, Math.floor(next / grid.rows.length));
      });
    }
    home.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-cell]");
      if (!button) return;
      select(...button.dataset.cell.split(",").map(Number));
      // Where the samples can be read already the map stays in place, for the next choice.
      const { top } = browser.getBoundingClientRect();
      if (top < 0 || top > window.innerHeight / 2) browser.scrollIntoView({ block: "start" });
      target.focus({ preventScroll: true });
    });
  }

  for (const grid of grids) {
    for (const map of document.getElementById(grid.id).querySelectorAll("table.heatmap")) {
      press(map, grid);
      if (map.querySelector("button")) walkable(map);
      yield;
    }
    prepare(grid);
    yield;
  }
});
