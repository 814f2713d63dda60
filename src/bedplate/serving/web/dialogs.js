// The API key, the list of shortcuts, and the reports.

import { apiKey, keepKey, onKeyWanted } from "./api.js";
import { byId } from "./view.js";

const keyDialog = byId("key-dialog");
let waiting = null;

// One question at a time: whoever comes while it is open gets the same answer.
onKeyWanted((message) => {
  waiting ??= new Promise((resolve) => {
    byId("key-reason").textContent = message;
    byId("key").value = "";
    keyDialog.returnValue = "";
    keyDialog.addEventListener("close", () => {
      const key = byId("key").value.trim();
      byId("key").value = "";
      waiting = null;
      if (keyDialog.returnValue === "use" && key) keepKey(key);
      resolve(keyDialog.returnValue === "use" && key !== "");
    }, { once: true });
    keyDialog.showModal();
  });
  return waiting;
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keyDialog.close("use");
});
byId("key-cancel").addEventListener("click", () => keyDialog.close("cancel"));

export const showKeys = () => byId("keys-dialog").showModal();
byId("keys").addEventListener("click", showKeys);
byId("keys-close").addEventListener("click", () => byId("keys-dialog").close());

/** A skin's report, in a frame that can run nothing. A frame sends no headers: a key goes along in a form. */
export function showReport(name) {
  const form = byId("report-form");
  const key = apiKey();
  form.action = `/skins/${name.split("/").map(encodeURIComponent).join("/")}/report`;
  form.method = key === null ? "get" : "post";
  byId("report-key").value = key ?? "";
  byId("report-key").disabled = key === null;
  byId("report-title").textContent = `Report of ${name}`;
  byId("report-dialog").showModal();
  form.submit();
  byId("report-key").value = "";
}
byId("report-close").addEventListener("click", () => byId("report-dialog").close());
