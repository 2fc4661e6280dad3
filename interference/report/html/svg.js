// Figures as standalone SVG, which other programs open: in the light colours, each colour written out.

const SVG = "http://www.w3.org/2000/svg";
const CELL = { width: 96, height: 58 };
const LINE = 15; // from one line of text to the next

function shape(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// What a job returns while the page has its light colours; nothing is painted in between.
function inLight(job) {
  const root = document.documentElement;
  root.style.colorScheme = "light";
  try {
    return job();
  } finally {
    root.style.colorScheme = "";
  }
}

// A computed colour as SVG knows it: `color(srgb 1 0.5 0)` is younger than most readers of SVG.
function plainColour(text) {
  const mixed = /^color\(srgb ([^/)]+)/.exec(text);
  if (mixed) return `rgb(${mixed[1].trim().split(" ").map((share) => Math.round(255 * share)).join(", ")})`;
  return text.startsWith("rgba") && text.endsWith(", 0)") ? "none" : text;
}

// The colour that a CSS colour with variables comes to now.
function resolved(css) {
  const probe = make("span");
  document.body.append(probe);
  probe.style.color = css;
  const found = plainColour(getComputedStyle(probe).color);
  probe.remove();
  return found;
}

function written(drawing, width, height, title) {
  drawing.prepend(shape("title", {}, title), shape("rect", { width, height, fill: "#ffffff" }));
  return new XMLSerializer().serializeToString(drawing);
}

// A chart as it is drawn.
function chartSvg(home, title) {
  return inLight(() => {
    const from = home.querySelector("svg");
    const own = [...from.attributes].filter(({ name }) => name !== "style" && !name.startsWith("xmlns")); // the policy forbids style
    const to = shape("svg", Object.fromEntries(own.map(({ name, value }) => [name, value])), ...[...from.children].map((part) => part.cloneNode(true)));
    const copies = [...to.querySelectorAll("*")];
    [...from.querySelectorAll("*")].forEach((element, k) => {
      for (const name of ["fill", "stroke"]) {
        if (element.getAttribute(name)?.includes("var(")) copies[k].setAttribute(name, plainColour(getComputedStyle(element)[name]));
      }
    });
    return written(to, from.getAttribute("width"), from.getAttribute("height"), title);
  });
}

// A name in at most three lines, broken behind the marks that join its words, without its middle where it is longer.
function nameLines(name, room = 12) {
  const lines = [""];
  for (const part of name.split(/(?<=[_\-./ ])/).flatMap((word) => word.match(new RegExp(`[^]{1,${room}}`, "gu")))) {
    if (lines.at(-1) && lines.at(-1).length + part.length > room) lines.push("");
    lines[lines.length - 1] += part;
  }
  return lines.length > 3 ? [lines[0], "\u2026", lines.at(-1)] : lines;
}

function textLines(lines, x, y, attributes) {
  return lines.map((line, k) => shape("text", { x, y: y + k * LINE, ...attributes }, line));
}

// A matrix with its values, intervals and verdicts.
function matrixSvg(tasks, figure, limit, caption) {
  const names = tasks.map((task) => nameLines(task));
  const left = 24 + 8 * Math.max(10, ...names.flat().map((line) => line.length));
  const top = 64 + LINE * Math.max(2, ...names.map((lines) => lines.length));
  const [width, height] = [Math.max(left + tasks.length * CELL.width + 12, 24 + 7 * caption.length), top + tasks.length * CELL.height + 12];
  return inLight(() => {
    const ink = resolved("var(--ink)");
    const drawing = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "sans-serif", "font-size": 12, fill: ink }, hatch());
    drawing.append(shape("text", { x: 12, y: 22, "font-size": 14, "font-weight": "bold" }, figure.title), shape("text", { x: 12, y: 40, fill: resolved("var(--soft)") }, caption));
    drawing.append(...textLines(["a step of \u2192", "the loss of \u2193"], left - 8, top - 8 - LINE, { "text-anchor": "end", fill: resolved("var(--soft)") }));
    names.forEach((lines, k) => {
      const middle = top + (k + 0.5) * CELL.height - (lines.length - 1) * LINE / 2 + 4;
      drawing.append(...textLines(lines, left - 8, middle, { "text-anchor": "end", "font-weight": "bold" }));
      drawing.append(...textLines(lines, left + (k + 0.5) * CELL.width, top - 8 - (lines.length - 1) * LINE, { "text-anchor": "middle", "font-weight": "bold" }));
    });
    for (let row = 0; row < tasks.length; row += 1) {
      for (let column = 0; column < tasks.length; column += 1) {
        drawing.append(cellShape(figure, cell(figure.cells, row * tasks.length + column), limit, row, column, left, top));
      }
    }
    return written(drawing, width, height, `${figure.title}: ${caption}`);
  });
}

function hatch() {
  const lines = shape("path", { d: "M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4", stroke: resolved("var(--hatch-line)"), "stroke-width": 2 });
  return shape("defs", {}, shape("pattern", { id: "hatch", width: 8, height: 8, patternUnits: "userSpaceOnUse" }, shape("rect", { width: 8, height: 8, fill: resolved("var(--hatch)") }), lines));
}

function cellShape(figure, { value, low, high, verdict }, limit, row, column, left, top) {
  const own = row === column && !figure.change;
  const coarse = limit >= 0.5;
  const fill = own ? resolved("var(--own)") : verdict === "no-signal" ? "url(#hatch)" : resolved(colour(value, limit));
  const ink = resolved(own ? "var(--on-own)" : "var(--on-shade)");
  const [x, y] = [left + column * CELL.width, top + row * CELL.height];
  const words = row === column && figure.change ? "" : verdictWord(own ? "self" : verdict);
  const bold = ["conflict", "synergy", "lower", "higher"].includes(verdict);
  const middle = { "text-anchor": "middle", fill: ink };
  return shape("g", {},
    shape("rect", { x: x + 1, y: y + 1, width: CELL.width - 2, height: CELL.height - 2, rx: 3, fill }),
    shape("text", { ...middle, x: x + CELL.width / 2, y: y + 20, "font-size": 14, "font-weight": own ? "normal" : "bold" }, number(value, figure.signed, coarse)),
    shape("text", { ...middle, x: x + CELL.width / 2, y: y + 35 }, row === column ? "" : interval(low, high, figure.signed, coarse)),
    shape("text", { ...middle, x: x + CELL.width / 2, y: y + 50, "font-weight": bold ? "bold" : "normal" }, words));
}
