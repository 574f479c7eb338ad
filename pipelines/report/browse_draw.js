"use strict";
// What the data files call. A name is only ever text or the value of an attribute, never markup and never a path.
const boxmill = { about: null, shards: new Map(), start: null };
function boxmillIndex(about) { boxmill.about = about; boxmill.start(); }
function boxmillShard(number, images) { boxmill.shards.get(number).resolve(images); }

boxmill.load = (number) => {
  let shard = boxmill.shards.get(number);
  if (!shard) {
    shard = {};
    shard.images = new Promise((resolve, reject) => { shard.resolve = resolve; shard.reject = reject; });
    boxmill.shards.set(number, shard);
    const script = document.createElement("script");
    script.src = `data/${number}.js`;
    script.onerror = () => shard.reject(new Error(`data/${number}.js is missing`));
    document.head.append(script);
  }
  return shard.images;
};

boxmill.node = (name, attributes = {}, text = null) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
};

// Which of an image's objects the filters let through: places in its lists.
boxmill.objects = (at, view) => {
  const { c, s } = boxmill.about.images;
  const kept = [];
  c[at].forEach((label, k) => {
    const score = s[at].length ? s[at][k] : 1;
    if ((view.label < 0 || label === view.label) && score >= view.low && score <= view.high) kept.push(k);
  });
  return kept;
};

// Truth that no shown prediction found. A crowd has met 2, and is never missed.
boxmill.missed = (at, view) => {
  const { t, m } = boxmill.about.images;
  const kept = [];
  t[at].forEach((label, k) => {
    if ((view.label < 0 || label === view.label) && m[at][k] < Math.max(view.low, 0)) kept.push(k);
  });
  return kept;
};

boxmill.state = (at, k) => boxmill.about.images.o[at][k] ?? "";

boxmill.picture = (at) => {
  const { thumb, id } = boxmill.about.images;
  // Of what could never be read nobody knows the size; without one nothing at all would be drawn.
  const w = boxmill.about.images.w[at] || 4, h = boxmill.about.images.h[at] || 3;
  const svg = boxmill.node("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": id[at] });
  const size = Math.max(w, h);
  if (thumb[at]) {
    svg.append(boxmill.node("image", { href: `thumbs/${at}.jpg`, width: w, height: h, preserveAspectRatio: "none" }));
  } else {
    const text = { x: w / 2, y: h / 2, class: "broken", "text-anchor": "middle", "font-size": size * 0.05 };
    svg.append(boxmill.node("text", text, "cannot be read"));
  }
  return svg;
};

// Draws what the filters let through on a picture; what was drawn before goes. Letters are as tall on every screen, and
// only objects of some size get any.
boxmill.draw = (svg, at, marks, view, { letters, least }) => {
  svg.querySelector("g.marks")?.remove();
  const all = boxmill.node("g", { class: "marks" });
  const { classes, images } = boxmill.about;
  const { w, h, c, s, t } = images;
  const size = Math.max(w[at], h[at]);
  const box = svg.getBoundingClientRect();
  const scale = Math.min(box.width / w[at], box.height / h[at]) || 1;
  const tall = letters / scale;
  const add = (shape, label, state, words, k) => {
    const mark = boxmill.node("g", { class: `mark ${state || `k${label % 10}`}`, "data-object": k });
    const tip = boxmill.node("title", {}, words);
    mark.append(tip);
    if (view.masks && shape.p) mark.append(boxmill.node("path", { class: "mask", d: shape.p }));
    const [x, y, width, height] = shape.b;
    if (view.boxes) mark.append(boxmill.node("rect", { x, y, width, height, rx: size / 250 }));
    if (view.skeletons && shape.k) {
      const [joints, bones] = shape.k;
      for (const [x1, y1, x2, y2] of bones) mark.append(boxmill.node("line", { class: "bone", x1, y1, x2, y2 }));
      for (const [cx, cy, hidden] of joints) {
        mark.append(boxmill.node("circle", { class: hidden ? "joint hidden-joint" : "joint", cx, cy, r: size / 130 }));
      }
    }
    if (view.names && Math.max(width, height) * scale > least) {
      const place = { class: "tag", x: Math.max(x, 0) + tall * 0.25, y: Math.max(y, 0) + tall };
      mark.append(boxmill.node("text", { ...place, "font-size": tall, "stroke-width": tall * 0.2 }, words));
    }
    all.append(mark);
  };
  const told = (label, k) => classes[label] + (s[at].length ? ` ${s[at][k].toFixed(2)}` : "");
  const missed = new Set(boxmill.missed(at, view));
  (marks.t ?? []).forEach((shape, k) => {
    const label = t[at][k];
    if (missed.has(k)) add(shape, label, "missed", `${classes[label]}, missed`, `t${k}`);
    else if (view.truth && (view.label < 0 || label === view.label)) add(shape, label, "truth", `${classes[label]}, truth`, `t${k}`);
  });
  for (const k of boxmill.objects(at, view)) add(marks.o[k], c[at][k], boxmill.state(at, k), told(c[at][k], k), `o${k}`);
  svg.append(all);
};
