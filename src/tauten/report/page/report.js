"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);

  // A string such as "--accent" is the name of a CSS variable; the plots take the page's colours from there.
  const paint = (value, style) => {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((item) => paint(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item, style)]));
  };

  const axis = (own) => ({
    gridcolor: "--grid", linecolor: "--line", zeroline: false, automargin: true, ...own,
    title: { ...own.title, font: { size: 12.5, color: "--soft" }, standoff: 10 },
  });

  // A narrow screen has no room for every tick.
  const sparse = (own) => {
    if (root.clientWidth >= 704 || !(own.tickvals?.length > 4)) return own;
    const some = (all) => all?.filter((_, at) => at % 2 === 0);
    return { ...own, tickvals: some(own.tickvals), ...(own.ticktext && { ticktext: some(own.ticktext) }) };
  };

  const layout = (own) => ({
    ...own,
    xaxis: axis(sparse(own.xaxis)), yaxis: axis(own.yaxis),
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "--soft" },
    margin: { l: 56, r: 18, t: 12, b: 48 },
    showlegend: false,
    hoverlabel: { bgcolor: "--panel", bordercolor: "--line", font: { color: "--ink", size: 12.5 }, align: "left" },
    hovermode: "closest",
  });

  const draw = () => {
    if (!window.Plotly) return;
    const style = getComputedStyle(root);
    for (const figure of figures) {
      Plotly.react(`plot-${figure.id}`, paint(figure.data, style), paint(layout(figure.layout), style), {
        responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false, showTips: false,
      });
    }
  };

  // Heat maps: a hexadecimal digit a cell, from nothing (0) to all (f), mixed from the page's two colours.
  const rgb = (style, name) => style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
  const fill = () => {
    const style = getComputedStyle(root), off = rgb(style, "--cell-off"), on = rgb(style, "--cell-on");
    for (const canvas of document.querySelectorAll("canvas.cells")) {
      const rows = canvas.dataset.cells.split("/");
      canvas.parentElement.style.setProperty("--rows", rows.length);
      const context = canvas.getContext("2d", { willReadFrequently: true }), image = context.createImageData(rows[0].length, rows.length);
      rows.join("").split("").forEach((cell, at) => {
        const share = parseInt(cell, 16) / 15;
        for (let part = 0; part < 3; part++) image.data[4 * at + part] = off[part] + share * (on[part] - off[part]);
        image.data[4 * at + 3] = 255;
      });
      context.putImageData(image, 0, 0);
    }
  };
  const redraw = () => { draw(); fill(); };

  redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    root.setAttribute("data-print", "");
    document.querySelectorAll("details").forEach((it) => { it.open = true; });
    redraw();
  });
  addEventListener("afterprint", () => { root.removeAttribute("data-print"); redraw(); });

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    table.querySelectorAll("thead th").forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("[aria-sort]").forEach((it) => it.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        // What was not measured comes last, whichever way.
        const key = (row) => Number(row.cells[column].dataset.sort ?? (up ? Infinity : -Infinity));
        body.append(...[...body.rows].sort((a, b) => (up ? key(a) - key(b) : key(b) - key(a)) || 0));
      });
    });
  }
})();
