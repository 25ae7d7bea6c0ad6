"use strict";
// What every section of a report may use: `report`. A section's own script (section.js) is a call of
// report.section(ID, run): run(data) gets what the section's data hands to its script; a generator function gives the
// browser a turn at each `yield`. Free text (replies, prompts, names) only ever goes through textContent.
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

  /** With more models than this their names are counted where a line has to hold them. */
  const FEW = 3;

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

  /** An element with a name that may be broken at its joints, as templates write them. */
  function named(tag, className, text) {
    const pieces = text.match(/[^+@=,_/-]*[+@=,_/-]*/g).filter(Boolean);
    return element(tag, className, null, ...pieces.flatMap((piece, at) => (at ? [element("wbr"), piece] : [piece])));
  }

  /** What a sample's models replied: one card for those that replied alike. */
  function replyCard(reply, sample) {
    const score = element("span", `score ${quality(reply.score)}`, percent(reply.score));
    const names = reply.models.map((model) => data.models[model]);
    const who = names.length > FEW ? element("b", "", `${names.length} models`) : named("b", "name", names.join(", "));
    const card = element("article", quality(reply.score), null, element("header", "", null, who, score));
    const texts = [reply.text, ...(reply.more || [])];
    const extracts = reply.extracts || [];
    const ofEach = ({ texts: found }) => found.length === texts.length;
    const extract = ({ filter, score: own }, found) => {
      const by = filter ? ` by ${filter} (${percent(own)})` : "";
      return labelled(`Extracted${by}`, found || "(nothing)");
    };
    texts.forEach((text, at) => {
      const reason = (reply.reasons || [])[at];
      const line = element("p", "muted");
      if (texts.length > 1) line.append(`Reply ${at + 1} of ${texts.length}${reason ? ": " : ""}`);
      if (reason) line.append(reason);
      if (line.childNodes.length) card.append(line);
      const shown = element("pre", "reply");
      if (text) appendMarked(shown, text, sample.expected);
      else shown.append(element("i", "muted", "(empty reply)"));
      card.append(shown);
      for (const found of extracts.filter(ofEach)) card.append(extract(found, found.texts[at]));
    });
    for (const found of extracts) if (!ofEach(found)) card.append(extract(found, found.texts.join("\n")));
    for (const note of reply.notes || []) card.append(element("p", "muted", note));
    if (reply.prompt) card.append(labelled(`End of ${names.length > 1 ? "these models'" : "this model's"} prompt`, reply.prompt));
    if (names.length > FEW) card.append(folded("Which models", named("p", "muted name", names.join(", "))));
    return card;
  }

  function folded(summary, ...children) {
    return element("details", "", null, element("summary", "", summary), ...children);
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

  /** Scores of a sample with what a single reply holds instead of the answer: a model each, or many by outcome. */
  function outcomes(sample) {
    const found = new Map();
    for (const reply of sample.replies) {
      // Of several replies the card says it of each.
      const reason = reply.reasons && reply.reasons.length === 1 ? reply.reasons[0] : "";
      for (const model of reply.models) {
        const key = data.models.length > FEW ? `${reply.score} ${reason}` : model;
        if (!found.has(key)) found.set(key, { score: reply.score, reason, models: [] });
        found.get(key).models.push(model);
      }
    }
    return [...found.values()].sort((one, other) => one.models[0] - other.models[0]);
  }

  function sampleDetails(sample, open) {
    const summary = element("summary", "", null, element("span", "name", sample.id));
    if (sample.seed !== null) summary.append(element("span", "muted", `seed ${sample.seed}`));
    for (const { score, reason, models } of outcomes(sample)) {
      const who = models.length === 1 ? data.short[models[0]] : `${models.length} models`;
      const chip = element("span", `score ${quality(score)}`, `${who}: ${percent(score)}`);
      if (models.length > 1) chip.title = models.map((model) => data.models[model]).join(", ");
      if (reason) chip.append(element("span", "reason", ` (${reason})`));
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

  // ---- sections -----------------------------------------------------------------------------------------------
  function* steps() {
    for (const [id, given] of Object.entries(data.sections)) {
      const run = scripts.get(id);
      if (!run) continue;
      try {
        yield* run(given) || [];
      } catch (error) {
        console.error(`section ${id}:`, error); // the other sections still work
      }
    }
  }

  function start() {
    // Written open, for readers without scripts.
    for (const details of document.querySelectorAll("details.config, details.members")) details.open = false;
    // What a link leads to is unfolded; on paper everything is.
    const reveal = () => {
      const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
      const folds = [];
      for (let at = target; at; at = at.parentElement) if (at.matches("details.fold:not([open])")) folds.push(at);
      for (const details of folds) details.open = true;
      if (folds.length) target.scrollIntoView();
    };
    addEventListener("hashchange", reveal);
    reveal();
    let unfolded = [];
    addEventListener("beforeprint", () => {
      unfolded = [...document.querySelectorAll("details.fold:not([open])")];
      for (const details of unfolded) details.open = true;
    });
    addEventListener("afterprint", () => unfolded.forEach((details) => { details.open = false; }));
    // Samples without a grid are built when they are first asked for.
    for (const browser of document.querySelectorAll("details.browser[data-samples]")) {
      browser.addEventListener("toggle", () => {
        const target = browser.querySelector(".samples");
        if (!target.childNodes.length) showSamples(target, browser.dataset.samples, "all", "");
      });
    }
    // One step per turn, so that a page with many sections answers while they start.
    const queue = steps();
    (function next() {
      if (queue.next().done) document.documentElement.dataset.ready = "yes";
      else setTimeout(next);
    })();
  }

  return { element, folded, section: (id, run) => scripts.set(id, run), showSamples, start };
})();
