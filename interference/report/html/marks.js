// Numbers, words and colours: what a value looks like. Nothing here touches the page.

const MINUS = "\u2212";
const ARROW = " \u2192 ";
const NOT_KNOWN = "\u2013";

const VERDICTS = {
  conflict: ["conflict", "the step makes this loss worse, beyond noise"],
  synergy: ["synergy", "the step helps this loss, beyond noise"],
  unclear: ["unclear", "the interval contains 0, or with this many cells tested it may well be chance"],
  "no-signal": ["no signal", "the affected task's own step does not help it beyond noise, so nothing can be compared with it"],
  "at-odds": ["at odds", "the value's sign, or an interval that contains 0, does not match the verdict, which is about Delta"],
  carried: ["carried", "a few examples have nearly all of the affected task's gradient, so other examples may say otherwise"],
  self: ["own step", "the task's step on its own loss; the others are measured against it"],
  lower: ["lower", "the second run is below the first, beyond noise"],
  higher: ["higher", "the second run is above the first, beyond noise"],
};

const METRICS = {
  interference: ["interference I", "the effect of the step, relative to the effect of the affected task's own step"],
  delta: ["Delta, fall of the loss", "first-order fall of the affected task's loss (nats per token) for a step of length 1"],
  cosine: ["gradient cosine", "cosine of the two tasks' mean gradients"],
  pair_cosine: ["cosine of single pairs", "mean cosine of one unit of each task"],
  conflict_rate: ["conflict rate", "share of pairs of units whose gradients point apart; noise alone gives 0.5"],
  magnitude_similarity: ["magnitude similarity", "1 where the two mean gradients are equally long"],
  curvature: ["curvature bound", "PCGrad's measure: large where two gradients differ and cancel"],
};
const SIGNED = ["interference", "delta", "cosine", "pair_cosine"]; // 0 neither helps nor hurts

const INTERFERENCE_MEANS = [
  [1, "as good as the task's own step"],
  [0, "no effect"],
  [-1, "undoes as much as the task's own step gains"],
];

const STOPS = 4; // of the colour scale from the middle to each end: variables of style.css, as all colours are
const LINES = [1, 2, 3, 4, 5, 6].map((k) => `var(--line-${k})`); // apart for the colour-blind, too
const DASHES = [[1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 4], [12, 4]];

// Two decimals from 0.1 to 1000, two digits outside; `coarse` keeps to two decimals below as well.
function number(value, signed = true, coarse = false) {
  if (value === null || value === undefined) return NOT_KNOWN;
  const size = Math.abs(value);
  const text = size === 0 || ((coarse || size >= 0.095) && size < 1000) ? size.toFixed(2) : size >= 1000 ? size.toExponential(1) : size.toPrecision(2);
  return (value < 0 ? MINUS : signed && value > 0 ? "+" : "") + text.replace("e-", `e${MINUS}`).replace("e+", "e");
}

function interval(low, high, signed = true, coarse = false) {
  return low === null || low === undefined || high === null || high === undefined
    ? "no interval"
    : `[${number(low, signed, coarse)}, ${number(high, signed, coarse)}]`;
}

function percent(share) {
  return share === null || share === undefined ? NOT_KNOWN : `${(100 * share).toFixed(0)} %`.replace("-", MINUS);
}

function probability(q) {
  return q === null || q === undefined ? NOT_KNOWN : q < 0.001 ? "< 0.001" : q.toFixed(3);
}

function verdictWord(verdict) {
  return VERDICTS[verdict]?.[0] ?? verdict ?? "";
}

function metricWord(metric) {
  return METRICS[metric]?.[0] ?? metric.replaceAll("_", " ");
}

// The background of a value, between two stops of the scale; the end of the scale beyond the limit.
function colour(value, limit) {
  if (value === null || value === undefined) return "var(--paper)";
  const along = Math.min(Math.abs(value) / limit, 1) * STOPS;
  const below = Math.min(Math.floor(along), STOPS - 1);
  const stop = (k) => (k ? `var(--${value < 0 ? "negative" : "positive"}-${k})` : "var(--middle)");
  return `color-mix(in srgb, ${stop(below + 1)} ${(100 * (along - below)).toFixed(1)}%, ${stop(below)})`;
}

function quantile(values, share) {
  const sorted = Float64Array.from(values).sort();
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  return sorted[below] + (place - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}

// Half the width of a metric's colour scale, one for all its matrices of the report, and the quantile that it is.
function colourLimit(report, metric) {
  const keys = report.choices.filter((choice) => choice.metric === metric).map((choice) => choice.key);
  const size = report.tasks.length;
  const values = report.runs.flatMap((run) => Object.values(run.cells)).flatMap((choices) => keys.flatMap((key) => choices[key]?.value ?? []));
  const others = values.map((value, k) => [value, k % (size * size)])
    .filter(([value, k]) => value !== null && Math.floor(k / size) !== k % size)
    .map(([value]) => Math.abs(value));
  const share = metric === "interference" ? 0.9 : 0.95;
  const robust = others.length ? quantile(others, share) : 0;
  return { share, limit: metric === "interference" ? Math.max(1, robust) : robust || 1 };
}

// What a small matrix prints in a cell: the sign of what is beyond noise, and where nothing can be said.
function sign(verdict) {
  return { conflict: MINUS, synergy: "+", "no-signal": "\u00b7", carried: "\u00b7" }[verdict] ?? "";
}

function cell(cells, index) {
  return Object.fromEntries(Object.entries(cells).map(([name, column]) => [name, column[index]]));
}

function pairWord(affected, stepped) {
  return `${stepped}${ARROW}${affected}`;
}
