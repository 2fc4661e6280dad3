// The page: reads the report's data, keeps what is chosen, and fills the sections.

const report = JSON.parse(document.getElementById("data").textContent);
const CHOICE = ["metric", "pairs", "reduce"];
const SCOPE = ["layers", "modules", "side"];
const MOST_PAIRS = LINES.length; // pairs in one chart of lines
const FEW_STEPS = 9; // checkpoints up to which they stand at equal distances
const MOST_CHANGES = 24; // pairs in the chart of differences
const MOST_SMALL_CELLS = 40000; // cells of all small matrices together
const limits = new Map();

// No verdict stands on a value that does not bear it out.
for (const cells of report.runs.flatMap((run) => Object.values(run.cells)).flatMap((choices) => Object.values(choices))) {
  cells.at_odds?.forEach((how, k) => { if (how) cells.verdict[k] = "at-odds"; });
}

const place = (id) => document.getElementById(id);
const VIEWS = [
  ...report.runs.map((run, k) => ({ run: k, word: run.label })),
  ...report.differences.map(({ first, second }, k) => ({ difference: k, word: `${report.runs[first].label} beside ${report.runs[second].label}` })),
];
const everything = report.scopes.find(({ layers, modules }) => layers === "all" && modules === "all") ?? report.scopes[0];
const state = {
  view: VIEWS.find((view) => view.difference !== undefined) ?? VIEWS[0],
  row: null,
  column: null,
  chosen: [], // pairs drawn as lines: [affected, stepped]
  along: {}, // modules and side of the profile
  ...report.choices[0],
  ...everything,
};

function limitOf(metric) {
  if (!limits.has(metric)) limits.set(metric, colourLimit(report, metric));
  return limits.get(metric);
}

function runsShown() {
  if (state.view.run !== undefined) return [report.runs[state.view.run]];
  const { first, second } = report.differences[state.view.difference];
  return [report.runs[first], report.runs[second]];
}

const scopeWords = (scope) => SCOPE.map((field) => SETTINGS[field].word(scope[field])).join(", ");
const choiceWords = (choice) => [metricWord(choice.metric), choice.pairs, choice.reduce].filter((word) => word !== null).join(", ");

// Which, and where ------------------------------------------------------------------------------------------------

function showMatrix() {
  const form = place("controls");
  const again = () => showMatrix();
  form.replaceChildren();
  if (VIEWS.length > 1) {
    const control = select("Run", VIEWS, state.view, (view) => view.word, (view) => {
      state.view = view;
      again();
      form.querySelector("[data-field='view'] select").focus();
    });
    control.dataset.field = "view";
    form.append(control);
  }
  const choice = fillControls(form, form, CHOICE, report.choices, state, again);
  const measured = report.scopes.filter((scope) => runsShown().some((run) => run.cells[scope.key]?.[choice.key]));
  const scope = fillControls(form, form, SCOPE, measured.length ? measured : report.scopes, state, again);
  const figures = figuresOf(report, state.view, scope, choice);
  showCounts(scope);
  const limit = limitOf(choice.metric);
  const chosen = (row, column) => showDetails(figures, row, column);
  const tables = figures.map((figure) =>
    figure.cells
      ? matrixTable(report.tasks, figure, limit.limit, `${choiceWords(choice)}; ${scopeWords(scope)}`, figures.length > 1, chosen)
      : make("p", { className: "note" }, make("bdi", { textContent: figure.title }), ` has no ${choiceWords(choice)} for ${scopeWords(scope)} in this report.`));
  place("matrices").replaceChildren(...tables);
  place("where").dataset.layout = figures.length > 1 || report.tasks.length > 7 ? "wide" : "beside";
  fillLegend(place("legend"), choice.metric, limit, figures);
  if (state.row === null) [state.row, state.column] = mostTelling(figures.find((figure) => figure.cells));
  showDetails(figures, state.row, state.column);
  showMultiples(choice);
}

