// Copies for elsewhere: a cell as a line of text, a figure as SVG; and what is said of it aloud.

let hushed = 0;

// Shows a sentence for a few seconds; screen readers read it.
function say(words) {
  const home = place("said");
  clearTimeout(hushed);
  home.textContent = words;
  home.classList.add("visible");
  hushed = setTimeout(() => home.classList.remove("visible"), 6000);
}

function copyButton(words, label, copy) {
  const button = make("button", { type: "button", className: "copy", textContent: words, attributes: { "aria-label": label } });
  button.addEventListener("click", copy);
  return button;
}

// A figure with the button that copies it; `svg` gives its text.
function framed(content, title, svg) {
  const button = copyButton("Copy as SVG", `Copy as SVG: ${title}`, () => copySvg(svg(), title));
  return make("div", { className: "figure" }, content, button);
}

const oneLine = (text) => text.replace(/\s+/g, " ").trim();

// One line: run, metric, affected, stepped, value, interval, verdict, scope.
function cellLine(figure, content, own, [metric, affected, stepped, scope]) {
  const { value, low, high, verdict } = content;
  const shown = own && figure.change ? null : own ? "self" : verdict;
  return [figure.title, metric, `affected ${affected}`, `stepped ${stepped}`, `value ${number(value, figure.signed)}`, `95 % ${interval(low, high, figure.signed)}`.replace("95 % no", "no"), verdictWord(shown) || "no verdict", scope]
    .map(oneLine).join("; ");
}

async function copyText(text) {
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  say(copied || copiedByCommand(text) ? `Copied: ${text}` : `The browser refused the clipboard. Select and copy: ${text}`);
}

// The older way, which some browsers allow where they refuse the clipboard.
function copiedByCommand(text) {
  const [area, before] = [make("textarea", { value: text, className: "skip" }), document.activeElement];
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus();
  return copied;
}

async function copySvg(svg, title) {
  try {
    const kinds = ["text/plain", "image/svg+xml"].filter((kind) => kind === "text/plain" || ClipboardItem.supports?.(kind));
    await navigator.clipboard.write([new ClipboardItem(Object.fromEntries(kinds.map((type) => [type, new Blob([svg], { type })])))]);
    say(`Copied as SVG: ${oneLine(title)}`);
  } catch {
    const name = `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "figure"}.svg`;
    const address = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
    make("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    say(`The browser refused the clipboard, so the figure was downloaded as ${name}.`);
  }
}
