// In which layers: lines of chosen pairs along the layers, and every layer's matrix at a glance.

const MOST_PAIRS = LINES.length; // pairs in one chart of lines
const MOST_SIGNS = 10; // tasks of a small matrix that prints its signs
const MOST_SMALL_CELLS = 40000; // cells of all small matrices together

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
  if (!all.length) return home.replaceChildren(make("p", { textContent: "This report has no profile along the layers." }));
  const form = make("form", { className: "controls" });
  fillControls(form, home, ["modules", "side"], all, state.along, showProfile);
  const { modules, side } = state.along;
  const charts = report.runs.map((run) => ({
    title: run.label,
    rows: linesOf(run.profile.filter((row) => row.modules === modules && row.side === side), (row) => row.layer, (row) => `layer ${row.layer}`),
  })).filter(({ rows }) => rows.length);
  const domain = robustFrame(charts.flatMap(({ rows }) => rows));
  const places = charts.map(() => make("div", { className: "chart" }));
  const figures = charts.map(({ title }, k) => framed(places[k], `${title} along the layers`, () => chartSvg(places[k], title)));
  home.replaceChildren(
    make("p", { className: "hint", textContent: "Interference I (ratio of means) of chosen pairs, layer by layer, with 95 % bands; what leaves the frame is cut. Dashed: 0, no effect." }),
    form, pairChooser(), make("div", { className: "charts" }, ...figures));
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
    const own = [];
    for (const run of runs) {
      const there = members.filter((scope) => run.cells[scope.key]?.[choice.key]);
      if (!there.length || (room -= there.length * size * size) < 0) continue;
      const heading = make("h4", {}, key, runs.length > 1 ? ": " : "", make("bdi", { textContent: runs.length > 1 ? run.label : "" }));
      const matrices = there.map((scope) => smallMatrix(scope, run.cells[scope.key][choice.key], choice));
      own.push(make("div", {}, heading, make("div", { className: "small-matrices" }, ...matrices)));
    }
    parts.push(...(runs.length > 1 && own.length ? [make("div", { className: "glances" }, ...own)] : own));
  }
  const cut = room < 0 ? "Not every matrix is drawn here, so that the browser stays fast; choose the others above. " : "";
  place("multiples").replaceChildren(...(parts.length
    ? [make("h3", { textContent: `Every layer at a glance: ${choiceWords(choice)}` }), make("p", { className: "hint", textContent: `${cut}Rows, columns and colours as in the matrix above; \u2212 conflict, + synergy beyond noise, \u00b7 no signal. Choose one to enlarge it.` }), make("div", { className: runs.length > 1 ? "" : "glances" }, ...parts)]
    : [make("p", { className: "hint", textContent: `This report has no ${choiceWords(choice)} of single layers.` })]));
}

function smallMatrix(scope, cells, choice) {
  const size = report.tasks.length;
  const { limit } = limitOf(choice.metric);
  const edge = size > MOST_SIGNS ? Math.max(3, Math.round(96 / size)) : Math.max(LEAST_SIGN, Math.min(15, Math.round(96 / size)));
  const table = make("table", { attributes: { "aria-hidden": "true" } });
  for (let row = 0; row < size; row += 1) {
    const line = table.insertRow();
    for (let column = 0; column < size; column += 1) {
      const k = row * size + column;
      const element = line.insertCell();
      element.style.width = element.style.height = `${edge}px`;
      if (row === column) continue;
      const verdict = cells.verdict?.[k];
      element.style.backgroundColor = verdict === "no-signal" ? "var(--paper)" : colour(cells.value[k], limit);
      element.style.color = "var(--on-shade)";
      if (edge >= LEAST_SIGN) element.textContent = sign(verdict);
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