// Where to begin: the lowest conflict, else the cell farthest from 0 off the diagonal, else the first.
function mostTelling(figure) {
  const size = report.tasks.length;
  const cells = (figure?.cells.value ?? []).map((value, k) => ({ value, verdict: figure.cells.verdict?.[k], row: Math.floor(k / size), column: k % size }))
    .filter(({ value, row, column }) => value !== null && row !== column);
  const rank = ({ value, verdict }) => (verdict === "conflict" ? 1e9 : 0) + Math.abs(value);
  const best = cells.sort((a, b) => rank(b) - rank(a))[0] ?? { row: 0, column: 0 };
  return [best.row, best.column];
}

function showCounts(scope) {
  place("counts").replaceChildren(...runsShown().map((run) => {
    const counts = Object.entries(run.counts?.[scope.key] ?? {}).filter(([verdict, count]) => count || verdict !== "carried");
    const words = counts.map(([verdict, count]) => {
      const mark = make("span", { className: "swatch word", textContent: `${count} ${verdictWord(verdict)}` });
      mark.dataset.verdict = count ? verdict : "";
      return mark;
    });
    return make("span", { className: "count" }, make("bdi", { textContent: run.label }), ...words);
  }));
}

function showDetails(figures, row, column) {
  [state.row, state.column] = [row, column];
  const [affected, stepped] = [report.tasks[row], report.tasks[column]];
  for (const element of document.querySelectorAll(".matrix td.chosen")) element.classList.remove("chosen");
  for (const element of document.querySelectorAll(`.matrix td[data-row="${row}"][data-column="${column}"]`)) element.classList.add("chosen");
  const shown = figures.filter((figure) => figure.cells);
  const button = make("button", { type: "button", textContent: "Draw this pair along the layers" });
  button.addEventListener("click", () => {
    choosePair(affected, stepped);
    place("depth").scrollIntoView();
  });
  place("details").replaceChildren(
    make("h3", {}, "A step of ", nameOf(stepped), " on the loss of ", nameOf(affected)),
    make("div", { className: "several" }, ...shown.map((figure) => cellFacts(figure, cell(figure.cells, row * report.tasks.length + column), row === column))),
    row !== column && hasLines(affected, stepped) ? button : "",
    ...runsShown().flatMap((run) => driverLists(run, affected, stepped)));
}

// In which layers -------------------------------------------------------------------------------------------------

const lineKey = (row) => JSON.stringify([row.affected, row.stepped]);
const withLines = new Set([...report.runs.flatMap((run) => run.profile), ...report.trajectory].map(lineKey));
const hasLines = (affected, stepped) => withLines.has(JSON.stringify([affected, stepped]));

function choosePair(affected, stepped) {
  const others = state.chosen.filter((pair) => lineKey(pair) !== lineKey({ affected, stepped }));
  state.chosen = [...others, { affected, stepped }].slice(-MOST_PAIRS);
  showLines();
}

// The pairs to begin with: up to three conflicts of any run from the worst on, and the strongest synergy.
function firstPairs() {
  const size = report.tasks.length;
  const cells = report.runs.flatMap((run) => {
    const { value = [], verdict = [] } = run.cells[everything.key]?.[report.choices[0].key] ?? {};
    return value.map((v, k) => ({ v, verdict: verdict[k], affected: report.tasks[Math.floor(k / size)], stepped: report.tasks[k % size] }));
  }).filter((pair) => pair.v !== null && pair.affected !== pair.stepped && hasLines(pair.affected, pair.stepped))
    .sort((a, b) => a.v - b.v);
  const distinct = (pairs) => [...new Map(pairs.map((pair) => [lineKey(pair), pair])).values()];
  const conflicts = distinct(cells.filter((pair) => pair.verdict === "conflict")).slice(0, 3);
  const synergies = cells.filter((pair) => pair.verdict === "synergy").slice(-1);
  const found = distinct([...conflicts, ...synergies]);
  return found.length ? found : distinct(cells).slice(0, 3);
}

