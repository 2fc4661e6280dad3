// The answers below the matrix: is it real, what can I do, did it help, along training, how it was measured.

const FEW_STEPS = 9; // checkpoints up to which they stand at equal distances
const MOST_CHANGES = 24; // pairs in the chart of differences

// Is it real ------------------------------------------------------------------------------------------------------

// A part about one run, or about two and their difference, which the contents then name.
function ofRun(name, ...children) {
  const home = make("div", { className: "run" }, ...children);
  if (name !== null) home.dataset.run = name;
  return home;
}

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
    place("runs").append(ofRun(several ? run.label : null,
      several ? make("h3", {}, "Noise and signal: ", make("bdi", { textContent: run.label })) : null,
      make("div", { className: "halves" },
        table(["task", "units", "effective units", "loss", "against its own half (1)", "signal to noise", "reliability", "balance", "squared norm", "noise of a unit"], lines),
        rows.length ? framed(chart, `one half on the other, ${run.label}`, () => chartSvg(chart, run.label)) : null),
      run.notes?.length ? make("ul", { className: "sentences" }, ...run.notes.map((note) => make("li", { dir: "auto", textContent: note }))) : null));
    if (rows.length) await draw(chart, intervals(rows, { rule: 1, xTitle: "I of one half on the other", domain: frame(rows, [0, 1], 5) }));
  }));
  place("runs").append(make("p", { className: "hint", textContent: "Signal to noise: power of the mean gradient over the power of its noise. Reliability: the share of the mean gradient's squared length that is not noise. Balance: the sum of all tasks' pull on this task over its own; near 0 the training stands still for it, and the other tasks must then oppose it on average. Effective units: how many gradients of equal length would scatter as much as these do." }));
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
      const plain = { self: "var(--own)", "no-signal": "var(--shade)" }[verdict];
      return { affected, stepped, pair: pairWord(affected, stepped), fill: plain ?? colour(value, limit), ink: "var(--on-shade)", sign: sign(verdict), text: `${number(value)} ${interval(cells.low?.[k], cells.high?.[k])}` };
    });
    const chart = make("div", { className: "chart" });
    place("grouping").append(ofRun(report.runs.length > 1 ? run.label : null,
      make("h3", {}, "Tasks that go together", report.runs.length > 1 ? ": " : "", make("bdi", { textContent: report.runs.length > 1 ? run.label : "" })),
      make("p", { dir: "auto", textContent: words }),
      make("ol", { className: "split" }, ...split.map((group) => make("li", {}, ...group.map(nameOf)))),
      make("p", { className: "hint", textContent: "The matrix with tasks that go together side by side (rows affected, columns stepped; \u2212 conflict, + synergy, \u00b7 no signal), and the order in which they join, the closest first." }),
      framed(chart, `tasks that go together, ${run.label}`, () => chartSvg(chart, run.label))));
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
    const home = ofRun(`${after.label} minus ${before.label}`,
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
    home.append(make("p", { className: "hint", textContent: `Change of ${choiceWords(report.choices[0])}, ${scopeWords(everything)}, stepped \u2192 affected, with 95 % intervals (cut where they leave the frame). Filled: beyond noise. ${shown.length} of ${rows.length} pairs, the surest and largest; the matrix above shows all.${signed ? " To the right of 0: less conflict or more help." : ""}` }), framed(chart, `change from ${before.label} to ${after.label}`, () => chartSvg(chart, `${after.label} minus ${before.label}`)));
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
  const figures = charts.map(({ title }, k) => framed(places[k], `${title ?? ""} along training`, () => chartSvg(places[k], title ?? "along training")));
  home.replaceChildren(
    make("p", { className: "hint", textContent: "Interference I of chosen pairs from checkpoint to checkpoint, with 95 % bands; what leaves the frame is cut. Dashed: 0, no effect." }),
    pairChooser(), make("div", { className: "charts" }, ...figures));
  await Promise.all(charts.map(({ title, rows }, k) => draw(places[k], lines(rows, { title, xTitle: `training step${few ? " (not to scale)" : ""}`, yTitle: "interference I", domain, ordinal: few }))));
}

// How it was measured ---------------------------------------------------------------------------------------------

function showSources() {
  const rows = report.runs.map((run) => [run.label, run.kind, run.source, String(run.blocks), String(Object.values(run.units).reduce((sum, units) => sum + units, 0))]);
  place("sources").append(table(["run", "kind", "read from", "blocks", "units"], rows));
}
