// The API's page: sends the calls that a reader tries, with their token or as whoever is signed in.
"use strict";

// A link to an object or a call opens it.
function open() {
  const aim = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (aim?.matches("details")) aim.open = true;
  aim?.scrollIntoView();
}
addEventListener("hashchange", open);
open();

function requestOf(form) {
  const { method, path } = form.dataset;
  const query = new URLSearchParams();
  const headers = new Headers({ Accept: "application/json, */*" });
  const token = document.getElementById("token").value.trim();
  if (token) headers.set("Authorization", `Token ${token}`);
  else headers.set("X-CSRFToken", JSON.parse(document.body.getAttribute("hx-headers"))["X-CSRFToken"]);
  let address = path;
  const parts = new FormData();
  for (const input of form.querySelectorAll("[data-in]")) {
    const { name, value } = input;
    const place = input.dataset.in;
    if (input.files) for (const file of input.files) parts.append(name, file);
    else if (value === "") continue;
    else if (place === "path") address = address.replace(`{${name}}`, encodeURIComponent(value));
    else if (place === "query") query.append(name, value);
    else if (place === "header") headers.set(name, value);
    else parts.append(name, value);
  }
  let body;
  if ("json" in form.dataset) {
    body = form.elements.json.value;
    headers.set("Content-Type", "application/json");
  } else if (form.querySelector("[data-in=body]")) body = parts;
  const options = { method, headers, body, credentials: token ? "omit" : "same-origin" };
  return [query.size ? `${address}?${query}` : address, options];
}

async function show(response, place) {
  const kind = response.headers.get("Content-Type") ?? "";
  const head = document.createElement("p");
  const status = document.createElement("strong");
  status.textContent = `${response.status} ${response.statusText}`;
  head.append(status);
  const shown = document.createElement(kind.startsWith("image/") ? "img" : "pre");
  if (kind.startsWith("image/")) {
    shown.src = URL.createObjectURL(await response.blob());
    shown.alt = "The picture";
  } else {
    const text = await response.text();
    shown.tabIndex = 0;
    shown.textContent = kind.includes("json") ? JSON.stringify(JSON.parse(text), null, 2) : text;
  }
  place.replaceChildren(head, ...(shown.textContent || shown.src ? [shown] : []));
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches(".try")) return;
  event.preventDefault();
  const place = form.querySelector(".answer");
  place.hidden = false;
  place.textContent = "Waiting for the answer…";
  try {
    await show(await fetch(...requestOf(form)), place);
  } catch (error) {
    place.textContent = `No answer came (${error.message}); check the connection, and the names and values above.`;
  }
});