function pairChooser() {
  const pairs = [...withLines].map((key) => JSON.parse(key));
  const chips = state.chosen.map((pair) => {
    const remove = make("button", { type: "button", className: "chip" }, make("bdi", { textContent: pairWord(pair.affected, pair.stepped) }), make("span", { textContent: " \u00d7", attributes: { "aria-hidden": "true" } }));
    remove.setAttribute("aria-label", `Remove ${pairWord(pair.affected, pair.stepped)}`);
    remove.addEventListener("click", () => {
      state.chosen = state.chosen.filter((other) => other !== pair);
      showLines();
    });
    return remove;
  });
  const left = pairs.filter(([affected, stepped]) => !state.chosen.some((pair) => lineKey(pair) === lineKey({ affected, stepped })));
  const steppers = [...new Set(left.map(([, stepped]) => stepped))];
  if (!steppers.length) return make("div", { className: "chooser" }, ...chips);
  const offer = { stepped: steppers[0], affected: null };
  const form = make("form", { className: "controls" });
  const fill = () => {
    const affected = left.filter(([, stepped]) => stepped === offer.stepped).map(([name]) => name);
    if (!affected.includes(offer.affected)) [offer.affected] = affected;
    form.replaceChildren(
      select("A step of", steppers, offer.stepped, (name) => name, (name) => { offer.stepped = name; fill(); form.querySelector("select").focus(); }),
      select("on the loss of", affected, offer.affected, (name) => name, (name) => { offer.affected = name; }),
      make("button", { type: "submit", textContent: "Draw this pair" }));
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    choosePair(offer.affected, offer.stepped);
  });
  fill();
  return make("div", { className: "chooser" }, ...chips, form);
}

function linesOf(rows, x, where) {
  const order = new Map(state.chosen.map((pair, k) => [lineKey(pair), k]));
  return rows.filter((row) => order.has(lineKey(row)))
    .sort((a, b) => order.get(lineKey(a)) - order.get(lineKey(b)))
    .map((row) => ({ pair: pairWord(row.affected, row.stepped), x: x(row), value: row.value, low: row.low, high: row.high, where: where(row), text: `${number(row.value)} ${interval(row.low, row.high)}` }));
}

async function showLines() {
  await Promise.all([showProfile(), showTrajectory()]);
}

async function showProfile() {
  const home = place("profile");
  forget(home);
  const all = report.runs.flatMap((run) => run.profile);
  if (!all.length) return home.replaceChildren(make("p", { textContent: "This report holds no profile along the layers." }));
  const form = make("form", { className: "controls" });
  fillControls(form, home, ["modules", "side"], all, state.along, showProfile);
  const { modules, side } = state.along;
  const charts = report.runs.map((run) => ({
    title: run.label,
    rows: linesOf(run.profile.filter((row) => row.modules === modules && row.side === side), (row) => row.layer, (row) => `layer ${row.layer}`),
  })).filter(({ rows }) => rows.length);
  const domain = robustFrame(charts.flatMap(({ rows }) => rows));
  const places = charts.map(() => make("div", { className: "chart" }));
  home.replaceChildren(
    make("p", { className: "hint", textContent: "Interference I (ratio of means) of chosen pairs, layer by layer, with 95 % bands; what leaves the frame is cut. Dashed: 0, no effect." }),
    form, pairChooser(), make("div", { className: "charts" }, ...places));
  await Promise.all(charts.map(({ title, rows }, k) => draw(places[k], lines(rows, { title, xTitle: "layer", yTitle: "interference I", domain, ordinal: new Set(rows.map((row) => row.x)).size < 13 }))));
}

