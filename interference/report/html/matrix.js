// The matrix and what belongs to it: controls, the tables, the details of a cell, the legend, the small multiples.

function make(tag, properties = {}, ...children) {
  const { attributes = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null)); // strings become text nodes
  return element;
}

// A task's name, which may break behind the marks that join its words.
function nameOf(task) {
  const parts = task.split(/(?<=[_\-./])/);
  return make("bdi", { className: "name", title: task }, ...parts.flatMap((part, k) => (k ? [make("wbr"), part] : [part])));
}

const SETTINGS = {
  metric: { of: "choices", label: "Metric", word: metricWord },
  pairs: { of: "choices", label: "Pairs of units", word: (value) => value ?? "default" },
  reduce: { of: "choices", label: "Units to one number", word: (value) => value ?? "default" },
  layers: { of: "scopes", label: "Layers", word: (value) => (value === "all" ? "all layers" : `layer ${value}`) },
  modules: { of: "scopes", label: "Modules", word: (value) => (value === "all" ? "all modules" : value) },
  side: { of: "scopes", label: "Side of LoRA", word: (value) => ({ both: "A and B", adam: "A and B, the step of AdamW" })[value] ?? value },
};

// The options of each field given the fields before it, and the one item left; mends what of the state is not there.
function settle(items, fields, state) {
  const options = {};
  let left = items;
  for (const field of fields) {
    options[field] = [...new Set(left.map((item) => item[field]))];
    if (!options[field].includes(state[field])) [state[field]] = options[field];
    left = left.filter((item) => item[field] === state[field]);
  }
  return { options, item: left[0] };
}

const ONE_VALUE = "No choice here: this metric does not use it, or the report has only one value.";

function select(label, options, chosen, word, change) {
  const list = make("select", { disabled: options.length < 2 });
  options.forEach((option, k) => list.append(make("option", { value: String(k), textContent: word(option), selected: option === chosen })));
  list.addEventListener("change", () => change(options[Number(list.value)]));
  return make("label", list.disabled ? { title: ONE_VALUE } : {}, make("span", { textContent: label }), list);
}

// Labelled lists for the fields of a state; `change` runs after one has changed it, and may build them anew within
// `home`: focus stays on the list that was used.
function fillControls(form, home, fields, items, state, change) {
  const { options, item } = settle(items, fields, state);
  for (const field of fields) {
    const control = select(SETTINGS[field].label, options[field], state[field], SETTINGS[field].word, (value) => {
      state[field] = value;
      change();
      home.querySelector(`[data-field="${field}"] select`)?.focus();
    });
    control.dataset.field = field;
    form.append(control);
  }
  return item;
}

// The figures of some runs, and of two the difference, where the report has it; {title, cells, signed}.
function figuresOf(report, runs, scope, choice) {
  const signed = SIGNED.includes(choice.metric);
  const ofRun = (k) => ({ title: report.runs[k].label, cells: report.runs[k].cells[scope.key]?.[choice.key], signed });
  const compared = report.differences.find(({ first, second }) => runs.length === 2 && runs.includes(first) && runs.includes(second));
  if (!compared) return runs.map(ofRun);
  const { first, second, cells } = compared;
  const title = `${report.runs[second].label} minus ${report.runs[first].label}`;
  return [ofRun(first), ofRun(second), { title, cells: cells[scope.key]?.[choice.key], signed: true, change: true }];
}

// `beside` others a matrix shows values and verdicts, as a large one does; intervals are then in the details.
function matrixTable(tasks, figure, limit, caption, beside, choose) {
  const size = tasks.length;
  const crowding = size > 16 ? "tiny" : beside ? "beside" : size > 9 ? "dense" : "roomy";
  const head = make("tr", {}, make("td", { className: "corner" }, make("span", { textContent: "a step of \u2192" }), make("span", { textContent: "the loss of \u2193" })));
  for (const task of tasks) head.append(make("th", { scope: "col" }, nameOf(task)));
  const body = make("tbody");
  tasks.forEach((affected, row) => {
    const line = make("tr", {}, make("th", { scope: "row" }, nameOf(affected)));
    tasks.forEach((_, column) => line.append(matrixCell(figure, cell(figure.cells, row * size + column), limit, crowding, row, column)));
    body.append(line);
  });
  const table = make("table", { className: `matrix ${crowding}`, attributes: { role: "grid", "aria-readonly": "true" } },
    make("caption", {}, make("bdi", { className: "figure-title", textContent: figure.title }), make("span", { className: "scope-words", textContent: caption })), make("thead", {}, head), body);
  walkable(table, choose);
  return make("div", { className: `box ${crowding}` }, table);
}

function matrixCell(figure, content, limit, crowding, row, column) {
  const own = row === column && !figure.change;
  const { value, low, high, verdict } = content;
  const coarse = limit >= 0.5;
  const element = make("td", { tabIndex: -1 },
    make("span", { className: "value", textContent: number(value, figure.signed, coarse) }),
    own || crowding !== "roomy" ? null : make("span", { className: "interval", textContent: interval(low, high, figure.signed, coarse) }),
    make("span", { className: "verdict", textContent: row === column && figure.change ? "" : verdictWord(verdict) }));
  Object.assign(element.dataset, { row, column, verdict: own ? "self" : verdict ?? "" });
  if (!own) {
    element.style.backgroundColor = colour(value, limit);
    element.style.color = "var(--on-shade)";
  }
  return element;
}

