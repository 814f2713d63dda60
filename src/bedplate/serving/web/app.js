// The page put together: views, theme, keys.

import { focusMessage, fresh, regenerate, stop } from "./chat.js";
import { focusPrompt, stopAll } from "./compare.js";
import { showKeys } from "./dialogs.js";
import "./metrics.js";
import { chooseSeveral, loadModels } from "./models.js";
import { byId } from "./view.js";

const comparing = () => location.hash === "#compare";

function showView() {
  byId("chat").hidden = comparing();
  byId("compare").hidden = !comparing();
  for (const [link, current] of [["to-chat", !comparing()], ["to-compare", comparing()]]) {
    if (current) byId(link).setAttribute("aria-current", "page");
    else byId(link).removeAttribute("aria-current");
  }
  chooseSeveral(comparing());
}
window.addEventListener("hashchange", showView);

const THEMES = ["auto", "light", "dark"];
const THEME = "bedplate.theme";

function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}

function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  localStorage.setItem(THEME, next);
  showTheme(next);
}
byId("theme").addEventListener("click", nextTheme);
showTheme(THEMES.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "auto");

// By the key's place, so that Alt giving other characters on some keyboards changes nothing.
const SHORTCUTS = {
  KeyC: () => { location.hash = "#chat"; },
  KeyP: () => { location.hash = "#compare"; },
  KeyS: () => { byId("models-panel").open = true; byId("search").focus(); },
  KeyM: () => (comparing() ? focusPrompt() : focusMessage()),
  KeyR: () => { if (!comparing()) regenerate(); },
  KeyN: () => { if (!comparing()) fresh(); },
  KeyT: nextTheme,
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const writing = event.target.closest("input:not([type=radio], [type=checkbox]), textarea") !== null;
  if (event.key === "Escape") {
    stop();
    stopAll();
  } else if (event.altKey && !event.ctrlKey && !event.metaKey && SHORTCUTS[event.code]) {
    event.preventDefault();
    SHORTCUTS[event.code]();
  } else if (event.key === "?" && !writing && !event.altKey && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    showKeys();
  }
});

// Not as a link would: the address says which view is shown.
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("stage").focus();
});

// On a phone the list would stand before everything else.
if (window.matchMedia("(max-width: 48rem)").matches) byId("models-panel").open = false;
showView();
await loadModels();
if (!comparing()) focusMessage();
