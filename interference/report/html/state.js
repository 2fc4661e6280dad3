// What the page knows and what is chosen: the report's data, and the state that the controls change.

const report = JSON.parse(document.getElementById("data").textContent);
const CHOICE = ["metric", "pairs", "reduce"];
const SCOPE = ["layers", "modules", "side"];
const limits = new Map();

// No verdict stands on a value that does not bear it out.
for (const cells of report.runs.flatMap((run) => Object.values(run.cells)).flatMap((choices) => Object.values(choices))) {
  cells.at_odds?.forEach((how, k) => { if (how) cells.verdict[k] = "at-odds"; });
}

const place = (id) => document.getElementById(id);
const everything = report.scopes.find(({ layers, modules }) => layers === "all" && modules === "all") ?? report.scopes[0];
const [comparison] = report.differences;
const state = {
  runs: comparison ? [comparison.first, comparison.second] : [0], // places of the runs that stand beside each other
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

const runsShown = () => state.runs.map((k) => report.runs[k]);
const scopeWords = (scope) => SCOPE.map((field) => SETTINGS[field].word(scope[field])).join(", ");
const choiceWords = (choice) => [metricWord(choice.metric), choice.pairs, choice.reduce].filter((word) => word !== null).join(", ");
