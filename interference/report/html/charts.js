// Charts: rows of numbers to Vega-Lite specifications, and their drawing. Signs and words are printed; colour only repeats them.
// Colours are the variables of style.css, which follow the page's mode and paper by themselves.

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
const CONFIG = {
  font: FONT,
  background: "transparent",
  view: { stroke: null },
  axis: { labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelColor: "var(--ink)", titleColor: "var(--ink)", gridColor: "var(--grid)", domainColor: "var(--edge)", tickColor: "var(--edge)" },
  legend: { labelFontSize: 12, titleFontSize: 12, labelColor: "var(--ink)", symbolStrokeWidth: 2, symbolSize: 500 },
  title: { fontSize: 13, fontWeight: 600, anchor: "start", color: "var(--ink)" },
};
const OPTIONS = {
  mode: "vega-lite",
  ast: true, // an interpreter instead of new Function, which the page's security policy forbids
  actions: false,
  renderer: "svg",
  defaultStyle: false,
  tooltip: { disableDefaultStyle: true, theme: "page" },
};

const drawn = []; // {place, specify, view, width}: what must follow the window's width

async function draw(place, specify) {
  const chart = { place, specify, view: null, width: 0 };
  drawn.push(chart);
  await redraw(chart);
}

async function redraw(chart) {
  const width = Math.floor(chart.place.clientWidth);
  if (!width || width === chart.width) return;
  chart.width = width;
  chart.view?.finalize();
  const specification = chart.specify(width);
  chart.fluid = specification.width === "container";
  chart.view = await vegaEmbed(chart.place, { ...specification, config: CONFIG }, OPTIONS);
}

// At once, which paper needs: a chart of one view at another width, until it is drawn again.
function narrow(chart, width) {
  chart.width = 0;
  if (chart.fluid) chart.view?.view.signal("width", width).run();
}

// Forgets the charts within a place that is about to be emptied.
function forget(place) {
  for (let k = drawn.length - 1; k >= 0; k -= 1) {
    if (place.contains(drawn[k].place)) drawn.splice(k, 1)[0].view?.finalize();
  }
}

function labelWidth(width) {
  return Math.min(220, Math.round(width * 0.36));
}

const RULE = { mark: { type: "rule", color: "var(--soft)", strokeDash: [4, 3] } };

function ruleAt(value, axis = "y") {
  return { data: { values: [{ at: value }] }, ...RULE, encoding: { [axis]: { field: "at", type: "quantitative" } } };
}

// The frame of a chart of values with intervals: all values, and of the intervals at most some times their spread more.
function frame(rows, always, times = 2) {
  const values = rows.map((row) => row.value).filter((value) => value !== null).concat(always);
  const ends = (end) => rows.map((row) => row[end]).filter((value) => value !== null);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const room = times * Math.max(most - least, Math.abs(most), Math.abs(least)) || 1;
  return [Math.max(Math.min(least, ...ends("low")), least - room), Math.min(Math.max(most, ...ends("high")), most + room)];
}

// The frame of lines of I: as `frame`, but no farther than twice what nine in ten values reach, and I = 1.5.
function robustFrame(rows) {
  const sizes = rows.map((row) => row.value).filter((value) => value !== null).map(Math.abs);
  const reach = Math.max(1.5, 2 * (sizes.length ? quantile(sizes, 0.9) : 0));
  return frame(rows, [0]).map((end) => Math.max(-reach, Math.min(end, reach)));
}

const TOOLTIP = [
  { field: "pair", title: "pair" },
  { field: "where", title: "at" },
  { field: "text", title: "value" },
];

// Lines of pairs over `x`, each with the band of its interval; rows {pair, x, value, low, high, where, text}.
function lines(rows, { xTitle, yTitle, title, ordinal, domain }) {
  const pairs = [...new Set(rows.map((row) => row.pair))];
  const x = { field: "x", type: ordinal ? "ordinal" : "quantitative", title: xTitle, sort: null, axis: ordinal ? { labelAngle: 0, labelOverlap: true, labelLimit: 90 } : { tickMinStep: 1 }, ...(ordinal ? {} : { scale: { nice: false } }) };
  const several = new Set(rows.map((row) => row.x)).size > 1;
  const y = { field: "value", type: "quantitative", title: yTitle, scale: { domain, nice: false } };
  const byPair = (width, range) => ({ field: "pair", type: "nominal", title: null, sort: null, scale: { domain: pairs, range: range.slice(0, pairs.length) }, legend: { orient: "bottom", direction: "vertical", columns: 1, labelLimit: width - 80, symbolType: "stroke", symbolOpacity: 1, symbolFillColor: "transparent" } });
  const y2 = { y: { ...y, field: "low" }, y2: { field: "high" } };
  return (width) => ({
    title,
    width: "container",
    height: 260,
    autosize: { type: "fit-x", contains: "padding" },
    layer: [
      several
        ? { data: { values: rows }, mark: { type: "area", opacity: 0.12, clip: true }, encoding: { x, ...y2, color: byPair(width, LINES) } }
        : { data: { values: rows }, mark: { type: "rule", strokeWidth: 2, clip: true }, encoding: { x, ...y2, xOffset: { field: "pair", sort: null }, color: byPair(width, LINES) } },
      { ...ruleAt(0), mark: { ...RULE.mark, clip: true } },
      { data: { values: rows }, mark: { type: "line", strokeWidth: 2, clip: true }, encoding: { x, y, color: byPair(width, LINES), strokeDash: byPair(width, DASHES) } },
      { data: { values: rows }, mark: { type: "point", filled: true, size: 36, clip: true }, encoding: { x, y, color: byPair(width, LINES), ...(several ? {} : { xOffset: { field: "pair", sort: null } }), tooltip: TOOLTIP } },
    ],
  });
}

