// Light or dark before anything is drawn: what was chosen here, otherwise what the system prefers, also when that changes later.
// main.js switches by storing "light" or "dark" under "pollux.theme" (or removing it) and calling applyTheme().

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function applyTheme() {
  const chosen = localStorage.getItem("pollux.theme");
  document.documentElement.dataset.theme = chosen ?? (systemIsDark.matches ? "dark" : "light");
}

applyTheme();
systemIsDark.addEventListener("change", applyTheme);
