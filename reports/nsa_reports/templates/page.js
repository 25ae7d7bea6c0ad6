"use strict";
// Draws the charts and shows samples. Free text (replies, prompts, names) only ever goes through textContent.
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  document.documentElement.classList.add("js");

  /** An element with a class, text and children; text is never parsed as HTML. */
  function element(tag, className, text, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined && text !== null) made.textContent = text;
    made.append(...children);
    return made;
  }

  const percent = (score) => (score === null ? "no score" : `${Math.round(1000 * score) / 10} %`);

  function quality(score) {
    if (score === null) return "unknown";
    return score >= 1 ? "right" : score <= 0 ? "wrong" : "partly";
  }

  /** Appends text to `parent` with every occurrence of the expected answers marked. */
  function appendMarked(parent, text, expected) {
    const wanted = expected.filter((answer) => answer.trim()).map((answer) => answer.toLowerCase());
    const lower = text.toLowerCase();
    // Lower-casing can change the length of a few scripts' letters; positions would then be off.
    if (lower.length !== text.length) wanted.length = 0;
    let start = 0;
    while (start < text.length) {
      let found = -1;
      let size = 0;
      for (const answer of wanted) {
        const at = lower.indexOf(answer, start);
        if (at >= 0 && (found < 0 || at < found || (at === found && answer.length > size))) {
          found = at;
          size = answer.length;
        }
      }
      if (found < 0) break;
      parent.append(text.slice(start, found), element("mark", "", text.slice(found, found + size)));
      start = found + size;
    }
    parent.append(text.slice(start));
  }

  function replyCard(reply, sample) {
    const score = element("span", `score ${quality(reply.score)}`, percent(reply.score));
    const head = element("header", "", null, element("b", "name", report.models[reply.model]), score);
    const text = element("pre", "reply");
    if (reply.text) appendMarked(text, reply.text, sample.expected);
    else text.append(element("i", "muted", "(empty reply)"));
    const card = element("article", quality(reply.score), null, head, text);
    for (const note of reply.notes || []) card.append(element("p", "muted", note));
    if (reply.prompt) card.append(labelled("End of this model's prompt", reply.prompt));
    return card;
  }

  function labelled(label, text) {
    return element("div", "labelled", null, element("h4", "", label), element("pre", "", text));
  }

  function fillSample(body, sample) {
    const facts = element("dl", "facts");
    const fact = (label, text) => facts.append(element("dt", "", label), element("dd", "", text));
    if (sample.needle) fact("Needle", sample.needle);
    if (sample.expected.length) fact("Expected", sample.expected.join(" · "));
    if (facts.childNodes.length) body.append(facts);
    if (sample.prompt) body.append(labelled("End of the prompt", sample.prompt));
    body.append(element("div", "replies", null, ...sample.replies.map((reply) => replyCard(reply, sample))));
  }

  function sampleDetails(sample, open) {
    const summary = element("summary", "", null, element("span", "name", sample.id));
    if (sample.seed !== null) summary.append(element("span", "muted", `seed ${sample.seed}`));
    for (const reply of sample.replies) {
      const chip = element("span", `score ${quality(reply.score)}`);
      chip.textContent = `${report.short[reply.model]}: ${percent(reply.score)}`;
      summary.append(chip);
    }
    const details = element("details", "sample", null, summary);
    const fill = () => {
      if (details.childNodes.length === 1) {
        const body = element("div", "body");
        fillSample(body, sample);
        details.append(body);
      }
    };
    details.addEventListener("toggle", fill);
    if (open) {
      fill();
      details.open = true;
    }
    return details;
  }

  function showBundle(target, bundle, heading) {
    const { total, shown } = bundle;
    const counted = shown.length < total
      ? `${shown.length} of ${total} samples, disagreements and low scores first`
      : `${total} ${total === 1 ? "sample" : "samples"}`;
    target.replaceChildren(
      element("h3", "", heading ? `${heading}: ${counted}` : counted),
      ...shown.map((sample, index) => sampleDetails(sample, index === 0)),
    );
  }

  // ---- charts -------------------------------------------------------------------------------------------------
  const chartsOf = (section) =>
    Array.from({ length: section.charts }, (_, index) => document.getElementById(`${section.id}-p${index}`));

  function outline(section, row, column) {
    const box = (color, width) => ({
      type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5, line: { color, width },
    });
    for (const chart of chartsOf(section)) {
      if (chart.data) Plotly.relayout(chart, { shapes: [box("#ffffff", 5), box("#d6006c", 2.5)] });
    }
  }

  function draw(section, select) {
    for (const chart of chartsOf(section)) {
      const { data, layout } = report.charts[chart.id];
      Plotly.newPlot(chart, data, layout, { displayModeBar: false, responsive: true, doubleClick: false });
      chart.on("plotly_click", (event) => select(event.points[0].y, event.points[0].x));
    }
  }

  // ---- needle grids: choosing a cell ----------------------------------------------------------------------------
  function needle(section) {
    const home = document.getElementById(section.id);
    const browser = home.querySelector(".browser");
    const [columns, rows] = ["column", "row"].map((axis) => browser.querySelector(`select[data-axis=${axis}]`));
    const target = browser.querySelector(".samples");
    for (const list of [columns, rows]) list.add(new Option("–", ""));
    section.columns.forEach((label, index) => columns.add(new Option(label, index)));
    section.rows.forEach((label, index) => rows.add(new Option(label, index)));

    function select(row, column) {
      rows.value = row;
      columns.value = column;
      const heading = `${section.columns[column]} tokens, depth ${section.rows[row]}`;
      const bundle = section.cells[`${row},${column}`];
      if (bundle) showBundle(target, bundle, heading);
      else target.replaceChildren(element("h3", "", `${heading}: no samples`));
      outline(section, row, column);
    }

    // Number("") is 0: the first choice in one list fills the other with its first entry.
    const again = () => select(Number(rows.value), Number(columns.value));
    columns.addEventListener("change", again);
    rows.addEventListener("change", again);
    for (const button of browser.querySelectorAll("button[data-step]")) {
      button.addEventListener("click", () => {
        const size = section.rows.length * section.columns.length;
        const here = Number(columns.value) * section.rows.length + Number(rows.value);
        const next = columns.value === "" ? 0 : (here + Number(button.dataset.step) + size) % size;
        select(next % section.rows.length, Math.floor(next / section.rows.length));
      });
    }
    home.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-cell]");
      if (!button) return;
      select(...button.dataset.cell.split(",").map(Number));
      browser.scrollIntoView({ block: "start" });
      target.focus({ preventScroll: true });
    });

    try {
      draw(section, select);
      home.querySelector("details.grids").open = false;
    } catch {
      // The tables say the same; a browser that cannot draw leaves them open.
      home.querySelector(".panels").hidden = true;
    }
  }

  /** A task without a grid: its samples are built when they are first asked for. */
  function plain(section) {
    const browser = document.querySelector(`.browser[data-section=${section.id}]`);
    if (!browser) return;
    browser.addEventListener("toggle", () => {
      const target = browser.querySelector(".samples");
      if (!target.childNodes.length) showBundle(target, section.cells.all, "");
    });
  }

  // Paper has another width than the screen; plotly only follows the window.
  const resize = () => document.querySelectorAll(".js-plotly-plot").forEach((chart) => Plotly.Plots.resize(chart));
  window.matchMedia("print").addEventListener("change", resize);

  for (const details of document.querySelectorAll("details.config")) details.open = false;
  // One section per turn, so that a page with many charts answers while it draws.
  const queue = [...report.sections];
  (function next() {
    const section = queue.shift();
    if (!section) {
      document.documentElement.dataset.ready = "yes";
      return;
    }
    (section.charts ? needle : plain)(section);
    setTimeout(next);
  })();
})();
