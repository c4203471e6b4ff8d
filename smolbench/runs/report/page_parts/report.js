"use strict";
// Sorting, filtering, and the plots of quality over costs and, of a sweep, over settings. All text
// goes in as text, never as HTML.
(() => {
  const plots = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const kinds = ["published", "unranked"].filter(byId); // a sweep has runs only

  // -- tables: sort by a column, filter by words and kind ----------------------------------------

  function sortable(table) {
    const body = table.tBodies[0];
    const given = [...body.rows];
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      const isText = heading.classList.contains("text");
      button.addEventListener("click", () => {
        const before = heading.getAttribute("aria-sort");
        const first = isText || heading.textContent === "rank" ? "ascending" : "descending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = before === first ? other : first;
        for (const cell of heading.parentNode.cells) cell.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const key = (row) => {
          const cell = row.cells[column];
          if (isText) return cell.textContent || null;
          return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
        };
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === null || y === null) return (x === null) - (y === null); // unknown goes last
          return sign * (isText ? x.localeCompare(y) : x - y);
        };
        body.append(...[...given].sort(compare));
      });
    });
  }

  function filter() {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    let all = 0;
    for (const row of document.querySelectorAll(".board > .scroll tr[id]")) {
      const text = row.textContent.toLowerCase();
      let fits = words.every((word) => text.includes(word));
      for (const kind of kinds) fits &&= byId(kind).checked || !row.classList.contains(kind);
      row.hidden = !fits;
      shown += fits;
      all += 1;
    }
    byId("count").textContent = `${shown} of ${all} rows`;
    for (const draw of drawings) draw();
  }

  // -- plots -------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";
  function element(name, attributes, parent) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  }

  /** Round steps between two numbers. */
  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) found.push(k * step);
    return { values: found, digits: Math.max(0, -Math.floor(Math.log10(step))) };
  }

  function short(value) {
    const units = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
    for (const [size, unit] of units) if (value >= size) return `${+(value / size).toPrecision(3)}${unit}`;
    return `${+value.toPrecision(3)}`;
  }

  /** A scale for costs: logarithmic where they span more than a factor of ten; 0 stands apart. */
  function scale(values, left, right) {
    const positive = values.filter((v) => v > 0);
    const [low, high] = [Math.min(...positive), Math.max(...positive)];
    if (!positive.length) return { place: () => (left + right) / 2, marks: [0] };
    if (high / low > 10) {
      const zero = values.some((v) => v === 0);
      const start = zero ? left + 40 : left;
      const [a, b] = [Math.log10(low) - 0.1, Math.log10(high) + 0.1];
      const place = (v) => (v > 0 ? start + ((Math.log10(v) - a) / (b - a)) * (right - start) : left);
      const marks = zero ? [0] : [];
      for (let k = Math.ceil(a); k <= b; k++) marks.push(10 ** k);
      return { place, marks: marks.length > (zero ? 2 : 1) ? marks : [...marks, low, high] };
    }
    const [a, b] = [values.some((v) => v === 0) ? 0 : low * 0.9, high * 1.05];
    const place = (v) => left + ((v - a) / (b - a)) * (right - left);
    return { place, marks: ticks(a, b, 5).values };
  }

  /** Rows that no other row beats in both cost and quality. */
  function paretoFront(rows, cost) {
    const price = (row) => (cost.more ? -1 : 1) * row.costs[cost.key].value;
    const front = [];
    let best = -Infinity;
    for (const row of [...rows].sort((a, b) => price(a) - price(b) || b.worth - a.worth)) {
      if (row.worth > best) front.push(row);
      best = Math.max(best, row.worth);
    }
    return front;
  }

  function plot(figure) {
    const board = plots[figure.dataset.board];
    const runs = board.rows.filter((row) => row.kind !== "published" && row.value !== null);
    if (runs.length < 2 || !board.costs.length) return null; // nothing to weigh
    const methods = [...new Set(runs.map((row) => row.method))].sort();
    const colour = (row) => `var(--c${methods.indexOf(row.method) % 8})`;
    const [svg, select] = [figure.querySelector("svg"), figure.querySelector("select")];
    const said = figure.querySelector(".said");
    for (const cost of board.costs) select.add(new Option(cost.label, cost.key));
    for (const method of methods) {
      const entry = document.createElement("span");
      const dot = document.createElement("i");
      dot.style.background = `var(--c${methods.indexOf(method) % 8})`;
      entry.append(dot, method);
      figure.querySelector(".legend").append(entry);
    }
    const explained = document.createElement("span");
    explained.textContent = kinds.length
      ? "hollow: without a rank · ◆ at the right: published · dashes: Pareto front"
      : "dashes: over a cost the Pareto front, over a setting trials that share all others";
    figure.querySelector(".legend").append(explained);
    figure.hidden = false;

    function draw() {
      const width = Math.max(300, figure.clientWidth);
      const height = width < 500 ? 300 : 380;
      const [left, right, top, bottom] = [58, width - 24, 12, height - 44];
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.replaceChildren();
      const cost = board.costs.find((c) => c.key === select.value);
      const visible = (row) => !byId(row.id).hidden;
      const known = runs.filter((row) => row.costs[cost.key] && visible(row));
      if (!known.length) {
        said.textContent = "No run with this cost is shown.";
        return;
      }
      const ends = known.flatMap((r) => [r.value - (r.spread ?? 0), r.value + (r.spread ?? 0)]);
      let [low, high] = [Math.min(...ends), Math.max(...ends)];
      const pad = Math.max((high - low) * 0.08, 0.005);
      [low, high] = [low - pad, high + pad];
      const y = (v) => bottom - ((v - low) / (high - low)) * (bottom - top);
      const x = scale(known.map((row) => row.costs[cost.key].value), left + 14, right - 14);
      const steps = ticks(low, high, 5);
      for (const v of steps.values) {
        element("line", { class: "grid", x1: left, x2: right, y1: y(v), y2: y(v) }, svg);
        const text = element("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, svg);
        text.textContent = v.toFixed(steps.digits);
      }
      for (const v of x.marks) {
        element("line", { class: "grid", x1: x.place(v), x2: x.place(v), y1: top, y2: bottom }, svg);
        const text = element("text", { x: x.place(v), y: bottom + 16, "text-anchor": "middle" }, svg);
        text.textContent = short(v);
      }
      const label = element("text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, svg);
      label.textContent = cost.label + (cost.more ? " (more is better)" : "");
      const name = element("text", { x: 14, y: (top + bottom) / 2, "text-anchor": "middle" }, svg);
      name.setAttribute("transform", `rotate(-90 14 ${(top + bottom) / 2})`);
      name.textContent = board.metric + (board.falls ? " (less is better)" : "");

      const ranked = known.filter((row) => row.kind === "run");
      const front = cost.setting ? [] : paretoFront(ranked, cost);
      const at = (row) => [x.place(row.costs[cost.key].value), y(row.value)];
      let path = "";
      front.forEach((row, i) => {
        const [px, py] = at(row);
        path += i ? `H${px}V${py}` : `M${px} ${py}`;
      });
      if (front.length > 1) element("path", { class: "front", d: path }, svg);
      for (const series of cost.setting ? new Set(ranked.map((row) => row.lines[cost.key])) : []) {
        const along = ranked.filter((row) => row.lines[cost.key] === series);
        along.sort((a, b) => a.costs[cost.key].value - b.costs[cost.key].value);
        const points = along.map((row) => at(row).join(" ")).join("L");
        if (along.length > 1) element("path", { class: "front", d: `M${points}` }, svg);
      }
      said.textContent = front.length ? `Pareto front: ${front.map((row) => row.name).join(", ")}` : "";

      for (const row of board.rows.filter((r) => r.kind === "published" && visible(r))) {
        if (row.value < low || row.value > high) continue;
        const d = `M${right} ${y(row.value) - 6}l6 6l-6 6l-6 -6z`;
        point(row, `${row.name}: ${row.said}; ${row.notes}`, (group) => {
          element("path", { class: "dot", d, fill: "var(--faint)" }, group);
        });
      }
      for (const row of known) {
        const [px, py] = at(row);
        const costs = `${cost.label} ${row.costs[cost.key].said}`;
        const text = [`${row.name}: ${row.said}`, row.method, costs, row.notes].filter(Boolean).join("; ");
        point(row, text, (group) => {
          if (row.spread) {
            const [y1, y2] = [y(row.value - row.spread), y(row.value + row.spread)];
            element("line", { x1: px, x2: px, y1, y2, stroke: colour(row) }, group);
          }
          element("circle", { class: "halo", cx: px, cy: py, r: 14 }, group);
          const fill = row.kind === "run" ? colour(row) : "var(--paper)";
          const shape = { class: "dot", cx: px, cy: py, r: 6, fill, stroke: colour(row) };
          element("circle", { ...shape, "stroke-width": 2 }, group);
        });
      }
    }

    function point(row, text, shape) {
      const group = element("g", { class: "point", tabindex: 0, role: "button", "aria-label": text }, svg);
      group.dataset.row = row.id;
      shape(group);
      const say = () => { said.textContent = text; };
      const choose = () => {
        say();
        for (const other of document.querySelectorAll("tr.chosen")) other.classList.remove("chosen");
        byId(row.id).classList.add("chosen");
      };
      group.addEventListener("pointerenter", say);
      group.addEventListener("focus", say);
      group.addEventListener("click", choose);
      group.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          choose();
        }
      });
    }

    select.addEventListener("change", draw);
    return draw;
  }

  document.querySelectorAll("table").forEach(sortable);
  const drawings = [...document.querySelectorAll(".plot")].map(plot).filter(Boolean);
  byId("controls").hidden = false;
  byId("filter").addEventListener("input", filter);
  for (const kind of kinds) byId(kind).addEventListener("change", filter);
  const openNamed = () => {
    const named = byId(location.hash.slice(1));
    if (named instanceof HTMLDetailsElement) named.open = true;
  };
  window.addEventListener("hashchange", openNamed);
  openNamed();
  let waiting = 0;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => drawings.forEach((draw) => draw()));
  });
  filter();
})();
