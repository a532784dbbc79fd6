// What htmx does not do: upload with progress (drop, paste, choose), copy, and say when the connection is lost.
"use strict";

document.documentElement.classList.add("js");

const POLL_MS = 700;
const TRY_AGAIN_MS = 2000;
const connection = document.getElementById("connection");
const toast = document.getElementById("toast");
let toastTimer;

function say(text) {
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.hidden = true; }, 7000);
}

function setConnected(connected) {
  connection.hidden = connected;
  connection.textContent = connected ? "" : "Connection lost, trying again…";
}

// The cause that the server gives, or our own sentence where a proxy in front of it answered.
function causeIn(xhr) {
  try {
    const { detail } = JSON.parse(xhr.responseText);
    return `${detail[0].toUpperCase()}${detail.slice(1)}.`;
  } catch {
    if (xhr.status === 413) return "The file is too large for this server.";
    if (xhr.status === 403) return "This page has expired; reload it and try again.";
    return `The server returned an error (${xhr.status}); try again in a moment.`;
  }
}

// Poll for the captions the page is waiting for, if any; a failed poll is reported, and the next one may succeed.
setInterval(() => { if (document.querySelector("[name=waiting]")) htmx.trigger("#poller", "poll"); }, POLL_MS);
const isPoll = (event) => event.detail.elt.id === "poller";
for (const name of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(name, (event) => {
    setConnected(false);
    if (!isPoll(event)) say("Connection lost; nothing was changed. Try again in a moment.");
  });
}
document.addEventListener("htmx:responseError", (event) => {
  if (isPoll(event)) setConnected(false);
  else say(causeIn(event.detail.xhr));
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful) setConnected(true);
});

// A caption that replaces the one with the focus takes the focus over.
let focused;
document.addEventListener("htmx:beforeSwap", () => { focused = document.activeElement?.closest(".caption")?.id; });
document.addEventListener("htmx:afterSettle", () => {
  if (focused && !document.activeElement?.closest(".caption")) document.getElementById(focused)?.focus();
  focused = undefined;
});

// Copying. The clipboard API is available on https and localhost only.
async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not copied");
}

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll('"', "&quot;").replaceAll("<", "&lt;");

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy], [data-copy-alt]");
  if (!button) return;
  const text = button.dataset.copy ?? `alt="${escaped(button.dataset.copyAlt)}"`;
  try {
    await copy(text);
    say(`Copied: ${text.length > 90 ? `${text.slice(0, 90)} …` : text}`);
  } catch {
    say("Your browser blocked copying; select the text and copy it manually.");
  }
});

// The gallery's selection: the checked boxes of its tiles. With Shift, all from the last one to this one follow it.
const chosen = document.getElementById("chosen");

function startSelection() {
  const boxes = () => [...document.querySelectorAll("#photos [name=photo]")];
  let last;

  function count() {
    const number = boxes().filter((box) => box.checked).length;
    chosen.classList.toggle("some", number > 0);
    chosen.querySelector(".count span").textContent = `${number} photo${number === 1 ? "" : "s"} selected`;
  }

  function check(part, checked) {
    for (const box of part) box.checked = checked;
    count();
  }

  document.addEventListener("click", (event) => {
    if (event.target.name !== "photo") return;
    const all = boxes();
    const [from, to] = [all.indexOf(last), all.indexOf(event.target)].sort((a, b) => a - b);
    check(event.shiftKey && from >= 0 ? all.slice(from, to + 1) : [event.target], event.target.checked);
    last = event.target;
  });
  chosen.addEventListener("click", (event) => {
    const { select } = event.target.dataset;
    if (select) check(boxes(), select === "all");
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.name !== "photo") return;
    if (event.key === "Escape") check(boxes(), false);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) check(boxes(), true);
    else return;
    event.preventDefault();
  });
  document.addEventListener("htmx:afterSwap", count); // other photos are shown
}

if (chosen) startSelection();