// One small matrix a layer, module group and side; signs where a verdict is beyond noise. A click sets the matrix above.
function showMultiples(choice) {
  const scopes = report.scopes.filter((scope) => scope.layers !== "all");
  const size = report.tasks.length;
  const runs = runsShown();
  const groups = new Map();
  for (const scope of scopes) {
    const key = `${SETTINGS.modules.word(scope.modules)}, ${SETTINGS.side.word(scope.side)}`;
    groups.set(key, [...(groups.get(key) ?? []), scope]);
  }
  let room = MOST_SMALL_CELLS;
  const parts = [];
  for (const [key, members] of groups) {
    for (const run of runs) {
      const there = members.filter((scope) => run.cells[scope.key]?.[choice.key]);
      if (!there.length || (room -= there.length * size * size) < 0) continue;
      const heading = make("h4", {}, key, runs.length > 1 ? ": " : "", make("bdi", { textContent: runs.length > 1 ? run.label : "" }));
      const matrices = there.map((scope) => smallMatrix(scope, run.cells[scope.key][choice.key], choice));
      parts.push(make("div", {}, heading, make("div", { className: "small-matrices" }, ...matrices)));
    }
  }
  const cut = room < 0 ? "More are in the data than a browser draws with ease; choose them above. " : "";
  place("multiples").replaceChildren(...(parts.length
    ? [make("h3", { textContent: `Every layer at a glance: ${choiceWords(choice)}` }), make("p", { className: "hint", textContent: `${cut}Rows, columns and colours as in the matrix above; \u2212 conflict, + synergy beyond noise, \u00b7 no signal. Choose one to see it large.` }), make("div", { className: "glances" }, ...parts)]
    : [make("p", { className: "hint", textContent: `This report holds no ${choiceWords(choice)} of single layers.` })]));
}

function smallMatrix(scope, cells, choice) {
  const size = report.tasks.length;
  const { limit } = limitOf(choice.metric);
  const edge = Math.max(3, Math.min(20, Math.round(96 / size)));
  const table = make("table", { attributes: { "aria-hidden": "true" } });
  for (let row = 0; row < size; row += 1) {
    const line = table.insertRow();
    for (let column = 0; column < size; column += 1) {
      const k = row * size + column;
      const element = line.insertCell();
      element.style.width = element.style.height = `${edge}px`;
      if (row === column) continue;
      const verdict = cells.verdict?.[k];
      element.style.backgroundColor = verdict === "no-signal" ? "#fff" : colour(cells.value[k], limit);
      element.style.color = verdict === "no-signal" ? "#000" : ink(cells.value[k], limit);
      if (edge >= 9) element.textContent = sign(verdict);
    }
  }
  const count = (verdict) => (cells.verdict ?? []).filter((other) => other === verdict).length;
  const button = make("button", { type: "button", className: "small" }, make("span", { textContent: SETTINGS.layers.word(scope.layers) }), table);
  button.setAttribute("aria-label", `${scopeWords(scope)}: ${count("conflict")} conflict, ${count("synergy")} synergy; show in the matrix`);
  button.addEventListener("click", () => {
    for (const field of SCOPE) state[field] = scope[field];
    showMatrix();
    place("where").scrollIntoView();
  });
  return button;
}

// Is it real ------------------------------------------------------------------------------------------------------

function table(headings, rows, caption) {
  const head = make("tr", {}, ...headings.map((text) => make("th", { scope: "col", textContent: text })));
  const body = rows.map(([name, ...values]) => make("tr", {}, make("th", { scope: "row" }, nameOf(name)), ...values.map((text) => make("td", { textContent: text }))));
  return make("div", { className: "box" }, make("table", { className: "numbers" }, caption ? make("caption", {}, make("span", { textContent: caption })) : null, make("thead", {}, head), make("tbody", {}, ...body)));
}

