// Numbers and dates as the reader's browser writes them: the server knows neither their language nor their time zone.
"use strict";

function localise(place) {
  const all = (selector) => [...(place.matches(selector) ? [place] : []), ...place.querySelectorAll(selector)];
  for (const data of all("data[value]")) {
    const digits = data.value.split(".")[1]?.length ?? 0;
    const form = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    data.textContent = Number(data.value).toLocaleString(navigator.language, form);
  }
  for (const time of all("time[datetime]")) {
    time.title = new Date(time.dateTime).toLocaleString(navigator.language, { dateStyle: "long", timeStyle: "medium" });
  }
}

document.addEventListener("htmx:load", ({ target }) => { localise(target); }); // the page, and what comes into it
