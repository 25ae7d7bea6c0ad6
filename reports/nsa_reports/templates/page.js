"use strict";
// What every section of a report may use: `report`. A section's own script (section.js) is a call of
// report.section(ID, run): run(data) gets what the section's data hands to its script, once its charts are drawn; a
// generator function gives the browser a turn at each `yield`. Free text (replies, prompts, names) only ever goes
// through textContent.
const report = (() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const scripts = new Map();
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
    const head = element("header", "", null, element("b", "name", data.models[reply.model]), score);
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
      chip.textContent = `${data.short[reply.model]}: ${percent(reply.score)}`;
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

  /**
   * Shows in `target` what the page holds of a list of samples at a place ("row,column" or "all"), under a heading.
   * Says so where that is nothing.
   */
  function showSamples(target, list, place, heading) {
    const bundle = (data.samples[list] || {})[place];
    if (!bundle) {
      target.replaceChildren(element("h3", "", heading ? `${heading}: no samples` : "no samples"));
      return;
    }
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
  /** Draws a chart into the element of its id; a browser that cannot leaves it empty, and the tables say the same. */
  function draw(id) {
    try {
      const { data: traces, layout } = data.charts[id];
      Plotly.newPlot(id, traces, layout, { displayModeBar: false, responsive: true, doubleClick: false });
    } catch {
      document.getElementById(id)?.replaceChildren();
    }
  }

  /** The element of a chart that was drawn (Plotly's graph div), or null. */
  function chart(id) {
    const found = document.getElementById(id);
    return found && found.data ? found : null;
  }

  // Paper has another width than the screen; plotly only follows the window.
  const resize = () => document.querySelectorAll(".js-plotly-plot").forEach((drawn) => Plotly.Plots.resize(drawn));
  window.matchMedia("print").addEventListener("change", resize);

  // ---- sections -----------------------------------------------------------------------------------------------
  function* steps() {
    for (const [id, section] of Object.entries(data.sections)) {
      for (const each of section.charts) {
        draw(each);
        yield;
      }
      const run = scripts.get(id);
      if (!run) continue;
      try {
        yield* run(section.data) || [];
      } catch (error) {
        console.error(`section ${id}:`, error); // the other sections still work
      }
    }
  }

  function start() {
    for (const details of document.querySelectorAll("details.config")) details.open = false;
    // Samples without a grid are built when they are first asked for.
    for (const browser of document.querySelectorAll("details.browser[data-samples]")) {
      browser.addEventListener("toggle", () => {
        const target = browser.querySelector(".samples");
        if (!target.childNodes.length) showSamples(target, browser.dataset.samples, "all", "");
      });
    }
    // One step per turn, so that a page with many charts answers while it draws.
    const queue = steps();
    (function next() {
      if (queue.next().done) document.documentElement.dataset.ready = "yes";
      else setTimeout(next);
    })();
  }

  return { chart, element, section: (id, run) => scripts.set(id, run), showSamples, start };
})();