async function showRuns() {
  const several = report.runs.length > 1;
  await Promise.all(report.runs.map(async (run) => {
    const rows = run.null.map((row) => ({ name: row.task, value: row.value, low: row.low, high: row.high, text: `${number(row.value)} ${interval(row.low, row.high)}`, certain: false }));
    const chart = make("div", { className: "chart" });
    const signals = new Map(run.signal.map((row) => [row.task, row]));
    const nulls = new Map(run.null.map((row) => [row.task, row]));
    const lines = report.tasks.map((task) => {
      const [signal, half] = [signals.get(task) ?? {}, nulls.get(task) ?? {}];
      return [task, run.units[task] ?? NOT_KNOWN, number(signal.effective, false), number(run.loss[task], false), `${number(half.value)} ${interval(half.low, half.high)}`,
        number(signal.snr, false), percent(signal.reliability), number(signal.balance), number(signal.squared_norm), number(signal.unit_noise, false)];
    });
    place("runs").append(make("div", { className: "run" },
      several ? make("h3", {}, make("bdi", { textContent: run.label })) : null,
      make("div", { className: "halves" },
        table(["task", "units", "effective units", "loss", "against its own half (1)", "signal to noise", "reliability", "balance", "squared norm", "noise of a unit"], lines),
        rows.length ? chart : null),
      run.notes?.length ? make("ul", { className: "sentences" }, ...run.notes.map((note) => make("li", { dir: "auto", textContent: note }))) : null));
    if (rows.length) await draw(chart, intervals(rows, { rule: 1, xTitle: "I of one half on the other", domain: frame(rows, [0, 1], 5) }));
  }));
  place("runs").append(make("p", { className: "hint", textContent: "Signal to noise: power of the mean gradient over the power of its noise. Reliability: the share of its measured length that is not noise. Balance: the sum of all tasks' pull on this task over its own; near 0 the training stands still for it, and the others must then oppose it on average. Effective units: how many of equal length would scatter as much as the gradients do." }));
}

// What can I do ---------------------------------------------------------------------------------------------------

// The runs outside any training, and of each training its last checkpoint.
function lastRuns() {
  const last = new Map();
  for (const row of report.trajectory) {
    if (row.step >= (last.get(row.series)?.step ?? row.step)) last.set(row.series, row);
  }
  const kept = [...last.values()].map((row) => row.run);
  const along = new Set(report.trajectory.map((row) => row.run));
  return report.runs.filter((run, k) => !along.has(k) || kept.includes(k));
}

async function showGrouping() {
  const size = report.tasks.length;
  const { limit } = limitOf(report.choices[0].metric);
  await Promise.all(lastRuns().map(async (run) => {
    const cells = run.cells[everything.key]?.[report.choices[0].key];
    if (!run.grouping || !cells) return;
    const { order, merges, split, words } = run.grouping;
    const rows = cells.value.map((value, k) => {
      const [affected, stepped] = [report.tasks[Math.floor(k / size)], report.tasks[k % size]];
      const verdict = affected === stepped ? "self" : cells.verdict?.[k];
      const plain = { self: "#e4e2dc", "no-signal": "#fbfaf7" }[verdict];
      return { affected, stepped, pair: pairWord(affected, stepped), fill: plain ?? colour(value, limit), ink: plain ? "#000" : ink(value, limit), sign: sign(verdict), text: `${number(value)} ${interval(cells.low?.[k], cells.high?.[k])}` };
    });
    const chart = make("div", { className: "chart" });
    place("grouping").append(make("div", { className: "run" },
      make("h3", {}, "Tasks that go together", report.runs.length > 1 ? ": " : "", make("bdi", { textContent: report.runs.length > 1 ? run.label : "" })),
      make("p", { dir: "auto", textContent: words }),
      make("ol", { className: "split" }, ...split.map((group) => make("li", {}, ...group.map(nameOf)))),
      make("p", { className: "hint", textContent: "The matrix with tasks that go together side by side (rows affected, columns stepped; \u2212 conflict, + synergy, \u00b7 no signal), and the order in which they join, the closest first." }),
      chart));
    await draw(chart, groupedMatrix(rows, order, merges, report.tasks.map((task) => order.indexOf(task))));
  }));
}

// Did it help -----------------------------------------------------------------------------------------------------