// One stop for Tab; arrows, Home and End move among the cells, focus and click choose, Enter goes on to the details.
function walkable(table, choose) {
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1));
  const at = (element) => [Number(element.dataset.row), Number(element.dataset.column)];
  const last = rows.length - 1;
  const moves = { ArrowUp: (r, c) => [r - 1, c], ArrowDown: (r, c) => [r + 1, c], ArrowLeft: (r, c) => [r, c - 1], ArrowRight: (r, c) => [r, c + 1], Home: (r) => [r, 0], End: (r) => [r, last] };
  rows[0][0].tabIndex = 0;
  table.addEventListener("focusin", (event) => {
    const element = event.target.closest("td[data-row]");
    if (!element) return;
    table.querySelector("td[tabindex='0']").tabIndex = -1;
    element.tabIndex = 0;
    choose(...at(element), table);
  });
  table.addEventListener("click", (event) => event.target.closest("td[data-row]")?.focus());
  table.addEventListener("keydown", (event) => {
    const element = event.target.closest("td[data-row]");
    if (!element) return;
    if (event.key === "Enter") {
      document.getElementById("details").focus();
    } else if (moves[event.key]) {
      const [row, column] = moves[event.key](...at(element));
      rows[Math.max(0, Math.min(row, last))][Math.max(0, Math.min(column, last))].focus();
    } else return;
    event.preventDefault();
  });
}

function facts(pairs) {
  const list = make("dl");
  for (const [word, value] of pairs) list.append(make("div", {}, make("dt", { textContent: word }), make("dd", { textContent: value })));
  return list;
}

// What is known of one cell in one figure.
function cellFacts(figure, content, own) {
  const { value, low, high, q, verdict, nonpositive, leverage } = content;
  const known = [["value", number(value, figure.signed)], ["95 % interval", interval(low, high, figure.signed)]];
  if (q !== undefined) known.push(["q, adjusted for the many cells", probability(q)]);
  if (nonpositive !== undefined) known.push(["units whose own step would not help", percent(nonpositive)]);
  if (leverage !== undefined) known.push(["heaviest unit's weight in a mean of ratios", percent(leverage)]);
  const shown = own && figure.change ? null : own ? "self" : verdict;
  const [word, meaning] = VERDICTS[shown] ?? ["", ""];
  return make("div", { className: "facts" }, make("h4", {}, make("bdi", { textContent: figure.title })),
    word ? make("p", {}, make("strong", { textContent: word }), `: ${meaning}`) : null, facts(known));
}

// Where a unit comes from: its first example, and how many more it is the mean of.
function sourceOf(source) {
  const [first, ...others] = source.split(" + ");
  const name = make("bdi", { textContent: first, title: source });
  return others.length ? [name, ` and ${others.length} more`] : [name];
}

function exampleItem(example) {
  const safe = typeof example.thumbnail === "string" && /^data:image\/(png|jpeg|gif|webp);/.test(example.thumbnail);
  return make("li", {},
    safe ? make("img", { src: example.thumbnail, alt: "image of the example", width: 72 }) : null,
    make("div", {},
      make("p", { className: "prompt", dir: "auto", textContent: example.prompt ?? "" }),
      make("p", { className: "answer", dir: "auto", textContent: example.answer ?? "" }),
      make("p", { className: "source" }, `${percent(example.share)} of the value`, example.source ? " \u00b7 " : "", ...sourceOf(example.source ?? ""))));
}

function driverLists(run, affected, stepped) {
  const found = (run.drivers ?? []).find((driver) => driver.affected === affected && driver.stepped === stepped);
  if (!found) return [];
  const parts = [["affected", affected, "whose loss is read"], ["stepped", stepped, "whose step is taken"]];
  return parts.flatMap(([side, task, words]) => {
    const examples = found.examples.filter((example) => example.side === side);
    if (!examples.length) return [];
    return [make("h4", {}, "Examples that weigh most: ", nameOf(task), `, ${words} (`, make("bdi", { textContent: run.label }), ")"), make("ul", { className: "examples" }, ...examples.map(exampleItem))];
  });
}

function swatch(value, limit, text) {
  const element = make("span", { className: "swatch", textContent: text });
  element.style.backgroundColor = colour(value, limit);
  element.style.color = "var(--on-shade)";
  return element;
}

// Colours, what values mean, and the words of the verdicts, one line each.
function fillLegend(place, metric, { share, limit }, figures) {
  const signed = SIGNED.includes(metric) || figures.some((figure) => figure.change);
  const steps = signed ? [-limit, -limit / 2, 0, limit / 2, limit] : [0, limit / 2, limit];
  const lines = metric === "interference" ? INTERFERENCE_MEANS.map(([value, words]) => [swatch(value, limit, `I = ${value < 0 ? MINUS : ""}${Math.abs(value)}`), words]) : [];
  const verdicts = new Set(figures.flatMap((figure) => figure.cells?.verdict ?? []));
  const cells = Object.keys(VERDICTS).filter((verdict) => verdicts.has(verdict)).map((verdict) => {
    const mark = make("span", { className: "swatch word", textContent: VERDICTS[verdict][0] });
    mark.dataset.verdict = verdict;
    return [mark, VERDICTS[verdict][1]];
  });
  place.replaceChildren(
    make("div", { className: "scale" }, ...steps.map((value) => swatch(value, limit, number(value)))),
    make("p", { className: "hint", textContent: `${metricWord(metric)}: ${METRICS[metric]?.[1] ?? ""}. Blue is negative, red is positive. One scale for all matrices of this metric in this report: its end, ${number(limit, false)}, is the ${percent(share)} quantile of the sizes off the diagonal${metric === "interference" ? ", but at least 1" : ""}; what lies beyond keeps the end's colour.` }),
    make("div", {}, ...[lines, cells].filter((list) => list.length).map((list) =>
      make("ul", {}, ...list.map(([mark, words]) => make("li", {}, mark, make("span", { textContent: words })))))));
}
