// Needle grids: choosing a cell in a map, a table or the lists shows its samples.
report.section("heatmaps", function* (grids) {
  function outline(grid, row, column) {
    const box = (color, width) => ({
      type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5, line: { color, width },
    });
    for (const id of grid.charts) {
      const chart = report.chart(id);
      if (chart) Plotly.relayout(chart, { shapes: [box("#ffffff", 5), box("#d6006c", 2.5)] });
    }
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
      const heading = `${grid.columns[column]} tokens, depth ${grid.rows[row]}`;
      report.showSamples(target, grid.id, `${row},${column}`, heading);
      outline(grid, row, column);
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
      browser.scrollIntoView({ block: "start" });
      target.focus({ preventScroll: true });
    });

    const drawn = grid.charts.map(report.chart);
    for (const chart of drawn) {
      if (chart) chart.on("plotly_click", (event) => select(event.points[0].y, event.points[0].x));
    }
    // The tables say the same; a browser that cannot draw leaves them open.
    if (drawn.every(Boolean)) home.querySelector("details.grids").open = false;
    else home.querySelector(".panels").hidden = true;
  }

  for (const grid of grids) {
    prepare(grid);
    yield;
  }
});