// One line a row: a point with its interval, and a rule where `rule` is; rows {name, value, low, high, text, certain}.
function intervals(rows, { rule, xTitle, domain }) {
  return (width) => {
    const folded = width < 520 && rows.some(({ name }) => name.includes(ARROW)); // a pair's names in two lines
    const y = { field: "name", type: "nominal", sort: null, title: null, axis: { labelLimit: labelWidth(width), ticks: false, domain: false, ...(folded ? { labelExpr: `split(replace(datum.label, '${ARROW}', '${ARROW}\\n'), '\\n')` } : {}) } };
    const scale = { domain, nice: false };
    const axis = { tickCount: Math.max(3, Math.round(width / 110)) };
    const encoding = { y, x: { field: "value", type: "quantitative", title: xTitle, scale, axis } };
    return {
      width: "container",
      height: (folded ? 38 : 26) * rows.length,
      autosize: { type: "fit-x", contains: "padding" },
      data: { values: rows },
      layer: [
        { ...ruleAt(rule, "x"), mark: { ...RULE.mark, clip: true } },
        { mark: { type: "rule", strokeWidth: 2, color: "var(--soft)", clip: true }, encoding: { y, x: { field: "low", type: "quantitative", title: xTitle, scale, axis }, x2: { field: "high" } } },
        {
          mark: { type: "point", size: 70, strokeWidth: 1.8, opacity: 1, clip: true },
          encoding: {
            ...encoding,
            stroke: { value: "var(--ink)" },
            fill: { condition: { test: "datum.certain", value: "var(--ink)" }, value: "var(--paper)" },
            tooltip: [{ field: "name", title: "of" }, { field: "text", title: "value" }],
          },
        },
      ],
    };
  };
}

// Where the lines of a dendrogram run: {x, y, x2, y2}, heights along x, leaves at row + 0.5 along y.
function dendrogramLines(merges, rowOfLeaf) {
  const nodes = rowOfLeaf.map((row) => ({ x: 0, y: row + 0.5 }));
  return merges.flatMap(([left, right, height]) => {
    const [a, b] = [nodes[left], nodes[right]];
    nodes.push({ x: height, y: (a.y + b.y) / 2 });
    return [
      { x: a.x, y: a.y, x2: height, y2: a.y },
      { x: b.x, y: b.y, x2: height, y2: b.y },
      { x: height, y: a.y, x2: height, y2: b.y },
    ];
  });
}

const LEAST_SIGN = 12; // side of a cell, in pixels, that a sign of 12 pixels stands in

// A long name without its middle: names of one data set differ at their end.
const SHORT_LABEL = "length(datum.label) > 18 ? slice(datum.label, 0, 7) + '\u2026' + slice(datum.label, -10) : datum.label";

// A matrix in the order of its grouping with the dendrogram at its right; rows {affected, stepped, fill, ink, sign, text}.
function groupedMatrix(rows, order, merges, rowOfLeaf) {
  return (width) => {
    const label = labelWidth(width);
    const side = Math.max(8, Math.min(40, Math.floor((width - label - 90) / order.length)));
    const size = side * order.length;
    const names = { type: "nominal", scale: { domain: order, paddingInner: 0.04 } };
    const encoding = {
      y: { field: "affected", ...names, title: null, axis: { labelLimit: label - 12, labelOverlap: true, ticks: false, domain: false } },
      x: { field: "stepped", ...names, title: null, axis: { orient: "bottom", labelAngle: -90, labelLimit: 130, labelExpr: SHORT_LABEL, labelOverlap: true, ticks: false, domain: false } },
    };
    const y = { field: "y", type: "quantitative", axis: null, scale: { domain: [order.length, 0], nice: false } };
    return {
      spacing: 4,
      hconcat: [
        {
          width: size,
          height: size,
          data: { values: rows },
          layer: [
            { mark: "rect", encoding: { ...encoding, fill: { field: "fill", type: "nominal", scale: null }, tooltip: [{ field: "pair", title: "pair" }, { field: "text", title: "value" }] } },
            ...(side < LEAST_SIGN ? [] : [{ mark: { type: "text", fontSize: Math.max(12, Math.min(16, side * 0.7)), fontWeight: 600 }, encoding: { ...encoding, text: { field: "sign" }, fill: { field: "ink", type: "nominal", scale: null } } }]),
          ],
        },
        {
          width: Math.max(30, Math.min(160, width - label - size - 24)),
          height: size,
          data: { values: dendrogramLines(merges, rowOfLeaf) },
          mark: { type: "rule", color: "var(--ink)", strokeWidth: 1.5, strokeCap: "square" },
          encoding: { x: { field: "x", type: "quantitative", axis: null, scale: { zero: true } }, x2: { field: "x2" }, y, y2: { field: "y2" } },
        },
      ],
    };
  };
}