// On a photo's page, the arrow keys lead to its neighbours.
document.addEventListener("keydown", (event) => {
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  if (!rel || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  document.querySelector(`a[rel=${rel}]`)?.click();
});

// Uploads: one after the other, so that each shows its own progress and result.
const form = document.getElementById("upload");

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

let expired = false; // the session: the page is left without asking
const ITS_OWN_FAULT = [400, 413, 415, 422]; // a file that is answered so never works: trying again is not offered

function send(upload, onProgress) {
  const { file, styles } = upload;
  return new Promise((resolve, reject) => {
    const data = new FormData();
    // Who sends it and for which request is known before either is made: a repetition changes nothing.
    for (const name of ["csrfmiddlewaretoken", "visitor", "request"]) data.append(name, form.elements[name].value);
    for (const style of styles) data.append("styles", style);
    data.append("photos", file, file.name || "pasted");
    const xhr = new XMLHttpRequest();
    upload.xhr = xhr;
    xhr.open("POST", form.action);
    xhr.setRequestHeader("Accept", "application/json");
    xhr.upload.addEventListener("progress", (event) => onProgress(event.loaded / event.total));
    xhr.addEventListener("load", () => {
      if (xhr.status === 401) {
        expired = true;
        location.reload();
      }
      else if (xhr.status === 201) resolve(JSON.parse(xhr.responseText));
      else if (xhr.status === 429) resolve({ wait: Number(xhr.getResponseHeader("Retry-After")) || 5 });
      else reject(Object.assign(new Error(causeIn(xhr)), { final: ITS_OWN_FAULT.includes(xhr.status) }));
    });
    for (const name of ["error", "abort"]) xhr.addEventListener(name, () => resolve(null)); // not the file
    xhr.send(data);
  });
}

function startUploads() {
  const list = document.getElementById("uploads");
  const results = document.getElementById("results");
  const queue = document.getElementById("queue");
  const rows = new Map(); // of the list, with what each uploads
  const waiting = [];
  let current; // what is being uploaded
  let done = 0; // of those since the queue was last empty
  let bytes = 0; // of those done
  let busy = 0; // ms that their uploads took

  function add(file, styles) {
    const row = document.getElementById("upload-row").content.firstElementChild.cloneNode(true);
    const upload = { file, styles, row };
    row.querySelector(".name").textContent = file.name || "Pasted image";
    row.querySelector(".state").textContent = `${size(file.size)}, waiting`;
    const preview = row.querySelector("img");
    preview.addEventListener("error", () => { preview.hidden = true; }); // not a picture, or one that browsers cannot show
    preview.src = URL.createObjectURL(file);
    row.querySelector(".dismiss").addEventListener("click", () => { leave(upload); });
    row.querySelector(".cancel").addEventListener("click", () => { cancel(upload); });
    row.querySelector(".again").addEventListener("click", () => { again(upload); work(); });
    rows.set(row, upload);
    list.append(row);
    waiting.push(upload);
  }

  function again(upload) {
    show(upload, { text: `${size(upload.file.size)}, waiting` });
    waiting.push(upload);
  }

  function cancel(upload) {
    upload.canceled = true;
    upload.xhr?.abort();
    if (waiting.includes(upload)) waiting.splice(waiting.indexOf(upload), 1);
    leave(upload);
  }

  function leave({ row }) {
    URL.revokeObjectURL(row.querySelector("img").src);
    rows.delete(row);
    row.remove();
    count();
  }

  function show(upload, { text, progress, failed = false, final = false }) {
    const { row } = upload;
    Object.assign(upload, { failed, final });
    row.classList.toggle("failed", failed);
    row.querySelector(".state").textContent = text;
    row.querySelector("progress").hidden = failed;
    row.querySelector("progress").value = progress ?? 0;
    row.querySelector(".cancel").hidden = failed;
    row.querySelector(".again").hidden = !failed || final;
    row.querySelector(".dismiss").hidden = !failed;
    count();
  }

  // How far the queue is, and how fast: "23 of 60 photos uploaded, 1.4 MB per second, 2 failed".
  function count() {
    const all = [...rows.values()];
    const failed = all.filter((upload) => upload.failed).length;
    const left = all.length - failed;
    if (!all.length) done = bytes = busy = 0;
    queue.hidden = all.length < 2 && done === 0;
    queue.querySelector(".count").textContent =
      `${done} of ${done + all.length} photos uploaded`
      + (busy && left ? `, ${size((1000 * bytes) / busy)} per second` : "")
      + (failed ? `, ${failed} failed` : "");
    queue.querySelector("progress").value = done / Math.max(1, done + left);
    queue.querySelector("progress").hidden = left === 0;
    queue.querySelector(".cancel-all").hidden = left === 0;
    queue.querySelector(".retry-failed").hidden = !all.some((upload) => upload.failed && !upload.final);
  }

  queue.querySelector(".cancel-all").addEventListener("click", () => {
    for (const upload of [...rows.values()]) if (!upload.failed) cancel(upload);
  });
  queue.querySelector(".retry-failed").addEventListener("click", () => {
    for (const upload of rows.values()) if (upload.failed && !upload.final) again(upload);
    work();
  });
  addEventListener("beforeunload", (event) => { if (current && !expired) event.preventDefault(); });

  async function work() {
    if (current) return;
    while (waiting.length) {
      current = waiting.shift();
      await one(current);
    }
    current = undefined;
  }

  async function one(upload) {
    const { file } = upload;
    if (file.size > Number(form.dataset.maxBytes)) {
      const text = `This file is ${size(file.size)}; the limit is ${size(form.dataset.maxBytes)}.`;
      show(upload, { text, failed: true, final: true });
      return;
    }
    while (!upload.canceled) {
      show(upload, { text: `${size(file.size)}, uploading` });
      const started = performance.now();
      try {
        const answer = await send(upload, (part) => {
          show(upload, { text: part < 1 ? `${Math.round(part * 100)} % of ${size(file.size)}` : "Processing…", progress: part });
        });
        if (upload.canceled) return;
        if (answer) setConnected(true);
        if (answer?.html) {
          done += 1;
          bytes += file.size;
          busy += performance.now() - started;
          arrive(answer);
          leave(upload);
          return;
        }
        if (answer?.wait) {
          show(upload, { text: `Upload limit reached; continuing in ${answer.wait} s` });
          await pause(answer.wait * 1000);
          continue;
        }
      } catch (error) {
        setConnected(true);
        show(upload, { text: error.message, failed: true, final: error.final });
        return;
      }
      setConnected(false);
      show(upload, { text: "Connection lost, trying again…" });
      await pause(TRY_AGAIN_MS);
    }
  }

  function arrive({ id, html, url }) {
    const known = document.getElementById(id);
    htmx.swap(known ?? results, html, { swapStyle: known ? "outerHTML" : "beforeend" });
    history.replaceState(null, "", url); // so that reloading the page, or coming back to it, shows the captions
  }

  function take(files) {
    const styles = [...form.querySelectorAll("[name=styles]:checked")].map((box) => box.value);
    const photos = [...files];
    if (photos.length && !styles.length) {
      say("Pick at least one style first.");
      return;
    }
    for (const file of photos) add(file, styles);
    work();
  }

  for (const input of form.querySelectorAll("input[type=file]")) {
    input.addEventListener("change", () => {
      take(input.files);
      input.value = "";
    });
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); });

  const drop = document.getElementById("drop");
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => { if (event.clipboardData?.files.length) take(event.clipboardData.files); });

  // "All" and the single styles say the same thing.
  const all = form.querySelector("[value=all]");
  const each = [...form.querySelectorAll("[name=styles]:not([value=all])")];
  form.addEventListener("change", (event) => {
    if (!all || event.target.name !== "styles") return;
    if (event.target === all) for (const box of each) box.checked = all.checked || box === each[0];
    else all.checked = each.every((box) => box.checked);
  });
}

if (form) startUploads();
