// The colours that a reader chose before, set before anything is painted. Without a choice they are the system's.
try {
  const kept = localStorage.getItem("interference-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch {
  // A browser may refuse to keep anything for a file; the choice then lasts as long as the page is open.
}
