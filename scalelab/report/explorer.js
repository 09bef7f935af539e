// The compute slider: explore(root, data) draws the answers of scalelab.report.explorer and moves
// between them. It asks nothing of a server. Text is set as textContent, never as HTML.
function explore(root, data) {
  const NS = "http://www.w3.org/2000/svg", HEIGHT = 280;
  const steps = data.steps, colours = data.colours;
  for (const [name, value] of Object.entries(colours)) root.style.setProperty("--" + name, value);
  root.replaceChildren();

  const add = (parent, tag, text, attributes = {}) => {
    const node = document.createElement(tag);
    if (text) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    parent.append(node);
    return node;
  };
  const shape = (parent, tag, attributes, text) => {
    const node = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text) node.textContent = text;
    parent.append(node);
    return node;
  };
  const digits = (x, n) => String(Number(x.toPrecision(n)));
  const size = x => {
    if (x === null) return "not known";
    for (const [sign, scale] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["K", 1e3]])
      if (Number(x.toPrecision(3)) >= scale && x < 1e16) return digits(x / scale, 3) + sign;
    return x >= 1e16 ? power(x) : digits(x, 3);
  };
  const power = x => {
    const [mantissa, exponent] = x.toExponential(2).split("e");
    return Number(mantissa) + "e" + Number(exponent);
  };
  const fixed = x => (x === null ? "not known" : x.toFixed(4));
  const span = (low, high, form) =>
    low === null || high === null ? "no interval" : form(low) + " to " + form(high);

  // What stays in place
  const bar = add(root, "div", "", { class: "slide" });
  const id = "compute-" + Math.random().toString(36).slice(2);
  add(bar, "label", "Compute C, FLOP", { for: id });
  const slider = add(bar, "input", "", {
    type: "range", id, min: 0, max: steps.length - 1, step: 1, value: data.start,
  });
  const shown = add(bar, "output", "", { for: id });
  const says = add(root, "p", "", { class: "says", "aria-live": "polite" });
  const basis = add(root, "p", "", { class: "faint" });
  const verdict = add(add(root, "p", "Verdict: ", { class: "faint" }), "span", "");
  const told = add(root, "details");
  const count = add(told, "summary");
  const list = add(told, "ul");
  const cards = add(root, "dl");
  const numbers = ["parameters N", "training tokens D", data.titles.loss].map(name => {
    const card = add(cards, "div");
    add(card, "dt", name);
    const cell = add(card, "dd");
    return [add(cell, "b"), add(cell, "span")];
  });
  const panels = add(root, "div", "", { class: "panels" });
  add(root, "p",
    "Star: the answer. Bars and outer band: " + data.level + " interval of a new run. Inner band " +
    "and the bars of N and D: " + data.level + " interval of the law. Grey: compute of the runs. " +
    "Dots: the runs.", { class: "faint" });
  const command = add(root, "pre", "", { tabindex: 0, title: "one click selects all" });

  // Axes
  const log = Math.log10;
  const finite = values => values.filter(x => x !== null && Number.isFinite(x));
  const range = (values, margin) => {
    let low = Infinity, high = -Infinity;
    for (const x of finite(values)) { if (x < low) low = x; if (x > high) high = x; }
    const extra = Math.max(margin * (high - low), 1e-6);
    return [low - extra, high + extra];
  };
  const decades = (low, high, room) => {
    const first = Math.ceil(low), last = Math.floor(high), out = [];
    const every = Math.max(1, Math.ceil((last - first + 1) / Math.max(2, room)));
    for (let at = first; at <= last; at += every) out.push(at);
    return out;
  };
  const even = (low, high) => {
    const rough = (high - low) / 5, unit = 10 ** Math.floor(log(rough));
    const step = [1, 2, 5, 10].map(x => x * unit).find(x => x >= rough), out = [];
    for (let at = Math.ceil(low / step) * step; at <= high; at += step) out.push(at);
    return [out, Math.max(0, -Math.floor(log(step)))];
  };

  class Panel {
    constructor(title, alt, x, y, xTitle, ySizes) {
      this.figure = add(panels, "figure");
      add(this.figure, "figcaption", title);
      Object.assign(this, { alt, x, y, xTitle, ySizes });
    }
    // Draw axes for the width there is; what moves is drawn over them
    frame() {
      this.svg?.remove();
      const width = Math.max(240, this.figure.clientWidth || 380);
      this.box = { left: 46, right: width - 10, top: 8, bottom: HEIGHT - 40 };
      const svg = this.svg = shape(this.figure, "svg", {
        viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": this.alt,
      });
      const { left, right, top, bottom } = this.box;
      const clip = id + this.alt.length;
      const area = shape(shape(svg, "defs", {}), "clipPath", { id: clip });
      shape(area, "rect", { x: left, y: top, width: right - left, height: bottom - top });
      const line = (x1, y1, x2, y2, stroke) => shape(svg, "line", { x1, y1, x2, y2, stroke });
      for (const at of decades(...this.x, (right - left) / 58)) {
        line(this.atX(at), top, this.atX(at), bottom, colours.grid);
        const words = this.xTitle === data.titles.params ? size(10 ** at) : "1e" + at;
        shape(svg, "text", { x: this.atX(at), y: bottom + 15, "text-anchor": "middle" }, words);
      }
      const [ticks, places] = this.ySizes ? [decades(...this.y, 7), 0] : even(...this.y);
      for (const at of ticks) {
        line(left, this.atY(at), right, this.atY(at), colours.grid);
        const words = this.ySizes ? size(10 ** at) : at.toFixed(places);
        shape(svg, "text", { x: left - 6, y: this.atY(at) + 4, "text-anchor": "end" }, words);
      }
      shape(svg, "text", { x: (left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" },
        this.xTitle);
      this.inside = shape(svg, "g", { "clip-path": `url(#${clip})` });
    }
    atX(value) {
      const { left, right } = this.box;
      return left + (right - left) * (value - this.x[0]) / (this.x[1] - this.x[0]);
    }
    atY(value) {
      const { top, bottom } = this.box;
      return bottom - (bottom - top) * (value - this.y[0]) / (this.y[1] - this.y[0]);
    }
    path(points) {
      const good = points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
      return good.map(([x, y], i) =>
        (i ? "L" : "M") + this.atX(x).toFixed(1) + " " + this.atY(y).toFixed(1)).join("");
    }
    curve(points, stroke, width = 2) {
      return shape(this.inside, "path",
        { d: this.path(points), fill: "none", stroke, "stroke-width": width });
    }
    band(low, high, fill, opacity) {
      const d = this.path([...low, ...high.reverse()]);
      if (d) shape(this.inside, "path", { d: d + "Z", fill, opacity });
    }
    dots(points, fill) {
      for (const [x, y] of points)
        shape(this.inside, "circle",
          { cx: this.atX(x).toFixed(1), cy: this.atY(y).toFixed(1), r: 2, fill, opacity: 0.5 });
    }
    // A star with a bar, which move together
    star(fill) {
      const bar = shape(this.inside, "path", { stroke: colours.ink, "stroke-width": 2 });
      const star = shape(this.inside, "path", { d: STAR, fill, class: "star" });
      return (x, y, low, high) => {
        star.setAttribute("transform", `translate(${this.atX(x)} ${this.atY(y)})`);
        const known = Number.isFinite(low) && Number.isFinite(high);
        bar.setAttribute("d", known ? this.path([[x, low], [x, high]]) : "");
      };
    }
  }
  const STAR = Array.from({ length: 10 }, (_, i) => {
    const r = i % 2 ? 3.6 : 9, angle = Math.PI * (i / 5 - 0.5);
    return (i ? "L" : "M") + (r * Math.cos(angle)).toFixed(2) + " " + (r * Math.sin(angle)).toFixed(2);
  }).join("") + "Z";

  const compute = steps.map(s => log(s.c)), lg = x => (x === null ? NaN : log(x));
  const real = x => (x === null ? NaN : x);
  const losses = [...steps.flatMap(s => [s.loss[3] ?? s.loss[0], s.loss[4] ?? s.loss[0]])];
  const seen = data.runs.map(run => run[3]).sort((a, b) => a - b);
  losses.push(seen[0], seen[Math.floor(0.97 * (seen.length - 1))]);
  const rangeC = range(compute, 0.03), rangeLoss = range(losses, 0.04);
  const wide = range([...steps.map(s => log(s.n[0])), ...data.runs.map(run => log(run[1]))], 0.06);
  const sizes = range(steps.flatMap(s => [...s.n, ...s.d].map(lg)).filter(Number.isFinite), 0.12);
  const hasValleys = steps.every(s => s.valley);
  const byCompute = new Panel("Loss at the optimum",
    "Loss on the compute-optimal frontier against compute, with both intervals; a star marks the " +
    "chosen compute.", rangeC, rangeLoss, data.titles.flops, false);
  const bySize = hasValleys && new Panel("Loss of other sizes at this compute",
    "Loss against parameters at the chosen compute: a valley whose minimum the star marks.",
    wide, rangeLoss, data.titles.params, false);
  const bySplit = new Panel("Compute-optimal N and D",
    "Compute-optimal parameters and tokens against compute, with intervals.",
    rangeC, sizes, data.titles.flops, true);
  let move = () => {};

  function drawAll() {
    for (const panel of [byCompute, bySize, bySplit]) panel && panel.frame();
    const grey = { fill: colours.faint, opacity: 0.13 };
    for (const panel of [byCompute, bySplit]) {
      const [from, to] = data.fitted.map(x => panel.atX(log(x)));
      const { top, bottom } = panel.box;
      shape(panel.inside, "rect",
        { x: from, y: top, width: Math.max(1, to - from), height: bottom - top, ...grey });
    }
    const along = i => steps.map((s, k) => [compute[k], real(s.loss[i])]);
    byCompute.band(along(3), along(4), colours.second, 0.16);
    byCompute.band(along(1), along(2), colours.accent, 0.3);
    byCompute.dots(data.runs.map(run => [log(run[0]), run[3]]), colours.faint);
    byCompute.curve(along(0), colours.accent);
    let valley = null;
    if (bySize) {
      bySize.dots(data.runs.map(run => [log(run[1]), run[3]]), colours.faint);
      bySize.curve(steps.map(s => [log(s.n[0]), s.loss[0]]), colours.accent, 1)
        .setAttribute("stroke-dasharray", "4 4");
      valley = bySize.curve([], colours.second, 2.4);
      valley.setAttribute("class", "valley");
    }
    const lines = [["n", "N", colours.accent], ["d", "D", colours.second]];
    for (const [key, letter, colour] of lines) {
      const at = i => steps.map((s, k) => [compute[k], lg(s[key][i])]);
      bySplit.band(at(1), at(2), colour, 0.2);
      bySplit.curve(at(0), colour);
      const last = steps[steps.length - 1], below = last[key][0] < last[key === "n" ? "d" : "n"][0];
      shape(bySplit.svg, "text", {
        x: bySplit.box.right - 12, y: bySplit.atY(log(last[key][0])) + (below ? 24 : -14),
        "text-anchor": "end", style: `fill:${colour};font-weight:600`,
      }, letter);
    }
    const stars = [byCompute.star(colours.accent), bySize && bySize.star(colours.accent),
      bySplit.star(colours.accent), bySplit.star(colours.second)];
    move = step => {
      const at = log(step.c), loss = step.loss.map(real);
      stars[0](at, loss[0], loss[3], loss[4]);
      if (valley) {
        valley.setAttribute("d",
          bySize.path(step.valley[0].map((n, i) => [log(n), real(step.valley[1][i])])));
        stars[1](log(step.n[0]), loss[0], NaN, NaN);
      }
      stars[2](at, ...step.n.map(lg));
      stars[3](at, ...step.d.map(lg));
    };
  }

  function show() {
    const step = steps[Number(slider.value)];
    slider.setAttribute("aria-valuetext", power(step.c) + " FLOP");
    shown.textContent = power(step.c) + " FLOP";
    says.textContent = step.says;
    basis.textContent = step.basis;
    verdict.textContent = step.verdict;
    verdict.className = "badge " + step.verdict.replaceAll(" ", "-");
    told.hidden = !step.warnings.length;
    count.textContent = `What the warnings say (${step.warnings.length})`;
    list.replaceChildren();
    for (const i of step.warnings) add(list, "li", data.words[i]);
    const [n, d, loss] = numbers;
    [n, d].forEach(([value, limits], i) => {
      const [best, low, high] = i ? step.d : step.n;
      value.textContent = size(best);
      limits.textContent = `${span(low, high, size)} (${data.level}, law)`;
    });
    loss[0].textContent = fixed(step.loss[0]);
    loss[1].textContent = `new run ${span(step.loss[3], step.loss[4], fixed)} (${data.level})`;
    command.textContent = `${data.command} --predict ${step.asked}`;
    move(step);
  }

  slider.addEventListener("input", show);
  let width = -1;
  const resized = new ResizeObserver(() => {
    if (Math.abs(panels.clientWidth - width) < 2) return;
    width = panels.clientWidth;
    drawAll();
    show();
  });
  resized.observe(panels);
  drawAll();
  show();
  return () => resized.disconnect();
}
