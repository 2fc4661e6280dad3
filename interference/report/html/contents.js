// Finding one's way: the contents with the runs of each section, the current place, the colours, and paper.

const WIDE = matchMedia("(min-width: 70rem)"); // as in style.css: the contents then stand at the side
const PAPER = 660; // width of A4 and Letter within their margins, in CSS pixels

// The runs' own places in a section, below its link.
function fillContents() {
  const nav = document.querySelector(".contents");
  const marks = [...nav.querySelectorAll("ol > li > a")].map((link) => {
    const section = document.querySelector(link.hash);
    const runs = [...section.querySelectorAll(".run[data-run]")].map((run, k) => {
      run.id = `${section.id}-${k + 1}`;
      const own = make("a", { href: `#${run.id}` }, make("bdi", { textContent: run.dataset.run, title: run.dataset.run }));
      return { link: own, target: run, within: link };
    });
    if (runs.length) link.parentElement.append(make("ul", {}, ...runs.map((run) => make("li", {}, run.link))));
    return [{ link, target: section }, ...runs];
  }).flat();
  const list = nav.querySelector("details");
  const settle = () => {
    list.open = WIDE.matches;
    nav.dataset.bar = String(!WIDE.matches);
  };
  settle();
  WIDE.addEventListener("change", settle);
  nav.addEventListener("click", (event) => { if (event.target.closest("a") && !WIDE.matches) list.open = false; });
  nav.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || WIDE.matches) return;
    list.open = false;
    list.querySelector("summary").focus();
  });
  followPlace(marks);
}

// Marks where in the page the reader is.
function followPlace(marks) {
  let waiting = false;
  const mark = () => {
    waiting = false;
    const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 2 && scrollY > 0;
    const line = atEnd ? innerHeight : innerHeight * 0.3;
    const current = marks.filter(({ target }) => target.getBoundingClientRect().top <= line).at(-1);
    for (const { link } of marks) {
      if (link === current?.link || link === current?.within) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    if (current && WIDE.matches) keepInSight(current.link);
  };
  const later = () => {
    if (!waiting) requestAnimationFrame(mark);
    waiting = true;
  };
  addEventListener("scroll", later, { passive: true });
  addEventListener("resize", later);
  mark();
}

// Scrolls the contents alone, where they are longer than the window.
function keepInSight(link) {
  const nav = document.querySelector(".contents");
  const [inner, outer] = [link.getBoundingClientRect(), nav.getBoundingClientRect()];
  if (inner.top < outer.top) nav.scrollTop -= outer.top - inner.top + 8;
  if (inner.bottom > outer.bottom) nav.scrollTop += inner.bottom - outer.bottom + 8;
}

// The switch of the colours: the system's, light or dark; kept where the browser keeps anything for a file.
function chooseTheme() {
  const root = document.documentElement;
  const list = place("theme");
  list.value = root.dataset.theme ?? "auto";
  list.parentElement.hidden = false;
  list.addEventListener("change", () => {
    if (list.value === "auto") delete root.dataset.theme;
    else root.dataset.theme = list.value;
    try {
      if (list.value === "auto") localStorage.removeItem("interference-theme");
      else localStorage.setItem("interference-theme", list.value);
    } catch {
      // Not kept, as in theme.js.
    }
  });
}

// Paper: everything folded is open, no chart or table is wider than the page.
function followPrinting() {
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("main details:not([open])")];
    for (const part of folded) part.open = true;
    for (const box of document.querySelectorAll(".box")) box.style.zoom = Math.min(1, PAPER / box.firstElementChild.offsetWidth);
    for (const chart of drawn) narrow(chart, PAPER);
  });
  addEventListener("afterprint", () => {
    for (const part of folded) part.open = false;
    for (const box of document.querySelectorAll(".box")) box.style.zoom = "";
    for (const chart of drawn) redraw(chart);
  });
}
