// A run's page: steps through the captions of its epochs, and keeps what the reader set when it refreshes itself.
"use strict";

let chosen; // the epoch, or nothing: the newest one, whichever it is

function step() {
  const slider = document.getElementById("epoch");
  if (!slider) return;
  document.getElementById("step").hidden = false;
  const epoch = Number(slider.value);
  const label = `epoch ${epoch}${epoch === Number(slider.max) ? ", the newest" : ""}${slider.value === slider.dataset.kept ? ", kept" : ""}`;
  slider.setAttribute("aria-valuetext", label);
  document.querySelector("#step output").textContent = label;
  for (const item of document.querySelectorAll(".sample li")) {
    const shown = Number(item.dataset.first) <= epoch && epoch <= Number(item.dataset.last);
    item.toggleAttribute("aria-current", shown);
    if (shown) item.setAttribute("aria-current", "true");
  }
}

document.addEventListener("input", ({ target }) => {
  if (target.id !== "epoch") return;
  chosen = target.value === target.max ? undefined : target.value;
  step();
});

const parts = () => [...document.querySelectorAll("#run .module")];
const titled = (title) => parts().find((part) => part.querySelector("h2").textContent === title);
let kept;

document.addEventListener("htmx:beforeSwap", (event) => {
  if (document.querySelector("#epoch:active")) { // nobody takes a slider out of a hand that moves it
    event.detail.shouldSwap = false;
    return;
  }
  const read = parts().findLast((part) => part.getBoundingClientRect().top <= innerHeight / 2);
  kept = {
    focused: document.activeElement.id,
    title: read?.querySelector("h2").textContent,
    top: read?.getBoundingClientRect().top,
    across: parts().map((part) => [part.querySelector("h2").textContent, part.scrollLeft]),
  };
});

document.addEventListener("htmx:afterSettle", () => {
  if (!kept) return;
  const { focused, title, top, across } = kept;
  kept = undefined;
  const slider = document.getElementById("epoch");
  if (slider && chosen !== undefined) slider.value = chosen;
  step();
  if (document.activeElement === document.body) document.getElementById(focused)?.focus({ preventScroll: true });
  for (const [name, left] of across) if (titled(name)) titled(name).scrollLeft = left;
  if (scrollY > 0 && titled(title)) scrollBy({ top: titled(title).getBoundingClientRect().top - top, behavior: "instant" });
});

step();