async function showDifferences() {
  const size = report.tasks.length;
  const signed = SIGNED.includes(report.choices[0].metric);
  await Promise.all(report.differences.map(async ({ first, second, cells, words }) => {
    const [before, after] = [report.runs[first], report.runs[second]];
    const kinds = ["conflict", "synergy", "unclear", "no-signal", ...([before, after].some((run) => run.counts?.[everything.key]?.carried) ? ["carried"] : [])];
    const counts = [before, after].map((run) => [run.label, ...kinds.map((kind) => String(run.counts?.[everything.key]?.[kind] ?? NOT_KNOWN))]);
    const losses = report.tasks.map((task) => [task, number(before.loss[task], false), number(after.loss[task], false)]);
    const change = cells[everything.key]?.[report.choices[0].key];
    const home = make("div", { className: "run" },
      make("h3", {}, make("bdi", { textContent: after.label }), " minus ", make("bdi", { textContent: before.label })),
      make("p", { dir: "auto", textContent: words }),
      make("div", { className: "halves" }, table(["run", ...kinds.map(verdictWord)], counts, "Cells of the whole matrix"), table(["task", before.label, after.label], losses, "Loss (nats per token)")));
    place("differences").append(home);
    if (!change) return;
    const rows = change.value.map((value, k) => ({ name: pairWord(report.tasks[Math.floor(k / size)], report.tasks[k % size]), value, low: change.low?.[k] ?? null, high: change.high?.[k] ?? null, text: `${number(value)} ${interval(change.low?.[k], change.high?.[k])}`, certain: ["lower", "higher"].includes(change.verdict?.[k]), own: Math.floor(k / size) === k % size }))
      .filter((row) => row.value !== null && !row.own)
      .sort((a, b) => Number(b.certain) - Number(a.certain) || Math.abs(b.value) - Math.abs(a.value));
    if (!rows.length) return;
    const shown = rows.slice(0, MOST_CHANGES).sort((a, b) => b.value - a.value);
    const chart = make("div", { className: "chart" });
    home.append(make("p", { className: "hint", textContent: `Change of ${choiceWords(report.choices[0])}, ${scopeWords(everything)}, stepped \u2192 affected, with 95 % intervals (cut where they leave the frame). Filled: beyond noise. ${shown.length} of ${rows.length} pairs, the surest and largest; the matrix above shows all.${signed ? " To the right of 0: less conflict or more help." : ""}` }), chart);
    await draw(chart, intervals(shown, { rule: 0, xTitle: `change of ${metricWord(report.choices[0].metric)}`, domain: frame(shown, [0], 5) }));
  }));
}

// One chart a training, on one scale.
async function showTrajectory() {
  if (!report.trajectory.length) return;
  const home = place("trajectory");
  forget(home);
  const label = (row) => report.runs[row.run].label;
  const series = [...new Set(report.trajectory.map((row) => row.series))];
  const charts = series.map((name) => ({
    title: series.length > 1 ? name : undefined,
    rows: linesOf(report.trajectory.filter((row) => row.series === name), (row) => row.step, label).sort((a, b) => a.x - b.x),
  })).filter(({ rows }) => rows.length);
  const few = charts.every(({ rows }) => new Set(rows.map((row) => row.x)).size < FEW_STEPS); // uneven steps would crowd at the left
  const domain = robustFrame(charts.flatMap(({ rows }) => rows));
  const places = charts.map(() => make("div", { className: "chart" }));
  home.replaceChildren(
    make("p", { className: "hint", textContent: "Interference I of chosen pairs from checkpoint to checkpoint, with 95 % bands; what leaves the frame is cut. Dashed: 0, no effect." }),
    pairChooser(), make("div", { className: "charts" }, ...places));
  await Promise.all(charts.map(({ title, rows }, k) => draw(places[k], lines(rows, { title, xTitle: `training step${few ? " (not to scale)" : ""}`, yTitle: "interference I", domain, ordinal: few }))));
}

// How it was measured ---------------------------------------------------------------------------------------------

function showSources() {
  const rows = report.runs.map((run) => [run.label, run.kind, run.source, String(run.blocks), String(Object.values(run.units).reduce((sum, units) => sum + units, 0))]);
  place("sources").append(table(["run", "kind", "read from", "blocks", "units"], rows));
}

function followWidth() {
  let waiting = 0;
  new ResizeObserver(() => {
    clearTimeout(waiting);
    waiting = setTimeout(() => drawn.forEach(redraw), 120);
  }).observe(document.querySelector("main"));
}

state.chosen = firstPairs();
showMatrix();
showSources();
await Promise.all([showLines(), showRuns(), showGrouping(), ...(report.differences.length ? [showDifferences()] : [])]);
followWidth();
document.documentElement.dataset.ready = "true";
