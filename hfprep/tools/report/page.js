"use strict";
window.hfprep = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const panel = document.getElementById("row");

  // Charts use the page's colours.
  function paint() {
    const style = getComputedStyle(root);
    const [ground, ink, soft, line] = ["--ground", "--ink", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
    for (const document of Bokeh.documents) {
      for (const chart of document.roots().filter((model) => model.type === "Figure")) {
        chart.background_fill_color = ground;
        chart.border_fill_color = ground;
        chart.outline_line_color = line;
        chart.title.text_color = ink;
        for (const axis of [...chart.below, ...chart.left].filter((model) => model.type.endsWith("Axis"))) {
          axis.axis_label_text_color = soft;
          axis.major_label_text_color = soft;
          if (axis.group_text_color !== undefined) axis.group_text_color = soft;
          for (const part of ["axis_line_color", "major_tick_line_color", "minor_tick_line_color"]) axis[part] = line;
        }
        for (const legend of chart.above.filter((model) => model.type === "Legend")) {
          legend.label_text_color = soft;
          legend.background_fill_color = ground;
          legend.border_line_color = null;
        }
        for (const grid of chart.center.filter((model) => model.type === "Grid")) grid.grid_line_color = line;
      }
    }
  }

  function theme(name) {
    root.dataset.theme = name;
    paint();
  }

  function cell(tag, text) {
    const element = document.createElement(tag);
    element.textContent = text === null || text === undefined ? "" : String(text);
    return element;
  }

  function open(title, rows, audio) {
    const close = cell("button", "close");
    close.onclick = () => { panel.hidden = true; };
    const table = document.createElement("table");
    for (const values of rows) {
      const line = table.insertRow();
      line.append(...values.map((value) => cell("td", value)));
    }
    panel.replaceChildren(close, cell("b", title));
    if (audio) {
      const player = document.createElement("audio");
      player.controls = true;
      player.src = audio;
      player.style.display = "block";
      panel.append(player);
    }
    panel.append(table);
    panel.hidden = false;
  }

  function show(kind, index) {
    const row = data[kind][index];
    if (!row) return;
    const shown = Object.entries(row).filter(([name]) => name !== "audio");
    open(row.id, shown, row.audio);
  }

  function rejected(reason) {
    const rows = data.rejected.filter((row) => row.reason === reason);
    open(reason, rows.map((row) => [`line ${row.line}`, row.id, row.message]));
  }

  const wanted = window.matchMedia("(prefers-color-scheme: dark)");
  const preferred = () => (wanted.matches ? "dark" : "light");
  root.dataset.theme = preferred();
  wanted.addEventListener("change", () => theme(preferred()));
  let before = null;
  window.addEventListener("beforeprint", () => { before = root.dataset.theme; theme("light"); });
  window.addEventListener("afterprint", () => theme(before));
  document.getElementById("theme").onclick = () => theme(root.dataset.theme === "dark" ? "light" : "dark");
  document.querySelectorAll("tr[data-rejected]").forEach((line) => {
    line.onclick = () => show("rejected", Number(line.dataset.rejected));
  });
  document.querySelectorAll("tr[data-sample]").forEach((line) => {
    line.onclick = () => show("samples", Number(line.dataset.sample));
  });
  const drawn = setInterval(() => {
    if (Bokeh.documents.length && Bokeh.documents[0].is_idle) { clearInterval(drawn); paint(); root.dataset.drawn = "yes"; }
  }, 50);
  return { show, rejected, theme };
})();
