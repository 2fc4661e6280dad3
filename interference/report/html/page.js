// The page's first section, its matrices and the details of a cell; and the start, which fills all sections.

function showMatrix() {
  const form = place("controls");
  form.replaceChildren();
  if (report.runs.length > 1) form.append(runChooser(form));
  const choice = fillControls(form, form, CHOICE, report.choices, state, showMatrix);
  const measured = report.scopes.filter((scope) => runsShown().some((run) => run.cells[scope.key]?.[choice.key]));
  const scope = fillControls(form, form, SCOPE, measured.length ? measured : report.scopes, state, showMatrix);
  const figures = figuresOf(report, state.runs, scope, choice);
  showCounts(scope);
  const limit = limitOf(choice.metric);
  const caption = `${choiceWords(choice)}; ${scopeWords(scope)}`;
  const chosen = (row, column) => showDetails(figures, choice, scope, row, column);
  place("matrices").replaceChildren(...figures.map((figure) =>
    figure.cells
      ? framed(matrixTable(report.tasks, figure, limit.limit, caption, figures.length > 1, chosen), figure.title, () => matrixSvg(report.tasks, figure, limit.limit, caption))
      : make("p", { className: "note" }, make("bdi", { textContent: figure.title }), ` has no ${choiceWords(choice)} for ${scopeWords(scope)} in this report.`)));
  place("where").dataset.layout = figures.length > 1 || report.tasks.length > 7 ? "wide" : "beside";
  fillLegend(place("legend"), choice.metric, limit, figures);
  if (state.row === null) [state.row, state.column] = mostTelling(figures.find((figure) => figure.cells));
  chosen(state.row, state.column);
  showMultiples(choice);
}

// A box to tick for each run; at least one stays.
function runChooser(form) {
  const boxes = report.runs.map((run, k) => {
    const shown = state.runs.includes(k);
    const box = make("input", { type: "checkbox", checked: shown, disabled: shown && state.runs.length === 1 });
    box.addEventListener("change", () => {
      state.runs = report.runs.map((_, other) => other).filter((other) => (other === k ? box.checked : state.runs.includes(other)));
      showMatrix();
      form.querySelectorAll(".runs input")[k].focus();
    });
    return make("label", { className: "chip" }, box, make("bdi", { textContent: run.label, title: run.label }));
  });
  return make("fieldset", { className: "runs" }, make("legend", { textContent: "Runs side by side; with two, also their difference" }), make("div", { className: "chips" }, ...boxes));
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

function showDetails(figures, choice, scope, row, column) {
  [state.row, state.column] = [row, column];
  const [affected, stepped] = [report.tasks[row], report.tasks[column]];
  for (const element of document.querySelectorAll(".matrix td.chosen")) element.classList.remove("chosen");
  for (const element of document.querySelectorAll(`.matrix td[data-row="${row}"][data-column="${column}"]`)) element.classList.add("chosen");
  const parts = figures.filter((figure) => figure.cells).map((figure) => {
    const content = cell(figure.cells, row * report.tasks.length + column);
    const found = cellFacts(figure, content, row === column);
    found.append(copyButton("Copy as text", `Copy this cell of ${figure.title} as text`, () =>
      copyText(cellLine(figure, content, row === column, [choiceWords(choice), affected, stepped, scopeWords(scope)]))));
    return found;
  });
  const button = make("button", { type: "button", className: "draw", textContent: "Draw this pair along the layers" });
  button.addEventListener("click", () => {
    choosePair(affected, stepped);
    place("depth").scrollIntoView();
  });
  place("details").replaceChildren(
    make("h3", {}, "A step of ", nameOf(stepped), " on the loss of ", nameOf(affected)),
    make("div", { className: "several" }, ...parts),
    row !== column && hasLines(affected, stepped) ? button : "");
  place("drivers").replaceChildren(...runsShown().flatMap((run) => driverLists(run, affected, stepped)));
}

function followWidth() {
  let waiting = 0;
  new ResizeObserver(() => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      drawn.forEach(redraw);
      reachTables();
    }, 120);
  }).observe(document.querySelector("main"));
  document.addEventListener("toggle", reachTables, true); // a table that was folded away has no width
  reachTables();
}

// A table that is wider than its box can be scrolled by keys.
function reachTables() {
  for (const box of document.querySelectorAll(".box:has(.numbers)")) {
    const wide = box.scrollWidth > box.clientWidth;
    for (const [name, value] of Object.entries({ tabindex: "0", role: "group", "aria-label": "A table that scrolls sideways" })) {
      if (wide) box.setAttribute(name, value);
      else box.removeAttribute(name);
    }
  }
}

state.chosen = firstPairs();
chooseTheme();
showMatrix();
showSources();
await Promise.all([showLines(), showRuns(), showGrouping(), ...(report.differences.length ? [showDifferences()] : [])]);
fillContents();
followWidth();
followPrinting();
document.documentElement.dataset.ready = "true";
