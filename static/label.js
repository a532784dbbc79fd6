// The keys of the pages for labelling and voting. Without this script, everything on it works as links and forms.
"use strict";

let leaving = false; // a second press must not label the next photo

const editor = document.querySelector("details:has(#text)");

// Whoever dictates to the computer, or hits keys by accident, does without the single letters.
const keys = document.querySelector("#keys");
const usesKeys = () => localStorage.getItem("label keys") !== "off";
if (keys) {
  keys.checked = usesKeys();
  keys.addEventListener("change", () => localStorage.setItem("label keys", keys.checked ? "on" : "off"));
}

addEventListener("pageshow", () => { leaving = false; });
document.addEventListener("submit", (event) => {
  if (leaving) event.preventDefault();
  leaving = true;
});

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.repeat || event.isComposing || leaving) return;
  if (event.target.matches("textarea")) {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      event.target.form.requestSubmit();
    } else if (event.key === "Escape") {
      editor.open = false;
      editor.querySelector("summary").focus();
    }
    return;
  }
  if (event.target.matches("input:not(#keys), select") || !usesKeys()) return;
  const pressed = document.querySelector(`[aria-keyshortcuts="${CSS.escape(event.key)}" i]`);
  if (!pressed) return;
  event.preventDefault();
  pressed.click();
  if (pressed.matches("a")) leaving = true;
  if (pressed.matches("summary")) edit(); // at once: the event comes later than the next key may
});

function edit() {
  if (!editor.open) return;
  const text = editor.querySelector("#text");
  if (text === document.activeElement) return;
  text.focus();
  text.setSelectionRange(text.value.length, text.value.length);
}

editor?.addEventListener("toggle", edit);
